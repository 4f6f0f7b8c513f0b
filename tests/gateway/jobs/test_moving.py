"""A backend is away and stays away: which of its jobs another one runs."""

from pathlib import Path

import pytest

from gateway.jobs.plan import movable
from gateway.jobs.record import Record, State, new
from tests.doubles.several import Several, several
from tests.doubles.wait import until


def waiting(job: str, seq: int, **known: object) -> Record:
    return new(job, seq, float(seq), **{"gpu": 0, "port": "front", "boot": "b", **known})


def test_only_what_waits_and_is_bound_to_no_gpu_may_move():
    """Not what ran, not what may have run, not what is wanted no more, not what was sent to a port."""
    ran = waiting("ran", 1, gpu=1).moved(State.RUNNING, 2.0)
    records = [
        waiting("first", 2), waiting("second", 3), ran, waiting("behind", 4, gpu=1), waiting("port", 5, port="gpu0"),
        waiting("stopped", 6, cancel=True), waiting("killer", 7, crashes=1), waiting("unsent", 8, boot=""),
    ]  # fmt: skip
    # The first of a lane on which nothing was seen running may have started after the last look.
    assert [record.id for record in movable(records)] == ["second", "behind", "unsent"]


def state_of(here: Several, job: str) -> State:
    assert here.desk is not None
    record = here.desk.journal.get(job)
    assert record is not None
    return record.state


async def lined_up(here: Several) -> tuple[int, list[str]]:
    """One job on the client's home, and three that wait for it; the home, and those that wait."""
    for number in range(4):
        await here.submit(f"job{number}")
    home = 0 if ids(here, 0) else 1
    waits = [f"job{number}" for number in range(1, 4)]
    assert (ids(here, home), ids(here, 1 - home)) == ({"job0"}, set())
    assert {gpu_of(here, job) for job in waits} == {None}
    return home, waits


def ids(here: Several, index: int) -> set[str]:
    return {each["prompt_id"] for each in here.sites[index].pending}


def gpu_of(here: Several, job: str) -> int | None:
    assert here.desk is not None
    record = here.desk.journal.get(job)
    assert record is not None
    return record.gpu


async def fill(here: Several) -> None:
    """Three jobs on each GPU through the front door, and one through each GPU's port."""
    for number in range(6):
        await here.submit(f"job{number}")
    for gpu in range(2):
        await here.submit(f"port{gpu}", gpu)
    assert (ids(here, 0), ids(here, 1)) == ({"job0", "job2", "job4", "port0"}, {"job1", "job3", "job5", "port1"})


async def test_jobs_that_have_not_started_go_to_another_backend(tmp_path: Path):
    """The rest waits for its own, and is there when that returns; nothing runs twice."""
    async with several(tmp_path, (1, 1), move_after=0.05) as here:
        await fill(here)
        here.dies(0)
        await until(lambda: {"job2", "job4"} <= ids(here, 1))
        assert {gpu_of(here, job) for job in ("job2", "job4")} == {1}
        assert {gpu_of(here, job) for job in ("job0", "port0")} == {0}
        here.comes(0, "second life")
        await until(lambda: ids(here, 0) == {"job0", "port0"})
        assert ids(here, 1) == {"job1", "job3", "job5", "port1", "job2", "job4"}
        await until(lambda: ("/queue", {"delete": ["job2", "job4"]}) in here.sites[0].told)
        assert here.desk is not None
        assert here.desk.moving.moved == 2


async def test_they_stay_while_it_may_come_back_soon_and_where_nobody_else_is(tmp_path: Path):
    """A restart moves nothing; with all away everything waits."""
    async with several(tmp_path, (1, 1), move_after=600) as here:
        await fill(here)
        here.dies(0)
        here.comes(0, "second life")
        await until(lambda: ids(here, 0) == {"job0", "job2", "job4", "port0"})
    async with several(tmp_path / "other", (1, 1), move_after=0.01) as here:
        await here.submit("a")
        await here.submit("b")
        for index in range(2):
            here.dies(index)
        assert here.desk is not None
        await here.desk.moving._look(next(iter(here.desk.peers)))
        assert here.desk.moving.moved == 0


async def test_nothing_moves_to_a_drained_gpu(tmp_path: Path):
    """It waits, also when no other GPU is left; resumed, that GPU gets it."""
    async with several(tmp_path, (1, 1), move_after=0.05) as here:
        await fill(here)
        assert here.desk is not None
        member = here.fleet.members[1]
        member.drained.add(1)
        here.dies(0)
        moving, peer = here.desk.moving, next(iter(here.desk.peers))
        record = here.desk.journal.get("job2")
        assert record is not None
        assert await moving._move(record, peer) is False
        assert moving.moved == 0
        member.drained.clear()
        await until(lambda: {"job2", "job4"} <= ids(here, 1))


async def test_what_the_other_refuses_stays_where_it_was(tmp_path: Path):
    """Another machine may lack the file it names: then it waits for the one that has it."""
    async with several(tmp_path, (1, 1), move_after=0.05) as here:
        await fill(here)
        here.sites[1].faulted = True
        here.dies(0)
        assert here.desk is not None
        moving = here.desk.moving
        await until(lambda: {"job2", "job4"} <= moving._unwanted)
        assert {gpu_of(here, job) for job in ("job2", "job4")} == {0}
        here.comes(0, "second life")
        await until(lambda: ids(here, 0) == {"job0", "job2", "job4", "port0"})


@pytest.mark.parametrize("refuses", [True, False])
async def test_a_client_that_stays_with_one_backend_keeps_its_jobs_there(tmp_path: Path, refuses: bool):
    """Where files are not shared its home moves with the backend's absence, and so do its jobs."""
    async with several(tmp_path, (1, 1), stay="stick", move_after=0.05) as here:
        for number in range(3):
            await here.submit(f"job{number}")
        home = 0 if ids(here, 0) else 1
        here.sites[1 - home].faulted = refuses
        here.dies(home)
        assert here.desk is not None
        moving = here.desk.moving
        await until(lambda: len(moving._unwanted) == 2 if refuses else moving.moved == 2)
        assert gpu_of(here, "job2") == (home if refuses else 1 - home)


async def test_what_waits_at_the_front_door_follows_its_clients_home(tmp_path: Path):
    """In its order, before what is submitted later; back again when the home is, and a pin of the rules stands."""
    async with several(tmp_path, (1, 1), stay="stick", move_after=600, depth=1) as here:
        home, waits = await lined_up(here)
        other = here.sites[1 - home]
        here.dies(home)
        await here.submit("later")
        for job in waits:
            await until(lambda job=job: ids(here, 1 - home) == {job})
            if job != waits[-1]:
                other.finish(job)
        assert gpu_of(here, "later") is None
        here.comes(home, "second life")
        # The home has what it had, and gets what waits when that has ended.
        await until(lambda: ids(here, home) == {"job0"})
        other.finish(waits[-1])
        await until(lambda: state_of(here, waits[-1]) is State.SUCCEEDED)
        here.sites[home].finish("job0")
        await until(lambda: ids(here, home) == {"later"})
        assert ids(here, 1 - home) == set()


async def test_what_another_home_refuses_waits_for_its_own(tmp_path: Path):
    """Its upload may be there alone: the job is not failed for that, and may be stopped as any that waits."""
    async with several(tmp_path, (1, 1), stay="stick", move_after=600, depth=1) as here:
        home, waits = await lined_up(here)
        here.sites[1 - home].refuse = set(waits[:2])
        here.dies(home)
        await until(lambda: ids(here, 1 - home) == {waits[2]})
        assert here.desk is not None
        line = here.desk.schedule
        await until(lambda: sorted(line.line()) == waits[:2])
        assert [line.explain(job)["gpus"] for job in waits[:2]] == [[home]] * 2
        assert (await here.post("/queue", {"delete": [waits[0]]})).status == 200
        assert state_of(here, waits[0]) is State.CANCELED
        here.comes(home, "second life")
        await until(lambda: ids(here, home) == {"job0"})
        here.sites[home].finish("job0")
        await until(lambda: ids(here, home) == {waits[1]})
