"""What stands behind every peer: a small raw server with ComfyUI's routes as far as the rows ask for them.

``python -m bench.origin PORT FOLDER``. Files of FOLDER by name; ``POST /prompt`` (accepted, and done at once, so that a
journal that follows jobs comes to an end); ``POST /sink`` (read and forgotten); ``/ws?size=N&rate=N``: after the
handshake, binary messages of so many bytes, so many a second, each with the monotonic time of its sending.
"""

import asyncio
import base64
import hashlib
import json
import re
import struct
import sys
import time
import uuid
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

_LENGTH = re.compile(rb"(?i)\r\ncontent-length: *(\d+)")
_KEY = re.compile(rb"(?i)\r\nsec-websocket-key: *([^\r]+)")
_PROMPT_ID = re.compile(rb'"prompt_id": *"([^"]+)"')
_MAGIC = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"


class Origin(asyncio.Protocol):
    """One connection."""

    files: dict[bytes, bytes]
    transport: Any

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport
        self.data = b""
        self.left = 0
        self.head = b""
        self.kept: list[bytes] = []
        self.sender: asyncio.Task[None] | None = None
        self.room = asyncio.Event()
        self.room.set()

    def data_received(self, data: bytes) -> None:
        if self.left:
            self._body(data)
        else:
            self.data += data
            self._heads()

    def pause_writing(self) -> None:
        self.room.clear()

    def resume_writing(self) -> None:
        self.room.set()

    def connection_lost(self, exc: Exception | None) -> None:
        self.room.set()
        if self.sender is not None:
            self.sender.cancel()

    def _heads(self) -> None:
        while not self.left and (end := self.data.find(b"\r\n\r\n") + 4) >= 4:
            self.head, rest = self.data[:end], self.data[end:]
            self.data = b""
            found = _LENGTH.search(self.head)
            self.left = int(found[1]) if found else 0
            if self.left:
                self._body(rest)
            else:
                self.data = rest
                self._answer(b"")

    def _body(self, data: bytes) -> None:
        part, self.data = data[: self.left], data[self.left :]
        self.left -= len(part)
        if not self.head.startswith(b"POST /sink"):
            self.kept.append(part)
        if not self.left:
            body = b"".join(self.kept)
            self.kept.clear()
            self._answer(body)
            self._heads()

    def _answer(self, body: bytes) -> None:
        method, target, _ = self.head.split(b" ", 2)
        path = target.partition(b"?")[0]
        if path == b"/ws":
            self._events(target.decode())
        elif path == b"/prompt" and method == b"POST":
            found = _PROMPT_ID.search(body)
            job = found[1].decode() if found else str(uuid.uuid4())
            self._json({"prompt_id": job, "number": 1, "node_errors": {}})
        elif path == b"/prompt":
            self._json({"exec_info": {"queue_remaining": 0}})
        elif path == b"/queue":
            self._json({"queue_running": [], "queue_pending": []})
        elif path.startswith(b"/history/"):
            job = path.decode().rpartition("/")[2]
            status = {"status_str": "success", "completed": True, "messages": []}
            self._json({job: {"prompt": [1, job, {}, {}, []], "outputs": {}, "status": status, "meta": {}}})
        elif (file := self.files.get(path)) is not None:
            self._reply(b"200 OK", b"application/octet-stream", file)
        elif path == b"/sink":
            self._reply(b"200 OK", b"text/plain", b"ok")
        else:
            self._reply(b"404 Not Found", b"text/plain", b"no such thing")

    def _json(self, value: object) -> None:
        self._reply(b"200 OK", b"application/json", json.dumps(value).encode())

    def _reply(self, status: bytes, kind: bytes, body: bytes) -> None:
        head = b"HTTP/1.1 %b\r\nContent-Type: %b\r\nContent-Length: %d\r\n\r\n" % (status, kind, len(body))
        self.transport.write(head + body)

    def _events(self, target: str) -> None:
        asked = {name: values[0] for name, values in parse_qs(urlsplit(target).query).items()}
        key = _KEY.search(self.head)
        accept = base64.b64encode(hashlib.sha1((key[1] if key else b"") + _MAGIC).digest())
        self.transport.write(
            b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            b"Sec-WebSocket-Accept: %b\r\n\r\n" % accept
        )
        sending = self._send(int(asked["size"]), float(asked["rate"]))
        self.sender = asyncio.get_running_loop().create_task(sending, name="events")

    async def _send(self, size: int, rate: float) -> None:
        head = bytes([0x82, size]) if size < 126 else struct.pack(">BBQ", 0x82, 127, size)
        fill = bytes(size - 8)
        began, sent = time.monotonic(), 0
        while not self.transport.is_closing():
            due = began + sent / rate
            if (wait := due - time.monotonic()) > 0:
                await asyncio.sleep(wait)
            await self.room.wait()
            self.transport.write(head + struct.pack(">d", time.monotonic()) + fill)
            sent += 1


async def serve(port: int) -> None:
    """Run until the process is ended."""
    server = await asyncio.get_running_loop().create_server(Origin, "127.0.0.1", port)
    await server.serve_forever()


if __name__ == "__main__":
    try:
        from uvloop import run
    except ImportError:
        from asyncio import run
    Origin.files = {b"/" + file.name.encode(): file.read_bytes() for file in Path(sys.argv[2]).iterdir()}
    run(serve(int(sys.argv[1])))
