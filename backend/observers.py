"""Whoever watches the whole backend: every event of every lane on one WebSocket, ``/debug/events``.

Owns what an observer gets and that none ever holds a lane up: what is told is turned into text once, progress at most
so often, and an observer that does not read loses the oldest first and is told how many. Knows no queue and no job.
"""

import asyncio
import contextlib
import json
import struct
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Any, Final

from aiohttp import web

OFTEN: Final = frozenset({"progress", "progress_state"})
PROGRESS_EVERY: Final = 0.05
PREVIEW_EVERY: Final = 0.5
"""Seconds between two of a kind on one lane; what ends a node's progress always passes."""
PREVIEW_WITH_METADATA: Final = 4
"""ComfyUI's binary event number; the metadata say ``gpu_id`` besides."""
MOST: Final = 1000
MOST_BYTES: Final = 8 << 20
"""What may wait for one observer."""

class Observers:
    """All that are connected. ``tell`` and ``preview`` may be called from any thread, and cost nothing when none is."""

    def __init__(self, gpus: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._gpus = gpus
        self._clock = clock
        self._open: tuple[_Observer, ...] = ()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._last: dict[tuple[int | None, str], float] = {}
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._open)

    # -- from any thread

    def tell(self, gpu: int | None, event: str, data: Any) -> None:
        """Tell an event of a lane; ``None``: of none."""
        if not self._open or (event in OFTEN and not _ends(data) and not self._due(gpu, event, PROGRESS_EVERY)):
            return
        told = {"type": event, "data": data, "gpu_id": gpu}
        try:
            text = json.dumps(told, default=repr, skipkeys=True)
        except (ValueError, RecursionError, RuntimeError):
            return  # a custom node's own event that is no tree
        self._post(text)

    def wants_preview(self, gpu: int | None) -> bool:
        """Whether a preview of this lane is to be made now."""
        return bool(self._open) and self._due(gpu, "preview", PREVIEW_EVERY)

    def preview(self, gpu: int | None, jpeg: bytes, metadata: dict[str, Any]) -> None:
        """Show a picture; ``metadata`` says whose it is."""
        text = json.dumps({**metadata, "gpu_id": gpu, "image_type": "image/jpeg"}, default=repr).encode()
        self._post(struct.pack(">II", PREVIEW_WITH_METADATA, len(text)) + text + jpeg)

    def _due(self, gpu: int | None, event: str, every: float) -> bool:
        now = self._clock()
        with self._lock:
            if now - self._last.get((gpu, event), -every) < every:
                return False
            self._last[gpu, event] = now
        return True

    def _post(self, message: str | bytes) -> None:
        loop = self._loop
        if loop is not None:
            with contextlib.suppress(RuntimeError):  # the loop is closed: nobody is left to hear
                loop.call_soon_threadsafe(self._deliver, message)

    # -- on the event loop

    def _deliver(self, message: str | bytes) -> None:
        for observer in self._open:
            observer.put(message)

    async def serve(self, request: web.Request) -> web.WebSocketResponse:
        """One observer, from its request until it goes; what it says is passed over."""
        ws = web.WebSocketResponse(heartbeat=30.0, max_msg_size=64 * 1024)
        await ws.prepare(request)
        self._loop = asyncio.get_running_loop()
        observer = _Observer(ws)
        observer.put(json.dumps({"type": "hello", "data": {"gpus": self._gpus}, "gpu_id": None}))
        self._open = (*self._open, observer)
        try:
            async with asyncio.TaskGroup() as tasks:
                pump = tasks.create_task(observer.pump(), name="observer")
                async for _ in ws:
                    pass
                pump.cancel()
        finally:
            self._open = tuple(each for each in self._open if each is not observer)
        return ws

    async def close(self) -> None:
        """Say goodbye."""
        for observer in self._open:
            with contextlib.suppress(TimeoutError, ConnectionError):
                async with asyncio.timeout(0.5):
                    await observer.ws.close(code=1001)


def _ends(data: Any) -> bool:
    """Whether this is a node's last progress, after which none comes that would make up for it."""
    return isinstance(data, dict) and "value" in data and data.get("value") == data.get("max")


class _Observer:
    """What one of them has not been sent yet."""

    def __init__(self, ws: web.WebSocketResponse) -> None:
        self.ws = ws
        self._waiting: deque[str | bytes] = deque()
        self._bytes = 0
        self._dropped = 0
        self._more = asyncio.Event()

    def put(self, message: str | bytes) -> None:
        self._waiting.append(message)
        self._bytes += len(message)
        while len(self._waiting) > MOST or self._bytes > MOST_BYTES:
            self._bytes -= len(self._waiting.popleft())
            self._dropped += 1
        self._more.set()

    async def pump(self) -> None:
        with contextlib.suppress(ConnectionError, RuntimeError):
            while True:
                while self._waiting:
                    if self._dropped:
                        dropped, self._dropped = self._dropped, 0
                        told = {"type": "dropped", "data": {"messages": dropped}, "gpu_id": None}
                        await self.ws.send_str(json.dumps(told))
                    await self._send()
                self._more.clear()
                await self._more.wait()

    async def _send(self) -> None:
        if not self._waiting:
            return
        message = self._waiting.popleft()
        self._bytes -= len(message)
        if isinstance(message, str):
            await self.ws.send_str(message)
        else:
            await self.ws.send_bytes(message)
