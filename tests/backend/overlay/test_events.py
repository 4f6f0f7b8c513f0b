"""Who gets which event: clients by GPU and id, addresses, and outboxes that wait for nobody."""

import asyncio
import contextvars
import json
from collections.abc import Callable, Iterable
from typing import Any

import pytest
from aiohttp import web

from backend.context import in_job, in_lane
from backend.overlay import outbox as outboxes
from backend.overlay.events import ClientTable, SocketTable, Target, address
from backend.overlay.outbox import FanOut, Outbox


def unchanged(lane: int | None, sid: str, message: outboxes.Message) -> Iterable[outboxes.Message]:
    return (message,)


class Socket:
    """Keeps what it is sent; ``free`` lets sending go on."""

    closed = False

    def __init__(self) -> None:
        self.sent: list[Any] = []
        self.free = asyncio.Event()
        self.free.set()
        self.error: Exception | None = None

    async def send_json(self, message: Any) -> None:
        json.dumps(message)
        await self._send(message)

    async def send_str(self, text: str) -> None:
        await self._send(json.loads(text))

    async def send_bytes(self, message: bytes) -> None:
        await self._send(bytes(message))

    async def _send(self, message: Any) -> None:
        await self.free.wait()
        if self.error is not None:
            raise self.error
        self.sent.append(message)


async def until(what: Callable[[], Any]) -> None:
    """Let other tasks run until it is so."""
    async with asyncio.timeout(10):
        while not what():
            await asyncio.sleep(0)


def put(table: ClientTable[Any], lane: int | None, sid: str, value: Any) -> contextvars.Context:
    """Enter a client as its request does, in a context of its own; the context is given back."""
    context = contextvars.copy_context()

    def enter() -> None:
        with in_lane(lane):
            table[sid] = value

    context.run(enter)
    return context


def leave(table: ClientTable[Any], context: contextvars.Context, lane: int | None, sid: str) -> Any:
    def pop() -> Any:
        with in_lane(lane):
            return table.pop(sid, None)

    return context.run(pop)


def test_one_id_on_two_lanes_is_two_entries() -> None:
    """A plain id means the caller's lane's client."""
    table: ClientTable[str] = ClientTable()
    put(table, 0, "a", "zero")
    put(table, 1, "a", "one")
    for lane, expected in ((0, "zero"), (1, "one")):
        with in_lane(lane):
            assert table["a"] == expected
    assert list(table) == ["a", "a"]
    assert sorted(table.values()) == ["one", "zero"]
    assert len(table) == 2


def test_an_id_is_found_from_any_lane_when_its_own_has_none() -> None:
    """A thread of another lane, or of none, still finds the client."""
    table: ClientTable[str] = ClientTable()
    put(table, 1, "a", "one")
    with in_lane(2):
        assert "a" in table
        assert table["a"] == "one"
    assert table.get("a") == "one"
    assert "b" not in table
    assert None not in table
    with pytest.raises(KeyError):
        table["b"]


def test_only_its_own_connection_takes_an_entry_away() -> None:
    """The end of an old socket leaves its successor; a new one removes the old."""
    table: ClientTable[str] = ClientTable()
    old = put(table, 0, "a", "old")
    new = put(table, 0, "a", "new")
    assert leave(table, old, 0, "a") is None
    with in_lane(0):
        assert table["a"] == "new"
    assert leave(table, new, 0, "a") == "new"
    assert len(table) == 0
    with in_lane(0), pytest.raises(KeyError):
        table.pop("a")


@pytest.mark.parametrize(
    ("lane", "job", "sid", "expected"),
    [
        (1, "j", "a", (1, "a")),
        (1, "j", None, (1, "")),
        (1, None, None, None),
        (None, None, None, None),
        (None, None, "a", (None, "a")),
    ],
)
def test_an_event_is_addressed_by_where_it_comes_from(
    lane: int | None, job: str | None, sid: str | None, expected: tuple[int | None, str] | None
) -> None:
    """A job's broadcast is its GPU's; what a route or a thread of nobody says is for all."""
    with in_lane(lane), in_job(job):
        found = address(sid)
    assert (found if found is None else (found.lane, str(found))) == expected
    assert address(found) is found


@pytest.mark.parametrize(
    ("target", "expected"),
    [
        (Target(0, "a"), {"a0", "a-"}),
        (Target(1, "a"), {"a1", "a-"}),
        (Target(2, "b"), {"b1"}),
        (Target(None, "a"), {"a0", "a1", "a-"}),
        (Target(0, None), {"a0", "a-", "c-"}),
        (Target(None, None), {"a0", "a1", "a-", "b1", "c-"}),
        (Target(0, "nobody"), set()),
    ],
)
def test_a_target_means_these_clients(target: Target, expected: set[str]) -> None:
    """A job's events go to its client on its GPU and at the front door, else wherever that client is."""
    table: ClientTable[str] = ClientTable()
    for lane, sid in ((0, "a"), (1, "a"), (None, "a"), (1, "b"), (None, "c")):
        put(table, lane, sid, f"{sid}{'-' if lane is None else lane}")
    assert set(table.matching(target)) == expected
    assert (target in table) is bool(expected)


def test_a_target_can_be_compared_with_client_ids() -> None:
    """Custom nodes that wrap ComfyUI's sending see a plain string."""
    assert Target(1, "a") == "a"
    assert json.dumps(Target(1, "a")) == '"a"'


async def test_one_stalled_socket_delays_nobody() -> None:
    """Sending returns at once, and others are served while one does not read."""
    table = SocketTable(unchanged)
    stalled, reading = Socket(), Socket()
    stalled.free.clear()
    put(table, 0, "a", stalled)
    put(table, 0, "b", reading)
    for number in range(10):
        await table[Target(0, None)].send_json({"type": "x", "data": {"number": number}})
    await until(lambda: len(reading.sent) == 10)
    assert stalled.sent == []
    stalled.free.set()
    await until(lambda: len(stalled.sent) == 10)
    assert stalled.sent == reading.sent


async def test_a_slow_client_loses_previews_and_progress_first() -> None:
    """What the next message says anew goes; everything else arrives, in order."""
    socket = Socket()
    socket.free.clear()
    outbox = Outbox(socket, "slow", lambda message: (message,))
    for number in range(outboxes.SOFT_LIMIT):
        await outbox.send_json({"type": "progress", "data": number})
        await outbox.send_bytes((1).to_bytes(4, "big") + b"preview")
        await outbox.send_json({"type": "executed", "data": number})
    socket.free.set()
    await until(lambda: socket.sent and socket.sent[-1] == {"type": "executed", "data": outboxes.SOFT_LIMIT - 1})
    kept = [message["data"] for message in socket.sent if isinstance(message, dict) and message["type"] == "executed"]
    assert kept == list(range(outboxes.SOFT_LIMIT))
    assert outbox.dropped > outboxes.SOFT_LIMIT
    assert len(socket.sent) <= outboxes.SOFT_LIMIT + 2


async def test_a_client_that_never_reads_is_cut_off(monkeypatch: pytest.MonkeyPatch) -> None:
    """Memory for one socket is bounded; its connection ends, so that it can connect anew."""
    monkeypatch.setattr(outboxes, "HARD_LIMIT", 20)
    aborted = asyncio.Event()
    socket = Socket()
    socket.free.clear()
    transport = type("Transport", (), {"abort": staticmethod(aborted.set)})
    socket._req = type("Request", (), {"transport": transport})  # type: ignore[attr-defined]
    outbox = Outbox(socket, "gone", lambda message: (message,))
    for number in range(100):
        await outbox.send_json({"type": "executed", "data": number})
        await asyncio.sleep(0)
    assert aborted.is_set()
    assert "waiting=0" in repr(outbox)


async def test_large_messages_are_bounded_by_their_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    """A few messages may be too many when they are large."""
    monkeypatch.setattr(outboxes, "HARD_BYTES", 1000)
    socket = Socket()
    socket.free.clear()
    outbox = Outbox(socket, "gone", lambda message: (message,))
    for _ in range(3):
        await outbox.send_bytes((3).to_bytes(4, "big") + bytes(600))
    assert "waiting=0" in repr(outbox)


@pytest.mark.parametrize(
    "data", ["x" * 600, ["x" * 20] * 30, {"node": {"text": ["x" * 600]}}, list(range(100))],
    ids=["text", "list", "nested", "numbers"],
)  # fmt: skip
async def test_text_counts_as_well(monkeypatch: pytest.MonkeyPatch, data: Any) -> None:
    """What waits as an object takes memory too, however deep in the message it is."""
    monkeypatch.setattr(outboxes, "HARD_BYTES", 1000)
    socket = Socket()
    socket.free.clear()
    outbox = Outbox(socket, "gone", lambda message: (message,))
    for _ in range(3):
        await outbox.send_json({"type": "executed", "data": data})
    assert "waiting=0" in repr(outbox)


async def test_one_message_may_be_as_large_as_it_likes(monkeypatch: pytest.MonkeyPatch) -> None:
    """A client that reads is never cut off, and what it has read no longer counts."""
    monkeypatch.setattr(outboxes, "HARD_BYTES", 1000)
    socket = Socket()
    outbox = Outbox(socket, "reads", lambda message: (message,))
    large = (3).to_bytes(4, "big") + bytes(5000)
    for number in range(1, 9):
        await outbox.send_bytes(large)
        await outbox.send_json({"type": "executed", "data": "x" * 500})
        await until(lambda number=number: len(socket.sent) == 2 * number)
    assert outbox._bytes == 0


def test_weighing_ends_where_it_is_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    """A long list is not walked to its end when its first part is too much already."""
    monkeypatch.setattr(outboxes, "HARD_BYTES", 1000)
    assert outboxes.weigh(list(range(1_000_000))) < 1000 + 2 * outboxes.OBJECT


async def test_a_closed_socket_ends_its_outbox_quietly() -> None:
    """The error is the end of that client's events and of nothing else."""
    socket = Socket()
    socket.error = ConnectionResetError("gone")
    outbox = Outbox(socket, "gone", lambda message: (message,))
    await outbox.send_json({"type": "x", "data": 1})
    await until(lambda: outbox._over)
    await outbox.send_json({"type": "x", "data": 2})
    assert socket.sent == []


async def test_what_json_cannot_hold_is_sent_as_text() -> None:
    """The event arrives, and the next ones too."""
    socket = Socket()
    outbox = Outbox(socket, "a", lambda message: (message,))
    await outbox.send_json({"type": "x", "data": object()})
    await outbox.send_json({"type": "y", "data": 1})
    await until(lambda: len(socket.sent) == 2)
    assert "object" in socket.sent[0]["data"]


async def test_a_status_is_counted_when_it_is_sent() -> None:
    """The message that waited says what is so now, not what was so when it was put."""
    left = [5]

    def refresh(lane: int | None, sid: str, message: outboxes.Message) -> Iterable[outboxes.Message]:
        return ({**message, "data": {"status": left[0]}},)

    table = SocketTable(refresh)
    socket = Socket()
    socket.free.clear()
    put(table, 0, "a", socket)
    await table[Target(0, None)].send_json({"type": "x", "data": {}})
    await table[Target(0, None)].send_json({"type": "status", "data": {"status": 5}})
    await asyncio.sleep(0)
    left[0] = 2
    socket.free.set()
    await until(lambda: len(socket.sent) == 2)
    assert socket.sent[1]["data"] == {"status": 2}


async def test_the_front_door_is_not_told_that_still_nothing_is_its_own() -> None:
    """Changes of other clients' jobs are no news to a client that has none."""
    table = SocketTable(unchanged)
    door, lane = Socket(), Socket()
    put(table, None, "a", door)
    put(table, 0, "b", lane)
    nothing = {"type": "status", "data": {"status": {"exec_info": {"queue_remaining": 0}}}}
    one = {"type": "status", "data": {"status": {"exec_info": {"queue_remaining": 1}}}}
    for message in (nothing, nothing, one, one, nothing, nothing):
        await table[Target(0, None)].send_json(message)
    await until(lambda: len(lane.sent) == 6)
    assert door.sent == [nothing, one, one, nothing]


async def test_a_new_socket_of_a_client_ends_the_old_outbox() -> None:
    """What waited for the old connection is forgotten with it."""
    table = SocketTable(unchanged)
    old, new = Socket(), Socket()
    old.free.clear()
    put(table, 0, "a", old)
    await table[Target(0, "a")].send_json({"type": "x", "data": 1})
    put(table, 0, "a", new)
    await table[Target(0, "a")].send_json({"type": "x", "data": 2})
    await until(lambda: new.sent)
    assert old.sent == []
    assert new.sent == [{"type": "x", "data": 2}]


async def test_several_sockets_stand_where_one_is_expected() -> None:
    """ComfyUI's own sending reaches all of them through one object; an outbox gives the rest of its socket."""
    table = SocketTable(unchanged)
    sockets = [Socket(), Socket()]
    put(table, 0, "a", sockets[0])
    put(table, None, "a", sockets[1])
    both = table[Target(0, "a")]
    assert isinstance(both, FanOut)
    await both.send_bytes(b"\0\0\0\3x")
    await both.send_json({"type": "x", "data": 1})
    await until(lambda: all(len(socket.sent) == 2 for socket in sockets))
    with in_lane(0):
        assert table["a"].closed is False


@pytest.mark.parametrize(
    ("message", "expected"),
    [
        ({"type": "progress"}, True), ({"type": "progress_state"}, True), ({"type": "executed"}, False),
        ((1).to_bytes(4, "big"), True), ((4).to_bytes(4, "big"), True), ((3).to_bytes(4, "big"), False),
    ],
)
def test_what_a_slow_client_can_do_without(message: Any, expected: bool) -> None:
    """Previews and progress; text (type 3) and everything that ends something stay."""
    assert outboxes.droppable(message) is expected


async def test_a_real_socket_that_never_reads_is_closed(
    monkeypatch: pytest.MonkeyPatch, unused_tcp_port: int
) -> None:
    """Its handler ends and takes it out of the table, and the client sees the end of its connection."""
    monkeypatch.setattr(outboxes, "HARD_BYTES", 1 << 20)
    table = SocketTable(unchanged)
    gone = asyncio.Event()

    async def handler(request: web.Request) -> web.WebSocketResponse:
        ws = web.WebSocketResponse()
        await ws.prepare(request)
        table["a"] = ws
        try:
            async for _ in ws:
                pass
        finally:
            table.pop("a", None)
            gone.set()
        return ws

    app = web.Application()
    app.router.add_get("/ws", handler)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", unused_tcp_port).start()
    reader, writer = await asyncio.open_connection("127.0.0.1", unused_tcp_port, limit=1024)
    writer.write(
        b"GET /ws HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
    )
    await until(lambda: "a" in table)
    outbox = table["a"]
    for _ in range(1000):
        if gone.is_set():
            break
        await outbox.send_bytes((3).to_bytes(4, "big") + bytes(100_000))
        await asyncio.sleep(0)
    async with asyncio.timeout(10):
        await gone.wait()
        while await reader.read(1 << 20):
            pass
    writer.close()
    await runner.cleanup()
    assert "a" not in table
