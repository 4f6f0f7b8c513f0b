"""The document says what there is, all of it, and nothing else."""

import json
import re
from pathlib import Path
from typing import Any

from gateway.api.routes import ELSEWHERE, OWN_ROUTES
from gateway.api.schemas import SCHEMAS
from tests.doubles.jobs_house import house
from tests.doubles.wait import until


def references(found: Any) -> set[str]:
    """Names of schemas that something refers to."""
    return set(re.findall(r"#/components/schemas/(\w+)", json.dumps(found)))


async def test_every_route_is_in_it_and_no_other(tmp_path: Path):
    """The table of the API and that of the fleet's own routes, method by method."""
    async with house(tmp_path) as here:
        got = await here.get("/openapi.json", None)
        found = json.loads(got.body)
        assert (got.status, found["openapi"]) == (200, "3.1.0")
        said = {(method.upper(), path) for path, item in found["paths"].items() for method in item}
        routes = {(route.method, route.path.replace("*}", "}")) for route in here.api.table.routes}
        own = {("GET", path.decode()) for path in here.server._proxy.own_routes}
        assert {("GET", route.path) for route in OWN_ROUTES} == own
        elsewhere = {(route.method, route.path) for route in ELSEWHERE}
        assert said == routes | own | elsewhere
        assert len(said) == len(routes) + len(own) + len(elsewhere)


async def test_what_it_refers_to_is_there(tmp_path: Path):
    """Every schema that a route names exists, every one that exists is named, and every path parameter is declared."""
    async with house(tmp_path) as here:
        found = json.loads((await here.get("/openapi.json", None)).body)
    named = references(found["paths"])
    for _ in SCHEMAS:
        named |= references({name: SCHEMAS[name] for name in named})
    assert named == set(SCHEMAS)
    operations = [(path, each) for path, item in found["paths"].items() for each in item.values()]
    assert len({each["operationId"] for _, each in operations}) == len(operations)
    for path, operation in operations:
        declared = [each["name"] for each in operation["parameters"] if each["in"] == "path"]
        assert declared == re.findall(r"\{(\w+)\}", path)
        assert operation["summary"]
        assert {"101", "200", "202"} & set(operation["responses"])


async def test_why_a_job_is_where_it_is_can_be_asked(tmp_path: Path):
    """At least how its GPU was chosen."""
    async with house(tmp_path) as here:
        await here.submit("a", gpu=2)
        found = json.loads((await here.get("/jobs/a/explain", None)).body)
        assert (found["id"], found["gpu"], found["port"]) == ("a", 2, "gpu2")
        assert "GPU 2" in found["reason"]
        assert (await here.get("/jobs/b/explain", None)).status == 404


async def test_what_was_weighed_at_the_front_door_is_told(tmp_path: Path):
    """The score of each GPU at the moment of choice, and of a job that waits, as of now."""
    async with house(tmp_path) as here:
        graph = {"1": {"class_type": "EmptyImage", "inputs": {}}}
        jobs = []
        for _ in range(12):
            got = await here.post("/jobs", {"workflow": graph}, gpu=None)
            assert got.status == 202, got.body
            jobs.append(json.loads(got.body)["id"])

        async def told() -> list[Any]:
            return [json.loads((await here.get(f"/jobs/{job}/explain", None)).body) for job in jobs]

        await until(lambda: len(here.comfy.pending) == 8)  # two for each GPU; nothing moves from here on
        await until(lambda: here.desk.schedule.waiting_count == 4)
        found = await told()
        sent = [each for each in found if each["choice"] is not None]
        waiting = [each for each in found if each["waiting"]]
        assert (len(sent), len(waiting)) == (8, 4)
        assert all(each["choice"]["lanes"] for each in sent)
        assert all({"gpu_id", "eligible"} <= set(lane) for each in waiting for lane in each["lanes"])
        assert [each["position"] for each in waiting] == list(range(1, len(waiting) + 1))
