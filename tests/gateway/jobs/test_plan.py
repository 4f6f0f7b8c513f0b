"""What becomes of jobs whose backend died: decided from their records alone."""

from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from gateway.jobs.plan import Fate, decide
from gateway.jobs.record import Record, State, new

OLD, NEW = "old", "new"


def had(number: int, gpu: int = 0, *, runs: bool = False, **known: object) -> Record:
    """A job that the dead backend had."""
    record = new(f"job-{number}", number, 0.0, gpu=gpu, boot=OLD, booted=1.0, place=float(number), attempts=1)
    record = record.moved(State.RUNNING, 1.0) if runs else record
    return replace(record, **known)


def fates(*records: Record, pending_only: bool = False) -> dict[str, str]:
    return {each.record.id: each.fate.value for each in decide(records, NEW, pending_only=pending_only)}


def test_one_death_is_forgiven_and_the_order_kept():
    """What ran comes first, what waited behind it, and all of them run again."""
    decisions = decide([had(2), had(1, runs=True), had(3)], NEW, pending_only=False)
    assert [(each.record.id, each.fate, each.crashes) for each in decisions] == [
        ("job-1", Fate.AGAIN, 1), ("job-2", Fate.AGAIN, 0), ("job-3", Fate.AGAIN, 0),
    ]  # fmt: skip


def test_a_job_that_was_all_the_backend_had_is_condemned_at_the_second_death():
    """There is nothing else that could have done it."""
    assert fates(had(1, runs=True, crashes=1)) == {"job-1": "condemned"}


def test_with_others_beside_it_a_suspect_is_tried_alone_first():
    """Running at two deaths proves nothing while others were there."""
    found = fates(had(1, runs=True, crashes=1), had(2, gpu=1, runs=True), had(3))
    assert found == {"job-1": "tried", "job-2": "again", "job-3": "again"}


def test_a_suspect_that_was_alone_is_condemned_though_others_wait_at_the_gateway():
    """What had not been sent cannot have done it, and is not blamed."""
    waiting = had(2, boot="")
    found = decide([had(1, crashes=2, alone=True), waiting], NEW, pending_only=False)
    assert [(each.fate, each.crashes) for each in found] == [(Fate.CONDEMNED, 3), (Fate.AGAIN, 0)]


def test_a_job_that_nobody_saw_running_is_suspected_when_it_was_first_in_its_lane():
    """A job may start and kill between two looks."""
    found = decide([had(1), had(2), had(3, gpu=1, runs=True)], NEW, pending_only=False)
    assert {each.record.id: each.crashes for each in found} == {"job-1": 1, "job-2": 0, "job-3": 1}


def test_a_job_that_was_just_being_submitted_is_not_the_first_suspect():
    """What stood in the lane before it was there first."""
    found = decide([had(2, attempts=0, place=0.0), had(1)], NEW, pending_only=False)
    assert {each.record.id: each.crashes for each in found} == {"job-1": 1, "job-2": 0}


def test_pending_only_fails_what_had_started():
    """And nothing else."""
    found = fates(had(1, runs=True), had(2), pending_only=True)
    assert found == {"job-1": "started", "job-2": "again"}


def test_what_was_to_be_stopped_is_not_run_again():
    """Whatever else is true of it."""
    assert fates(had(1, runs=True, crashes=5, alone=True, cancel=True)) == {"job-1": "canceled"}


def test_a_gateways_own_restart_blames_nobody():
    """The same life of the backend that knows a job no more: no death has happened."""
    found = decide([had(1, boot=NEW, runs=True, crashes=1)], NEW, pending_only=False)
    assert [(each.fate, each.crashes) for each in found] == [(Fate.AGAIN, 1)]


RECORDS = st.lists(
    st.tuples(st.integers(0, 3), st.booleans(), st.integers(0, 3), st.booleans(), st.sampled_from([OLD, NEW, ""])),
    max_size=12,
).map(
    lambda rows: [
        had(number, gpu, runs=runs, crashes=crashes, alone=alone, boot=boot)
        for number, (gpu, runs, crashes, alone, boot) in enumerate(rows)
    ]
)


@given(RECORDS, st.booleans())
def test_nobody_is_forgotten_and_the_innocent_are_never_condemned(records: list[Record], pending_only: bool):
    """Each job has one fate; only one that the dead backend had, as good as alone, can be condemned."""
    found = decide(records, NEW, pending_only=pending_only)
    assert sorted(each.record.id for each in found) == sorted(each.id for each in records)
    dead = [each for each in records if each.boot == OLD]
    for each in found:
        assert each.record.crashes <= each.crashes <= each.record.crashes + 1
        if each.fate is Fate.CONDEMNED:
            assert each.record.boot == OLD
            assert each.record.alone or len(dead) == 1
            assert each.crashes >= 2
