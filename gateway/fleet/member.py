"""One backend as the fleet knows it: whether it is there, whether it is to be trusted, and how full its lanes are.

Owns the load of each lane: what the last look at the queues saw, plus what was sent since. Pure: no clock, no I/O;
a poller brings looks, the supervisor says whether the backend is up. Must never know HTTP, processes or other backends.
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
    models: tuple[str, ...] | None = None
    """Model files that it has built models of, as the last look said; ``None``: nobody tells. New with each look."""

    @property
    def load(self) -> int:
        return self.running + self.pending + self.sending + self.before + self.since


class Reservation:
    """One submission's place on a lane, from before it is sent until a look has seen it.

    Exactly one of ``accepted`` and ``release`` has an effect, the first to be called; leaving a ``with`` block
    without either releases it.
    """

    __slots__ = ("_generation", "_member", "gpu")

    def __init__(self, member: "Member", gpu: int, generation: int) -> None:
        self._member: Member | None = member
        self._generation = generation
        self.gpu: Final = gpu

    def accepted(self) -> None:
        """The backend took the job: count it until a look that started after now has been taken."""
        member, self._member = self._member, None
        if member is not None:
            member.settle(self.gpu, self._generation, accepted=True)

    def release(self) -> None:
        """The backend refused the job or never got it: stop counting it at once."""
        member, self._member = self._member, None
        if member is not None:
            member.settle(self.gpu, self._generation, accepted=False)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()


class Member:
    """One backend. ``reason`` says in one sentence why it is not up; ``retry_after``: seconds to wait then."""

    def __init__(
        self,
        lanes: int,
        *,
        index: int = 0,
        first: int = 0,
        weight: float = 1.0,
        drain: bool = False,
        out_after: int = 3,
        back_after: int = 2,
    ) -> None:
        """``first``: the number of its first GPU. ``out_after`` and ``back_after``: bad and good looks in a row."""
        if lanes < 1:
            raise ValueError(f"a backend needs at least one GPU, got {lanes}")
        self.index: Final = index
        self.first: Final = first
        self.weight = weight
        self.drain = drain
        self.drained: set[int] = set()
        """Its GPUs, by the numbers users know, that the front door gives no new jobs until somebody says otherwise."""
        self.up = False
        self.out = False
        """Whether it is passed over because looks at it fail, though it may be up."""
        self.advice = ""
        """How it would do better, where somebody wants to hear that; empty when it does well."""
        self.demand: float | None = None
        """Threads' worth of issuing that its lanes ask Python for, of late; ``None``: it does not say."""
        self.calls = 0
        """Model calls that its lanes have made, in all."""
        self.reason = "The backend is starting."
        self.retry_after = 5
        self.body = ""
        """What the backend says it is, ``"embedded 0.1.0"``; empty until it has said so."""
        self.devices: tuple[str, ...] = ()
        self.on_activity: Callable[[], None] = _nothing
        """Called whenever a reservation is made, so that a resting poller looks again."""
        self.on_change: Callable[[Member], None] = _nobody
        """Called after the backend has come or gone, or its health has changed."""
        self.on_ready: Callable[[], bool] = _at_once
        """Called when the backend could take jobs; false: whoever says so calls ``admit`` when clients may come."""
        self.ready = False
        """Whether the backend takes jobs, though clients may not be let to it yet."""
        self.boot = ""
        """This life of the backend: no other one ever has the same name."""
        self.booted = 0.0
        """When it began, in seconds since 1970; 0 before the first."""
        self.width = lanes
        """Lanes that the backend really has, as far as is known: plain ComfyUI has one behind all ports."""
        self._lanes = [Lane() for _ in range(lanes)]
        self._generation = 0
        self._out_after = out_after
        self._back_after = back_after
        self._failed = 0
        self._passed = 0

    def __repr__(self) -> str:
        loads = " ".join(f"gpu{self.first + at}={lane.load}" for at, lane in enumerate(self._lanes))
        return f"<Member {self.index} {self.state} {loads}>"

    @property
    def gpus(self) -> int:
        """Number of lanes."""
        return len(self._lanes)

    @property
    def state(self) -> str:
        """``up``, ``down``, ``out`` or ``draining``, as users are told."""
        if not self.up:
            return "down"
        return "out" if self.out else "draining" if self.drain else "up"

    @property
    def working(self) -> bool:
        """Whether any lane has, or is about to have, a job."""
        return any(lane.load for lane in self._lanes)

    def has(self, gpu: int | None) -> bool:
        """Whether a GPU, by the number that users know, is one of its own; ``None`` is the first backend's."""
        return self.first <= (gpu or 0) < self.first + len(self._lanes)

    def lane(self, at: int) -> Lane:
        """The counts of one lane, by its own number."""
        return self._lanes[at]

    @property
    def faults(self) -> list[str]:
        """A sentence for each lane that takes no jobs, for its clients."""
        return [found for at in range(self.width) if (found := self.fault(self.first + at))]

    def fault(self, gpu: int) -> str:
        """The sentence for a client of a lane, by the number users know, that takes no jobs; empty for all others."""
        found = self._lanes[gpu - self.first].fault
        return f"GPU {gpu} takes no jobs: {found}." if found else ""

    def reserve(self, gpu: int) -> Reservation:
        """Count a submission on ``gpu``, as users number it, from now on; call before sending it."""
        self._lanes[gpu - self.first].sending += 1
        self.on_activity()
        return Reservation(self, gpu, self._generation)

    def settle(self, gpu: int, generation: int, *, accepted: bool) -> None:
        """A reservation ends (``Reservation`` calls this); one of a backend that is gone changes nothing."""
        if generation != self._generation:
            return
        lane = self._lanes[gpu - self.first]
        lane.sending -= 1
        if accepted:
            lane.since += 1

    def look_begins(self) -> int:
        """A look at the queues is about to be sent; the returned mark goes with its result."""
        for lane in self._lanes:
            lane.before += lane.since
            lane.since = 0
        return self._generation

    def look_ends(
        self,
        mark: int,
        counts: Sequence[tuple[int, int]],
        faults: Sequence[str] = (),
        models: Sequence[tuple[str, ...] | None] = (),
    ) -> None:
        """Take a look's ``(running, pending)`` of each lane there is; one from under an earlier backend is dropped.

        ``faults`` says for each lane why it takes no jobs, if it takes none, and ``models`` what it holds; empty: this
        look does not tell. Looks come one at a time. A failed look is simply not taken: what it should have seen stays
        counted.
        """
        if mark != self._generation:
            return
        self._narrow(len(counts))
        for lane, (running, pending) in zip(self._lanes, counts, strict=False):
            lane.running, lane.pending, lane.before = running, pending, 0
        for lane, fault in zip(self._lanes, faults, strict=False):
            lane.fault = fault
        for lane, held in zip(self._lanes, models, strict=False):
            lane.models = held

    def passed(self) -> None:
        """A look went well."""
        self._failed = 0
        if self.out:
            self._passed += 1
            if self._passed >= self._back_after:
                self.out = False
                self.on_change(self)

    def failed(self) -> None:
        """A look, or a connection to it, did not come about."""
        self._passed = 0
        self._failed += 1
        if not self.out and self._failed >= self._out_after:
            self.out = True
            self.on_change(self)

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
        self.on_change(self)

    def admit(self) -> None:
        """Let clients to the backend, if it is still there."""
        if self.ready and not self.up:
            self.up, self.reason, self.retry_after = True, "", 0
            self.out, self._failed = False, 0
            self.on_change(self)

    def backend_down(self, reason: str, retry_after: int) -> None:
        """The backend is gone, and its queues with it."""
        self._forget()
        self.ready = False
        self.up, self.reason, self.retry_after = False, reason, retry_after
        self.on_change(self)

    def _narrow(self, lanes: int) -> None:
        self.width = min(lanes or self.gpus, self.gpus)

    def _forget(self) -> None:
        self._generation += 1
        self._lanes = [Lane() for _ in self._lanes]


def _nothing() -> None:
    """Nobody listens."""


def _nobody(member: Member) -> None:
    """Nobody listens."""


def _at_once() -> bool:
    """Nothing is to be done before clients may come."""
    return True
