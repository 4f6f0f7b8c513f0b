"""Events to clients' WebSockets: each job's to the client that submitted it, each lane's ``status`` to its port.

Sockets are keyed by (GPU, client id); GPU ``None`` is a socket that named no GPU and watches its client's jobs on
all of them. Workers hand events over without waiting; a socket that does not read loses previews and progress
first and is cut when that is not enough. Knows aiohttp's sockets, not its routes.
"""

import asyncio
import contextlib
import json
import logging
import struct
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final

from aiohttp import WSCloseCode, web
from PIL import Image

from backend.embedded.images import jpeg
from backend.embedded.jobs import Change, Job, Jobs
from backend.observers import Observers
from backend.waiting import Waiting

log = logging.getLogger("backend.embedded.sockets")

PREVIEW: Final = 1
PREVIEW_WITH_METADATA: Final = 4
JPEG: Final = 1
"""ComfyUI's binary event numbers (``protocol.py``) and its number for the picture format."""

DROPPABLE: Final = frozenset({"progress", "progress_state"})
SOFT_MESSAGES: Final = 64
"""Messages a socket may have waiting before droppable ones are dropped."""
HARD_MESSAGES: Final = 2048
HARD_BYTES: Final = 16 * 1024 * 1024
"""Beyond either the client has stopped reading and is cut."""


@dataclass(frozen=True)
class Message:
    body: str | bytes
    droppable: bool = False


class Outbox:
    """What waits to be sent on one socket; bounded. Used on the event loop alone."""

    def __init__(self) -> None:
        self._waiting: deque[Message] = deque()
        self._bytes = 0
        self._more = asyncio.Event()

    def __len__(self) -> int:
        return len(self._waiting)

    def put(self, message: Message) -> bool:
        """Add a message, dropping an older droppable one when there are many; false when there are too many."""
        if len(self._waiting) >= SOFT_MESSAGES:
            oldest = next((each for each in self._waiting if each.droppable), None)
            if oldest is not None:
                self._waiting.remove(oldest)
                self._bytes -= len(oldest.body)
            elif message.droppable:
                return True
        self._waiting.append(message)
        self._bytes += len(message.body)
        self._more.set()
        return len(self._waiting) <= HARD_MESSAGES and self._bytes <= HARD_BYTES

    async def get(self) -> Message:
        while not self._waiting:
            self._more.clear()
            await self._more.wait()
        message = self._waiting.popleft()
        self._bytes -= len(message.body)
        return message


class Socket:
    """One client's WebSocket."""

    def __init__(self, gpu: int | None, sid: str, ws: web.WebSocketResponse, cut: Callable[[], None]) -> None:
        self.gpu = gpu
        self.sid = sid
        self.outbox = Outbox()
        self.flags: dict[str, Any] | None = None
        """What the client said it can do; ``None`` until it says."""
        self.ws = ws
        self._cut = cut

    def put(self, message: Message) -> None:
        if not self.outbox.put(message):
            log.warning("client %s does not read its events: cut", self.sid)
            self._cut()

    def event(self, event: str, data: dict[str, Any]) -> None:
        self.put(Message(encoded(event, data)))

    def counts(self, job: Job) -> bool:
        """Whether ``status`` on this socket counts the job: its lane's, or without a lane its own and nobody's."""
        if self.gpu is not None:
            return job.lane == self.gpu
        return job.client_id in {self.sid, None}

    def wants_previews(self, job: Job) -> bool:
        """Clients that never negotiated often take any binary message for a result, so they must ask per job."""
        return self.flags is not None or job.extra_data.get("preview_method", "none") != "none"

    async def pump(self) -> None:
        """Send what is put, in order, until the connection is gone."""
        with contextlib.suppress(ConnectionError, RuntimeError):
            while True:
                message = await self.outbox.get()
                if isinstance(message.body, str):
                    await self.ws.send_str(message.body)
                else:
                    await self.ws.send_bytes(message.body)


def encoded(event: str, data: dict[str, Any]) -> str:
    return json.dumps({"type": event, "data": data})


class Hub:
    """All open sockets, and the way from any thread to them."""

    def __init__(self, jobs: Jobs, loop: asyncio.AbstractEventLoop) -> None:
        self.observers = Observers(len(jobs))
        self.waiting = Waiting()
        self._jobs = jobs
        self._loop = loop
        self._sockets: dict[tuple[int | None, str], Socket] = {}
        self._open: set[Job] = set()
        """Jobs accepted whose end was not told yet: what ``status`` counts, in step with the other events."""

    # -- from workers' threads

    def send(self, job: Job, event: str, data: dict[str, Any]) -> None:
        """Hand an event over for the job's client; jobs without one tell observers alone."""
        self.observers.tell(job.lane, event, data)
        if self._of(job):
            self._post(self._deliver, job, Message(encoded(event, data), event in DROPPABLE))

    def preview(self, job: Job, image: Callable[[], Image.Image], metadata: dict[str, Any]) -> None:
        """Hand a picture over for those of the client's sockets that want one."""
        wanted = any(socket.wants_previews(job) for socket in self._of(job))
        observed = self.observers.wants_preview(job.lane)
        if not (wanted or observed):
            return
        picture = jpeg(image())
        if observed:
            self.observers.preview(job.lane, picture, metadata)
        if wanted:
            self._post(self._deliver_preview, job, picture, metadata)

    def changed(self, change: Change, jobs: Sequence[Job]) -> None:
        """A lane's queue changed by these jobs: the sockets it concerns get a new ``status``."""
        if change == "accepted":
            # On the event loop already, and counted at once: an end told meanwhile must not make it 0.
            self._status(change, jobs)
        else:
            self._post(self._status, change, jobs)

    def _post(self, call: Callable[..., None], *args: Any) -> None:
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody is left to hear
            self._loop.call_soon_threadsafe(call, *args)

    # -- on the event loop

    def _of(self, job: Job) -> list[Socket]:
        client = job.client_id
        if client is None:
            return []
        found = (self._sockets.get((job.lane, client)), self._sockets.get((None, client)))
        return [socket for socket in found if socket is not None]

    def _deliver(self, job: Job, message: Message) -> None:
        for socket in self._of(job):
            socket.put(message)

    def _deliver_preview(self, job: Job, picture: bytes, metadata: dict[str, Any]) -> None:
        for socket in self._of(job):
            if socket.wants_previews(job):
                socket.put(Message(preview_frame(picture, metadata, socket.flags or {}), droppable=True))

    def _status(self, change: Change, jobs: Sequence[Job]) -> None:
        if change == "accepted":
            self._open.update(jobs)
        elif change == "ended":
            self._open.difference_update(jobs)
        for lane in {job.lane for job in jobs} if self.observers else ():
            remaining = sum(job.lane == lane for job in self._open)
            self.observers.tell(lane, "status", {"status": {"exec_info": {"queue_remaining": remaining}}})
        for socket in list(self._sockets.values()):
            if any(socket.counts(job) for job in jobs):
                socket.event("status", {"status": self.queue_info(socket)})

    def queue_info(self, socket: Socket) -> dict[str, Any]:
        """ComfyUI's ``exec_info`` for this socket: its lane's jobs, or without a lane those that are its own."""
        away = self.waiting.count_for(socket.sid) if socket.gpu is None else 0
        return {"exec_info": {"queue_remaining": away + sum(socket.counts(job) for job in self._open)}}

    def recount(self) -> None:
        """The number of jobs that wait elsewhere has changed: who counts them gets a new ``status``."""
        for socket in list(self._sockets.values()):
            if socket.gpu is None:
                socket.event("status", {"status": self.queue_info(socket)})

    def add(self, socket: Socket) -> None:
        """Take a socket in: it hears its ``sid`` first, then the node its running job is at."""
        # An older socket under this key stays open and hears nothing more, as in ComfyUI.
        self._sockets[socket.gpu, socket.sid] = socket
        socket.event("status", {"status": self.queue_info(socket), "sid": socket.sid})
        for job in self._jobs.running(socket.gpu):
            if job.client_id == socket.sid and job.node is not None:
                data = {"node": job.node, "display_node": job.node, "prompt_id": job.prompt_id}
                socket.event("executing", data)

    def remove(self, socket: Socket) -> None:
        """Forget a socket, unless a newer one took its key."""
        if self._sockets.get((socket.gpu, socket.sid)) is socket:
            del self._sockets[socket.gpu, socket.sid]

    async def serve(self, socket: Socket, features: dict[str, Any]) -> None:
        """Send and receive until the client goes."""
        self.add(socket)
        try:
            async with asyncio.TaskGroup() as tasks:
                pump = tasks.create_task(socket.pump(), name=f"events-{socket.gpu}-{socket.sid}")
                await self._receive(socket, features)
                pump.cancel()
        finally:
            self.remove(socket)

    async def _receive(self, socket: Socket, features: dict[str, Any]) -> None:
        first = True
        async for message in socket.ws:
            if message.type is not web.WSMsgType.TEXT:
                continue
            try:
                data = json.loads(message.data)
            except ValueError:
                continue
            if first and isinstance(data, dict) and data.get("type") == "feature_flags":
                flags = data.get("data")
                socket.flags = flags if isinstance(flags, dict) else {}
                socket.event("feature_flags", features)
            first = False

    async def close(self) -> None:
        """Say goodbye to every client; those that do not answer at once are cut."""
        await self.observers.close()
        sockets = list(self._sockets.values())
        closing = (socket.ws.close(code=WSCloseCode.GOING_AWAY, message=b"backend stops") for socket in sockets)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(0.5):
                await asyncio.gather(*closing, return_exceptions=True)


def preview_frame(picture: bytes, metadata: dict[str, Any], flags: dict[str, Any]) -> bytes:
    """A JPEG as binary event 4, which says what it belongs to, or for older clients as event 1."""
    if flags.get("supports_preview_metadata") is True:
        text = json.dumps({**metadata, "image_type": "image/jpeg"}).encode()
        return struct.pack(">II", PREVIEW_WITH_METADATA, len(text)) + text + picture
    return struct.pack(">II", PREVIEW, JPEG) + picture
