"""ComfyUI's newer routes for jobs, before a backend that does not have them, and before one that has."""

import json
from pathlib import Path
from typing import Any

import pytest

from gateway.api.comfy_shape import outputs_of
from tests.doubles.http_backend import Peer, Seen
from tests.doubles.http_client import Got
from tests.doubles.jobs_house import House, house
from tests.doubles.wait import until


def value(got: Got) -> Any:
    return json.loads(got.body)


async def ended(here: House, job: str, **how: Any) -> None:
    here.comfy.finish(job, **how)
    await until(lambda: here.record(job).ended)


async def test_an_old_backend_has_the_newer_routes(tmp_path: Path):
    """The list, one job whole, and what there is not."""
    async with house(tmp_path) as here:
        workflow = {"workflow": {"id": "w1"}}
        body = {"prompt": {"1": {}}, "prompt_id": "a", "extra_data": {"extra_pnginfo": workflow}}
        await here.post("/prompt", body, gpu=0)
        await here.submit("b", gpu=1)
        assert {each["id"]: each["status"] for each in value(await here.get("/api/jobs"))["jobs"]} == {"a": "pending"}
        both = value(await here.get("/api/jobs?workflow_id=w1", None))
        assert [(each["id"], each["workflow_id"]) for each in both["jobs"]] == [("a", "w1")]
        assert both["pagination"] == {"offset": 0, "limit": None, "total": 1, "has_more": False}
        await ended(here, "a")
        found = value(await here.get("/api/jobs/a", 3))
        assert (found["status"], found["outputs_count"], found["previewable_outputs_count"]) == ("completed", 1, 1)
        assert found["preview_output"] == {"filename": "a.png", "nodeId": "2", "mediaType": "images"}
        assert found["execution_status"]["status_str"] == "success"
        assert set(found["workflow"]) == {"prompt", "extra_data"}
        assert found["execution_end_time"] > found["execution_start_time"] > 1_600_000_000_000
        missing = await here.get("/api/jobs/nobody")
        assert (missing.status, value(missing)) == (404, {"error": "Job not found"})


async def test_the_list_is_filtered_sorted_and_paged(tmp_path: Path):
    """As those routes do it, with their words for mistakes."""
    async with house(tmp_path) as here:
        for job in "abc":
            await here.submit(job)
        await ended(here, "b", status="error", event="execution_error", exception_message="no", exception_type="E")

        async def ids(query: str) -> list[str]:
            return [each["id"] for each in value(await here.get(f"/api/jobs?{query}"))["jobs"]]

        assert await ids("") == ["c", "b", "a"]
        assert await ids("sort_order=asc&limit=2") == ["a", "b"]
        assert await ids("status=failed,completed") == ["b"]
        assert (await ids("sort_by=execution_duration"))[0] == "b"
        page = value(await here.get("/api/jobs?limit=1&offset=1"))
        assert [each["execution_error"]["exception_message"] for each in page["jobs"]] == ["no"]
        assert page["pagination"] == {"offset": 1, "limit": 1, "total": 3, "has_more": True}
        for query in ("status=done", "sort_by=x", "sort_order=x", "limit=0", "limit=x", "offset=x"):
            got = await here.get(f"/api/jobs?{query}")
            assert (got.status, set(value(got))) == (400, {"error"})


async def test_cancel_finds_the_job_wherever_it_is(tmp_path: Path):
    """Whether there was anything to cancel; never an error."""
    async with house(tmp_path) as here:
        await here.submit("a", gpu=2)
        await here.submit("b", gpu=1)
        got = await here.post("/api/jobs/a/cancel", b"", gpu=0)
        assert (got.status, value(got)) == (200, {"cancelled": True})
        assert ("/queue", {"delete": ["a"]}) in here.comfy.told
        assert here.record("a").cancel
        assert not here.record("b").cancel
        assert value(await here.post("/api/jobs/nobody/cancel", b"")) == {"cancelled": False}
        assert value(await here.post("/api/jobs/cancel", {"job_ids": ["b", "nobody"]})) == {"cancelled": True}
        assert here.record("b").cancel
        for body in (b"", {"job_ids": "b"}, {"job_ids": [1]}):
            assert (await here.post("/api/jobs/cancel", body)).status == 400


async def test_a_newer_backend_answers_itself(tmp_path: Path):
    """Until it cannot know: it is away, or what ended did so in an earlier life."""
    async with house(tmp_path) as here:
        old = here.comfy._answer

        async def answer(peer: Peer, seen: Seen) -> None:
            if seen.target.startswith(b"/api/jobs"):
                await peer.reply(b'{"theirs": true}')
            else:
                await old(peer, seen)

        here.comfy._answer = answer  # type: ignore[method-assign]  # it is a newer one now
        await here.submit("a")
        assert value(await here.get("/api/jobs?limit=5")) == {"theirs": True}
        assert here.backend.seen[-1].target == b"/api/jobs?limit=5"
        assert value(await here.get("/api/jobs/a")) == {"theirs": True}
        await ended(here, "a")
        here.backend_dies()
        assert value(await here.get("/api/jobs/a"))["status"] == "completed"
        here.backend_comes("boot-2")
        await until(lambda: here.fleet.healthy)
        assert value(await here.get("/api/jobs/a"))["status"] == "completed"
        assert value(await here.get("/api/jobs"))["jobs"][0]["id"] == "a"
        assert value(await here.get("/api/jobs/b")) == {"theirs": True}


@pytest.mark.parametrize(
    ("outputs", "expected"),
    [
        ({}, (0, 0, None)),
        ({"1": {"latents": [{"filename": "x.latent"}]}}, (1, 0, None)),
        ({"1": {"text": ["hello"]}}, (0, 0, {"content": "hello", "nodeId": "1", "mediaType": "text"})),
        ({"1": {"images": [], "animated": [True]}, "2": 5}, (0, 0, None)),
    ],
)
def test_outputs_are_counted(outputs: Any, expected: Any):
    """Files count, bare text does not."""
    assert outputs_of(outputs) == expected


def test_saved_pictures_are_shown_first():
    """Then previews, then text files, then text."""
    text, file = {"text": ["t"]}, {"files": [{"filename": "a.txt", "type": "output"}]}
    temp, saved = {"images": [{"filename": "t.png", "type": "temp"}]}, {"gifs": [{"filename": "v", "type": "output"}]}
    saved["gifs"][0]["format"] = "video/mp4"
    found = outputs_of({"1": text, "2": file, "3": temp, "4": saved})
    assert (found[0], found[1], found[2] and found[2]["nodeId"]) == (3, 3, "4")
    assert (outputs_of({"1": text, "2": file, "3": temp})[2] or {})["nodeId"] == "3"
    assert (outputs_of({"1": text, "2": file})[2] or {})["nodeId"] == "2"
