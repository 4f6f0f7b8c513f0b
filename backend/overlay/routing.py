"""From a request's header to the lane its handler runs for, and the routes and answers that know of several lanes.

Owns the two middlewares, around all others, and the routes that ComfyUI does not have. Knows ComfyUI's routes by path
only; what a handler then sees is the business of the patches.
"""

import asyncio
import importlib
import json
import re
from collections.abc import Awaitable, Callable, Iterable, Sequence
from typing import Any, Final

from aiohttp import web

from backend import metrics
from backend.context import in_lane, only_judged
from backend.contract import GPU_HEADER, BadGpuHeader, parse_gpu, queue_line
from backend.lanes import Lane
from backend.overlay import listing, preloading
from backend.overlay.refusals import refusal, unavailable
from backend.overlay.state import State
from backend.verdict import describe

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]

BY_ID: Final = re.compile(r"/jobs/(?:[^/]+(?:/cancel)?|cancel)")
"""Routes that name a job: it is found on whatever lane it is."""

CHOOSES: Final = "choose_lane"
ANSWERS: Final = "answer_lanes"
"""The names of the two middlewares, by which they are found among others."""


def path_of(request: web.Request) -> str:
    """The request's path without the ``/api`` that every route also answers under."""
    path = request.path
    return path.removeprefix("/api") if path.startswith("/api/") else path


def middleware(state: State) -> Any:
    """Outermost: all that runs for a request runs in the context of the lane that the request names."""

    @web.middleware
    async def choose_lane(request: web.Request, handler: Handler) -> web.StreamResponse:
        try:
            lane = lane_of(state, request)
        except BadGpuHeader:
            lane = None  # refused by ``answer_lanes``, after whoever else may refuse it
        with in_lane(lane):
            return await handler(request)

    return choose_lane


def lane_of(state: State, request: web.Request) -> int | None:
    """The lane that a request's handler runs for; raises ``BadGpuHeader``."""
    lane = parse_gpu(request.headers.getall(GPU_HEADER, []), len(state.lanes))
    call = (request.method, path_of(request))
    if call == ("POST", "/prompt"):
        return 0 if lane is None else lane
    return None if call == ("POST", "/prompt/check") or BY_ID.fullmatch(call[1]) else lane


def answers(state: State) -> Any:
    """Innermost: what ComfyUI's handlers cannot answer for several lanes.

    ComfyUI's own middlewares and those of custom nodes come before it: what they refuse never gets here.
    """

    @web.middleware
    async def answer_lanes(request: web.Request, handler: Handler) -> web.StreamResponse:
        try:
            lane = lane_of(state, request)
        except BadGpuHeader as error:
            return refusal(str(error))
        call = (request.method, path_of(request))
        if call == ("POST", "/prompt") and lane is not None:
            if (fault := state.lanes[lane].stats.broken) is not None:
                return unavailable(state.lanes[lane], fault)
            return await _with_gpu(handler, request, lane)
        if call == ("GET", "/queue") and lane is not None:
            return await _with_gpu(handler, request, lane)
        if call == ("GET", "/system_stats"):
            return await _system_stats(state, handler, request, lane)
        if call == ("GET", "/object_info"):
            return await _object_info(handler, request)
        if call == ("POST", "/interrupt"):
            return await _interrupt(state, request, lane)
        return await handler(request)

    return answer_lanes


async def _with_gpu(handler: Handler, request: web.Request, lane: int) -> web.StreamResponse:
    response = await handler(request)
    answer = _json_of(response)
    if isinstance(response, web.Response) and response.status == 200 and isinstance(answer, dict):
        response.text = json.dumps({**answer, "gpu_id": lane})
    return response


async def _system_stats(
    state: State, handler: Handler, request: web.Request, lane: int | None
) -> web.StreamResponse:
    # ComfyUI describes the device of whoever asks; asked once per lane it describes them all.
    wanted = range(len(state.lanes)) if lane is None else (lane,)
    devices = []
    merged: web.Response | None = None
    for index in wanted:
        with in_lane(index):
            response = await handler(request)
        answer = _json_of(response)
        if not isinstance(response, web.Response) or not isinstance(answer, dict) or not answer.get("devices"):
            return response
        devices.append({**answer["devices"][0], "gpu_id": index})
        merged = response
        merged.text = json.dumps({**answer, "devices": devices, "weights": held(state.lanes, wanted)})
    assert merged is not None, "there is at least one lane"  # noqa: S101 (for the type checker)
    return merged


async def _object_info(handler: Handler, request: web.Request) -> web.StreamResponse:
    # The name first: what changes while the answer is made makes the next request ask for another one.
    etag = listing.current()
    if listing.known(request, etag):
        return listing.unchanged(etag)
    return listing.named(await handler(request), etag)


def held(lanes: Sequence[Lane], wanted: Iterable[int]) -> list[dict[str, int]]:
    """What these lanes hold of models' weights, and what loading them cost."""
    return [{"gpu_id": index, **lanes[index].weights.now().shown()} for index in wanted]


async def _interrupt(state: State, request: web.Request, lane: int | None) -> web.Response:
    # Answered here: ComfyUI's handler looks and acts in two steps, between which the job may end and another begin.
    try:
        body = await request.json()
    except json.JSONDecodeError:
        body = {}
    prompt_id = body.get("prompt_id") if isinstance(body, dict) else None
    if prompt_id:
        state.queues.merged.interrupt(prompt_id)
    else:
        state.queues.of(lane).interrupt()
    return web.Response(status=200)


def _json_of(response: web.StreamResponse) -> Any:
    if not isinstance(response, web.Response) or response.content_type != "application/json":
        return None
    try:
        return json.loads(response.text or "")
    except ValueError:
        return None


def queue_all(state: State, *, ids: bool = False) -> dict[str, Any]:
    """Every lane's queue and the totals; ``ids``: number and id of each job are enough."""
    shown = (lambda item: list(item[:2])) if ids else state.version.public
    queues = []
    for queue in state.queues.lanes:
        running, pending = queue.get_current_queue_volatile()
        queues.append({
            "gpu_id": queue.lane.index,
            "queue_running": [shown(item) for item in running],
            "queue_pending": [shown(item) for item in pending],
            "running_count": len(running),
            "pending_count": len(pending),
        })
    return {
        "queues": queues,
        "total_running": sum(entry["running_count"] for entry in queues),
        "total_pending": sum(entry["pending_count"] for entry in queues),
    }


def install(state: State, server: Any) -> None:
    """Put the middlewares around all others and add the routes, while ComfyUI's server is still being made."""
    server.app.middlewares.insert(0, middleware(state))
    server.app.middlewares.append(answers(state))
    numbers = metrics.Metrics(state.lanes)

    @server.routes.get("/queue/all")  # type: ignore[untyped-decorator] # ComfyUI's table of routes
    async def _queue_all(request: web.Request) -> web.Response:
        return web.json_response(queue_all(state, ids="ids" in request.query))

    @server.routes.get("/debug/queues")  # type: ignore[untyped-decorator] # ComfyUI's table of routes
    async def _debug_queues(request: web.Request) -> web.Response:
        return web.json_response({"queues": [
            queue_line(
                lane.index, entry["running_count"], entry["pending_count"], lane.stats.broken, lane.weights.names()
            )
            for lane, entry in zip(state.lanes, queue_all(state)["queues"], strict=True)
        ], "issuing": describe(state.lanes)})

    server.routes.get("/debug/events")(state.observers.serve)

    @server.routes.get("/debug/weights")  # type: ignore[untyped-decorator] # ComfyUI's table of routes
    async def _debug_weights(request: web.Request) -> web.Response:
        weights = importlib.import_module("backend.overlay.patches.weights")
        return web.json_response(await asyncio.to_thread(weights.describe))

    @server.routes.post("/prompt/check")  # type: ignore[untyped-decorator] # ComfyUI's table of routes
    async def _check(request: web.Request) -> web.StreamResponse:
        # ComfyUI's own handler judges, as it will when the job comes; code without a lane sees the merged queue.
        judged = request.clone(rel_url=request.rel_url.with_path("/prompt"))
        found = await request.app.router.resolve(judged)
        with only_judged():
            return await found.handler(judged)

    @server.routes.post("/queue/waiting")  # type: ignore[untyped-decorator] # ComfyUI's table of routes
    async def _waiting(request: web.Request) -> web.Response:
        try:
            state.waiting.update(await request.read())
        except ValueError as error:
            return refusal(str(error), "invalid_request")
        state.recount()
        return web.Response(status=200)

    @server.routes.post("/preload")  # type: ignore[untyped-decorator] # ComfyUI's table of routes
    async def _preload(request: web.Request) -> web.Response:
        return await preloading.handle(state, request)

    @server.routes.get("/metrics")  # type: ignore[untyped-decorator] # ComfyUI's table of routes
    async def _metrics(request: web.Request) -> web.Response:
        return web.Response(body=numbers.text(), headers={"Content-Type": metrics.CONTENT_TYPE})


def around(server: Any) -> None:
    """Custom nodes may have added middlewares of their own: these run between ours.

    One reads the lane before anything asks for it, the other answers when nobody has refused.
    """
    entries = server.app.middlewares
    ours = {name: entry for entry in entries if (name := getattr(entry, "__name__", "")) in {CHOOSES, ANSWERS}}
    for entry in ours.values():
        entries.remove(entry)
    entries.insert(0, ours[CHOOSES])
    entries.append(ours[ANSWERS])
