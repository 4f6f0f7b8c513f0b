"""Clients whose backend has died: held, answered, given another backend side, or let go; never forgotten."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass, field

import pytest

from gateway import ws_keep
from gateway.wire.frames import close_frame, frame
from gateway.ws_keep import Keeper
from tests.doubles.bridges import SWITCH, masked, opened
from tests.doubles.http_backend import Peer
from tests.doubles.http_client import RawClient
from tests.doubles.http_stack import Hands, Stack, stack, stop_the_clock
from tests.doubles.wait import until

GOODBYE = close_frame(1001, masked=False)
HELLO = masked(1, b"hello")


@dataclass
class Kept:
    """A stack with a keeper, whose backend a test can let die and come back."""

    made: Stack
    keeper: Keeper
    clock: Hands
    said: list[bytes] = field(default_factory=list)
    """What each life of the backend has heard on its one bridge."""

    def dies(self) -> None:
        """As ``kill -9``: its connection is reset, and the fleet knows."""
        self.made.fleet.members[0].backend_down("It is dead.", 1)
        self.made.backend.peers[-1].reset()

    def returns(self, boot: str = "second") -> None:
        self.made.fleet.members[0].backend_up("double", boot=boot)
        self.keeper.backend_back(self.made.fleet.members[0])

    @property
    def parked(self) -> bool:
        return [bridge.parked for bridge in self.made.proxy.bridges.open] == [True]


@contextlib.asynccontextmanager
async def kept(
    *answers: bytes, hold: float = 120.0, missed: list[bytes] | Exception | None = None
) -> AsyncIterator[Kept]:
    """A gateway that holds clients; each handshake gets the next of ``answers``, the last one again and again."""
    said: list[bytes] = []

    async def script(peer: Peer) -> None:
        await peer.head()
        number = peer.number - 1
        said.append(b"")
        await peer.send((answers or (SWITCH,))[min(number, len(answers or (SWITCH,)) - 1)])
        while data := await peer.reader.read(65536):
            said[number] += data

    async def tell(client_id: str, gpu: str, since: float, until_: float) -> list[bytes]:
        assert (client_id, gpu) == ("me", "2")
        assert since <= until_
        if isinstance(missed, Exception):
            raise missed
        return missed or []

    async with stack(script) as made:
        made.fleet.members[0].backend_up("double", boot="first")
        keeper = made.proxy.bridges.keeper = Keeper([made.backend.url], hold, made.fleet, tell)
        running = asyncio.get_running_loop().create_task(keeper.run(), name="keeper")
        try:
            yield Kept(made, keeper, stop_the_clock(made), said)
        finally:
            running.cancel()
            await asyncio.wait([running])
        if not running.cancelled() and (error := running.exception()):
            raise error


@pytest.fixture(autouse=True)
def patience(monkeypatch: pytest.MonkeyPatch) -> None:
    """A handshake that is late, because this machine is busy, is no failed one."""
    monkeypatch.setattr(ws_keep, "PATIENCE", 60.0)


async def listening(house: Kept, client: RawClient, *says: bytes) -> None:
    """A client that has a bridge and has said something."""
    await opened(client, "/ws?clientId=me")
    for said in says:
        await client.send(said)
    await until(lambda: house.said == [b"".join(says)])


async def parted(house: Kept) -> None:
    """The backend dies, and the client is held."""
    house.dies()
    await until(lambda: house.parked)


async def test_a_client_is_held_and_gets_another_backend_side():
    """The second handshake is the first's, what the client said is said again, what it missed comes before the new."""
    event = frame(1, b"new")
    async with kept(SWITCH, SWITCH + event, missed=[b"missed 1", b"missed 2"]) as house, house.made.client(2) as client:
        await listening(house, client, HELLO)
        await parted(house)
        await client.send(masked(9, b"there?") + masked(1, b"too"))
        assert await client.reader.readexactly(8) == b"\x8a\x06there?"
        house.returns()
        expected = frame(1, b"missed 1") + frame(1, b"missed 2") + event
        assert await client.reader.readexactly(len(expected)) == expected
        await client.send(masked(1, b"more"))
        await until(lambda: house.said[1:] == [HELLO + masked(1, b"too") + masked(1, b"more")])
        first, second = house.made.backend.seen
        assert (first.line, first.fields) == (second.line, second.fields)
        assert house.made.metrics.bridges_open == 1
        client.close()
        await until(lambda: not house.made.proxy.bridges.open)


async def test_a_client_survives_several_deaths():
    """Each time what it has said so far is said again."""
    async with kept() as house, house.made.client(2) as client:
        await listening(house, client, HELLO)
        for life in range(2, 5):
            await parted(house)
            house.returns(f"life {life}")
            await until(lambda: len(house.said) == life and house.said[-1] == HELLO)  # noqa: B023 (awaited)
        assert house.made.metrics.bridges_open == 1


@pytest.mark.parametrize(
    "line", [b"Sec-WebSocket-Protocol: other\r\n", b"Sec-WebSocket-Extensions: permessage-deflate\r\n"]
)
async def test_another_agreement_is_no_continuation(line):
    """A backend that answers the handshake otherwise cannot go on with the same stream: the client is told to go."""
    async with kept(SWITCH, SWITCH[:-2] + line + b"\r\n") as house, house.made.client(2) as client:
        await listening(house, client)
        await parted(house)
        house.returns()
        assert await client.rest() == GOODBYE
        await until(lambda: not house.made.proxy.bridges.open)


@pytest.mark.parametrize("answer", [b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n", b"nonsense\r\n\r\n"])
async def test_a_backend_that_has_no_events_any_more(answer):
    """The client is told to go, so that it asks anew."""
    async with kept(SWITCH, answer) as house, house.made.client(2) as client:
        await listening(house, client)
        await parted(house)
        house.returns()
        assert await client.rest() == GOODBYE


async def test_a_backend_that_breaks_one_socket_off_and_lives(monkeypatch):
    """Nobody has died: after a moment the client's socket is closed, too."""
    monkeypatch.setattr(ws_keep, "DEATH", 0.01)
    async with kept() as house, house.made.client(2) as client:
        await listening(house, client)
        house.made.backend.peers[0].reset()
        assert await client.rest() == GOODBYE
        assert not house.keeper._held


async def test_a_client_that_leaves_while_it_is_held():
    """Nothing is asked of the next backend for it, and nobody remembers it."""
    async with kept() as house, house.made.client(2) as client:
        await listening(house, client)
        await parted(house)
        client.reset()
        await until(lambda: not house.made.proxy.bridges.open)
        assert not house.keeper._held
        house.returns()
        async with house.made.client(2) as other:
            await opened(other, "/ws?clientId=me")
        assert len(house.said) == 2


async def test_a_client_that_leaves_during_the_second_handshake():
    """The new backend side is closed again."""
    async with kept(SWITCH, b"") as house, house.made.client(2) as client:
        await listening(house, client)
        await parted(house)
        house.returns()
        await until(lambda: len(house.made.backend.seen) == 2)
        client.reset()
        await until(lambda: not house.made.proxy.bridges.open)
        second = house.made.backend.peers[1]
        await second.send(SWITCH)
        await until(second.reader.at_eof)
        assert house.said[1] == b""


@pytest.mark.parametrize("says", [masked(8, b"\x03\xe8"), b"\x82\xfe\x7f\xff" + bytes(40_000)])
async def test_a_client_in_the_middle_of_something_is_not_held(says):
    """A goodbye, or more than can be said again: it is closed with the backend, as without a keeper."""
    async with kept() as house, house.made.client(2) as client:
        await listening(house, client, says)
        house.dies()
        assert await client.rest() == b""
        await until(lambda: not house.made.proxy.bridges.open)


async def test_half_a_frame_is_completed_at_the_next_backend():
    """What the client had begun to say goes on where it stopped."""
    async with kept() as house, house.made.client(2) as client:
        await listening(house, client, HELLO[:-2])
        await parted(house)
        house.returns()
        await until(lambda: house.made.metrics.bridges_open == 1 and not house.parked)
        await client.send(HELLO[-2:])
        await until(lambda: house.said[1:] == [HELLO])


async def test_half_an_event_cannot_be_continued():
    """A client that was in the middle of a frame from the backend could not be given another's next."""
    async with kept(SWITCH + b"\x81\x05he") as house, house.made.client(2) as client:
        await listening(house, client)
        assert await client.reader.readexactly(4) == b"\x81\x05he"
        house.dies()
        assert await client.rest() == b""


async def test_nobody_is_held_where_that_is_switched_off():
    """``hold_events = 0`` closes clients with their backend."""
    async with kept(hold=0.0) as house, house.made.client(2) as client:
        await listening(house, client)
        house.dies()
        assert await client.rest() == b""


async def test_holding_has_an_end():
    """A backend that does not come back in time: the client is let go."""
    async with kept(hold=120.0) as house, house.made.client(2) as client:
        await listening(house, client)
        await parted(house)
        house.clock.advance(119.0)
        assert house.parked
        house.clock.advance(2.0)
        assert await client.rest() == b""
        await until(lambda: not house.made.proxy.bridges.open)


async def test_a_goodbye_while_held_is_answered():
    """The client's Close gets its Close."""
    async with kept() as house, house.made.client(2) as client:
        await listening(house, client)
        await parted(house)
        await client.send(masked(8, b"\x0f\xa1bye"))
        assert await client.rest() == b"\x88\x05\x0f\xa1bye"


async def test_who_says_too_much_while_held_is_let_go():
    """What cannot be said again must not be taken."""
    async with kept() as house, house.made.client(2) as client:
        await listening(house, client)
        await parted(house)
        await client.send(b"".join(masked(2, bytes(100)) for _ in range(200)))
        assert await client.rest() == GOODBYE


async def test_a_flood_of_pings_while_held_is_bounded():
    """Who asks and never reads the answers is cut off."""
    async with kept() as house, house.made.client(2, receive_buffer=4096) as client:
        await listening(house, client)
        await parted(house)
        client.writer.transport.pause_reading()
        with contextlib.suppress(OSError):
            while house.made.proxy.bridges.open:
                await client.send(masked(9, bytes(125)) * 100)
                await asyncio.sleep(0)
        await until(lambda: not house.made.proxy.bridges.open)


async def test_the_same_client_again_while_it_is_held():
    """The old socket is told to go; the new one waits for nothing."""
    async with kept() as house, house.made.client(2) as old, house.made.client(2) as new:
        await listening(house, old)
        await parted(house)
        house.made.fleet.members[0].backend_up("double", boot="second")
        await opened(new, "/ws?clientId=me")
        assert await old.rest() == GOODBYE
        house.keeper.backend_back(house.made.fleet.members[0])
        await until(lambda: not house.keeper._held)
        await new.send(HELLO)
        await until(lambda: house.said[1:] == [HELLO])


async def test_not_knowing_what_was_missed_costs_nothing_else(caplog):
    """The events to come are more than none; the log has the reason."""
    event = frame(1, b"new")
    async with kept(SWITCH, SWITCH + event, missed=OSError("no disk")) as house, house.made.client(2) as client:
        await listening(house, client)
        await parted(house)
        house.returns()
        assert await client.reader.readexactly(len(event)) == event
    assert "no disk" in caplog.text
