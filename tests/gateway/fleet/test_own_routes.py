"""The front door's own routes, with a backend that is well, plain, broken or gone."""

import json

import pytest

from gateway.fleet.ask import Reply, asker
from gateway.fleet.lanes import Fleet
from gateway.fleet.merge import samples
from gateway.fleet.own_routes import OwnRoutes
from gateway.observe.metrics import Metrics
from gateway.request import Kind, Request
from gateway.wire.answer import Answer
from tests.doubles.canned import Canned, canned, ok

THEIRS = b'# HELP jobs_total Jobs.\n# TYPE jobs_total counter\njobs_total{gpu="0"} 3.0\n'
TEXT = "text/plain; version=0.0.4; charset=utf-8"
ALL = b'{"queues": [], "total_running": 0, "total_pending": 0}'
DOWN = Canned(1, {})


def request(method: bytes = b"GET") -> Request:
    return Request(method, b"/", [], "127.0.0.1", None, Kind.READ, "r")


def fields(answer: Answer) -> dict[bytes, bytes]:
    return dict(answer.headers)


def routes(server: Canned, *, up: bool = True) -> OwnRoutes:
    fleet = Fleet(2)
    if up:
        fleet.members[0].backend_up("toy 1", ["cpu", "cpu"])
    return OwnRoutes(fleet, Metrics(2, "0"), [asker(server.url)])


async def test_one_scrape_shows_both_sides():
    """The backend's samples follow the gateway's, and the scrape says that they are there."""
    async with canned({"/metrics": ok(THEIRS, TEXT)}) as server:
        answer = await routes(server).metrics(request())
    assert answer.status == 200
    assert answer.body.endswith(THEIRS)
    assert b"comfy_gateway_backend_scrape_ok 1.0\n" in answer.body
    assert fields(answer)[b"Content-Type"].startswith(b"text/plain; version=0.0.4")


@pytest.mark.parametrize("up", [True, False])
async def test_without_a_backend_the_scrape_still_works(up: bool):
    """The gateway's own numbers are needed most when the backend is gone."""
    answer = await routes(DOWN, up=up).metrics(request())
    assert answer.status == 200
    assert b"comfy_gateway_backend_scrape_ok 0.0\n" in answer.body


@pytest.mark.parametrize(
    "reply",
    [
        Reply(404, TEXT, THEIRS),
        Reply(200, "text/html", b"<html>"),
        Reply(200, TEXT, b""),
        Reply(200, TEXT, THEIRS + b"jobs_total{gpu=\n"),
        Reply(200, TEXT, b"Oops, an error\n"),
    ],
    ids=["404", "html", "empty", "cut off", "prose"],
)
def test_what_would_spoil_the_scrape_is_left_out(reply: Reply):
    """One broken line would cost Prometheus everything."""
    assert samples(reply) == b""


async def test_health_tells_when_every_gpu_is_drained():
    """One that still takes jobs is enough to be healthy; the answer stays 200, for what is handed in is kept."""
    fleet = Fleet(2)
    fleet.members[0].backend_up("toy 1", ["cpu", "cpu"])
    own = OwnRoutes(fleet, Metrics(2, "0"), [asker(DOWN.url)])
    said = []
    for gpu in (0, 1):
        fleet.members[0].drained.add(gpu)
        answer = await own.health(request())
        said.append((answer.status, json.loads(answer.body)["status"], json.loads(answer.body).get("reason")))
    assert said == [(200, "healthy", None), (200, "degraded", "Every GPU is drained: new jobs wait.")]


async def test_health_tells_of_a_gpu_that_takes_no_jobs():
    """Some work: 200, degraded, with the reason. None works: 503."""
    fleet = Fleet(2)
    fleet.members[0].backend_up("toy 1", ["cpu", "cpu"])
    own = OwnRoutes(fleet, Metrics(2, "0"), [asker(DOWN.url)])
    fleet.members[0].look_ends(fleet.members[0].look_begins(), [(0, 0), (0, 0)], ["", "it broke"])
    answer = await own.health(request())
    told = json.loads(answer.body)
    assert (answer.status, told["status"], told["healthy_instances"]) == (200, "degraded", 1)
    assert told["reason"] == "GPU 1 takes no jobs: it broke."
    fleet.members[0].look_ends(fleet.members[0].look_begins(), [(0, 0), (0, 0)], ["it too", "it broke"])
    answer = await own.health(request())
    told = json.loads(answer.body)
    assert (answer.status, told["status"], told["healthy_instances"]) == (503, "unhealthy", 0)
    assert int(fields(answer)[b"Retry-After"]) >= 1


async def test_alive_is_not_ready():
    """Who restarts what hangs asks whether it is alive; who sends jobs asks whether it is ready."""
    well, ill = routes(DOWN), routes(DOWN, up=False)
    assert (await well.live(request())).status == (await ill.live(request())).status == 200
    assert (await well.ready(request())).status == 200
    answer = await ill.ready(request())
    assert (answer.status, json.loads(answer.body)["reason"]) == (503, "The backend is starting.")
    assert int(fields(answer)[b"Retry-After"]) >= 1
    fleet = Fleet(1)
    fleet.members[0].backend_up("toy 1", ["cpu"])
    fleet.members[0].look_ends(fleet.members[0].look_begins(), [(0, 0)], ["it broke"])
    answer = await OwnRoutes(fleet, Metrics(1, "0"), [asker(DOWN.url)]).ready(request())
    assert (answer.status, json.loads(answer.body)["reason"]) == (503, "GPU 0 takes no jobs: it broke.")


async def test_health_asks_nobody():
    """Healthy or not is read off what the gateway knows; a dead port behind it is not touched."""
    well = await routes(DOWN).health(request())
    told = json.loads(well.body)
    assert (well.status, told["status"], told["backend"]) == (200, "healthy", "toy 1")
    assert (told["healthy_instances"], told["total_instances"]) == (2, 2)
    ill = await routes(DOWN, up=False).health(request())
    told = json.loads(ill.body)
    assert (ill.status, told["status"], told["healthy_instances"]) == (503, "unhealthy", 0)
    assert told["reason"] == "The backend is starting."
    assert int(fields(ill)[b"Retry-After"]) >= 1


async def test_all_queues_come_from_the_backend_as_they_are():
    """Where the backend knows the route its answer is passed on."""
    async with canned({"/queue/all": ok(ALL)}) as server:
        answer = await routes(server).queue_all(request())
    assert (answer.status, answer.body) == (200, ALL)


async def test_a_plain_comfyui_has_one_queue():
    """The same shape is made from /queue, with counts."""
    queue = ok(b'{"queue_running": [[0, "a", {}, {}, []]], "queue_pending": [[1, "b"], [2, "c"]]}')
    async with canned({"/queue": queue}) as server:
        told = json.loads((await routes(server).queue_all(request())).body)
    assert (told["total_running"], told["total_pending"]) == (1, 2)
    (only,) = told["queues"]
    assert (only["gpu_id"], only["running_count"], only["pending_count"]) == (0, 1, 2)
    assert only["queue_pending"][1][1] == "c"


@pytest.mark.parametrize("up", [True, False])
async def test_without_a_backend_queues_are_unavailable_not_empty(up: bool):
    """Unknown must not look like idle: 503 in ComfyUI's shape, with a time to wait."""
    answer = await routes(DOWN, up=up).queue_all(request())
    assert answer.status == 503
    assert json.loads(answer.body)["error"]["type"] == "backend_unavailable"
    assert int(fields(answer)[b"Retry-After"]) >= 1


async def test_a_queue_that_is_none_is_unavailable():
    """A backend that answers nonsense is not shown as having an empty queue."""
    async with canned({"/queue": ok(b"[]")}) as server:
        assert (await routes(server).queue_all(request())).status == 503


@pytest.mark.parametrize("path", [b"/metrics", b"/health", b"/queue/all"])
async def test_own_routes_can_only_be_read(path: bytes):
    """Another method is 405 and names those that work."""
    answer = await routes(DOWN).table()[path](request(b"POST"))
    assert answer.status == 405
    assert fields(answer)[b"Allow"] == b"GET, HEAD"
