"""The dashboard's page, its stream and what an administrator may do, before a backend that a test holds in its hand."""

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from gateway.dashboard import files
from gateway.dashboard.board import state_of
from gateway.dashboard.cards import visible_cards
from gateway.dashboard.meter import Meter, read_stats, read_verdict
from gateway.dashboard.stream import Told
from gateway.errors import GatewayError
from gateway.fleet.lanes import Fleet
from gateway.fleet.member import Member
from gateway.jobs.record import Record, State
from gateway.observe.tail import Tail
from gateway.request import Kind, Request
from tests.doubles.jobs_house import House, house
from tests.doubles.wait import until


class Events:
    """A stream of events, read as a browser does."""

    def __init__(self, reader: asyncio.StreamReader) -> None:
        self._reader = reader
        self.seen: list[tuple[str, Any]] = []

    async def next(self, name: str, holds: Any = lambda _told: True) -> Any:
        """The next event of that name that is as wanted."""
        async with asyncio.timeout(30):
            kind = ""
            while True:
                line = (await self._reader.readline()).decode().rstrip("\r\n")
                if line.startswith("event: "):
                    kind = line[7:]
                elif line.startswith("data: "):
                    told = json.loads(line[6:])
                    self.seen.append((kind, told))
                    if kind == name and holds(told):
                        return told


async def events(here: House) -> AsyncIterator[Events]:
    reader, writer = await asyncio.open_connection("127.0.0.1", here.server.ports[0])
    try:
        # HTTP/1.0: no chunks between the lines.
        writer.write(b"GET /dashboard/events HTTP/1.0\r\nHost: x\r\n\r\n")
        yield Events(reader)
    finally:
        writer.transport.abort()


async def test_the_page_and_its_files_are_sent_with_their_policy(tmp_path: Path):
    """Each once and then 304; nothing from other hosts, nothing inline; only the front door has it."""
    async with house(tmp_path) as here:
        page = await here.get("/dashboard", None)
        assert page.status == 200
        assert page.all("content-type") == [b"text/html; charset=utf-8"]
        assert page.all("content-security-policy") == [files.POLICY]
        assert b"unsafe" not in files.POLICY
        for name in files.contents():
            if name == "index.html":
                continue
            got = await here.get(f"/dashboard/{name}", None)
            assert got.status == 200
            (tag,) = got.all("etag")
            async with here.client(None) as client:
                again = await client.get(f"/dashboard/{name}", f"If-None-Match: {tag.decode()}")
            assert (again.status, again.body) == (304, b"")
        assert (await here.get("/dashboard/%2e%2e%2ffiles.py", None)).status == 404
        assert (await here.get("/dashboard/none.js", None)).status == 404
        assert (await here.get("/dashboard", 0)).body == b"ok"


def test_the_page_asks_nobody_else_and_is_packaged():
    """Every address in its files is relative; every file is declared to the packager."""
    for name, (body, _) in files.contents().items():
        text = body.decode().replace("http://www.w3.org/2000/svg", "")
        assert "http://" not in text, name
        assert "https://" not in text, name
        assert "innerHTML" not in text, name
        assert "style=" not in text, name
    assert {"index.html", "main.js", "style.css"} <= set(files.contents())
    pyproject = (Path(__file__).parents[3] / "pyproject.toml").read_text()
    assert '"gateway.dashboard" = ["web/*"]' in pyproject


async def test_the_stream_tells_all_and_then_what_changes(tmp_path: Path):
    """Everything at connect; a job as it comes, runs and ends; nothing more when nothing happens."""
    async with house(tmp_path) as here:
        async for told in events(here):
            first = await told.next("state")
            assert [gpu["state"] for gpu in first["gpus"]] == ["ready"] * here.fleet.gpus
            assert first["you"] == {"name": "", "scope": "admin", "confined": False}
            assert (first["jobs"], first["gateway"]["status"]) == ([], "healthy")
            await here.submit("a", gpu=1)
            found = await told.next("change", lambda each: each.get("jobs"))
            assert [(job["id"], job["state"], job["gpu"]) for job in found["jobs"]] == [("a", "queued", 1)]
            here.comfy.start()
            await told.next("change", lambda each: any(job["state"] == "running" for job in each.get("jobs", [])))
            here.comfy.finish("a")
            await told.next("change", lambda each: any(job["state"] == "succeeded" for job in each.get("jobs", [])))
            here.backend_dies()
            found = await told.next("change", lambda each: each.get("gateway", {}).get("status") == "unhealthy")
            assert {gpu["state"] for gpu in found["gpus"]} == {"down"}
            assert found["gpus"][0]["reason"] == "it died"
            assert all(each for kind, each in told.seen if kind == "change")


async def test_lines_of_the_backend_follow_the_state(tmp_path: Path):
    """What was there at connect, then what comes; without credentials."""
    async with house(tmp_path) as here:
        here.tails[0].add("before, key cgw_abcdef")
        async for told in events(here):
            found = await told.next("log")
            assert found == {"backend": 0, "lines": [[1, "before, key cgw_***"]]}
            here.tails[0].add("after")
            assert (await told.next("log"))["lines"] == [[2, "after"]]
        got = json.loads((await here.get("/admin/backends/0/log?after=1", None)).body)
        assert got == {"backend": 0, "lines": [{"number": 2, "text": "after"}], "newest": 2}
        assert (await here.get("/admin/backends/1/log", None)).status == 404


async def test_the_stream_ends_when_the_client_leaves_and_when_the_gateway_does(tmp_path: Path):
    """No task is left of a viewer who went; a drain does not wait for those who watch."""
    async with house(tmp_path) as here:
        proxy = here.server._proxy
        async for told in events(here):
            await told.next("state")
            assert len(proxy.tasks) == 1
        await until(lambda: not proxy.tasks)
        async for told in events(here):
            await told.next("state")
            here.api.leave()
            async with asyncio.timeout(30):
                while await told._reader.readline():
                    pass


async def test_a_drained_gpu_gets_nothing_from_the_front_door(tmp_path: Path):
    """Its own port goes on; drained ones alone are 503 with what to do; resumed it is chosen again."""
    async with house(tmp_path) as here:
        got = await here.post("/admin/gpus/1/drain", b"", gpu=None)
        assert json.loads(got.body)["state"] == "draining"
        graph = {"workflow": {"1": {"class_type": "X", "inputs": {}}}}
        chosen = {json.loads((await here.post("/jobs", graph, gpu=None)).body)["gpu"] for _ in range(6)}
        assert chosen == set(range(here.fleet.gpus)) - {1}
        assert (await here.submit("own", gpu=1)).status == 200
        for gpu in range(here.fleet.gpus):
            await here.post(f"/admin/gpus/{gpu}/drain", b"", gpu=None)
        for target, body in (("/jobs", graph), ("/prompt", {"prompt": {"1": {}}})):
            refused = await here.post(target, body, gpu=None)
            assert refused.status == 503
            assert b"comfy-gateway resume" in refused.body
        assert json.loads((await here.post("/admin/gpus/1/resume", b"", gpu=None)).body)["state"] == "busy"
        assert json.loads((await here.post("/jobs", graph, gpu=None)).body)["gpu"] == 1
        assert (await here.post("/admin/gpus/99/drain", b"", gpu=None)).status == 404
        assert (await here.get("/admin/gpus/1/drain", None)).status == 405


async def test_the_line_is_paused_and_goes_on(tmp_path: Path):
    """Taken, waiting, and told why; a GPU's own port goes on; resumed everything is sent."""
    async with house(tmp_path) as here:
        got = await here.post("/admin/line/pause", b"", gpu=None)
        assert (got.status, json.loads(got.body)) == (200, {"paused": True, "waiting": 0})
        graph = {"workflow": {"1": {"class_type": "X", "inputs": {}}}}
        got = await here.post("/jobs", graph, gpu=None)
        job = json.loads(got.body)
        assert (got.status, job["state"], job["gpu"], job["position"], job["eta_seconds"]) == (
            202, "queued", None, 1, None,
        )  # fmt: skip
        assert (await here.submit("own", gpu=1)).status == 200
        assert "paused" in json.loads((await here.get(f"/jobs/{job['id']}/explain", None)).body)["reason"]
        async for told in events(here):
            line = (await told.next("state"))["gateway"]["line"]
            assert line == {"waiting": 1, "enabled": True, "paused": True, "queue": [job["id"]]}
        # Again is no other than once.
        assert json.loads((await here.post("/admin/line/pause", b"", gpu=None)).body)["paused"]
        assert [each["prompt_id"] for each in here.comfy.pending] == ["own"]
        got = await here.post("/admin/line/resume", b"", gpu=None)
        assert not json.loads(got.body)["paused"]
        await until(lambda: here.record(job["id"]).attempts == 1)
        assert json.loads((await here.get("/admin/line", None)).body) == {"paused": False, "waiting": 0}


async def test_pauses_outlive_the_gateway(tmp_path: Path):
    """A drained GPU and a paused line are still so after a restart, with what waits; and so is a resume."""
    graph = {"workflow": {"1": {"class_type": "X", "inputs": {}}}}
    async with house(tmp_path) as here:
        await here.post("/admin/gpus/1/drain", b"", gpu=None)
        await here.post("/admin/line/pause", b"", gpu=None)
        job = json.loads((await here.post("/jobs", graph, gpu=None)).body)["id"]
    async with house(tmp_path) as here:
        assert json.loads((await here.get("/admin/line", None)).body) == {"paused": True, "waiting": 1}
        assert [gpu for member in here.fleet.members for gpu in member.drained] == [1]
        await here.post("/admin/gpus/1/resume", b"", gpu=None)
        await here.post("/admin/line/resume", b"", gpu=None)
        await until(lambda: here.record(job).attempts == 1)
    async with house(tmp_path) as here:
        assert not here.desk.schedule.paused
        assert [gpu for member in here.fleet.members for gpu in member.drained] == []


@pytest.mark.parametrize("text", ["", "[]", '{"paused": true}', '{"paused": true, "drained": ["x"]}', "{"])
async def test_pauses_that_cannot_be_read_are_passed_over(text: str, tmp_path: Path, caplog):
    """The gateway starts, says so, and takes jobs."""
    (tmp_path / "paused.json").write_text(text, encoding="utf-8")
    async with house(tmp_path) as here:
        assert not here.desk.schedule.paused
        assert "paused.json cannot be read" in caplog.text


async def test_without_a_line_there_is_nothing_to_pause(tmp_path: Path):
    """404, and what to do."""
    async with house(tmp_path, schedule={"enabled": False}) as here:
        got = await here.post("/admin/line/pause", b"", gpu=None)
        assert (got.status, got.error["type"]) == (404, "not_found")
        assert "[schedule]" in got.error["details"]


async def test_a_gpu_is_told_to_free_its_memory(tmp_path: Path):
    """ComfyUI's own route with both wishes, for that GPU; 503 while there is no backend."""
    async with house(tmp_path) as here:
        assert (await here.post("/admin/gpus/2/free", b"", gpu=None)).status == 200
        assert here.comfy.told[-1] == ("/free", {"unload_models": True, "free_memory": True})
        seen = here.backend.seen[-1]
        assert [value for name, value in seen.fields if name.lower() == b"x-target-gpu"] == [b"2"]
        here.backend_dies()
        assert (await here.post("/admin/gpus/2/free", b"", gpu=None)).status == 503


async def test_a_job_is_run_again_from_its_body_and_from_its_entry(tmp_path: Path):
    """The same graph under another id, ended or not; 404 when it is not known any more."""
    async with house(tmp_path) as here:
        await here.submit("a")
        made = await here.post("/jobs/a/rerun", b"", gpu=None)
        assert made.status == 202
        job = json.loads(made.body)
        assert (job["state"], job["client_id"]) == ("queued", "c")
        assert job["id"] != "a"
        assert here.comfy.pending[1]["prompt"] == {"1": {}}
        here.comfy.finish("a")
        here.comfy.history["a"]["prompt"] = [1, "a", {"7": {"class_type": "Y"}}, {"client_id": "c", "extra": 1}, []]
        await until(lambda: here.record("a").ended)
        assert (await here.post("/jobs/a/rerun", b"", gpu=None)).status == 202
        assert here.comfy.pending[-1]["prompt"] == {"7": {"class_type": "Y"}}
        assert here.comfy.pending[-1]["extra_data"] == {"extra": 1}
        assert (await here.post("/jobs/none/rerun", b"", gpu=None)).status == 404


def a_request(**known: Any) -> Request:
    return Request(b"GET", b"/dashboard/events", [], "127.0.0.1", None, Kind.READ, "1", **known)


def test_a_confined_viewer_sees_only_its_own_jobs():
    """Neither others' ids in the table nor on the cards, and no lines of the backend; how full a GPU is it may know."""
    from gateway.dashboard.board import Look  # noqa: PLC0415

    mine, theirs = Record("m", 1, owner="me"), Record("t", 2, State.RUNNING, owner="you")
    gpu = {"gpu": 0, "running": [theirs], "queue": [mine, theirs], "waiting": 2}
    gateway = {"line": {"waiting": 1, "queue": [theirs]}}
    look = Look(gateway, [gpu], {"m": (mine, {"id": "m"}), "t": (theirs, {"id": "t"})})
    tail = Tail()
    tail.add("somebody's file")
    told = Told(a_request(owner="me", confined=True, scope="submit"), [tail])
    text = b"".join(told.news(look)).decode()
    (line,) = [each for each in text.splitlines() if each.startswith("data: ")]
    found = json.loads(line[6:])
    assert found["jobs"] == [{"id": "m"}]
    assert (found["gpus"][0]["running"], found["gpus"][0]["others"], found["gpus"][0]["queue"]) == ([], 1, ["m"])
    assert found["gateway"]["line"] == {"waiting": 1, "queue": []}
    assert '"t"' not in text
    assert "somebody" not in text
    assert told.news(look) == []
    assert b"somebody" in b"".join(Told(a_request(), [tail]).news(look))


def test_states_of_a_gpu():
    """Down, faulted, absent, draining, busy and ready, each with its reason."""
    fleet = Fleet(3)
    member = fleet.members[0]
    assert state_of(fleet, 0) == ("down", "The backend is starting.")
    member.backend_up("x", ["a", "b"])
    mark = member.look_begins()
    member.look_ends(mark, [(1, 0), (0, 0)], ["", "it broke"])
    assert state_of(fleet, 0) == ("busy", "")
    assert state_of(fleet, 1) == ("faulted", "GPU 1 takes no jobs: it broke.")
    assert state_of(fleet, 2)[0] == "absent"
    member.drained.add(0)
    assert state_of(fleet, 0) == ("draining", "The front door gives it no new jobs; 1 job(s) left.")
    with pytest.raises(GatewayError):
        fleet.choose([0])
    assert Fleet(2).choose() == 0


def test_what_backends_tell_of_themselves_is_read():
    """By the numbers that users know; what is not as expected is left out."""
    member = Member(2, first=4)
    stats = {
        "devices": [{"name": "n", "type": "cuda", "vram_total": 10, "vram_free": 4}, "what"],
        "weights": [{"gpu_id": 1, "device": 1, "host_shared": 2, "host_own": 3}, {"gpu_id": "x"}],
    }
    assert read_stats(stats, member) == {
        4: {"memory": {"used": 6, "total": 10, "name": "n", "type": "cuda"}},
        5: {"weights": {"device": 1, "host_shared": 2, "host_own": 3}},
    }
    assert read_stats([], member) == {}
    said = {"verdict": "fine", "advice": "a"}
    assert read_verdict({"issuing": {**said, "lanes": []}}) == said
    assert read_verdict({"queues": []}) is None


async def test_nobody_is_asked_while_nobody_watches():
    """The first viewer wakes the meter, the last one lets it rest."""
    from gateway.dashboard.cards import Cards  # noqa: PLC0415
    from gateway.fleet.ask import Reply  # noqa: PLC0415

    asked: list[str] = []

    async def ask(target: str) -> Reply:
        asked.append(target)
        return Reply(200, "", b'{"devices": [{"vram_total": 2, "vram_free": 1}]}')

    fleet = Fleet(1)
    fleet.members[0].backend_up("x")
    meter = Meter(fleet.members, [ask], Cards({}), pace=0.01)
    async with asyncio.TaskGroup() as tasks:
        running = tasks.create_task(meter.run(), name="meter")
        for _ in range(5):
            await asyncio.sleep(0)
        assert asked == []
        with meter.watched():
            await until(lambda: meter.of(0)["memory"] is not None)
        assert set(asked) == {"/system_stats", "/debug/queues"}
        running.cancel()


def test_a_card_is_named_only_where_it_is_certain():
    """CUDA's order is NVML's only among like cards or by the bus; masks count."""
    assert visible_cards({}, 2, alike=True) == [0, 1]
    assert visible_cards({}, 2, alike=False) == []
    assert visible_cards({"CUDA_DEVICE_ORDER": "PCI_BUS_ID"}, 2, alike=False) == [0, 1]
    assert visible_cards({"CUDA_VISIBLE_DEVICES": "3,1"}, 4, alike=True) == [3, 1]
    assert visible_cards({"CUDA_VISIBLE_DEVICES": "GPU-abc"}, 4, alike=True) == []
