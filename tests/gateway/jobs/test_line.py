"""The line at the front door: what waits there, how it is sent, and what clients see of it."""

import asyncio
import json
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from gateway.schedule.workflow import read
from tests.doubles.http_stack import config_for
from tests.doubles.jobs_house import House, house
from tests.doubles.wait import until

ONE = {"depth": 1}
"""One job per GPU: four are there at once."""


def graph(model: str = "a") -> dict[str, Any]:
    return {"1": {"class_type": "Loader", "inputs": {"ckpt_name": f"{model}.safetensors"}}}


async def submit(here: House, job: str, **more: Any) -> dict[str, Any]:
    """Submit at the front door."""
    body = {"prompt": graph(), "prompt_id": job, "client_id": "c", **more}
    got = await here.post("/prompt", body, gpu=None)
    assert got.status == 200, got.body
    found: dict[str, Any] = json.loads(got.body)
    return found


async def fill(here: House, count: int = 4) -> list[str]:
    """As many jobs as there are places."""
    jobs = [f"full-{number}" for number in range(count)]
    for job in jobs:
        await submit(here, job)
    assert sorted(here.comfy.lanes[job] for job in jobs) == sorted([*range(4)] * (count // 4))
    return jobs


async def pending(here: House) -> list[str]:
    return [item[1] for item in json.loads((await here.get("/queue", None)).body)["queue_pending"]]


async def test_what_finds_room_is_sent_at_once_and_the_rest_waits(tmp_path: Path):
    """Two for each GPU; the others are answered by the gateway, in ComfyUI's shape, and sent when one ends."""
    async with house(tmp_path) as here:
        await fill(here, 8)
        told = await submit(here, "late")
        record = here.record("late")
        assert told == {"prompt_id": "late", "number": record.seq, "node_errors": {}, "gpu_id": None}
        assert (record.gpu, record.state.value, record.attempts) == (None, "queued", 0)
        assert "late" not in here.comfy.lanes
        gone = here.comfy.pending[2]["prompt_id"]
        here.comfy.finish(gone)
        await until(lambda: here.record("late").attempts == 1)
        assert here.comfy.lanes["late"] == here.comfy.lanes[gone] == here.record("late").gpu
        # The second submission is told what the first was.
        assert await submit(here, "late") == told


async def test_the_front_door_shows_what_waits(tmp_path: Path):
    """In the queue behind what the lanes have, in the order of the line, and counted; the history has nothing yet."""
    async with house(tmp_path, schedule=ONE) as here:
        await fill(here)
        await submit(here, "one", extra_data={"api_key_comfy_org": "s", "x": 1})
        await submit(here, "two", front=True)
        assert (await pending(here))[4:] == ["two", "one"]
        items = json.loads((await here.get("/api/queue", None)).body)["queue_pending"]
        assert items[5][2:] == [graph(), {"x": 1, "client_id": "c"}, []]
        left = json.loads((await here.get("/prompt", None)).body)
        assert left["exec_info"]["queue_remaining"] == 6
        assert (await here.get("/history/one", None)).body == b"{}"
        assert len(json.loads((await here.get("/queue/all", None)).body)["queues"][0]["queue_pending"]) == 4


async def test_the_backend_knows_how_many_wait_before_the_client_knows_of_its_own(tmp_path: Path):
    """Its status counts them; a job that is gone is taken off, and another life is told anew."""
    async with house(tmp_path, schedule=ONE) as here:
        jobs = await fill(here)
        assert here.comfy.waiting == {}
        await submit(here, "one", client_id="x")
        assert here.comfy.waiting == {"x": 1}
        await submit(here, "two", client_id="x")
        await submit(here, "three", client_id="y")
        assert here.comfy.waiting == {"x": 2, "y": 1}
        here.comfy.finish(jobs[0])
        await until(lambda: here.comfy.waiting == {"x": 1, "y": 1})
        assert (await here.post("/queue", {"delete": ["three"]}, gpu=None)).status == 200
        await until(lambda: here.comfy.waiting == {"x": 1, "y": 0})
        here.backend_dies()
        here.comfy.waiting = {}
        here.backend_comes("boot-22")
        await until(lambda: here.comfy.waiting == {"x": 1})


async def test_a_refusal_reaches_the_client_while_it_waits_for_an_answer(tmp_path: Path):
    """With room, the backend's own; without, what can be seen in the graph; nothing of it is kept."""
    async with house(tmp_path, schedule=ONE) as here:
        here.comfy.refuse.add("bad")
        got = await here.post("/prompt", {"prompt": graph(), "prompt_id": "bad"}, gpu=None)
        assert (got.status, json.loads(got.body)["error"]["type"]) == (400, "no_prompt")
        await fill(here)
        for prompt, kind in (
            ({}, "prompt_no_outputs"),
            ({"1": {"inputs": {}}}, "invalid_prompt"),
            ({"1": {"class_type": "A", "inputs": {"x": ["7", 0]}}}, "invalid_prompt"),
        ):
            got = await here.post("/prompt", {"prompt": prompt, "prompt_id": "worse"}, gpu=None)
            assert (got.status, got.error["type"]) == (400, kind)
        got = await here.post("/prompt", {"prompt_id": "worse"}, gpu=None)
        assert (got.status, got.error["type"]) == (400, "no_prompt")
        assert sorted(here.states()) == [f"full-{number}" for number in range(4)]
        assert here.desk.schedule.waiting_count == 0


async def test_a_backend_that_can_judge_is_asked(tmp_path: Path):
    """Its words are the client's, though it takes nothing; and it is told no more than that."""
    async with house(tmp_path, schedule=ONE) as here:
        here.comfy.judges = True
        await fill(here)
        here.comfy.refuse.add("bad")
        got = await here.post("/prompt", {"prompt": graph(), "prompt_id": "bad"}, gpu=None)
        assert got.status == 400
        assert json.loads(got.body)["node_errors"] == {"1": {"errors": []}}
        assert (await submit(here, "good"))["node_errors"] == {"9": {}}
        assert "good" not in here.comfy.lanes


async def test_a_later_refusal_is_a_failed_job_that_says_why(tmp_path: Path):
    """The client has its 200 by then; the history tells it."""
    async with house(tmp_path, schedule=ONE) as here:
        jobs = await fill(here)
        await submit(here, "late")
        await submit(here, "next")
        here.comfy.refuse.add("late")
        here.comfy.finish(jobs[0])
        await until(lambda: here.record("late").ended)
        assert here.record("late").error == {"type": "refused", "message": "No prompt provided"}
        entry = json.loads((await here.get("/history/late", None)).body)["late"]
        assert entry["status"]["status_str"] == "error"
        # Its place is not lost with it.
        await until(lambda: here.record("next").attempts == 1)


@pytest.mark.parametrize(
    ("route", "body", "shown"),
    [
        ("/interrupt", {"prompt_id": "one"}, True),
        ("/queue", {"delete": ["one"]}, False),
        ("/queue", {"clear": True}, False),
    ],
)
async def test_what_waits_can_be_stopped(tmp_path: Path, route: str, body: Any, shown: bool):
    """It never runs, whatever ends; its history says interrupted, or there is none, as with ComfyUI."""
    async with house(tmp_path, schedule=ONE) as here:
        jobs = await fill(here)
        await submit(here, "one")
        assert (await here.post(route, body, gpu=None)).status == 200
        assert here.states()["one"] == "canceled"
        found = json.loads((await here.get("/history/one", None)).body)
        assert (list(found) == ["one"]) is shown
        if shown:
            assert found["one"]["status"]["messages"][-1][0] == "execution_interrupted"
        assert "one" not in await pending(here)
        here.comfy.finish(jobs[0])
        await until(lambda: here.record(jobs[0]).ended)
        await submit(here, "two")
        assert "one" not in here.comfy.lanes


async def test_a_job_that_is_cancelled_on_its_way_is_taken_out_again(tmp_path: Path):
    """It has been taken from the line, the backend has not answered yet: what it then has is stopped at once."""
    async with house(tmp_path, schedule=ONE) as here:
        jobs = await fill(here)
        await submit(here, "late")
        here.comfy.hold = asyncio.Event()
        here.comfy.finish(jobs[0])
        await until(lambda: here.record("late").boot)
        assert (await here.post("/interrupt", {"prompt_id": "late"}, gpu=None)).status == 200
        here.comfy.hold.set()
        stopped = [("/queue", {"delete": ["late"]}), ("/interrupt", {"prompt_id": "late"})]
        await until(lambda: here.record("late").attempts == 1 and here.comfy.told[-2:] == stopped)
        here.comfy.pending = [each for each in here.comfy.pending if each["prompt_id"] != "late"]
        await until(lambda: here.states()["late"] == "canceled")


async def test_interrupt_without_a_name_stops_the_callers_own(tmp_path: Path):
    """Only what runs, only of the front door, only of this client; by client_id where one is given."""
    async with house(tmp_path, schedule={"depth": 2}) as here:
        await submit(here, "mine", client_id="me")
        await submit(here, "other", client_id="you")
        await here.submit("pinned", gpu=3)
        await submit(here, "waits", client_id="me")
        here.comfy.pending.sort(key=lambda each: each["prompt_id"] == "waits")
        for _ in range(3):
            here.comfy.start()
        await here.desk.tracker.look()
        assert (await here.post("/interrupt", {"client_id": "me"}, gpu=None)).status == 200
        assert [body for path, body in here.comfy.told if path == "/interrupt"] == [{"prompt_id": "mine"}]
        here.comfy.told.clear()
        assert (await here.post("/interrupt", b"", gpu=None)).status == 200
        stopped = {body["prompt_id"] for path, body in here.comfy.told if path == "/interrupt"}
        assert stopped == {"mine", "other"}
        assert not here.record("pinned").cancel
        assert not here.record("waits").cancel


async def test_bounds_are_told_with_a_time(tmp_path: Path):
    """429 and Retry-After: of one client, in all, and on a GPU's own port."""
    settings = {"depth": 1, "pending": 3, "pending_client": 2, "pending_gpu": 1}
    async with house(tmp_path, schedule=settings) as here:
        await fill(here)
        for number in range(2):
            await submit(here, f"w{number}")
        body = {"prompt": graph(), "client_id": "c"}
        got = await here.post("/prompt", body, gpu=None)
        assert (got.status, got.error["type"]) == (429, "queue_full")
        assert 1 <= int(got.all("retry-after")[0]) <= 60
        assert "of this client" in got.error["details"]
        await submit(here, "w2", client_id="d")
        assert (await here.post("/prompt", {**body, "client_id": "e"}, gpu=None)).status == 429
        assert (await here.post("/prompt", body, gpu=0)).status == 200
        got = await here.post("/prompt", body, gpu=0)
        assert (got.status, got.error["type"]) == (429, "queue_full")
        assert "GPU 0" in got.error["details"]
        assert here.desk.schedule.waiting_count == 3


async def test_the_line_outlives_the_gateway(tmp_path: Path):
    """What waited comes back to its place; what was on a lane is not sent twice."""
    async with house(tmp_path, schedule=ONE) as here:
        await fill(here)
        await submit(here, "low")
        await submit(here, "high", priority=5)
        await submit(here, "last")
        was = here.comfy
    async with house(tmp_path, up="", schedule=ONE) as here:
        here.comfy.pending, here.comfy.lanes = was.pending, was.lanes
        assert await pending(here) == ["high", "low", "last"]
        here.backend_comes("boot-1")
        await until(lambda: here.fleet.up)
        assert len(here.comfy.pending) == 4
        for expected in ("high", "low", "last"):
            here.comfy.finish(here.comfy.pending[0]["prompt_id"])
            await until(lambda expected=expected: here.record(expected).attempts == 1)
        assert Counter(here.states().values()) == {"succeeded": 3, "queued": 4}


async def test_the_line_waits_for_a_backend_that_is_away(tmp_path: Path):
    """Its death takes only what was on the lanes; when it is back that comes first, then the line."""
    async with house(tmp_path, schedule=ONE) as here:
        jobs = await fill(here)
        await submit(here, "late")
        here.backend_dies()
        assert (await here.post("/prompt", {"prompt": graph()}, gpu=None)).status == 503
        assert await pending(here) == ["late"]
        here.backend_comes("boot-22")
        await until(lambda: here.fleet.up)
        assert sorted(each["prompt_id"] for each in here.comfy.pending) == jobs
        here.comfy.finish(jobs[3])
        await until(lambda: here.record("late").attempts == 1)


async def test_what_the_backend_does_not_answer_is_not_lost_and_not_run_twice(tmp_path: Path):
    """A connection that breaks while a job of the line is sent: it is looked for, and sent again when it is nowhere."""
    async with house(tmp_path, schedule=ONE) as here:
        jobs = await fill(here)
        await submit(here, "late")
        here.comfy.hang_up = True
        here.comfy.finish(jobs[0])
        await until(lambda: here.record("late").boot)
        here.comfy.hang_up = False
        await until(lambda: here.record("late").attempts == 1)
        assert [each["prompt_id"] for each in here.comfy.pending].count("late") == 1


async def test_everybody_gets_a_turn_and_priorities_count(tmp_path: Path):
    """A client's flood does not hold the other up; a higher priority goes first."""
    async with house(tmp_path, schedule=ONE) as here:
        await fill(here)
        for number in range(6):
            await submit(here, f"flood{number}", client_id="flood")
        await submit(here, "single", client_id="single")
        await submit(here, "urgent", client_id="flood", priority=1)
        order = (await pending(here))[4:]
        assert order[0] == "urgent"
        assert order.index("single") <= 2
        got = await here.post("/prompt", {"prompt": graph(), "priority": "high"}, gpu=None)
        assert (got.status, got.error["type"]) == (400, "bad_request")


async def test_a_job_says_where_it_stands_and_why(tmp_path: Path):
    """Position, expected end, and every lane's score, for the waiting and for the chosen."""
    async with house(tmp_path, schedule={**ONE, "pins": ["b.* = 2"]}) as here:
        await submit(here, "pinned", prompt=graph("b"))
        assert here.record("pinned").gpu == 2
        schedule = here.desk.schedule
        why = schedule.explain("pinned")["choice"]
        assert why["gpu_id"] == 2
        assert [lane["eligible"] for lane in why["lanes"]] == [False, False, True, False]
        await submit(here, "a1")
        await submit(here, "a2")
        await submit(here, "a3")
        await submit(here, "late", prompt=graph("b"))
        assert schedule.position("late") == 1
        eta = schedule.eta("late")
        assert eta is not None
        # Behind one job whose load and run are not known yet.
        assert 40 < eta < 60
        assert schedule.explain("late")["gpus"] == [2]
        shown = json.loads((await here.get("/jobs/late", None)).body)
        assert shown["position"] == 1
        assert shown["eta_seconds"] is not None


async def test_a_job_goes_where_the_backend_has_its_model(tmp_path: Path):
    """However it came there; and once it is said to be there no more, that counts for nothing."""
    async with house(tmp_path) as here:
        member = here.fleet.members[0]

        def look(*held: str) -> None:
            member.look_ends(member.look_begins(), [(0, 0)] * 4, [""] * 4, [(), (), held, ()])

        look("b.safetensors")
        await submit(here, "warm", prompt=graph("b"))
        assert here.record("warm").gpu == 2
        here.comfy.finish("warm")
        await until(lambda: here.record("warm").ended)
        look()
        here.desk.schedule.decide()
        assert not here.desk.schedule.scheduler.lanes[2].held


async def test_the_end_of_a_job_makes_room_as_soon_as_the_backend_tells_of_it(tmp_path: Path):
    """Not at the next look, which may be a minute away, also while nobody waits."""
    async with house(tmp_path, look=600.0) as here:
        await submit(here, "a")
        here.comfy.finish("a")
        lane = here.desk.schedule.scheduler.lanes[here.comfy.lanes["a"]]
        assert lane.load == 1
        assert here.desk.live.on_end is not None
        here.desk.live.on_end("a")
        await until(lambda: here.record("a").ended)
        assert lane.load == 0


async def test_a_job_in_a_gpus_queue_says_where_it_stands_there(tmp_path: Path):
    """Whoever put it there and in whichever order: behind what runs, by the numbers that the backend gives."""
    async with house(tmp_path) as here:

        async def told(job: str) -> tuple[int | None, float | None]:
            found = json.loads((await here.get(f"/jobs/{job}", None)).body)
            return found["position"], found["eta_seconds"]

        for job in ("a", "b", "c"):
            await here.submit(job, gpu=1)
        here.comfy.numbers = -10
        await here.submit("first", gpu=1)
        here.comfy.start()
        await until(lambda: here.record("a").state.value == "running")
        await until(lambda: here.record("first").attempts == 1)
        found = {job: await told(job) for job in ("a", "first", "b", "c")}
        assert [position for position, _ in found.values()] == [None, 1, 2, 3]
        etas = [eta for _, eta in found.values() if eta is not None]
        assert len(etas) == 4
        assert etas == sorted(etas)


async def test_clients_without_a_name_are_told_apart_by_address(tmp_path: Path):
    """A key counts most, then a client id of one's own; what the API gives to those who choose none is no name."""
    async with house(tmp_path, schedule=ONE) as here:
        await fill(here)
        got = await here.post("/jobs", {"workflow": graph()}, gpu=None)
        record = here.record(json.loads(got.body)["id"])
        share_of = here.desk.schedule.share_of
        assert (record.client_id, share_of(record)) == ("api", record.client)
        assert share_of(replace(record, client_id="me")) == "me"
        assert share_of(replace(record, client_id="me", owner="anna")) == "anna"
        assert share_of(replace(record, client_id="")) == record.client != ""


async def test_new_rules_hold_for_those_who_wait(tmp_path: Path):
    """Pins, depth and shares after a reload; what is on a GPU stays there."""
    async with house(tmp_path, schedule=ONE) as here:
        schedule = here.desk.schedule
        full = await fill(here)
        await submit(here, "late", prompt=graph("b"))
        assert schedule.explain("late")["gpus"] is None
        config = config_for(here.backend.url)
        rules = replace(config.schedule, depth=2, pins=("b.* = 3",), shares=("c = 4",))
        here.desk.apply(replace(config, schedule=rules))
        assert schedule.scheduler.rules.shares == {"c": 4.0}
        await until(lambda: here.record("late").attempts == 1)
        assert here.comfy.lanes["late"] == 3
        assert len(here.comfy.pending) == len(full) + 1


async def test_a_new_weight_counts_at_once(tmp_path: Path):
    """For the next choice; what is on a GPU stays there."""
    async with house(tmp_path) as here:
        schedule = here.desk.schedule
        assert {lane.weight for lane in schedule.scheduler.lanes.values()} == {1.0}
        here.fleet.members[0].weight = 0.25
        here.desk.apply(config_for(here.backend.url))
        assert {lane.weight for lane in schedule.scheduler.lanes.values()} == {0.25}
        await submit(here, "slow")
        choice = schedule.explain("slow")["choice"]
        assert {lane["run"] for lane in choice["lanes"]} == {80.0}


async def test_ends_that_were_foretold_are_compared_with_what_came(tmp_path: Path):
    """The error is counted for each job that succeeds."""
    async with house(tmp_path, schedule=ONE) as here:
        jobs = await fill(here)
        await submit(here, "late")
        for job in (*jobs, "late"):
            await until(lambda job=job: here.record(job).attempts == 1)
            here.comfy.finish(job)
            await until(lambda job=job: here.record(job).ended)
        assert here.desk.schedule.foretold.count == 5
        assert here.desk.schedule.foretold.error > 0
        assert all(lane.load == 0 for lane in here.desk.schedule.scheduler.lanes.values())


async def test_switched_off_each_job_goes_at_once(tmp_path: Path):
    """To the GPU with the fewest, however many there are."""
    async with house(tmp_path, schedule={"enabled": False, "depth": 1}) as here:
        for number in range(12):
            await submit(here, f"j{number}")
        assert Counter(here.comfy.lanes.values()) == {0: 3, 1: 3, 2: 3, 3: 3}


async def test_jobs_of_the_api_wait_in_the_same_line(tmp_path: Path):
    """``POST /jobs`` without a GPU; with one it goes there."""
    async with house(tmp_path, schedule=ONE) as here:
        await fill(here)
        got = await here.post("/jobs", {"workflow": graph(), "prompt_id": "api", "priority": 3}, gpu=None)
        assert got.status == 202, got.body
        assert (here.record("api").gpu, here.record("api").priority) == (None, 3)
        got = await here.post("/jobs", {"workflow": graph(), "prompt_id": "pinned", "gpu": 1}, gpu=None)
        assert (got.status, here.record("pinned").gpu) == (202, 1)
        assert json.loads((await here.get("/jobs/api", None)).body)["position"] == 1


PLAIN = {"1": {"class_type": "Any", "inputs": {}}}


async def behind(here: House) -> tuple[str, str]:
    """Short jobs, two on each GPU, of which all but one GPU's end; the one that lasts there, and the one behind it."""
    scheduler = here.desk.schedule.scheduler
    for gpu in range(4):
        for _ in range(3):
            scheduler.estimates.learn(read(PLAIN), gpu, 1.0, 0.01)
    jobs = [f"job{number}" for number in range(8)]
    for job in jobs:
        await submit(here, job, prompt=PLAIN)
    assert Counter(here.comfy.lanes.values()) == dict.fromkeys(range(4), 2)
    first, second = (job for job in jobs if here.comfy.lanes[job] == 0)
    here.comfy.pending.sort(key=lambda each: each["prompt_id"] != first)
    assert here.comfy.start() == first
    await until(lambda: here.states()[first] == "running")
    for job in jobs:
        if here.comfy.lanes[job] != 0:
            here.comfy.finish(job)
    return first, second


async def test_a_job_behind_one_that_lasts_goes_to_a_gpu_that_idles(tmp_path: Path):
    """It is taken out of the queue where it waits, and is in one queue only; what lasts goes on."""
    async with house(tmp_path) as here:
        here.comfy.deletes = "takes"
        first, second = await behind(here)
        await until(lambda: here.comfy.lanes[second] != 0 and here.record(second).attempts == 1)
        assert [each["prompt_id"] for each in here.comfy.pending] == [second]
        assert here.record(second).gpu == here.comfy.lanes[second]
        assert here.comfy.told == [("/queue", {"delete": [second]})]
        here.comfy.finish(second)
        await until(lambda: here.states()[second] == "succeeded")
        assert here.states()[first] == "running"
        await until(lambda: here.comfy.waiting.get("c", 0) == 0)


@pytest.mark.parametrize("deletes", ["", "starts"])
async def test_a_job_that_cannot_be_taken_back_stays(tmp_path: Path, deletes: str):
    """The backend kept it, or it has started by then: it runs there, once."""
    async with house(tmp_path) as here:
        here.comfy.deletes = deletes
        _, second = await behind(here)
        await until(lambda: ("/queue", {"delete": [second]}) in here.comfy.told)
        await until(lambda: not here.desk.submissions.under_way(second))
        record = here.record(second)
        assert (record.gpu, record.attempts, record.boot) == (0, 1, here.fleet.member(0).boot)
        here.comfy.finish(second)
        await until(lambda: here.states()[second] == "succeeded")
        assert here.comfy.lanes[second] == 0


async def test_a_job_whose_backend_dies_while_it_is_taken_back_is_sent_once(tmp_path: Path):
    """Nobody knows whether it was dropped: the next life gets it."""
    async with house(tmp_path) as here:
        here.comfy.deletes = "takes"
        first, second = await behind(here)
        await until(lambda: here.comfy.told)
        here.backend_dies()
        here.backend_comes("boot-22")
        await until(lambda: sorted(each["prompt_id"] for each in here.comfy.pending) == [first, second])
