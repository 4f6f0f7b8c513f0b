"""What is to become of the jobs that a backend took with it, decided.

Pure: the records of jobs that the new backend does not know go in, one decision each comes out, in the order in which
they are to be carried out. A job is only ever condemned when it was alone in the backend as that died. Must never know
how anything is done.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from enum import Enum
from typing import Final

from gateway.jobs.record import Record, State, in_order

FRONT: Final = "front"
"""The port of jobs that are not bound to a GPU."""
SUSPECT: Final = 2
"""Deaths during which a job ran, after which it is only run with nothing beside it, or no more."""


class Fate(Enum):
    """What happens to one job."""

    AGAIN = "again"
    """Into its lane's queue once more."""
    TRIED = "tried"
    """Once more, with nothing else in the backend."""
    CANCELED = "canceled"
    """Somebody wanted it stopped before the backend died."""
    CONDEMNED = "condemned"
    """It took the backend down more than once."""
    STARTED = "started"
    """It had started, and what had started is not to run twice."""


@dataclass(frozen=True)
class Decision:
    """The fate of one job, and its count of deaths from now on."""

    record: Record
    fate: Fate
    crashes: int


def decide(absent: Iterable[Record], boot: str, *, pending_only: bool) -> list[Decision]:
    """Decide about all unfinished jobs that the backend of life ``boot`` does not know."""
    records = in_order(absent)
    blamed = _blamed(records, boot)
    taken = [record for record in records if record.boot and record.boot != boot]
    decisions = []
    for record in records:
        died = record.id in blamed
        crashes = record.crashes + died
        ran = record.state is State.RUNNING
        # Nothing else was there: put there alone, or all that the backend had.
        alone = died and (record.alone or len(taken) == 1)
        if record.cancel:
            fate = Fate.CANCELED
        elif ran and pending_only:
            fate = Fate.STARTED
        elif crashes >= SUSPECT:
            fate = Fate.CONDEMNED if alone else Fate.TRIED
        else:
            fate = Fate.AGAIN
        decisions.append(Decision(record, fate, crashes))
    return decisions


def movable(records: Iterable[Record]) -> list[Record]:
    """Which jobs of a backend that is away another one may run, in their order.

    They came through the front door, wait, and cannot have been what the backend died of.
    """
    ordered = in_order(records)
    blamed = _blamed(ordered, "")
    return [
        record
        for record in ordered
        if record.state is State.QUEUED and record.port == FRONT and record.id not in blamed
        if not (record.cancel or record.crashes or record.since(State.RUNNING))
    ]


def _blamed(records: list[Record], boot: str) -> set[str]:
    """Jobs that ran when the backend died, as far as is known.

    Where nothing was seen running on a lane, its first job may have started after the last look.
    """
    blamed: set[str] = set()
    lanes: dict[int | None, list[Record]] = {}
    for record in records:
        if record.boot and record.boot != boot:
            lanes.setdefault(record.gpu, []).append(record)
    for waiting in lanes.values():
        running = [record.id for record in waiting if record.state is State.RUNNING]
        blamed.update(running or [waiting[0].id])
    return blamed
