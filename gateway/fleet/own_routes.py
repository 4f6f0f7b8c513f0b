"""The front door's own routes: ``/metrics``, ``/health`` and ``/queue/all``.

Owns what they say, also while the backend is down. ``/health`` touches nothing but what the gateway knows, so that it
may be asked as often as one likes. Must never know how an answer is sent.
"""

import json
import re
from collections.abc import Awaitable, Callable
from typing import Any, Final

from gateway.errors import BACKEND_UNAVAILABLE, METHOD_NOT_ALLOWED, GatewayError
from gateway.fleet.ask import Ask, AskError, Reply
from gateway.fleet.lanes import Fleet
from gateway.observe.metrics import CONTENT_TYPE, Metrics
from gateway.request import Request
from gateway.wire.answer import Answer, error_answer, json_answer

Handler = Callable[[Request], Awaitable[Answer]]

NO_STORE: Final = ((b"Cache-Control", b"no-store"),)
SAFE: Final = frozenset({b"GET", b"HEAD"})

_SAMPLE: Final = re.compile(rb"[a-zA-Z_:][a-zA-Z0-9_:]*(\{[^\n]*\})? \S+( -?[0-9]+)?")


class OwnRoutes:
    """The handlers, each bound to what it tells about."""

    def __init__(self, fleet: Fleet, metrics: Metrics, ask: Ask) -> None:
        self._fleet = fleet
        self._metrics = metrics
        self._ask = ask

    def table(self) -> dict[bytes, Handler]:
        """Path to handler, as the front door looks them up."""
        routes = {b"/metrics": self.metrics, b"/health": self.health, b"/queue/all": self.queue_all}
        return {path: _reads_only(handler) for path, handler in routes.items()}

    async def metrics(self, request: Request) -> Answer:
        """The gateway's metrics and the backend's, in one scrape; the gateway's alone when the backend has none."""
        theirs = b""
        if self._fleet.up:
            try:
                theirs = backend_samples(await self._ask("/metrics"))
            except AskError:
                theirs = b""
        self._metrics.backend_scrape_ok = bool(theirs)
        return Answer(200, ((b"Content-Type", CONTENT_TYPE), *NO_STORE), self._metrics.text() + theirs)

    async def health(self, request: Request) -> Answer:
        """200 while any GPU takes jobs, else 503; says what, how many and what is wrong either way."""
        fleet = self._fleet
        faults = fleet.faults
        healthy = fleet.width - len(faults) if fleet.up else 0
        told: dict[str, Any] = {
            "status": "unhealthy" if not healthy else "degraded" if faults else "healthy",
            "backend": fleet.body or "unknown",
            "gpus": fleet.gpus,
            "healthy_instances": healthy,
            "total_instances": fleet.gpus,
        }
        if reason := " ".join(faults) if fleet.up else fleet.reason:
            told["reason"] = reason
        if healthy:
            return json_answer(200, json.dumps(told).encode(), NO_STORE)
        wait = (b"Retry-After", b"%d" % max(1, fleet.retry_after))
        return json_answer(503, json.dumps(told).encode(), (*NO_STORE, wait))

    async def queue_all(self, request: Request) -> Answer:
        """Every lane's queue; put together from ``/queue`` where the backend has only one."""
        if not self._fleet.up:
            return self._unavailable(self._fleet.reason)
        try:
            reply = await self._ask("/queue/all")
            if reply.status == 200 and _is_queues(reply.body):
                return json_answer(200, reply.body, NO_STORE)
            return json_answer(200, queues_of_one(await self._ask("/queue")), NO_STORE)
        except AskError as error:
            return self._unavailable(str(error))

    def _unavailable(self, reason: str) -> Answer:
        wait = max(1, self._fleet.retry_after)
        message = "The backend is not available."
        return error_answer(GatewayError(BACKEND_UNAVAILABLE, message, reason, retry_after=wait))


def backend_samples(reply: Reply) -> bytes:
    """The backend's exposition as it goes behind ours, or nothing when it is not one.

    One broken line would cost Prometheus the whole scrape, so the text is taken whole or not at all.
    """
    if reply.status != 200 or not reply.content_type.startswith("text/plain"):
        return b""
    lines = [line for line in reply.body.splitlines() if line.strip() and line != b"# EOF"]
    if not lines or not all(line.startswith(b"#") or _SAMPLE.fullmatch(line) for line in lines):
        return b""
    return b"\n".join(lines) + b"\n"


def queues_of_one(reply: Reply) -> bytes:
    """``/queue/all`` of a backend that has one queue; raises ``AskError`` when its answer is none."""
    try:
        queue = json.loads(reply.body)
        running, pending = list(queue["queue_running"]), list(queue["queue_pending"])
    except (ValueError, KeyError, TypeError):
        raise AskError("The backend's /queue is not what ComfyUI answers.") from None
    only = {
        "gpu_id": 0,
        "queue_running": running,
        "queue_pending": pending,
        "running_count": len(running),
        "pending_count": len(pending),
    }
    return json.dumps({"queues": [only], "total_running": len(running), "total_pending": len(pending)}).encode()


def _is_queues(body: bytes) -> bool:
    try:
        found = json.loads(body)
    except ValueError:
        return False
    return isinstance(found, dict) and isinstance(found.get("queues"), list)


def _reads_only(handler: Handler) -> Handler:
    async def handle(request: Request) -> Answer:
        if request.method in SAFE:
            return await handler(request)
        error = GatewayError(METHOD_NOT_ALLOWED, "This route can only be read.", "Use GET.")
        answer = error_answer(error)
        return Answer(answer.status, (*answer.headers, (b"Allow", b"GET, HEAD")), answer.body)

    return handle
