"""One job as the journal knows it, and the moves it may make.

Pure. Owns the table of states: a move that is not in it raises. A record is a value; whoever changes one makes a new
one and has it stored. Must never know stores, sockets, backends or clocks.
"""

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from enum import Enum
from typing import Any, Final

UNNAMED: Final = "api"
"""The client id of API jobs that name none and have no key; many clients share it."""


def unnamed(owner: str) -> str:
    """The client id of an API job of this key, or of nobody's, that names none.

    Each key has one of its own, under which only it may listen: who hears another's hears of all its jobs.
    """
    return f"{UNNAMED}:{owner}" if owner else UNNAMED


class State(Enum):
    """Where a job is. The last four are final."""

    QUEUED = "queued"
    """Promised, and not seen running: at the gateway or waiting in a lane."""
    RUNNING = "running"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELED = "canceled"
    LOST = "lost"
    """The backend lives and knows nothing of it, neither waiting nor done: nobody can say what became of it."""


_ENDS: Final = frozenset({State.SUCCEEDED, State.FAILED, State.CANCELED, State.LOST})

MOVES: Final[Mapping[State, frozenset[State]]] = {
    State.QUEUED: frozenset({State.RUNNING}) | _ENDS,
    # Back to queued: the backend died and the job is put into its queue again.
    State.RUNNING: frozenset({State.QUEUED}) | _ENDS,
    State.SUCCEEDED: frozenset(),
    State.FAILED: frozenset(),
    State.CANCELED: frozenset(),
    State.LOST: frozenset(),
}


class IllegalMoveError(Exception):
    """A job cannot go from its state to that one."""


@dataclass(frozen=True)
class Record:
    """One job. Times are seconds since 1970; ``gpu`` is the lane, ``None`` until one is chosen."""

    id: str
    """Its ``prompt_id``."""
    seq: int
    """Order of submission; no two jobs share one."""
    state: State = State.QUEUED
    gpu: int | None = None
    port: str = ""
    """``gpu0`` … for a GPU's port or prefix, ``front`` for the front door."""
    client: str = ""
    """The submitter's address."""
    client_id: str = ""
    """Who gets its events; empty: nobody."""
    owner: str = ""
    """The name of the key it was submitted with; empty: none was needed."""
    key: str = ""
    """``Idempotency-Key`` with the client's address before it; empty: none was sent."""
    digest: str = ""
    """SHA-256 of the body as the client sent it."""
    kind: str = ""
    """Its workflow's class (``gateway.schedule``)."""
    models: tuple[str, ...] = ()
    """Model files that its workflow names."""
    priority: int = 0
    """Higher goes first among those that wait at the front door."""
    number: float | None = None
    """ComfyUI's own word for its place among its client's other jobs there, lower is sooner; ``None``: as it came."""
    times: tuple[tuple[str, float], ...] = ()
    """Each state it entered and when, oldest first; a job that is run again has some of them twice."""
    attempts: int = 0
    """How often it was put into a backend's queue."""
    crashes: int = 0
    """How often a backend died while it was, as far as is known, running."""
    alone: bool = False
    """Whether nothing else was in the backend when it was last put there."""
    boot: str = ""
    """The life of the backend that last took it; empty: none has."""
    booted: float = 0.0
    """When that life began."""
    place: float = 0.0
    """The number that this life of the backend gave it: its place in the queue, lower is sooner."""
    cancel: bool = False
    """Whether somebody wanted it stopped: it is not run again."""
    answer: Mapping[str, Any] | None = None
    """What the backend said when it took the job first; the second submission under this id gets the same."""
    outputs: Mapping[str, Any] = field(default_factory=dict)
    """ComfyUI's outputs by node."""
    error: Mapping[str, Any] | None = None
    """``type``, ``message`` and what else is known, when it failed or was lost."""
    hidden: bool = False
    """Whether it was removed from the history by a client."""
    webhook: Mapping[str, Any] = field(default_factory=dict)
    """Who is told of its end, and how that stands: ``url``, ``secret``, ``tries``, ``next``, ``told``, ``why``."""

    request_id: str = ""
    """``X-Request-ID`` of the request that brought it, which the access log has, too."""
    trace: str = ""
    """``traceparent`` of the request that brought it; empty where nothing is traced."""

    @property
    def ended(self) -> bool:
        """Whether its state is final."""
        return self.state in _ENDS

    @property
    def accepted(self) -> bool:
        """Whether some backend has taken it."""
        return bool(self.boot)

    @property
    def at(self) -> float:
        """When it entered its state."""
        return self.times[-1][1] if self.times else 0.0

    def moved(self, state: State, at: float, **changes: Any) -> "Record":
        """The same job in another state since ``at``; raises ``IllegalMoveError`` for a move not in the table."""
        if state not in MOVES[self.state]:
            raise IllegalMoveError(f"job {self.id} cannot go from {self.state.value} to {state.value}")
        return replace(self, state=state, times=(*self.times, (state.value, at)), **changes)

    def since(self, state: State) -> float | None:
        """When it last entered ``state``; ``None`` if never."""
        return next((at for name, at in reversed(self.times) if name == state.value), None)

    def to_json(self) -> str:
        """Everything as one JSON object."""
        return json.dumps({**asdict(self), "state": self.state.value}, separators=(",", ":"))


def new(record_id: str, seq: int, at: float, **known: Any) -> Record:
    """A job that has just been submitted."""
    return Record(record_id, seq, times=((State.QUEUED.value, at),), **known)


def from_json(text: str) -> Record:
    """The record that ``to_json`` wrote; what a later version added is left out. Raises ``ValueError``."""
    found = json.loads(text)
    known = {each.name for each in fields(Record)}
    values = {name: value for name, value in found.items() if name in known}
    values["state"] = State(values["state"])
    values["models"] = tuple(values.get("models", ()))
    values["times"] = tuple((str(name), float(at)) for name, at in values.get("times", ()))
    return Record(**values)


def in_order(records: Iterable[Record]) -> list[Record]:
    """The order in which they should run: what ran, then by place in the newest backend's queues, then by submission.

    What no backend has taken yet comes after what one has.
    """

    def key(record: Record) -> tuple[bool, float, bool, float, int]:
        return record.state is not State.RUNNING, -record.booted, not record.attempts, record.place, record.seq

    return sorted(records, key=key)
