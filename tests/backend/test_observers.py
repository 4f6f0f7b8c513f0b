"""Observers hear every lane, never hold one up, and are told what they missed."""

import asyncio
import json
import struct
from typing import Any

from backend.observers import MOST, MOST_BYTES, PREVIEW_EVERY, PROGRESS_EVERY, Observers, _Observer
from tests.conftest import FakeClock


class Ear:
    """A socket that remembers what is sent on it; ``stuck`` holds it up."""

    def __init__(self) -> None:
        self.heard: list[Any] = []
        self.stuck = asyncio.Event()

    async def send_str(self, text: str) -> None:
        await self.stuck.wait()
        self.heard.append(json.loads(text))

    async def send_bytes(self, data: bytes) -> None:
        await self.stuck.wait()
        self.heard.append(data)


class Watched(Observers):
    """Observers with one of them, which has no connection."""

    def __init__(self, clock: FakeClock) -> None:
        super().__init__(2, clock)
        self.ear = Ear()
        self.observer = _Observer(self.ear)  # type: ignore[arg-type]  # a double
        self._open = (self.observer,)
        self._loop = asyncio.get_running_loop()

    async def pumped(self) -> list[Any]:
        """What arrives once the socket takes everything."""
        self.ear.stuck.set()
        await asyncio.sleep(0)  # what was told is put
        async with asyncio.TaskGroup() as tasks:
            pump = tasks.create_task(self.observer.pump(), name="pump")
            while self.observer._waiting or not self.ear.heard:
                await asyncio.sleep(0)
            await asyncio.sleep(0)
            pump.cancel()
        return self.ear.heard


async def test_events_say_their_gpu(clock: FakeClock):
    """As ComfyUI has them, and ``gpu_id`` beside."""
    watched = Watched(clock)
    watched.tell(1, "executing", {"node": "3", "prompt_id": "p"})
    assert await watched.pumped() == [
        {"type": "executing", "data": {"node": "3", "prompt_id": "p"}, "gpu_id": 1}
    ]


async def test_progress_is_told_so_often_and_its_end_always(clock: FakeClock):
    """Per lane and kind; no other event is left out."""
    watched = Watched(clock)
    for value in range(1, 101):
        watched.tell(0, "progress", {"value": value, "max": 100})
        watched.tell(0, "executed", {"node": str(value)})
    watched.tell(1, "progress", {"value": 1, "max": 100})
    clock.advance(2 * PROGRESS_EVERY)
    watched.tell(0, "progress", {"value": 5, "max": 100})
    heard = await watched.pumped()
    told = [(each["gpu_id"], each["data"]["value"]) for each in heard if each["type"] == "progress"]
    assert told == [(0, 1), (0, 100), (1, 1), (0, 5)]
    assert len([each for each in heard if each["type"] == "executed"]) == 100


async def test_previews_are_rare_and_say_whose_they_are(clock: FakeClock):
    """Binary event 4 with ``gpu_id`` in its metadata."""
    watched = Watched(clock)
    assert watched.wants_preview(0)
    assert not watched.wants_preview(0)
    assert watched.wants_preview(1)
    clock.advance(PREVIEW_EVERY)
    assert watched.wants_preview(0)
    watched.preview(1, b"JPEG", {"prompt_id": "p"})
    (frame,) = await watched.pumped()
    kind, size = struct.unpack(">II", frame[:8])
    assert kind == 4
    assert json.loads(frame[8 : 8 + size]) == {"prompt_id": "p", "gpu_id": 1, "image_type": "image/jpeg"}
    assert frame[8 + size :] == b"JPEG"


async def test_who_does_not_read_loses_the_oldest_and_is_told(clock: FakeClock):
    """Bounded by number and by bytes."""
    watched = Watched(clock)
    for number in range(MOST + 50):
        watched.tell(0, "executed", {"number": number})
    await asyncio.sleep(0)
    heard = await watched.pumped()
    assert heard[0] == {"type": "dropped", "data": {"messages": 50}, "gpu_id": None}
    assert [each["data"]["number"] for each in heard[1:]] == list(range(50, MOST + 50))
    for _ in range(5):
        watched.preview(0, b"x" * (MOST_BYTES // 4), {})
    await asyncio.sleep(0)
    assert watched.observer._bytes <= MOST_BYTES


async def test_nothing_is_made_when_nobody_watches(clock: FakeClock):
    """Not even text."""
    observers = Observers(1, clock)

    class Costly:
        def __repr__(self) -> str:
            raise AssertionError("it was looked at")

    observers.tell(0, "executed", {"output": Costly()})
    assert not observers.wants_preview(0)
    assert not observers


async def test_what_is_no_json_does_not_hurt(clock: FakeClock):
    """A custom node's event may hold anything, itself included."""
    watched = Watched(clock)
    ring: dict[str, Any] = {}
    ring["ring"] = ring
    watched.tell(0, "mine", ring)
    watched.tell(0, "mine", {("a", 1): 2, "ok": {1, 2}})
    (heard,) = await watched.pumped()
    assert heard["data"] == {"ok": "{1, 2}"}
