"""Jobs are followed to their end by looking; what is not known is never taken for done."""

import asyncio
from pathlib import Path

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
