"""Routes that tell what this backend is: nodes, models, devices, features, metrics, a page; and the WebSocket."""

import os
import sys
import uuid
from pathlib import Path
from typing import Any, Final

from aiohttp import web

from backend import metrics
from backend.embedded.engine import CONTRACT_VERSION, Engine, system_stats
from backend.embedded.files import MODEL_FOLDERS
from backend.embedded.http import gpu_of
from backend.embedded.node import object_info
from backend.embedded.sockets import Socket

MAX_UPLOAD: Final = 100 * 1024 * 1024
"""Bytes of a request body, ComfyUI's default."""
FEATURES: Final[dict[str, Any]] = {"supports_preview_metadata": True, "max_upload_size": MAX_UPLOAD}

PAGE: Final = """<!doctype html><html lang="en"><meta charset="utf-8"><title>comfy-gateway</title>
<style>body{{font:16px/1.5 system-ui;max-width:42em;margin:3em auto;padding:0 1em}}code{{background:#eee}}</style>
<h1>comfy-gateway, embedded engine</h1>
<p>This backend speaks ComfyUI's HTTP and WebSocket API ({version}) with {lanes} lane(s): {devices}.
It has no web interface of its own. Start the gateway with <code>--comfyui DIR</code> to run a ComfyUI here.</p>
<p>See <a href="object_info">object_info</a>, <a href="queue/all">queue/all</a>, <a href="history">history</a>,
<a href="system_stats">system_stats</a>.</p></html>
"""


class InfoRoutes:
    """The page at ``/``, nodes, models, devices, features, metrics, and ``/ws``."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def routes(self) -> list[web.RouteDef]:
        return [
            web.get("/", self.page),
            web.get("/ws", self.websocket),
            web.get("/debug/events", self._engine.hub.observers.serve),
            web.get("/object_info", self.object_info),
            web.get("/object_info/{node_class}", self.object_info_of),
            web.get("/embeddings", self.embeddings),
            web.get("/models", self.models),
            web.get("/models/{folder}", self.models_in),
            web.get("/system_stats", self.system_stats),
            web.get("/features", self.features),
            web.get("/metrics", self.metrics),
        ]

    async def page(self, request: web.Request) -> web.Response:
        devices = ", ".join(lane.device for lane in self._engine.lanes)
        text = PAGE.format(version=CONTRACT_VERSION, lanes=len(self._engine.lanes), devices=devices)
        return web.Response(text=text, content_type="text/html")

    async def object_info(self, request: web.Request) -> web.Response:
        nodes = self._engine.registry.values()
        return web.json_response({node.name: object_info(node, self._engine.files) for node in nodes})

    async def object_info_of(self, request: web.Request) -> web.Response:
        node = self._engine.registry.get(request.match_info["node_class"])
        return web.json_response({node.name: object_info(node, self._engine.files)} if node else {})

    async def embeddings(self, request: web.Request) -> web.Response:
        names = self._engine.files.models("embeddings")
        return web.json_response([str(Path(name).with_suffix("")) for name in names])

    async def models(self, request: web.Request) -> web.Response:
        return web.json_response(list(MODEL_FOLDERS))

    async def models_in(self, request: web.Request) -> web.Response:
        folder = request.match_info["folder"]
        if folder not in MODEL_FOLDERS:
            return web.Response(status=404)
        return web.json_response(self._engine.files.models(folder))

    async def system_stats(self, request: web.Request) -> web.Response:
        return web.json_response(system_stats(self._engine, gpu_of(request), sys.argv, sys.version, os.name))

    async def features(self, request: web.Request) -> web.Response:
        return web.json_response(FEATURES)

    async def metrics(self, request: web.Request) -> web.Response:
        return web.Response(body=self._engine.metrics.text(), headers={"Content-Type": metrics.CONTENT_TYPE})

    async def websocket(self, request: web.Request) -> web.WebSocketResponse:
        ws = web.WebSocketResponse()
        await ws.prepare(request)

        def cut() -> None:
            if request.transport is not None:
                request.transport.abort()

        socket = Socket(gpu_of(request), request.query.get("clientId", "") or uuid.uuid4().hex, ws, cut)
        await self._engine.hub.serve(socket, FEATURES)
        return ws
