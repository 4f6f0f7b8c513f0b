"""Where the overlay's answers stand among ComfyUI's middlewares and those of custom nodes."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest
from aiohttp import web
from aiohttp.test_utils import TestClient, TestServer

from backend.context import current_lane, in_lane
from backend.contract import GPU_HEADER
from backend.faults import device_broken
from backend.overlay import listing, routing
from backend.overlay.state import State
from tests.doubles.checkout import loaded, make_state

FOREIGN = {"Origin": "http://elsewhere.example"}
LANES = 3


@web.middleware
async def same_origin(request: web.Request, handler: Any) -> web.StreamResponse:
    """As ComfyUI's: another site's page is refused."""
    if "Origin" in request.headers:
        return web.Response(status=403)
    return await handler(request)


class House:
    """ComfyUI's application as it is after its custom nodes were loaded, and what a custom node's middleware saw."""

    def __init__(self, state: State, server: Any) -> None:
        self.state = state
        self.seen: list[tuple[str, int | None]] = []
        self.handled: list[str] = []
        self.allowed = True
        server.app = web.Application(middlewares=[same_origin])
        server.routes = web.RouteTableDef()
        routing.install(state, server)
        for position in (0, len(server.app.middlewares)):  # some put theirs first, some last
            server.app.middlewares.insert(position, self._middleware())
        routing.around(server)
        server.app.add_routes([web.route("*", path, self._handle) for path in
                               ("/interrupt", "/api/interrupt", "/prompt", "/object_info", "/system_stats", "/free")])
        self.app = server.app

    def _middleware(self) -> Any:
        @web.middleware
        async def of_a_node(request: web.Request, handler: Any) -> web.StreamResponse:
            self.seen.append((request.path, current_lane()))
            return await handler(request) if self.allowed else web.Response(status=401)

        return of_a_node

    async def _handle(self, request: web.Request) -> web.Response:
        self.handled.append(request.path)
        return web.json_response({"devices": [{"name": "cpu"}]})

    def run(self, lane: int, prompt_id: str) -> int:
        """Let ``lane`` take a job; gives its number in the queue."""
        queue = self.state.queues.lanes[lane]
        with in_lane(lane):
            queue.put((0, prompt_id, {}, {}, []))
            found = queue.get(timeout=0)
        assert found is not None
        return found[1]

    def stopped(self) -> list[str]:
        """The jobs that are told to stop."""
        return sorted(self.state.interrupts._aimed.values())


@pytest.fixture
async def house() -> AsyncIterator[House]:
    with loaded() as main:
        state = make_state(LANES)
        server = main.server.PromptServer(asyncio.get_running_loop())
        state.server = server
        state.adopt_queue(main.execution.PromptQueue(server), server)
        yield House(state, server)


@pytest.fixture
async def client(house: House) -> AsyncIterator[TestClient[Any, Any]]:
    async with TestClient(TestServer(house.app)) as found:
        yield found


@pytest.mark.parametrize("path", ["/interrupt", "/api/interrupt"])
async def test_another_sites_page_interrupts_nothing(house: House, client: TestClient[Any, Any], path: str) -> None:
    """ComfyUI's own check of the origin comes before the answer, as on its other routes."""
    house.run(1, "one")
    for body in ({}, {"prompt_id": "one"}):
        for headers in (FOREIGN, {**FOREIGN, GPU_HEADER: "1"}):
            assert (await client.post(path, json=body, headers=headers)).status == 403
    assert house.stopped() == []
    assert (await client.post(path, json={"prompt_id": "one"})).status == 200
    assert house.stopped() == ["one"]


async def test_a_custom_nodes_middleware_sees_every_request_in_its_lane(
    house: House, client: TestClient[Any, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Wherever it put itself: what it refuses is not done, not answered from what is known and not unavailable."""
    house.run(2, "two")
    monkeypatch.setattr(listing, "current", lambda: '"name"')
    monkeypatch.setattr(listing, "unchanged", lambda etag: web.Response(status=304))
    house.state.lanes[1].stats.fault(device_broken("cpu"))
    calls = [("POST", "/interrupt", "2", 200), ("GET", "/object_info", "2", 304), ("POST", "/prompt", "1", 503),
             ("POST", "/free", "9", 400)]
    for house.allowed in (False, True):
        for method, path, gpu, status in calls:
            house.seen.clear()
            headers = {GPU_HEADER: gpu, "If-None-Match": '"name"'}
            answer = await client.request(method, path, headers=headers)
            assert answer.status == (status if house.allowed else 401), path
            lane = int(gpu) if int(gpu) < LANES else None
            assert house.seen == [(path, lane)] * (2 if house.allowed else 1)
        assert house.stopped() == (["two"] if house.allowed else [])
    assert house.handled == []


async def test_one_request_for_the_statistics_of_all_lanes_is_one(house: House, client: TestClient[Any, Any]) -> None:
    """ComfyUI's handler is asked once per lane; a middleware that counts requests sees one."""
    answer = await client.get("/system_stats")
    assert [device["gpu_id"] for device in (await answer.json())["devices"]] == [0, 1, 2]
    assert house.handled == ["/system_stats"] * LANES
    assert house.seen == [("/system_stats", None)] * 2


@pytest.mark.parametrize(
    ("body", "gpu", "stopped"),
    [
        (b"", "1", ["one"]),
        (b"no json", "1", ["one"]),
        (b"[]", "1", ["one"]),
        (b'{"prompt_id": null}', "1", ["one"]),
        (b'{"prompt_id": "two"}', "1", ["two"]),
        (b'{"prompt_id": "two"}', None, ["two"]),
        (b'{"prompt_id": "over"}', "1", []),
        (b'{"prompt_id": 5}', "1", []),
        (b"", None, ["one", "two"]),
    ],
)
async def test_whom_an_interrupt_stops(
    house: House, client: TestClient[Any, Any], body: bytes, gpu: str | None, stopped: list[str]
) -> None:
    """With a name that job, on whatever lane; without one what runs on the lane; one that does not run: nobody."""
    for lane, prompt_id in ((1, "one"), (2, "two")):
        house.run(lane, prompt_id)
    headers = {} if gpu is None else {GPU_HEADER: gpu}
    assert (await client.post("/interrupt", data=body, headers=headers)).status == 200
    assert house.stopped() == stopped
