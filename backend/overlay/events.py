"""Who gets which event: the tables of connected clients, the address of an event, and one bounded outbox per socket.

Owns which sockets a (lane, client id) pair means and that no socket waits for another. Knows nothing of queues or
jobs, and no ComfyUI name: ComfyUI's own ``send`` functions use these objects as the dictionaries they expect.
"""

import asyncio
import json
import logging
from collections import deque
from collections.abc import Callable, Iterable, Iterator, MutableMapping
from contextvars import ContextVar
from typing import Any, Final, TypeVar

import aiohttp

from backend.context import current_job, current_lane

log = logging.getLogger("backend.overlay.events")

T = TypeVar("T")
Key = tuple[int | None, str]
Message = dict[str, Any]

DROPPABLE_EVENTS: Final = frozenset({"progress", "progress_state"})
PREVIEW_TYPES: Final = frozenset({1, 2, 4})
"""First four bytes of a binary message: preview, unencoded preview, preview with metadata."""
SOFT_LIMIT: Final = 256
"""Messages waiting for one socket; beyond this, previews and progress go."""
HARD_LIMIT: Final = 4096
HARD_BYTES: Final = 64 << 20
"""A client this far behind is not coming back: its socket is closed, so that it connects anew."""
NOTHING_LEFT: Final = {"exec_info": {"queue_remaining": 0}}


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


class Outbox:
    """What waits to be sent to one socket: sending here never waits, one task per socket does the waiting.

    Everything else of the socket is reached through this object.
    """

    def __init__(
        self, ws: Any, name: str, refresh: Callable[[Message], Iterable[Message]], everywhere: bool = False
    ) -> None:
        """``refresh`` gives what to send instead of a message; ``everywhere``: the client belongs to no lane."""
        self._ws = ws
        self._everywhere = everywhere
        self._status: Any = None
        self._name = name
        self._refresh = refresh
        self._waiting: deque[Message | bytes | bytearray] = deque()
        self._bytes = 0
        self._task: asyncio.Task[None] | None = None
        self._over = False
        self.dropped = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._ws, name)

    def __repr__(self) -> str:
        return f"<Outbox {self._name} waiting={len(self._waiting)} dropped={self.dropped}>"

    async def send_json(self, message: Message, *_: Any, **__: Any) -> None:
        """Send a JSON message in its turn."""
        self._put(message)

    async def send_bytes(self, message: bytes | bytearray, *_: Any, **__: Any) -> None:
        """Send a binary message in its turn."""
        self._bytes += len(message)
        self._put(message)

    def close(self) -> None:
        """Forget what waits; the socket itself belongs to its handler."""
        self._over = True
        self._waiting.clear()
        if self._task is not None:
            self._task.cancel()

    def _put(self, message: Message | bytes | bytearray) -> None:
        if self._over:
            return
        self._waiting.append(message)
        if len(self._waiting) > SOFT_LIMIT:
            self._drop_one()
        if len(self._waiting) > HARD_LIMIT or self._bytes > HARD_BYTES:
            self._give_up()
        elif self._task is None:
            self._task = asyncio.get_running_loop().create_task(self._drain(), name=f"outbox {self._name}")

    def _drop_one(self) -> None:
        for position, message in enumerate(self._waiting):
            if droppable(message):
                del self._waiting[position]
                self._bytes -= _size(message)
                self.dropped += 1
                return

    def _give_up(self) -> None:
        log.warning("client %s reads nothing: %d messages wait, its socket is closed", self._name, len(self._waiting))
        self.close()
        transport = getattr(getattr(self._ws, "_req", None), "transport", None)
        if transport is not None:
            transport.abort()

    async def _drain(self) -> None:
        try:
            while self._waiting:
                message = self._waiting.popleft()
                self._bytes -= _size(message)
                await self._send(message)
        except (OSError, RuntimeError, aiohttp.ClientError) as error:
            log.info("client %s is gone: %s", self._name, error)
            self._over = True
            self._waiting.clear()
        finally:
            self._task = None

    async def _send(self, message: Message | bytes | bytearray) -> None:
        if isinstance(message, (bytes, bytearray)):
            await self._ws.send_bytes(message)
            return
        for part in self._refresh(message):
            if self._is_old(part):
                continue
            try:
                await self._ws.send_json(part)
            except (TypeError, ValueError) as error:
                log.warning("event %r holds what JSON cannot (%s): sent as text", part.get("type"), error)
                await self._ws.send_str(json.dumps(part, default=repr, skipkeys=True))


    def _is_old(self, message: Message) -> bool:
        """A client without a GPU hears of every lane's changes; while nothing is its own, it need not be told so."""
        if not self._everywhere or message.get("type") != "status":
            return False
        before, self._status = self._status, message["data"].get("status")
        return "sid" not in message["data"] and before == self._status == NOTHING_LEFT


class FanOut:
    """Several sockets where ComfyUI expects one."""

    def __init__(self, outboxes: list[Outbox]) -> None:
        self._outboxes = outboxes

    async def send_json(self, message: Message, *_: Any, **__: Any) -> None:
        for outbox in self._outboxes:
            await outbox.send_json(message)

    async def send_bytes(self, message: bytes | bytearray, *_: Any, **__: Any) -> None:
        for outbox in self._outboxes:
            await outbox.send_bytes(message)


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


def droppable(message: Message | bytes | bytearray) -> bool:
    """True for what a slow client can do without: the next one says the same anew."""
    if isinstance(message, (bytes, bytearray)):
        return int.from_bytes(message[:4], "big") in PREVIEW_TYPES
    return message.get("type") in DROPPABLE_EVENTS


def _size(message: Message | bytes | bytearray) -> int:
    return len(message) if isinstance(message, (bytes, bytearray)) else 0
