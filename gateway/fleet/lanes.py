"""The fleet: whether the backend is there, how full each of its lanes is, and which one is next.

Owns the load of each lane: what the last look at the queues saw, plus what was sent since. Pure: no clock, no I/O;
a poller brings looks, the supervisor says whether the backend is up. Must never know HTTP or processes.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Final, Self

RETRY_AFTER: Final = 5
"""Seconds that a client of a lane that takes no jobs is told to wait: about what a new backend needs."""


@dataclass(slots=True)
class Lane:
    """One GPU as the gateway knows it; all counts are jobs."""

    running: int = 0
    pending: int = 0
    sending: int = 0
    """Reserved, and the backend has not answered yet."""
    before: int = 0
    """Accepted before the look that is now under way began: that look will have seen them."""
    since: int = 0
    """Accepted after the newest look began: only the next one is sure to see them."""
    fault: str = ""
    """Why the backend takes no jobs for it, as the last look said; empty while it takes them."""

    @property
    def load(self) -> int:
        return self.running + self.pending + self.sending + self.before + self.since


class Reservation:
    """One submission's place on a lane, from before it is sent until a look has seen it.

    Exactly one of ``accepted`` and ``release`` has an effect, the first to be called; leaving a ``with`` block
    without either releases it.
    """

    __slots__ = ("_fleet", "_generation", "gpu")

    def __init__(self, fleet: "Fleet", gpu: int, generation: int) -> None:
        self._fleet: Fleet | None = fleet
        self._generation = generation
        self.gpu: Final = gpu

    def accepted(self) -> None:
        """The backend took the job: count it until a look that started after now has been taken."""
        fleet, self._fleet = self._fleet, None
        if fleet is not None:
            fleet.settle(self.gpu, self._generation, accepted=True)

    def release(self) -> None:
        """The backend refused the job or never got it: stop counting it at once."""
        fleet, self._fleet = self._fleet, None
        if fleet is not None:
            fleet.settle(self.gpu, self._generation, accepted=False)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()


class Fleet:
    """The table of lanes of the one backend, and whether that backend is up.

    ``reason`` says in one sentence why it is not; ``retry_after`` is the seconds a client should wait then.
    """

    def __init__(self, gpus: int) -> None:
        if gpus < 1:
            raise ValueError(f"a fleet needs at least one GPU, got {gpus}")
        self.up = False
        self.reason = "The backend is starting."
        self.retry_after = 5
        self.body = ""
        """What the backend says it is, ``"embedded 0.1.0"``; empty until it has said so."""
        self.devices: tuple[str, ...] = ()
        self.on_activity: Callable[[], None] = _nothing
        """Called whenever a reservation is made, so that a resting poller looks again."""
        self.on_change: Callable[[], None] = _nothing
        """Called after the backend has come or gone."""
        self.on_ready: Callable[[], bool] = _at_once
        """Called when the backend could take jobs; false: whoever says so calls ``admit`` when clients may come."""
        self.ready = False
        """Whether the backend takes jobs, though clients may not be let to it yet."""
        self.boot = ""
        """This life of the backend: no other one ever has the same name."""
        self.booted = 0.0
        """When it began, in seconds since 1970; 0 before the first."""
        self.width = gpus
        """Lanes that the backend really has, as far as is known: plain ComfyUI has one behind all ports."""
        self._lanes = [Lane() for _ in range(gpus)]
        self._next = 0
        self._generation = 0

    def __repr__(self) -> str:
        loads = " ".join(f"gpu{gpu}={lane.load}" for gpu, lane in enumerate(self._lanes))
        return f"<Fleet {'up' if self.up else 'down'} {loads}>"

    @property
    def gpus(self) -> int:
        """Number of lanes."""
        return len(self._lanes)

    @property
    def working(self) -> bool:
        """Whether any lane has, or is about to have, a job."""
        return any(lane.load for lane in self._lanes)

    def lane(self, gpu: int) -> Lane:
        """The counts of one lane."""
        return self._lanes[gpu]

    def load(self, gpu: int) -> int:
        """Jobs on the lane: seen by the last look, and sent since."""
        return self._lanes[gpu].load

    def fault(self, gpu: int | None) -> str:
        """The sentence for a client of a lane that takes no jobs; empty for all others, and for no lane."""
        found = "" if gpu is None else self._lanes[gpu].fault
        return f"GPU {gpu} takes no jobs: {found}." if found else ""

    @property
    def faults(self) -> list[str]:
        """One such sentence for each lane that takes no jobs."""
        return [found for gpu in range(self.width) if (found := self.fault(gpu))]

    def choose(self) -> int:
        """The least busy lane that takes jobs; among equals the one that was not chosen for longest."""
        order = [(self._next + step) % self.width for step in range(self.width)]
        gpu = min([gpu for gpu in order if not self.fault(gpu)] or order, key=self.load)
        self._next = (gpu + 1) % self.width
        return gpu

    def reserve(self, gpu: int) -> Reservation:
        """Count a submission on ``gpu`` from now on; call before sending it."""
        self._lanes[gpu].sending += 1
        self.on_activity()
        return Reservation(self, gpu, self._generation)

    def settle(self, gpu: int, generation: int, *, accepted: bool) -> None:
        """A reservation ends (``Reservation`` calls this); one of a backend that is gone changes nothing."""
        if generation != self._generation:
            return
        lane = self._lanes[gpu]
        lane.sending -= 1
        if accepted:
            lane.since += 1

    def look_begins(self) -> int:
        """A look at the queues is about to be sent; the returned mark goes with its result."""
        for lane in self._lanes:
            lane.before += lane.since
            lane.since = 0
        return self._generation

    def look_ends(self, mark: int, counts: Sequence[tuple[int, int]], faults: Sequence[str] = ()) -> None:
        """Take a look's ``(running, pending)`` of each lane there is; one from under an earlier backend is dropped.

        ``faults`` says for each lane why it takes no jobs, if it takes none; empty: this look does not tell. Looks come
        one at a time. A failed look is simply not taken: what it should have seen stays counted.
        """
        if mark != self._generation:
            return
        self._narrow(len(counts))
        for lane, (running, pending) in zip(self._lanes, counts, strict=False):
            lane.running, lane.pending, lane.before = running, pending, 0
        for lane, fault in zip(self._lanes, faults, strict=False):
            lane.fault = fault

    def backend_up(
        self, body: str = "", devices: Sequence[str] = (), *, boot: str = "", booted: float = 0.0
    ) -> None:
        """The backend takes jobs, one lane for each of ``devices`` if any are named; its queues start empty.

        Said again while clients are not let to it yet, it changes nothing.
        """
        if self.ready and not self.up:
            return
        self._forget()
        self._narrow(len(devices))
        self.ready = True
        self.body, self.devices, self.boot, self.booted = body, tuple(devices), boot, booted
        if self.on_ready():
            self.admit()
            return
        self.up, self.reason = False, "The backend is back; what it had to do is being put into its queues again."
        self.retry_after = 1

    def admit(self) -> None:
        """Let clients to the backend, if it is still there."""
        if self.ready and not self.up:
            self.up, self.reason, self.retry_after = True, "", 0
            self.on_change()

    def backend_down(self, reason: str, retry_after: int) -> None:
        """The backend is gone, and its queues with it."""
        self._forget()
        self.ready = False
        self.up, self.reason, self.retry_after = False, reason, retry_after
        self.on_change()

    def _narrow(self, lanes: int) -> None:
        self.width = min(lanes or self.gpus, self.gpus)
        self._next %= self.width

    def _forget(self) -> None:
        self._generation += 1
        self._lanes = [Lane() for _ in self._lanes]


def _nothing() -> None:
    """Nobody listens."""


def _at_once() -> bool:
    """Nothing is to be done before clients may come."""
    return True
