"""One history of all lives of the backend, in ComfyUI's shape."""

import json
from pathlib import Path

from tests.doubles.jobs_house import House, house
from tests.doubles.wait import until


async def done(here: House, *jobs: str) -> None:
    """These jobs have run, and the journal knows."""
    for job in jobs:
        await here.submit(job)
        here.comfy.finish(job)
    await until(lambda: all(here.states()[job] == "succeeded" for job in jobs))


async def test_the_backends_own_answers_go_the_way_of_bytes(tmp_path: Path):
    """As long as it knows everything, the journal is not asked."""
    async with house(tmp_path) as here:
        await done(here, "a")
        seen = len(here.backend.seen)
        got = await here.get("/history/a?x=1")
        assert json.loads(got.body) == {"a": here.comfy.history["a"]}
        assert here.backend.seen[seen].target == b"/history/a?x=1"


async def test_while_the_backend_is_away_the_journal_answers(tmp_path: Path):
    """Done jobs with their entries, unfinished ones with nothing, unknown ones with 503."""
    async with house(tmp_path) as here:
        await done(here, "a b/c")
        entry = here.comfy.history["a b/c"]
        await here.submit("waits")
        here.backend_dies()
        assert json.loads((await here.get("/api/history/a%20b%2Fc")).body) == {"a b/c": entry}
        assert (await here.get("/history/waits")).body == b"{}"
        assert (await here.get("/history/unknown")).status == 503
        assert list(json.loads((await here.get("/history")).body)) == ["a b/c"]


async def test_an_id_that_both_know_is_shown_once(tmp_path: Path):
    """The backend's entry stands."""
    async with house(tmp_path) as here:
        await done(here, "a", "b")
        entries = here.comfy.history
        here.backend_dies()
        here.backend_comes("boot-2")
        here.comfy.history = {"b": entries["b"]}
        assert list(json.loads((await here.get("/history")).body)) == ["a", "b"]
        assert list(json.loads((await here.get("/history?max_items=1")).body)) == ["b"]
        assert list(json.loads((await here.get("/history?max_items=1&offset=0")).body)) == ["a"]


async def test_retention_is_by_count_and_age(tmp_path: Path):
    """The oldest go first; what has not ended stays."""
    async with house(tmp_path) as here:
        await done(here, "a", "b", "c")
        await here.submit("open")
        assert await here.desk.journal.prune(2, 1e12) == 1
        assert set(here.states()) == {"b", "c", "open"}
        assert await here.desk.journal.prune(100, 1.0) == 2
        assert here.states() == {"open": "queued"}
