"""Users' settings: several ports write one user's file, and none may lose what another has just written.

ComfyUI reads the file, waits for the rest of the request, then writes. With the request read before, nothing waits in
between. Knows nothing of what the settings are.
"""

import functools
from collections.abc import Awaitable, Callable
from typing import Any

from backend.overlay.patch import Patch, params

Handler = Callable[[Any], Awaitable[Any]]


def patches() -> list[Patch]:
    """The routes that change settings."""
    return [
        Patch(
            "app.app_settings:AppSettings.add_routes",
            _add_routes,
            "settings saved through two ports at once would lose one of the two",
            params("self", "routes"),
            required=False,
        ),
    ]


class _ReadFirst:
    """ComfyUI's route table, whose POST handlers start when the whole request is there."""

    def __init__(self, routes: Any) -> None:
        self._routes = routes

    def __getattr__(self, name: str) -> Any:
        return getattr(self._routes, name)

    def post(self, path: str, **options: Any) -> Callable[[Handler], Handler]:
        def decorate(handler: Handler) -> Handler:
            @functools.wraps(handler)
            async def read_first(request: Any) -> Any:
                await request.read()
                return await handler(request)

            self._routes.post(path, **options)(read_first)
            return handler

        return decorate


def _add_routes(original: Callable[..., Any]) -> Any:
    @functools.wraps(original)
    def add_routes(self: Any, routes: Any) -> Any:
        return original(self, _ReadFirst(routes))

    return add_routes
