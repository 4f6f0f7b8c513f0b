"""The front door's events of several backends: one stream, whoever of them comes and goes."""

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from websockets.asyncio.client import ClientConnection, connect
from websockets.asyncio.server import Server, ServerConnection, serve
from websockets.exceptions import ConnectionClosed

from gateway import ws_confluence
from gateway.wire.messages import Messages, TooLargeError
from tests.doubles.several import Several, several
from tests.doubles.wait import until


@dataclass
class Site:
    """One backend's events, as a test wants them."""

    server: Server
    here: list[ServerConnection] = field(default_factory=list)
    asked: list[str] = field(default_factory=list)
    """Targets of the handshakes."""
    offers: list[str] = field(default_factory=list)
    heard: list[str | bytes] = field(default_factory=list)

    async def says(self, event: str, **data: Any) -> None:
        """Send one event to whoever listens."""
        for connection in self.here:
            await connection.send(json.dumps({"type": event, "data": data}))

    async def left(self, count: int) -> None:
        """Send a status."""
        await self.says("status", status={"exec_info": {"queue_remaining": count}}, sid="s")


@dataclass
class Events:
    """A gateway before such backends, and a client at its front door."""

    made: Several
    sites: list[Site]
    client: ClientConnection

    async def next(self) -> tuple[str, Any]:
        """The next event."""
        message = json.loads(await asyncio.wait_for(self.client.recv(), 30))
        return message["type"], message["data"]

    def dies(self, index: int) -> None:
        """One backend goes, and its socket with it."""
        self.made.fleet.members[index].backend_down("it died", 3)
        for connection in self.sites[index].here:
            connection.transport.abort()


@contextlib.asynccontextmanager
async def site(first: list[int]) -> AsyncIterator[Site]:
    async def handler(connection: ServerConnection) -> None:
        assert connection.request is not None
        made.asked.append(connection.request.path)
        made.offers.append(connection.request.headers.get("Sec-WebSocket-Extensions", ""))
        status = {"status": {"exec_info": {"queue_remaining": first[0]}}, "sid": "s"}
        await connection.send(json.dumps({"type": "status", "data": status}))
        made.here.append(connection)
        with contextlib.suppress(ConnectionClosed):
            async for message in connection:
                made.heard.append(message)
        made.here.remove(connection)

    async with serve(handler, "127.0.0.1", 0) as server:
        made = Site(server)
        yield made


@contextlib.asynccontextmanager
async def events(
    folder: Path | None = None, query: str = "?clientId=me", left: tuple[int, int] = (0, 0)
) -> AsyncIterator[Events]:
    """Two backends with so many jobs, and a client that has heard their first words, which are one."""
    async with contextlib.AsyncExitStack() as stack:
        sites = [await stack.enter_async_context(site([count])) for count in left]
        urls = [f"http://127.0.0.1:{each.server.sockets[0].getsockname()[1]}" for each in sites]
        made = await stack.enter_async_context(several(folder, (1, 1), urls=urls))
        client = await stack.enter_async_context(connect(f"ws://127.0.0.1:{made.server.ports[0]}/ws{query}"))
        found = Events(made, sites, client)
        await until(lambda: all(each.here for each in sites))
        kind, data = await found.next()
        assert (kind, data["status"]["exec_info"]["queue_remaining"]) == ("status", sum(left))
        assert data["sid"] == "s"
        yield found


async def test_events_of_all_backends_come_on_one_socket():
    """Each as it was sent, those of one backend in their order."""
    async with events() as here:
        for number in range(3):
            await here.sites[0].says("progress", value=number)
        await here.sites[1].says("executing", node="1")
        found = [await here.next() for _ in range(4)]
        assert [data["value"] for kind, data in found if kind == "progress"] == [0, 1, 2]
        assert ("executing", {"node": "1"}) in found


@pytest.mark.parametrize("left", [(0, 2), (2, 0)])
async def test_nothing_is_left_only_when_every_backend_has_said_so(left: tuple[int, int]):
    """Clients take the first "nothing left" for the end of their job: an idle backend does not say it for the other."""
    async with events(left=left):
        pass


@pytest.mark.parametrize("first", [True, False])
async def test_a_backend_that_says_nothing_is_not_waited_for(monkeypatch: pytest.MonkeyPatch, first: bool):
    """The client is told what is known, whichever of the two is silent."""
    monkeypatch.setattr(ws_confluence, "PATIENCE", 0.05)

    async def mute(connection: ServerConnection) -> None:
        await connection.wait_closed()

    async with site([0]) as speaks, serve(mute, "127.0.0.1", 0) as silent:
        urls = [f"http://127.0.0.1:{each.sockets[0].getsockname()[1]}" for each in (speaks.server, silent)]
        urls = urls if first else urls[::-1]
        async with several(None, (1, 1), urls=urls) as made:
            async with connect(f"ws://127.0.0.1:{made.server.ports[0]}/ws?clientId=me") as client:
                message = json.loads(await asyncio.wait_for(client.recv(), 30))
            assert message["data"]["status"]["exec_info"]["queue_remaining"] == 0


async def test_the_number_of_jobs_left_is_that_of_all_backends():
    """One that is idle does not say that nothing is left."""
    async with events() as here:
        await here.sites[0].left(2)
        assert (await here.next())[1]["status"]["exec_info"]["queue_remaining"] == 2
        await here.sites[1].left(3)
        assert (await here.next())[1]["status"]["exec_info"]["queue_remaining"] == 5
        await here.sites[0].left(0)
        assert (await here.next())[1]["status"]["exec_info"]["queue_remaining"] == 3


async def test_what_the_client_says_is_said_to_all():
    """Feature flags, and whatever comes later; the answer to them comes once."""
    async with events() as here:
        await here.client.send('{"type": "feature_flags", "data": {"a": true}}')
        await here.client.send(b"\x01\x02")
        await until(lambda: all(len(each.heard) == 2 for each in here.sites))
        assert here.sites[0].heard == here.sites[1].heard
        for each in here.sites:
            await each.says("feature_flags", b=1)
            await each.says("done")
        found = [(await here.next())[0] for _ in range(3)]
        assert sorted(found) == ["done", "done", "feature_flags"]


async def test_large_messages_and_fragments_of_two_backends_do_not_mix():
    """A picture that comes in pieces is whole when it arrives."""
    async with events() as here:

        async def pieces(number: int) -> AsyncIterator[bytes]:
            for _ in range(20):
                yield bytes([number]) * 50_000
                await asyncio.sleep(0)

        await asyncio.gather(*[each.here[0].send(pieces(number)) for number, each in enumerate(here.sites)])
        found = [await asyncio.wait_for(here.client.recv(), 30) for _ in range(2)]
        assert sorted(found) == [bytes(1_000_000), b"\x01" * 1_000_000]


async def test_backends_are_asked_without_compression_and_under_one_id():
    """Compressed streams could not be joined, and jobs know the client by its id."""
    async with events(query="") as here:
        assert [each.offers for each in here.sites] == [[""], [""]]
        (first,), (second,) = (each.asked for each in here.sites)
        assert first == second
        assert len(first.removeprefix("/ws?clientId=")) == 32


async def test_a_backend_that_dies_takes_nothing_with_it_and_is_heard_again():
    """The client stays; what it had said is said again to the next life, and its events come."""
    async with events() as here:
        await here.client.send("flags")
        await until(lambda: all(each.heard for each in here.sites))
        here.dies(0)
        await until(lambda: not here.sites[0].here)
        await here.sites[1].says("progress", value=1)
        assert await here.next() == ("progress", {"value": 1})
        here.made.comes(0, "second life")
        await until(lambda: here.sites[0].heard == ["flags", "flags"])
        assert (await here.next())[0] == "status"
        await here.sites[0].says("progress", value=2)
        assert await here.next() == ("progress", {"value": 2})


async def test_with_all_backends_away_the_client_is_held_and_answered(tmp_path: Path):
    """Until one of them is back: there is a journal, which will tell what it missed."""
    async with events(tmp_path) as here:
        for index in range(2):
            here.dies(index)
        await until(lambda: not any(each.here for each in here.sites))
        await asyncio.wait_for(await here.client.ping(), 30)
        here.made.comes(1, "second life")
        assert (await here.next())[0] == "status"
        await here.sites[1].says("progress", value=1)
        assert await here.next() == ("progress", {"value": 1})


async def test_without_a_journal_nobody_is_held():
    """With the last backend the client's socket ends, as with a single one."""
    async with events() as here:
        for index in range(2):
            here.dies(index)
        with pytest.raises(ConnectionClosed):
            await asyncio.wait_for(here.client.recv(), 30)


async def test_a_backend_that_lives_and_breaks_the_socket_off_means_it(monkeypatch: pytest.MonkeyPatch):
    """Then the client is told goodbye: it would hear nothing from there."""
    monkeypatch.setattr(ws_confluence, "DEATH", 0.01)
    async with events() as here:
        here.sites[0].here[0].transport.abort()
        with pytest.raises(ConnectionClosed) as caught:
            await asyncio.wait_for(here.client.recv(), 30)
        assert caught.value.rcvd is not None
        assert caught.value.rcvd.code == 1001


async def test_a_client_that_leaves_is_gone_everywhere():
    """No socket stays at any backend."""
    async with events() as here:
        await here.client.close()
        await until(lambda: not any(each.here for each in here.sites))
        await until(lambda: not here.made.server.bridges.open)


async def test_the_same_client_again_takes_over():
    """One id, one listener at every backend: the older is silent, the newer hears."""
    async with events() as here, connect(f"ws://127.0.0.1:{here.made.server.ports[0]}/ws?clientId=me") as newer:
        await until(lambda: all(len(each.here) == 1 and len(each.asked) == 2 for each in here.sites))
        for each in here.sites:
            await each.says("progress", value=1)
        found = [json.loads(await asyncio.wait_for(newer.recv(), 30))["type"] for _ in range(3)]
        assert sorted(found) == ["progress", "progress", "status"]


async def test_a_port_of_one_gpu_hears_its_backend_alone():
    """As before."""
    async with events() as here, connect(f"ws://127.0.0.1:{here.made.server.ports[2]}/ws?clientId=you") as other:
        await until(lambda: len(here.sites[1].here) == 2)
        assert len(here.sites[0].here) == 1
        await here.sites[0].says("progress", value=0)
        await here.sites[1].says("progress", value=1)
        found = [json.loads(await asyncio.wait_for(other.recv(), 30)) for _ in range(2)]
        assert found[1]["data"] == {"value": 1}


def test_a_message_without_end_is_not_collected():
    """Whoever sends one is cut off instead."""
    messages = Messages()
    with pytest.raises(TooLargeError):
        messages.feed(b"\x82\x7f" + (1 << 40).to_bytes(8, "big"))


def test_messages_are_cut_wherever_the_bytes_are():
    """Byte by byte or at once; control frames pass between fragments."""
    stream = b"\x01\x01a" + b"\x89\x00" + b"\x80\x01b" + b"\x82\x7e\x00\xc8" + bytes(200)
    whole = Messages().feed(stream)
    single = Messages()
    assert [message for byte in stream for message in single.feed(bytes([byte]))] == whole
    assert [message.opcode for message in whole] == [9, 1, 2]
    assert whole[1].raw == b"\x01\x01a\x80\x01b"
