"""``POST /preload`` of the embedded engine: its checkpoints, loaded by a lane's worker before its next job."""

import asyncio
from collections.abc import Sequence

from aiohttp import web

from backend.contract import RETRY_AFTER
from backend.embedded.engine import Engine
from backend.embedded.http import body_of, gpu_of, refuse
from backend.preload import BadPreload, Wanted, answer, parse

LOADER = "CheckpointLoaderSimple"


class PreloadRoutes:
    """The one route."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def routes(self) -> list[web.RouteDef]:
        return [web.post("/preload", self.preload)]

    async def preload(self, request: web.Request) -> web.Response:
        lanes = self._engine.lanes
        try:
            wanted = parse(await body_of(request), len(lanes), gpu_of(request))
            names = self.names(wanted)
        except BadPreload as error:
            return web.json_response(error.answer(), status=400)
        for gpu in wanted.gpus:
            if (fault := lanes[gpu].stats.broken) is not None:
                message = f"GPU {gpu} takes no jobs: {fault.reason}."
                refusal = refuse(503, "gpu_unavailable", message, "The backend starts again.")
                refusal.headers["Retry-After"] = str(RETRY_AFTER)
                return refusal
        waiting = [self._engine.jobs.preload(gpu, list(names)) for gpu in wanted.gpus]
        if not wanted.wait:
            return web.json_response({"preloading": list(wanted.gpus)}, status=202)
        done = await asyncio.gather(*(asyncio.wrap_future(each) for each in waiting))
        status, body = answer(done, [lanes[each.gpu].weights.now().shown() for each in done])
        return web.json_response(body, status=status)

    def names(self, wanted: Wanted) -> Sequence[str]:
        """The checkpoints that are asked for, each once; raises ``BadPreload``."""
        there = self._engine.files.models("checkpoints")
        found: list[str] = []
        for model in wanted.models:
            if model.folder != "checkpoints":
                raise BadPreload(f"{model.folder!r} is no type of models that can be preloaded.", "Known: checkpoints.")
            found.append(model.name)
        for node_id, node in (wanted.workflow or {}).items():
            if node["class_type"] not in self._engine.registry:
                raise BadPreload(f"There is no node {node['class_type']}.", f"It is node {node_id!r} of the workflow.")
            if node["class_type"] == LOADER:
                found.append(str(node["inputs"].get("ckpt_name")))
        if not found:
            raise BadPreload("The workflow loads no models.", f"No node of it is a {LOADER}.")
        for name in found:
            if name not in there:
                raise BadPreload("Value not in list", f"ckpt_name: {name!r} not in {there}")
        return list(dict.fromkeys(found))
