"""Jobs are followed to their end by looking; what is not known is never taken for done."""

import asyncio
from pathlib import Path

import pytest

from gateway.jobs import peer, prompt
from gateway.jobs.record import State
from tests.doubles.jobs_house import house
from tests.doubles.wait import until


async def test_a_job_is_seen_running_and_succeeding(tmp_path: Path):
    """With its outputs, and the backend's own times."""
    async with house(tmp_path) as here:
        await here.submit("a")
        here.comfy.start()
        await until(lambda: here.states() == {"a": "running"})
        here.comfy.finish("a")
        await until(lambda: here.states() == {"a": "succeeded"})
        record = here.record("a")
        assert record.outputs == {"2": {"images": [{"filename": "a.png"}]}}
        assert record.since(State.SUCCEEDED) == 1_700_000_005.0


async def test_failures_and_interruptions_are_told_apart(tmp_path: Path):
    """What the history says, with the backend's words."""
    async with house(tmp_path) as here:
        await here.submit("bad")
        await here.submit("stopped")
        here.comfy.finish("bad", "error", "execution_error", exception_type="E", exception_message="why", node_id="3")
        here.comfy.finish("stopped", "error", "execution_interrupted")
        await until(lambda: here.states() == {"bad": "failed", "stopped": "canceled"})
        error = here.record("bad").error
        assert error == {"type": "E", "message": "why", "node_id": "3", "node_type": None}


async def test_what_vanished_is_lost_and_not_done(tmp_path: Path):
    """Neither waiting nor running nor in the history of a living backend: lost, with an entry that says so."""
    async with house(tmp_path) as here:
        await here.submit("gone")
        here.comfy.pending.clear()
        await until(lambda: here.states() == {"gone": "lost"})
        entry = (await here.desk.journal.store.entries(["gone"]))["gone"]
        assert b'"completed": false' in entry


async def test_what_was_taken_out_on_request_is_canceled(tmp_path: Path):
    """The same disappearance, but somebody had asked for it."""
    async with house(tmp_path) as here:
        await here.submit("wanted")
        assert (await here.post("/queue", {"delete": ["wanted"]})).status == 200
        here.comfy.pending.clear()
        await until(lambda: here.states() == {"wanted": "canceled"})


async def test_a_request_to_stop_what_then_succeeds_changes_nothing(tmp_path: Path):
    """The truth is what the history says."""
    async with house(tmp_path) as here:
        await here.submit("quick")
        here.comfy.start()
        assert (await here.post("/interrupt", {"prompt_id": "quick"})).status == 200
        here.comfy.finish("quick")
        await until(lambda: here.states() == {"quick": "succeeded"})


async def test_looks_at_one_moment_do_not_see_a_thing_twice(tmp_path: Path):
    """Several ask for a look at once: each change is made once."""
    async with house(tmp_path) as here:
        await here.submit("a")
        here.comfy.start()
        async with asyncio.TaskGroup() as tasks:
            for _ in range(5):
                tasks.create_task(here.desk.tracker.look(), name="look")
        assert [name for name, _ in here.record("a").times] == ["queued", "running"]


async def test_a_job_that_cannot_be_read_stops_no_other(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    """Its end is seen when it can be; until then the log names it, once."""
    async with house(tmp_path) as here:
        for job in ("bad", "good", "gone"):
            await here.submit(job)
        here.comfy.unreadable = {"bad"}
        here.comfy.finish("bad")
        here.comfy.finish("good")
        here.comfy.pending.clear()
        await until(lambda: here.states() == {"bad": "queued", "good": "succeeded", "gone": "lost"})
        asked = len(here.backend.seen)
        await until(lambda: len(here.backend.seen) > asked + 6)
        here.comfy.unreadable.clear()
        await until(lambda: here.states()["bad"] == "succeeded")
    told = [each.getMessage() for each in caplog.records if "cannot be read" in each.getMessage()]
    assert len(told) == 1
    assert "job bad " in told[0]


async def test_what_the_history_finds_by_no_path_is_found_in_the_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """An id with braces, which an older journal may hold: it ends as any other, and is lost as any other."""
    monkeypatch.setattr(prompt, "_check", lambda _name: None)
    async with house(tmp_path) as here:
        for job in ("{done}", "{gone}"):
            await here.submit(job)
        here.comfy.finish("{done}")
        here.comfy.pending.clear()
        await until(lambda: here.states() == {"{done}": "succeeded", "{gone}": "lost"})


@pytest.mark.parametrize("route", ["/prompt", "/api/prompt", "/jobs"])
async def test_an_id_with_braces_is_refused_wherever_one_is_given(tmp_path: Path, route: str):
    """Nobody could ask the backend for it; the answer says so."""
    async with house(tmp_path) as here:
        workflow = {"1": {"class_type": "A", "inputs": {}}}
        graph = {"prompt": workflow} if route.endswith("prompt") else {"workflow": workflow}
        got = await here.post(route, {**graph, "prompt_id": "{a}"}, gpu=None)
        assert got.status == 400, got.body
        assert b"{ or }" in got.body
        assert not here.states()


@pytest.mark.parametrize("knows_ids", [True, False])
async def test_large_prompts_stop_no_look(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, *, knows_ids: bool
):
    """Where queues come with all graphs they may be too long to read: what ends is seen, and nothing is lost."""
    monkeypatch.setattr(peer, "LIMIT", 4000)
    async with house(tmp_path) as here:
        here.comfy.knows_ids = knows_ids
        for job in ("first", "second", "third"):
            large = {"prompt": {"1": {"text": "x" * 6000}}, "prompt_id": job}
            assert (await here.post("/prompt", large)).status == 200
        here.comfy.start()
        if knows_ids:
            await until(lambda: here.states()["first"] == "running")
        here.comfy.finish("first")
        await until(lambda: here.states()["first"] == "succeeded")
        asked = len(here.backend.seen)
        await until(lambda: len(here.backend.seen) > asked + 12)
        assert here.states() == {"first": "succeeded", "second": "queued", "third": "queued"}
        here.comfy.finish("second")
        here.comfy.finish("third")
        await until(lambda: set(here.states().values()) == {"succeeded"})
    told = [each for each in caplog.records if "cannot be read whole" in each.getMessage()]
    assert len(told) == (0 if knows_ids else 1)
