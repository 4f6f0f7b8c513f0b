"""The engine put together, without HTTP."""

import asyncio
import json
import threading
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from backend.embedded.engine import CannotStart, Engine, build, system_stats
from backend.embedded.jobs import Job
from backend.options import Options
from tests.contract.client import picture, sampled
from tests.doubles.wait import until


class Made:
    """Engines that are stopped afterwards."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.engines: list[Engine] = []

    def __call__(self, **options: Any) -> Engine:
        chosen = Options(**{"data": self.folder / "data", "cpu": True, "gpus": 2, "testing": True, **options})
        self.engines.append(build(chosen, asyncio.get_running_loop(), lambda lane: None))
        return self.engines[-1]


@pytest.fixture
async def make(tmp_path: Path) -> AsyncIterator[Made]:
    made = Made(tmp_path)
    yield made
    for engine in made.engines:
        assert await asyncio.to_thread(engine.stop, 5.0)


def job(prompt: dict[str, Any], prompt_id: str, lane: int = 0) -> Job:
    return Job(0, prompt_id, prompt, {}, [key for key, node in prompt.items() if "Save" in node["class_type"]], lane)


async def test_lanes_work_after_warm(make: Made):
    """Once warm, each lane runs what is submitted to it."""
    engine = make()
    await engine.warm()
    for lane in (0, 1):
        engine.jobs.submit(job(sampled("tiny.safetensors", 1, steps=1, size=16), f"job-{lane}", lane))
    await until(lambda: len(engine.jobs.history()) == 2)
    assert {entry["status"]["status_str"] for entry in engine.jobs.history().values()} == {"success"}


async def test_the_first_lane_works_while_the_second_sleeps(make: Made):
    """No lane waits for another."""
    engine = make()
    await engine.warm()
    sleeping = picture()
    sleeping["3"] = {"class_type": "TestSleep", "inputs": {"value": ["1", 0], "seconds": 60.0}}
    sleeping["2"]["inputs"]["images"] = ["3", 0]
    engine.jobs.submit(job(sleeping, "sleeps", 1))
    await until(lambda: engine.jobs.running(1))
    engine.jobs.submit(job(picture(), "quick", 0))
    await until(lambda: engine.jobs.history_of("quick"))
    assert [each.prompt_id for each in engine.jobs.running(None)] == ["sleeps"]


@pytest.mark.parametrize("content", [None, "{", "[]", json.dumps({"1": {"class_type": "SaveImage", "inputs": {}}})])
async def test_a_warm_up_that_cannot_run_is_refused(make: Made, tmp_path: Path, content: str | None):
    """Missing, broken or invalid: the message names the file."""
    path = tmp_path / "warm.json"
    if content is not None:
        path.write_text(content)
    with pytest.raises(CannotStart, match=r"warm\.json"):
        await make(warmup=path).warm()


async def test_a_warm_up_that_fails_is_told(make: Made, tmp_path: Path):
    """A workflow that is valid and raises names its lane and error."""
    path = tmp_path / "warm.json"
    path.write_text(json.dumps(picture("../outside")))
    with pytest.raises(CannotStart, match="lane 0 on cpu: warm-up workflow"):
        await make(warmup=path).warm()


async def test_stopping_before_it_began(make: Made):
    """An engine that was never warm stops all the same, and leaves no thread."""
    engine = make()
    assert engine.stop(1.0)
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("lane-")]


async def test_a_job_that_cannot_be_ended_does_not_end_its_worker(make: Made, monkeypatch: pytest.MonkeyPatch):
    """What fails outside the job itself is logged, and the lane's next job runs."""
    engine = make()
    await engine.warm()
    failures = iter([RuntimeError("as asked")])
    finished = engine.jobs.finished

    def breaks(ended: Job) -> None:
        for error in failures:
            raise error
        finished(ended)

    monkeypatch.setattr(engine.jobs, "finished", breaks)
    for name in ("first", "second"):
        engine.jobs.submit(job(picture(), name))
    await until(lambda: engine.jobs.history_of("second"))
    assert engine.lanes[0].stats.broken is None


async def test_a_worker_that_ends_is_told(make: Made, monkeypatch: pytest.MonkeyPatch):
    """Whatever gets past its guards: the lane says why it takes no jobs, the other lane works on."""
    engine = make()
    told: list[int] = []
    for worker in engine.workers:
        monkeypatch.setattr(worker, "_on_fault", lambda lane: told.append(lane.index))
    await engine.warm()

    def leaves(ended: Job) -> None:
        raise SystemExit(ended.prompt_id)

    monkeypatch.setattr(engine.workers[1], "_end", lambda *_: leaves(_[0]))
    engine.jobs.submit(job(picture(), "last", 1))
    await until(lambda: told)
    assert told == [1]
    broken = engine.lanes[1].stats.broken
    assert broken is not None
    assert broken.reason == "its worker thread has ended (SystemExit)"
    engine.jobs.submit(job(picture(), "next", 0))
    await until(lambda: engine.jobs.history_of("next"))
    assert engine.lanes[0].stats.broken is None


async def test_one_lane_without_the_scheduler(make: Made):
    """COMFY_MULTI_GPU_SCHED=0 is one lane."""
    assert len(make(sched=False, gpus=4).lanes) == 1


async def test_system_stats_have_comfyuis_fields(make: Made):
    """One device for a lane, all without; the version tells the contract and that it is the embedded engine."""
    engine = make(gpus=3)
    found = system_stats(engine, 1, ["a"], "3.x", "posix")
    assert found["system"]["comfyui_version"] == "0.3.64+embedded"
    (device,) = found["devices"]
    fields = {"name", "type", "index", "vram_total", "vram_free", "torch_vram_total", "torch_vram_free"}
    assert set(device) == fields
    assert len(system_stats(engine, None, [], "", "")["devices"]) == 3
