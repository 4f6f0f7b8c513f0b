"""What a key's jobs have used."""

from gateway.jobs.record import Record, State, new
from gateway.jobs.usage import Usage

DAY = 86_400.0


def job(name: str, owner: str = "anna") -> Record:
    return new(name, 1, 0.0, owner=owner)


def ran(name: str, begin: float, end: float) -> Record:
    return job(name).moved(State.RUNNING, begin).moved(State.SUCCEEDED, end)


def test_unfinished_jobs_are_counted_once():
    """Said twice, moved or not, a job is one; ended or forgotten it is none."""
    usage = Usage()
    for record in (job("a"), job("a"), job("a").moved(State.RUNNING, 1.0), job("b"), job("c", "ben"), job("d", "")):
        usage.note(record)
    assert usage.of("anna", 0.0)[0] == 2
    assert usage.of("ben", 0.0)[0] == 1
    usage.note(ran("a", 1.0, 2.0))
    usage.drop(job("b"))
    usage.drop(job("never"))
    assert usage.of("anna", 0.0)[0] == 0
    assert usage.of("", 0.0) == (0, 0.0)


def test_seconds_are_those_of_the_day():
    """What ended today counts, however often it was said before; tomorrow begins at nothing."""
    usage = Usage()
    usage.note(ran("a", 10.0, 40.0))
    usage.note(ran("b", 50.0, 55.5))
    usage.note(job("c").moved(State.CANCELED, 60.0))
    assert usage.of("anna", 100.0) == (0, 35.5)
    assert usage.of("anna", DAY + 1) == (0, 0.0)
    usage.note(ran("d", DAY - 5.0, DAY + 5.0))
    assert usage.of("anna", DAY + 6) == (0, 10.0)
