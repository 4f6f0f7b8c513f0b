"""Outboxes stay bounded, events go where they belong, previews to those who want them."""

import asyncio
import json
import struct
from typing import Any

import pytest
from PIL import Image

from backend.embedded.jobs import Job, Jobs
from backend.embedded.sockets import HARD_MESSAGES, SOFT_MESSAGES, Hub, Message, Outbox, Socket, preview_frame
from backend.lanes import Lane


def job(prompt_id: str = "p", lane: int = 0, client: str | None = "me", **extra: Any) -> Job:
    return Job(0, prompt_id, {}, {**({"client_id": client} if client else {}), **extra}, [], lane)


async def drained(outbox: Outbox) -> list[Message]:
    return [await outbox.get() for _ in range(len(outbox))]


async def test_progress_goes_first_when_a_client_is_slow():
    """Beyond the soft limit older progress is dropped, what matters never."""
    outbox = Outbox()
    many = SOFT_MESSAGES * 3
    for index in range(many):
        assert outbox.put(Message(f"progress-{index}", droppable=True))
        if index % 10 == 0:
            assert outbox.put(Message(f"event-{index}"))
    assert len(outbox) <= SOFT_MESSAGES
    found = [str(message.body) for message in await drained(outbox)]
    assert [name for name in found if name.startswith("event")] == [f"event-{n}" for n in range(0, many, 10)]
    assert found[-1] == f"progress-{many - 1}"  # the newest progress is what is left


async def test_a_client_that_never_reads_is_cut():
    """Beyond the hard limit the outbox says so."""
    outbox = Outbox()
    taken = [outbox.put(Message("x")) for _ in range(HARD_MESSAGES + 1)]
    assert taken.index(False) == HARD_MESSAGES
    assert not Outbox().put(Message(b"x" * (17 << 20)))


async def test_get_waits_for_put():
    """The pump sleeps until there is something."""
    outbox = Outbox()
    async with asyncio.TaskGroup() as tasks:
        waiting = tasks.create_task(outbox.get(), name="get")
        await asyncio.sleep(0)
        assert not waiting.done()
        outbox.put(Message("x"))
    assert waiting.result().body == "x"


class Town:
    """A hub with sockets whose outboxes a test reads."""

    def __init__(self) -> None:
        self.jobs = Jobs([Lane(index, "cpu") for index in range(3)])
        self.hub = Hub(self.jobs, asyncio.get_running_loop())
        self.jobs.on_change = self.hub.changed
        self.cut: list[str] = []

    def open(self, gpu: int | None, sid: str, flags: dict[str, Any] | None = None) -> Socket:
        socket = Socket(gpu, sid, None, lambda: self.cut.append(sid))  # type: ignore[arg-type]
        socket.flags = flags
        self.hub.add(socket)
        return socket

    async def heard(self, socket: Socket) -> list[Any]:
        await asyncio.sleep(0.01)  # what workers posted is delivered by the loop's next turn
        return [
            json.loads(message.body) if isinstance(message.body, str) else message.body
            for message in await drained(socket.outbox)
        ]


@pytest.fixture
async def town() -> Town:
    return Town()


async def test_events_go_to_the_client_on_its_lane_and_to_its_observer(town: Town):
    """Not to the same id on another lane, not to others on the same lane."""
    sockets = {(gpu, sid): town.open(gpu, sid) for gpu, sid in ((0, "me"), (1, "me"), (None, "me"), (0, "you"))}
    for socket in sockets.values():
        await town.heard(socket)
    town.hub.send(job(), "executing", {"node": "1"})
    found = {key: await town.heard(socket) for key, socket in sockets.items()}
    event = [{"type": "executing", "data": {"node": "1"}}]
    assert found == {(0, "me"): event, (1, "me"): [], (None, "me"): event, (0, "you"): []}


async def test_status_counts_in_step_with_the_events(town: Town):
    """A job is counted from its acceptance until its end is told, however fast the worker is."""
    lane, observer = town.open(0, "me"), town.open(None, "me")
    town.jobs.submit(job("a"))
    town.jobs.submit(job("b", client="you"))
    taken = town.jobs.take(0)
    assert isinstance(taken, Job)
    town.jobs.finish(taken, "success", {})
    town.jobs.finished(taken)
    counts = [
        [each["data"]["status"]["exec_info"]["queue_remaining"] for each in await town.heard(socket)]
        for socket in (lane, observer)
    ]
    # Connect, a accepted, b accepted, a started, a ended; b is not the observer's.
    assert counts == [[0, 1, 2, 2, 1], [0, 1, 1, 0]]


async def test_a_submission_is_counted_before_an_earlier_end_is_told(town: Town):
    """The end of one job, told late, never makes the count 0 while a new one waits."""
    observer = town.open(None, "me")
    town.jobs.submit(job("a"))
    taken = town.jobs.take(0)
    assert isinstance(taken, Job)
    town.jobs.finish(taken, "success", {})
    town.jobs.finished(taken)  # posted to the loop, not delivered yet
    town.jobs.submit(job("b", lane=2))
    counts = [each["data"]["status"]["exec_info"]["queue_remaining"] for each in await town.heard(observer)]
    assert counts[-1] == 1
    assert 0 not in counts[1:]


async def test_jobs_without_a_client_count_for_every_observer(town: Town):
    """Nobody can say whose they are, so no observer is told 0 while they wait."""
    observer = town.open(None, "me")
    town.jobs.submit(job("a", lane=1, client=None))
    counts = [each["data"]["status"]["exec_info"]["queue_remaining"] for each in await town.heard(observer)]
    assert counts == [0, 1]


async def test_a_newer_socket_takes_the_key(town: Town):
    """The older one hears nothing more, and its end does not take the newer one along."""
    old = town.open(0, "me")
    new = town.open(0, "me")
    await town.heard(old)
    await town.heard(new)
    town.hub.send(job(), "executing", {})
    assert (len(await town.heard(old)), len(await town.heard(new))) == (0, 1)
    town.hub.remove(old)
    town.hub.send(job(), "executing", {})
    assert len(await town.heard(new)) == 1


async def test_previews_come_in_the_form_that_was_negotiated(town: Town):
    """With metadata for clients that can, the old form for those that negotiated without, none for the silent."""
    modern = town.open(0, "me", {"supports_preview_metadata": True})
    silent = town.open(None, "me")
    await town.heard(modern)
    await town.heard(silent)
    made: list[int] = []

    def image() -> Image.Image:
        made.append(1)
        return Image.new("RGB", (600, 300))

    town.hub.preview(job(), image, {"node_id": "3"})
    (frame,) = await town.heard(modern)
    kind, length = struct.unpack(">II", frame[:8])
    assert kind == 4
    assert json.loads(frame[8 : 8 + length]) == {"node_id": "3", "image_type": "image/jpeg"}
    assert frame[8 + length :].startswith(b"\xff\xd8")
    assert await town.heard(silent) == []
    town.hub.preview(job(preview_method="latent2rgb"), image, {})
    (frame,) = await town.heard(silent)
    assert struct.unpack(">II", frame[:8]) == (1, 1)
    town.hub.preview(job(client="nobody"), image, {})
    assert len(made) == 2  # nobody would have seen the third


def test_preview_frames():
    """Event 1 with its picture format, or event 4 with the length of its metadata."""
    assert preview_frame(b"JPEG", {}, {}) == b"\0\0\0\1\0\0\0\1JPEG"
    text = b'{"a": 1, "image_type": "image/jpeg"}'
    expected = b"\0\0\0\4" + len(text).to_bytes(4, "big") + text + b"JPEG"
    assert preview_frame(b"JPEG", {"a": 1}, {"supports_preview_metadata": True}) == expected
