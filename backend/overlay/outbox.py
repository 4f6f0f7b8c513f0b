"""What waits to be sent to one socket: bounded in messages and in memory, so that no socket waits for another.

Owns the order, what goes first when a client is slow, and when it is given up. Knows nothing of lanes or clients.
"""

import asyncio
import json
import logging
from collections import deque
from collections.abc import Callable, Iterable
from typing import Any, Final

import aiohttp

log = logging.getLogger("backend.overlay.outbox")

Message = dict[str, Any]

DROPPABLE_EVENTS: Final = frozenset({"progress", "progress_state"})
PREVIEW_TYPES: Final = frozenset({1, 2, 4})
"""First four bytes of a binary message: preview, unencoded preview, preview with metadata."""
SOFT_LIMIT: Final = 256
"""Messages waiting for one socket; beyond this, previews and progress go."""
HARD_LIMIT: Final = 4096
HARD_BYTES: Final = 64 << 20
"""A client this far behind, in messages or in memory, is not coming back: its socket is closed, to connect anew."""
OBJECT: Final = 50
"""Bytes that Python takes for an object beside its content, roughly."""
NOTHING_LEFT: Final = {"exec_info": {"queue_remaining": 0}}


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
        self._waiting: deque[tuple[Message | bytes | bytearray, int]] = deque()
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
        # What comes while nothing is on its way waits for nobody; a single message may be as large as it likes.
        weight = 0 if self._task is None else weigh(message)
        self._waiting.append((message, weight))
        self._bytes += weight
        if len(self._waiting) > SOFT_LIMIT:
            self._drop_one()
        if len(self._waiting) > HARD_LIMIT or self._bytes > HARD_BYTES:
            self._give_up()
        elif self._task is None:
            self._task = asyncio.get_running_loop().create_task(self._drain(), name=f"outbox {self._name}")

    def _drop_one(self) -> None:
        for position, (message, weight) in enumerate(self._waiting):
            if droppable(message):
                del self._waiting[position]
                self._bytes -= weight
                self.dropped += 1
                return

    def _give_up(self) -> None:
        log.warning(
            "client %s reads nothing: %d messages (about %d bytes) wait, its socket is closed",
            self._name, len(self._waiting), self._bytes,
        )
        self.close()
        transport = getattr(getattr(self._ws, "_req", None), "transport", None)
        if transport is not None:
            transport.abort()

    async def _drain(self) -> None:
        try:
            while self._waiting:
                message, weight = self._waiting.popleft()
                self._bytes -= weight
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


def droppable(message: Message | bytes | bytearray) -> bool:
    """True for what a slow client can do without: the next one says the same anew."""
    if isinstance(message, (bytes, bytearray)):
        return int.from_bytes(message[:4], "big") in PREVIEW_TYPES
    return message.get("type") in DROPPABLE_EVENTS


def weigh(message: Any) -> int:
    """Bytes of memory that a message holds, roughly; counts no further than ``HARD_BYTES``."""
    total = 0
    left = [message]
    while left and total <= HARD_BYTES:
        part = left.pop()
        total += OBJECT
        if isinstance(part, (str, bytes, bytearray)):
            total += len(part)
        elif isinstance(part, dict):
            left += part.keys()
            left += part.values()
        elif isinstance(part, (list, tuple, set, frozenset)):
            left += part
    return total
