"""Mixed traffic in one loop with the gateway: requests, uploads and bridges that fail at the first wrong byte."""

import asyncio
from dataclasses import dataclass, field

from tests.doubles.bridges import SWITCH, opened
from tests.doubles.http_backend import Peer
from tests.doubles.http_client import request
from tests.doubles.http_stack import Stack


async def echo_anything(peer: Peer) -> None:
    """A backend that echoes bodies, and bytes after an upgrade."""
    while True:
        seen = await peer.head()
        if seen.all("upgrade"):
            await peer.send(SWITCH)
            while data := await peer.reader.read(65536):
                await peer.send(data)
            return
        length = seen.all("content-length")
        await peer.reply(await peer.reader.readexactly(int(length[0])) if length else b"ok")


@dataclass
class Load:
    """Workers that run until ``over``; each counts what it has done."""

    made: Stack
    over: asyncio.Event = field(default_factory=asyncio.Event)
    done: dict[str, int] = field(default_factory=lambda: {"requests": 0, "uploads": 0, "messages": 0})

    def start(self, tasks: asyncio.TaskGroup) -> None:
        """Two that ask, one that uploads, three that talk over bridges."""
        for work in (self.requests(0), self.requests(1), self.uploads(), *[self.messages(n) for n in range(3)]):
            tasks.create_task(work)

    async def requests(self, gpu: int) -> None:
        async with self.made.client(gpu) as client:
            while not self.over.is_set():
                assert (await client.get("/", method="PUT", body=b"hello")).body == b"hello"
                self.done["requests"] += 1

    async def uploads(self) -> None:
        async with self.made.client() as client:
            while not self.over.is_set():
                body = bytes(300_000)
                await client.send(request("/upload/image", f"Content-Length: {len(body)}", method="POST"))
                for at in range(0, len(body), 50_000):
                    await client.send(body[at : at + 50_000])
                    await asyncio.sleep(0.001)
                assert (await client.answer()).body == body
                self.done["uploads"] += 1

    async def messages(self, number: int) -> None:
        async with self.made.client() as client:
            await opened(client, f"/ws?clientId={number}")
            while not self.over.is_set():
                await client.send(b"hello")
                assert await client.reader.readexactly(5) == b"hello"
                self.done["messages"] += 1
