"""Who gets which event: the tables of connected clients, and the address of an event.

Owns which sockets a (lane, client id) pair means. Knows nothing of queues or jobs, and no ComfyUI name: ComfyUI's own
``send`` functions use these objects as the dictionaries they expect.
"""

from collections.abc import Callable, Iterable, Iterator, MutableMapping
from contextvars import ContextVar
from typing import Any, TypeVar

from backend.context import current_job, current_lane
from backend.overlay.outbox import FanOut, Message, Outbox

T = TypeVar("T")
Key = tuple[int | None, str]


class Target(str):
    """Address of one event: a client id (empty: every client) as seen from one lane (``None``: from none).

    A ``str``, because custom nodes that wrap ComfyUI's ``send_json`` compare it with client ids.
    """

    lane: int | None

    def __new__(cls, lane: int | None, sid: str | None) -> "Target":
        made = super().__new__(cls, sid or "")
        made.lane = lane
        return made


def address(sid: Any) -> Any:
    """The target of an event that the running code sends to ``sid``; ``None`` stays ``None``: it is for everyone.

    A broadcast belongs to one GPU only when a job sends it; what a route or a background thread says is for all.
    """
    if isinstance(sid, Target):
        return sid
    lane = current_lane()
    if sid is None:
        return Target(lane, None) if lane is not None and current_job() is not None else None
    return Target(lane, str(sid))


class ClientTable(MutableMapping[Any, T]):
    """Values per client, kept by (lane, client id), looked up by client id alone from the context of the caller.

    The same client id on two lanes is two clients. What a connection put here, only it or its successor takes away.
    """

    def __init__(self) -> None:
        self._entries: dict[Key, T] = {}
        self._mine: ContextVar[Any] = ContextVar("client_table_mine", default=None)

    def matching(self, sid: Any) -> list[T]:
        """Everything that ``sid`` means here: a ``Target`` may be several clients, a plain id is one if it can be."""
        entries = list(self._entries.items())
        lane = sid.lane if isinstance(sid, Target) else current_lane()
        if sid == "":
            return [value for (of, _), value in entries if lane is None or of in (lane, None)]
        everywhere = [value for (_, name), value in entries if name == sid]
        if isinstance(sid, Target):
            if lane is None:
                return everywhere
            own = [value for (of, name), value in entries if name == sid and of in (lane, None)]
            return own or everywhere
        exact = self._entries.get((lane, sid))
        return everywhere if exact is None else [exact]

    def wrap(self, key: Key, value: Any) -> T:
        """What is stored for ``value``."""
        stored: T = value
        return stored

    def discard(self, value: T) -> None:
        """``value`` is no longer in the table."""

    def __setitem__(self, sid: Any, value: Any) -> None:
        key = (current_lane(), str(sid))
        stored = self.wrap(key, value)
        self._entries[key] = stored
        self._mine.set(stored)

    def __getitem__(self, sid: Any) -> T:
        found = self.matching(sid)
        if not found:
            raise KeyError(sid)
        return found[0]

    def __contains__(self, sid: object) -> bool:
        return isinstance(sid, str) and bool(self.matching(sid))

    def __delitem__(self, sid: Any) -> None:
        key = (current_lane(), str(sid))
        stored = self._entries.get(key)
        mine = self._mine.get()
        if stored is None or (mine is not None and stored is not mine):
            raise KeyError(sid)
        del self._entries[key]
        self.discard(stored)

    def pop(self, sid: Any, *default: Any) -> Any:
        stored = self._entries.get((current_lane(), str(sid)))
        try:
            del self[sid]
        except KeyError:
            if default:
                return default[0]
            raise
        return stored

    def __iter__(self) -> Iterator[str]:
        return iter([name for _, name in list(self._entries)])

    def __len__(self) -> int:
        return len(self._entries)

    def values(self) -> Any:
        return list(self._entries.values())

    def items(self) -> Any:
        return [(name, value) for (_, name), value in list(self._entries.items())]


class SocketTable(ClientTable[Any]):
    """The connected sockets; ``refresh(lane, sid, message)`` may replace a message at the moment it is sent."""

    def __init__(self, refresh: Callable[[int | None, str, Message], Iterable[Message]]) -> None:
        super().__init__()
        self._refresh = refresh

    def wrap(self, key: Key, value: Any) -> Outbox:
        lane, sid = key
        name = f"{sid[:40]} on {'no GPU' if lane is None else f'GPU {lane}'}"
        return Outbox(value, name, lambda message: self._refresh(lane, sid, message), everywhere=lane is None)

    def discard(self, value: Outbox) -> None:
        value.close()

    def __setitem__(self, sid: Any, value: Any) -> None:
        before = self._entries.get((current_lane(), str(sid)))
        super().__setitem__(sid, value)
        if before is not None:
            before.close()

    def __getitem__(self, sid: Any) -> Any:
        found = self.matching(sid)
        if not found:
            raise KeyError(sid)
        return found[0] if len(found) == 1 else FanOut(found)
