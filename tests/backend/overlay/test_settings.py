"""Settings written through two ports at once: both are kept."""

import asyncio
import sys
import types
from typing import Any

import pytest
from aiohttp import ClientSession, web
from aiohttp.test_utils import TestServer

from backend.overlay.patches import settings
from tests.backend.overlay.doubles import installed


class AppSettings:
    """ComfyUI's way of saving: read, wait for the request, write."""

    def __init__(self) -> None:
        self.saved: dict[str, Any] = {}

    def add_routes(self, routes: web.RouteTableDef) -> None:
        @routes.get("/settings")
        async def get(request: web.Request) -> web.Response:
            return web.json_response(self.saved)

        @routes.post("/settings/{id}")
        async def post(request: web.Request) -> web.Response:
            settings = dict(self.saved)
            settings[request.match_info["id"]] = await request.json()
            self.saved = settings
            return web.Response()


async def save_at_once(app_settings: Any) -> dict[str, Any]:
    """Two requests whose bodies arrive only after both handlers were called."""
    routes = web.RouteTableDef()
    app_settings.add_routes(routes)
    began = asyncio.Semaphore(0)
    go = asyncio.Event()

    @web.middleware
    async def count(request: web.Request, handler: Any) -> Any:
        began.release()
        return await handler(request)

    app = web.Application(middlewares=[count])
    app.add_routes(routes)

    async def body(text: bytes) -> Any:
        yield b" "
        await go.wait()
        yield text

    async with TestServer(app) as server, ClientSession() as session, asyncio.TaskGroup() as group:
        saves = [
            group.create_task(session.post(server.make_url(f"/settings/{name}"), data=body(b"1")), name=name)
            for name in ("a", "b")
        ]
        for _ in saves:
            await began.acquire()
        go.set()
        for save in saves:
            assert (await save).status == 200
        async with session.get(server.make_url("/settings")) as answer:
            found: dict[str, Any] = await answer.json()
    return found


@pytest.fixture
def app_settings(monkeypatch: pytest.MonkeyPatch) -> type[AppSettings]:
    """ComfyUI's module of that name."""
    module: Any = types.ModuleType("app.app_settings")
    module.AppSettings = type("AppSettings", (AppSettings,), {"add_routes": AppSettings.add_routes})
    package: Any = types.ModuleType("app")
    package.app_settings = module
    monkeypatch.setitem(sys.modules, "app", package)
    monkeypatch.setitem(sys.modules, "app.app_settings", module)
    kind: type[AppSettings] = module.AppSettings
    return kind


async def test_two_ports_saving_at_once_lose_nothing(app_settings: type[AppSettings]):
    """Two requests that overlap end with both settings saved."""
    with installed(settings.patches()):
        assert await save_at_once(app_settings()) == {"a": 1, "b": 1}


async def test_without_the_patch_one_is_lost(app_settings: type[AppSettings]):
    """Plain ComfyUI keeps only the later one: the test above can fail."""
    assert len(await save_at_once(app_settings())) == 1
