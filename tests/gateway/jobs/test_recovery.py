"""Open promises are taken up when a backend comes, before any client is let to it."""

import asyncio
from pathlib import Path

import pytest

from gateway.jobs import peer
from tests.doubles.jobs_house import house
from tests.doubles.wait import until


async def test_everything_is_back_in_order_before_clients_come(tmp_path: Path):
    """What ran first, then what waited; while that goes on clients are told to wait."""
    async with house(tmp_path) as here:
        for job in ("a", "b", "c"):
            await here.submit(job)
        here.comfy.start()
        await until(lambda: here.states()["a"] == "running")
        here.backend_dies()
        here.comfy.hold = asyncio.Event()
        here.backend_comes("boot-2")
        await until(lambda: here.backend.seen[-1].method == b"POST")
        assert not here.fleet.up
        assert (await here.get("/queue")).status == 503
        here.comfy.hold.set()
        await until(lambda: here.fleet.up)
        assert [each["prompt_id"] for each in here.comfy.pending] == ["a", "b", "c"]
        assert here.record("a").crashes == 1
        assert here.record("b").crashes == 0
        for job in ("a", "b", "c"):
            here.comfy.finish(job)
        await until(lambda: set(here.states().values()) == {"succeeded"})
        assert here.desk.recovered == 3


async def test_a_second_gateway_finds_what_the_backend_still_has(tmp_path: Path):
    """Waiting, running or done meanwhile: nothing is sent again, and only what is nowhere is."""
    async with house(tmp_path) as here:
        for job in ("waits", "runs", "done", "unsent"):
            await here.submit(job)
        comfy = here.comfy
    async with house(tmp_path, up="") as here:
        mine = here.comfy
        mine.pending = [each for each in comfy.pending if each["prompt_id"] == "waits"]
        mine.running = [each for each in comfy.pending if each["prompt_id"] == "runs"]
        mine.finish("done")
        here.backend_comes("boot-1")
        await until(lambda: here.fleet.up)
        assert here.states() == {"waits": "queued", "runs": "running", "done": "succeeded", "unsent": "queued"}
        assert [each["prompt_id"] for each in mine.pending] == ["waits", "unsent"]


async def test_a_suspect_is_tried_alone_and_the_rest_waits(tmp_path: Path):
    """Twice running beside others as the backend died: alone next time, others are refused meanwhile, then all run."""
    async with house(tmp_path) as here:
        for job, gpu in (("x", 0), ("y", 1), ("z", 0)):
            await here.submit(job, gpu)
        for life in ("boot-2", "boot-3"):
            here.comfy.running, here.comfy.pending = here.comfy.pending[:2], here.comfy.pending[2:]
            await until(lambda: here.states() == {"x": "running", "y": "running", "z": "queued"})
            here.backend_dies()
            here.backend_comes(life)
            await until(lambda: here.fleet.up)
        await until(lambda: [each["prompt_id"] for each in here.comfy.pending] == ["x"])
        assert (await here.post("/prompt", {"prompt": {}})).status == 503
        here.backend_dies()
        here.backend_comes("boot-4")
        await until(lambda: here.states()["x"] == "failed")
        await until(lambda: [each["prompt_id"] for each in here.comfy.pending] == ["y"])
        here.comfy.finish("y")
        await until(lambda: [each["prompt_id"] for each in here.comfy.pending] == ["z"])
        here.comfy.finish("z")
        await until(lambda: here.states() == {"x": "failed", "y": "succeeded", "z": "succeeded"})
        assert "took the backend down" in str(here.record("x").error)


async def test_an_orderly_restart_is_no_death(tmp_path: Path):
    """A gateway that stops its backend blames nothing on what ran."""
    async with house(tmp_path) as here:
        await here.submit("a")
        here.comfy.start()
        await until(lambda: here.states() == {"a": "running"})
        await here.desk.part(here.fleet.members)
    async with house(tmp_path, up="boot-2") as here:
        await until(lambda: here.fleet.up)
        assert here.record("a").crashes == 0
        assert len(here.comfy.pending) == 1


async def test_pending_only_fails_what_had_started(tmp_path: Path):
    """And runs what had not."""
    async with house(tmp_path, resubmit="pending-only") as here:
        await here.submit("started")
        await here.submit("waited")
        here.comfy.start()
        await until(lambda: here.states()["started"] == "running")
        here.backend_dies()
        here.backend_comes("boot-2")
        await until(lambda: here.fleet.up)
        assert here.states() == {"started": "failed", "waited": "queued"}


async def test_an_answer_of_the_next_backend_that_refuses_ends_the_job(tmp_path: Path):
    """A node pack that is gone after a restart: failed with the backend's words, not tried for ever."""
    async with house(tmp_path, up="", accept_while_down=True) as here:
        await here.post("/prompt", {"prompt_id": "x", "no": "prompt"})
        here.backend_comes("boot-2")
        await until(lambda: here.states() == {"x": "failed"})
        assert here.record("x").error == {"type": "refused", "message": "No prompt provided"}


async def test_a_job_that_cannot_be_read_keeps_no_other_from_being_put_back(tmp_path: Path):
    """Nobody knows whether it is done: it is not run again, and the others are."""
    async with house(tmp_path) as here:
        for job in ("bad", "lost", "done"):
            await here.submit(job)
    async with house(tmp_path, up="") as here:
        here.comfy.unreadable = {"bad"}
        here.comfy.finish("done")
        here.backend_comes("boot-1")
        await until(lambda: here.states() == {"bad": "queued", "lost": "queued", "done": "succeeded"})
        await until(lambda: here.fleet.up)
        assert [each["prompt_id"] for each in here.comfy.pending] == ["lost"]


async def test_a_queue_too_long_to_read_runs_nothing_twice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Where nobody knows whether a job is in it, the job is not sent; what the history has is found."""
    monkeypatch.setattr(peer, "LIMIT", 4000)
    async with house(tmp_path) as here:
        await here.submit("waits")
        await here.submit("done")
        comfy = here.comfy
    async with house(tmp_path, up="") as here:
        here.comfy.knows_ids = False
        here.comfy.pending = [{**each, "prompt": "x" * 6000} for each in comfy.pending if each["prompt_id"] == "waits"]
        here.comfy.finish("done")
        here.backend_comes("boot-1")
        await until(lambda: here.states() == {"waits": "queued", "done": "succeeded"})
        await until(lambda: here.fleet.up)
        assert here.comfy.numbers == 0
