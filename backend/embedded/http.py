"""What every route shares: which GPU a request means, errors in ComfyUI's shape, who may call from a browser."""

import ipaddress
import json
import logging
from collections.abc import Awaitable, Callable
from typing import Any, Final
from urllib.parse import urlsplit

from aiohttp import web

from backend import context, contract
from backend.embedded import validation

log = logging.getLogger("backend.embedded.http")

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]
GPU: Final = web.RequestKey("gpu", object)


def gpu_of(request: web.Request) -> int | None:
    """Index of the lane the request named, or ``None``."""
    found = request[GPU]
    return found if isinstance(found, int) else None


def refuse(status: int, kind: str, message: str, details: str = "") -> web.Response:
    """An error in the shape of ComfyUI's ``POST /prompt``."""
    body = {"error": validation.error(kind, message, details), "node_errors": {}}
    return web.json_response(body, status=status)


class BadBody(ValueError):  # noqa: N818 (what the client sent)
    """The body is not the JSON object the route takes."""


async def body_of(request: web.Request, *, empty: bool = False) -> dict[str, Any]:
    """The JSON object in the body, whatever Content-Type says; raises ``BadBody``. ``empty``: no body is ``{}``."""
    raw = await request.read()
    if empty and not raw.strip():
        return {}
    try:
        found = json.loads(raw)
    except (ValueError, RecursionError) as error:
        if empty:
            return {}  # ComfyUI takes any body of /interrupt that is no JSON for none
        raise BadBody(str(error)) from error
    if not isinstance(found, dict):
        raise BadBody(f"expected an object, found {type(found).__name__}")
    return found


def middleware(gpus: int) -> Any:
    """Reads ``X-TARGET-GPU`` once for every request, and turns what a route raises into an answer."""

    @web.middleware
    async def identify(request: web.Request, handler: Handler) -> web.StreamResponse:
        try:
            gpu = contract.parse_gpu(list(request.headers.getall(contract.GPU_HEADER, [])), gpus)
        except contract.BadGpuHeader as error:
            return refuse(400, "bad_gpu", "The GPU header is not valid.", str(error))
        request[GPU] = gpu
        if not same_site(request.headers.get("Host", ""), request.headers.get("Origin")):
            return web.Response(status=403)
        if request.method == "OPTIONS":
            return web.Response()
        with context.in_lane(gpu):
            return await _answer(request, handler)

    return identify


async def _answer(request: web.Request, handler: Handler) -> web.StreamResponse:
    try:
        return await handler(request)
    except BadBody as error:
        return refuse(400, "invalid_json", "The body is not a JSON object.", str(error))
    except web.HTTPException:
        raise
    except Exception as error:
        log.exception("%s %s", request.method, request.path)
        return refuse(500, "internal_error", "The backend failed on this request.", type(error).__name__)


def same_site(host: str, origin: str | None) -> bool:
    """Whether a browser's page may call: on a loopback address only pages of that same address and port.

    Keeps any web page from queueing work on the visitor's own machine (ComfyUI ``origin_only_middleware``).
    """
    if not host or origin is None:
        return True
    try:
        here, there = urlsplit(f"//{host}"), urlsplit(origin)
        ports = here.port, there.port
    except ValueError:
        return False
    if not _loopback(here.hostname or "") or not there.hostname:
        return True
    same_port = None in ports or ports[0] == ports[1]
    return here.hostname == there.hostname and same_port


def _loopback(host: str) -> bool:
    if host == "localhost" or host.endswith(".localhost"):
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
