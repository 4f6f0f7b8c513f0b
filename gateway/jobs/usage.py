"""What each key's jobs have used: how many have not ended, and how long they ran today.

Pure: told of every change of a job. A day is one of UTC. After a restart it is summed up anew from what is remembered.
"""

from gateway.jobs.record import Record, State

_DAY = 86_400


class Usage:
    """The sums by owner."""

    def __init__(self) -> None:
        self._open: dict[str, set[str]] = {}
        self._seconds: dict[str, tuple[int, float]] = {}
        """Owner to a day and the seconds of jobs that ended on it."""

    def note(self, record: Record) -> None:
        """A job has changed."""
        if not record.owner:
            return
        mine = self._open.setdefault(record.owner, set())
        if not record.ended:
            mine.add(record.id)
            return
        mine.discard(record.id)
        if not mine:
            del self._open[record.owner]
        began = record.since(State.RUNNING)
        if began is None:
            return
        today = int(record.at // _DAY)
        day, seconds = self._seconds.get(record.owner, (today, 0.0))
        if today >= day:
            ran = max(0.0, record.at - began)
            self._seconds[record.owner] = (today, ran if today > day else seconds + ran)

    def drop(self, record: Record) -> None:
        """A job is wholly forgotten: it is no longer unfinished; what it used stays used."""
        mine = self._open.get(record.owner, set())
        mine.discard(record.id)
        if not mine:
            self._open.pop(record.owner, None)

    def of(self, owner: str, now: float) -> tuple[int, float]:
        """Jobs that have not ended, and seconds that jobs which ended today have run."""
        day, seconds = self._seconds.get(owner, (-1, 0.0))
        return len(self._open.get(owner, ())), seconds if day == int(now // _DAY) else 0.0
