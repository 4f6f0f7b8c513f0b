"""``/jobs`` on the front door: submit, wait, list, look, fetch, stop."""

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest

from gateway.api.jobs import accepted_media
from gateway.api.shape import Output
from tests.doubles.http_client import Got
from tests.doubles.jobs_house import House, house
from tests.doubles.wait import until

GRAPH = {"1": {"class_type": "EmptyImage", "inputs": {}}}


def value(got: Got) -> Any:
    return json.loads(got.body)


async def order(here: House, *lines: str, target: str = "/jobs", status: int = 202, **fields: Any) -> Any:
    """Submit one job over the front door; its JSON."""
    got = await here.post(target, {"workflow": GRAPH, **fields}, *lines, gpu=None)
    assert got.status == status, got.body
    return value(got)


async def test_a_job_is_submitted_looked_at_and_found_ended(tmp_path: Path):
    """202 with its address at once; later its state, times, files and where their bytes are."""
    async with house(tmp_path) as here:
        got = await here.post("/jobs", {"workflow": GRAPH, "client_id": "me"}, gpu=None)
        job = value(got)
        assert (got.status, job["state"], job["client_id"]) == (202, "queued", "me")
        assert got.all("location") == [job["links"]["self"].encode()] == [f"/jobs/{job['id']}".encode()]
        assert here.comfy.pending[0]["prompt"] == GRAPH
        assert here.comfy.pending[0]["client_id"] == "me"
        here.comfy.start()
        here.comfy.finish(job["id"])
        await until(lambda: here.record(job["id"]).ended)
        found = value(await here.get(f"/jobs/{job['id']}", None))
        assert found["state"] == "succeeded"
        assert [each["state"] for each in found["times"]][-1] == "succeeded"
        assert found["outputs"][0]["url"] == f"/jobs/{job['id']}/outputs/0"
        assert found["outputs"][0]["media_type"] == "image/png"
        file = await here.get(found["outputs"][0]["url"], None)
        assert (file.status, file.body) == (200, b"GET /view?filename=a.png&subfolder=&type=output")
        assert file.all("content-type") == [b"image/png"]
        other = await here.post(found["outputs"][0]["url"], b"", gpu=None)
        assert (other.status, other.all("allow")) == (405, [b"GET, HEAD"])
        assert (await here.get(f"/jobs/{job['id']}/outputs/1", None)).status == 404


async def test_whoever_waits_gets_the_picture_or_the_json(tmp_path: Path):
    """``?wait=`` and ``Prefer: wait=`` answer with the end: JSON, or with ``Accept: image/*`` the picture's bytes."""
    async with house(tmp_path) as here, asyncio.TaskGroup() as tasks:
        asked = [
            tasks.create_task(order(here, target="/jobs?wait=60", status=200), name="query"),
            tasks.create_task(order(here, "Prefer: respond-async, wait=60", status=200), name="prefer"),
            tasks.create_task(
                here.post("/jobs?wait=60", {"prompt": GRAPH}, "Accept: image/*", gpu=None), name="picture"
            ),
        ]
        await until(lambda: len(here.comfy.pending) == 3)
        for job in [each["prompt_id"] for each in here.comfy.pending]:
            here.comfy.finish(job)
        both = [await each for each in asked[:2]]
        assert [each["state"] for each in both] == ["succeeded"] * 2
        got = await asked[2]
        assert (got.status, got.body) == (200, b"GET /view?filename=a.png&subfolder=&type=output")
        assert got.all("content-type") == [b"image/png"]
        location = got.all("location")[0].decode()
        assert got.all("content-location") == [location.encode() + b"/outputs/0"]
        assert value(await here.get(location, None))["state"] == "succeeded"


async def test_a_chunked_submission_gets_its_picture_too(tmp_path: Path):
    """The backend is asked with a GET that has no body, however the submission came."""
    async with house(tmp_path) as here, here.client(None) as client, asyncio.TaskGroup() as tasks:
        body = json.dumps({"workflow": GRAPH}).encode()
        chunks = b"%x\r\n%b\r\n0\r\n\r\n" % (len(body), body)
        lines = "Host: x\r\nTransfer-Encoding: chunked\r\nAccept: image/png\r\nContent-Type: application/json"
        await client.send(f"POST /jobs?wait=60 HTTP/1.1\r\n{lines}\r\n\r\n".encode() + chunks)
        await until(lambda: here.comfy.pending)
        here.comfy.finish(here.comfy.pending[0]["prompt_id"])
        got = await tasks.create_task(client.answer(), name="answer")
        assert got.body.startswith(b"GET /view?")
        seen = here.backend.seen[-1]
        assert [name for name, _ in seen.fields if name.lower() in {b"transfer-encoding", b"content-type"}] == []
        assert (await client.get("/jobs")).status == 200


async def test_time_runs_out_with_the_jobs_address(tmp_path: Path):
    """202 and Location; the job goes on."""
    async with house(tmp_path) as here:
        got = await here.post("/jobs", {"workflow": GRAPH}, "Prefer: wait=1", "Accept: image/*", gpu=None)
        assert (got.status, value(got)["state"]) == (202, "queued")
        assert got.all("preference-applied") == [b"wait=1"]
        assert got.all("location") == [f"/jobs/{value(got)['id']}".encode()]


async def test_a_failed_job_has_no_picture(tmp_path: Path):
    """JSON says that it failed with 200; who wanted a picture gets 422 and why."""
    async with house(tmp_path) as here, asyncio.TaskGroup() as tasks:
        plain = tasks.create_task(order(here, target="/jobs?wait=60", status=200), name="plain")
        picture = tasks.create_task(
            here.post("/jobs?wait=60", {"workflow": GRAPH}, "Accept: image/webp;q=0.5", gpu=None), name="picture"
        )
        await until(lambda: len(here.comfy.pending) == 2)
        for job in [each["prompt_id"] for each in here.comfy.pending]:
            here.comfy.finish(job, "error", "execution_error", exception_message="no", exception_type="E")
        assert (await plain)["error"]["message"] == "no"
        got = await picture
        assert (got.status, got.error["type"], got.error["details"]) == (422, "job_failed", "no")
        assert got.error["extra_info"]["job"]["state"] == "failed"


async def test_a_picture_of_another_type_is_not_made_up(tmp_path: Path):
    """406, with the job's outputs."""
    async with house(tmp_path) as here, asyncio.TaskGroup() as tasks:
        body = {"workflow": GRAPH}
        asked = tasks.create_task(here.post("/jobs?wait=60", body, "Accept: video/mp4", gpu=None), name="video")
        await until(lambda: here.comfy.pending)
        here.comfy.finish(here.comfy.pending[0]["prompt_id"])
        got = await asked
        assert (got.status, got.error["type"]) == (406, "not_acceptable")


async def test_a_batch_is_answered_job_by_job(tmp_path: Path):
    """What is refused is refused alone; each has a key of its own under the batch's key."""
    async with house(tmp_path) as here:
        jobs = [{"workflow": GRAPH, "gpu": 2}, {"workflow": GRAPH, "prompt_id": "mine"}]
        got = await here.post("/jobs", {"jobs": jobs, "client_id": "me"}, "Idempotency-Key: k", gpu=None)
        assert (got.status, value(got)["taken"], value(got)["refused"]) == (202, 2, 0)
        first, second = value(got)["jobs"]
        assert (first["gpu"], second["id"], second["client_id"]) == (2, "mine", "me")
        again = await here.post("/jobs", {"jobs": jobs, "client_id": "me"}, "Idempotency-Key: k", gpu=None)
        assert [each["id"] for each in value(again)["jobs"]] == [first["id"], "mine"]
        assert len(here.comfy.pending) == 2
        other = [{"workflow": {"2": {}}}, *jobs[:1]]
        third = await here.post("/jobs", {"jobs": other, "client_id": "me"}, "Idempotency-Key: k", gpu=None)
        assert (third.status, third.error["type"]) == (422, "idempotency_key_reuse")
        assert len(here.comfy.pending) == 2


async def test_one_key_is_one_job(tmp_path: Path):
    """The second answer is the first one's job; another workflow under the key is refused."""
    async with house(tmp_path) as here:
        first = await order(here, "Idempotency-Key: k")
        second = await order(here, "Idempotency-Key: k")
        assert first["id"] == second["id"]
        assert len(here.comfy.pending) == 1
        got = await here.post("/jobs", {"workflow": {"2": {}}}, "Idempotency-Key: k", gpu=None)
        assert (got.status, got.error["type"]) == (422, "idempotency_key_reuse")


async def test_jobs_are_listed_by_page_state_client_and_gpu(tmp_path: Path):
    """The youngest first; the cursor goes on where the page ended, also while new ones come."""
    async with house(tmp_path) as here:
        ids = [(await order(here, gpu=number % 2, client_id=f"c{number}"))["id"] for number in range(5)]
        here.comfy.finish(ids[0])
        await until(lambda: here.record(ids[0]).ended)

        async def listed(query: str) -> tuple[list[int], str | None]:
            found = value(await here.get(f"/jobs?{query}", None))
            return [ids.index(each["id"]) for each in found["jobs"] if each["id"] in ids], found["next"]

        page, cursor = await listed("limit=2")
        assert page == [4, 3]
        await order(here)
        page, cursor = await listed(f"limit=2&cursor={cursor}")
        assert page == [2, 1]
        assert await listed(f"limit=2&cursor={cursor}") == ([0], None)
        assert (await listed("state=succeeded,failed"))[0] == [0]
        assert (await listed("client=c3"))[0] == [3]
        assert (await listed("gpu=1"))[0] == [3, 1]
        prefixed = value(await here.get("/gpu1/jobs", None))
        assert [each["gpu"] for each in prefixed["jobs"] if each["id"] in ids] == [1, 1]


async def test_a_prefix_pins_a_job(tmp_path: Path):
    """``/gpu3/jobs`` runs on GPU 3; a field that says otherwise is refused."""
    async with house(tmp_path) as here:
        assert (await order(here, target="/gpu3/jobs"))["gpu"] == 3
        got = await here.post("/gpu3/jobs", {"workflow": GRAPH, "gpu": 1}, gpu=None)
        assert got.status == 400
        assert len(here.comfy.pending) == 1
        assert [record.port for record in here.desk.journal.unfinished()] == ["gpu3"]
        assert {seen.all("x-target-gpu")[0] for seen in here.backend.seen if seen.method == b"POST"} == {b"3"}


async def test_the_field_gpu_pins_a_job(tmp_path: Path):
    """As if it had come in by that GPU's port: nothing moves it to another."""
    async with house(tmp_path) as here:
        job = await order(here, gpu=2)
        assert (job["gpu"], job["port"]) == (2, "gpu2")


async def test_deleting_a_job_cancels_it(tmp_path: Path):
    """A waiting one leaves its queue and a running one is interrupted; ended ones stay as they are."""
    async with house(tmp_path) as here:
        waiting, running = (await order(here, gpu=0))["id"], (await order(here, gpu=1))["id"]
        here.comfy.running = [each for each in here.comfy.pending if each["prompt_id"] == running]
        here.comfy.pending = [each for each in here.comfy.pending if each["prompt_id"] == waiting]
        async with here.client(None) as client, asyncio.TaskGroup() as tasks:
            gone = tasks.create_task(client.get(f"/jobs/{waiting}", method="DELETE"), name="delete")
            await until(lambda: ("/queue", {"delete": [waiting]}) in here.comfy.told)
            here.comfy.pending = []
            assert (await gone).status in {200, 202}
            await until(lambda: here.record(waiting).ended)
            stopped = await client.get(f"/jobs/{running}", method="DELETE")
            assert stopped.status == 202
            assert value(stopped)["cancel_requested"] is True
            assert ("/interrupt", {"prompt_id": running}) in here.comfy.told
            again = await client.get(f"/jobs/{waiting}", method="DELETE")
            assert (again.status, value(again)["state"]) == (200, "canceled")
            assert (await client.get("/jobs/nobody", method="DELETE")).status == 404


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b"\xff",
        {},
        {"workflow": []},
        {"workflow": {}},
        {"workflow": {"nodes": [], "links": []}},
        {"workflow": GRAPH, "prompt": GRAPH},
        {"workflow": GRAPH, "gpu": 4},
        {"workflow": GRAPH, "gpu": -1},
        {"workflow": GRAPH, "gpu": True},
        {"workflow": GRAPH, "gpu": "0"},
        {"workflow": GRAPH, "client_id": 5},
        {"workflow": GRAPH, "client_id": "\ud800"},
        {"workflow": GRAPH, "priority": 1.5},
        {"workflow": GRAPH, "prioriti": 1},
        {"workflow": GRAPH, "extra_data": []},
        {"workflow": GRAPH, "prompt_id": ""},
        {"workflow": GRAPH, "webhook": "ftp://example.com/"},
        {"workflow": GRAPH, "webhook": "http://["},
        {"workflow": GRAPH, "webhook": {"url": "https://example.com/", "x": 1}},
        {"jobs": []},
        {"jobs": {}},
        {"jobs": [{"workflow": GRAPH}, {"workflow": 5}]},
        {"jobs": [{"workflow": GRAPH}] * 201},
        {"jobs": [{"workflow": GRAPH}], "workflow": GRAPH},
        b'{"workflow": ' + b"[" * 100_000,
    ],
    ids=lambda body: repr(body)[:60],
)
async def test_bad_input_changes_nothing(tmp_path: Path, body: Any):
    """400 with what is wrong, and the backend hears of nothing."""
    async with house(tmp_path) as here:
        got = await here.post("/jobs", body, gpu=None)
        assert got.status == 400, got.body
        assert got.error["message"]
        assert here.states() == {}
        assert [seen.target for seen in here.backend.seen if seen.method == b"POST"] == []


@pytest.mark.parametrize(
    "query", ["wait=-1", "wait=x", "wait=601", "limit=0", "limit=1e3", "cursor=x", "state=done", "gpu=9", "gpu=%C3%A9"]
)
async def test_bad_queries_are_refused(tmp_path: Path, query: str):
    """400, on the route that has the parameter."""
    async with house(tmp_path) as here:
        if query.startswith("wait"):
            got = await here.post(f"/jobs?{query}", {"workflow": GRAPH}, gpu=None)
        else:
            got = await here.get(f"/jobs?{query}", None)
        assert got.status == 400, got.body
        assert here.states() == {}


async def test_only_the_front_door_has_it(tmp_path: Path):
    """A GPU's port is a ComfyUI and nothing else."""
    async with house(tmp_path) as here:
        assert (await here.get("/jobs", 0)).status == 404
        assert here.backend.seen[-1].target == b"/jobs"


async def test_other_methods_are_named(tmp_path: Path):
    """405 with what there is."""
    async with house(tmp_path) as here, here.client(None) as client:
        got = await client.get("/jobs", method="PUT")
        assert (got.status, got.all("allow")) == (405, [b"POST, GET, HEAD"])
        head = await client.get("/jobs", method="HEAD")
        assert (head.status, head.body) == (200, b"")


async def test_while_the_backend_is_away_nothing_is_taken(tmp_path: Path):
    """503 with the time to wait; what the journal knows is told all the same."""
    async with house(tmp_path) as here:
        job = await order(here)
        here.fleet.members[0].backend_down("it died", 3)
        got = await here.post("/jobs", {"workflow": GRAPH}, gpu=None)
        assert (got.status, got.all("retry-after")) == (503, [b"3"])
        assert value(await here.get(f"/jobs/{job['id']}", None))["state"] == "queued"
        assert here.fleet.load(job["gpu"]) == 0


async def test_who_leaves_while_waiting_leaves_nothing(tmp_path: Path):
    """The job goes on, and nobody waits for it any more."""
    async with house(tmp_path) as here:
        async with here.client(None) as client:
            body = json.dumps({"workflow": GRAPH}).encode()
            head = b"POST /jobs?wait=600 HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n"
            await client.send(head % len(body) + body)
            await until(lambda: here.api.watch._bells)
        await until(lambda: not here.api.watch._bells)
        await until(lambda: not here.server._proxy.tasks)
        assert list(here.states().values()) == ["queued"]


async def test_the_end_of_the_gateway_is_not_waited_for(tmp_path: Path):
    """Who waits for a job is told how it stands as soon as the gateway begins to drain."""
    async with house(tmp_path) as here, asyncio.TaskGroup() as tasks:
        asked = tasks.create_task(here.post("/jobs?wait=600", {"workflow": GRAPH}, gpu=None), name="asked")
        await until(lambda: here.api.watch._bells)
        await here.server.drain(30.0)
        assert (await asked).status == 202


@pytest.mark.parametrize(
    ("accept", "media"),
    [
        ("image/*", "image/png"),
        ("text/html, image/png;q=0.5", "image/png"),
        ("application/json;q=0.5, image/*", "image/webp"),
        ("VIDEO/MP4", "video/mp4"),
    ],
)
def test_a_client_that_wants_a_picture_is_understood(accept: str, media: str):
    """A range or a type, better than JSON."""
    wanted = accepted_media(accept)
    assert wanted is not None
    ending = {"image/png": "png", "image/webp": "webp", "video/mp4": "mp4"}[media]
    assert wanted(Output("1", "images", f"a.{ending}", "", "output"))
    assert not wanted(Output("1", "images", "a.txt", "", "output"))


@pytest.mark.parametrize("accept", ["", "*/*", "application/json", "application/json, image/*;q=0.9", "image/*;q=0"])
def test_a_client_that_does_not_gets_json(accept: str):
    """Also when it says nothing."""
    assert accepted_media(accept) is None
