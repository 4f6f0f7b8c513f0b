"""The front door's own routes: ``/metrics``, ``/health``, ``/live``, ``/ready`` and ``/queue/all``.

Owns what they say, also while the backend is down. ``/health`` touches nothing but what the gateway knows, so that it
may be asked as often as one likes. Must never know how an answer is sent.
"""

import asyncio
import json
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Final

from gateway.errors import BACKEND_UNAVAILABLE, METHOD_NOT_ALLOWED, GatewayError
from gateway.fleet import merge
from gateway.fleet.ask import Ask, AskError, Reply
from gateway.fleet.lanes import Fleet
from gateway.fleet.member import Member
from gateway.observe.metrics import CONTENT_TYPE, Metrics
from gateway.request import Request
from gateway.wire.answer import Answer, error_answer, json_answer

Handler = Callable[[Request], Awaitable[Answer]]

NO_STORE: Final = ((b"Cache-Control", b"no-store"),)
SAFE: Final = frozenset({b"GET", b"HEAD"})


class OwnRoutes:
    """The handlers, each bound to what it tells about. ``asks``: how to ask each backend, in the fleet's order."""

    def __init__(self, fleet: Fleet, metrics: Metrics, asks: Sequence[Ask]) -> None:
        self._fleet = fleet
        self._metrics = metrics
        self._asks = asks

    def table(self) -> dict[bytes, Handler]:
        """Path to handler, as the front door looks them up."""
        routes = {
            b"/metrics": self.metrics,
            b"/health": self.health,
            b"/live": self.live,
            b"/ready": self.ready,
            b"/queue/all": self.queue_all,
        }
        return {path: _reads_only(handler) for path, handler in routes.items()}

    async def metrics(self, request: Request) -> Answer:
        """The gateway's metrics and the backends', in one scrape; the gateway's alone when no backend has any."""
        told = [(first, reply) for first, reply in await self._everybody(_metrics_of) if merge.samples(reply)]
        theirs = merge.samples(told[0][1]) if len(self._asks) == 1 and told else merge.all_samples(told)
        self._metrics.backend_scrape_ok = len(told) == len(self._asks)
        return Answer(200, ((b"Content-Type", CONTENT_TYPE), *NO_STORE), self._metrics.text() + theirs)

    async def health(self, request: Request) -> Answer:
        """200 while any GPU takes jobs, else 503; says what, how many and what is wrong either way."""
        fleet = self._fleet
        healthy, faults = fleet.healthy, fleet.faults
        bodies = list(dict.fromkeys(member.body for member in fleet.members if member.body))
        told: dict[str, Any] = {
            "status": "unhealthy" if not healthy else "degraded" if faults else "healthy",
            "backend": ", ".join(bodies) or "unknown",
            "gpus": fleet.gpus,
            "healthy_instances": healthy,
            "total_instances": fleet.gpus,
        }
        if advice := " ".join(dict.fromkeys(member.advice for member in fleet.members if member.advice)):
            told["advice"] = advice
        if fleet.choice:
            told["mode"] = fleet.choice
        if len(fleet.members) > 1:
            told["backends"] = [_told_of(member) for member in fleet.members]
        if reason := " ".join(faults) if fleet.up else fleet.reason:
            told["reason"] = reason
        if healthy:
            return json_answer(200, json.dumps(told).encode(), NO_STORE)
        wait = (b"Retry-After", b"%d" % max(1, fleet.retry_after))
        return json_answer(503, json.dumps(told).encode(), (*NO_STORE, wait))

    async def live(self, request: Request) -> Answer:
        """200 while this process answers, whatever the backend does: for those who restart what hangs."""
        return json_answer(200, b'{"status": "alive"}', NO_STORE)

    async def ready(self, request: Request) -> Answer:
        """200 when jobs can be sent here, the backend warm and some GPU taking them; else 503 with the reason."""
        fleet = self._fleet
        if fleet.up and fleet.healthy:
            return json_answer(200, b'{"status": "ready"}', NO_STORE)
        reason = fleet.reason or " ".join(fleet.faults)
        wait = (b"Retry-After", b"%d" % max(1, fleet.retry_after))
        told = {"status": "not ready", "reason": reason}
        return json_answer(503, json.dumps(told).encode(), (*NO_STORE, wait))

    async def queue_all(self, request: Request) -> Answer:
        """Every lane's queue; put together from ``/queue`` where a backend has only one."""
        if not self._fleet.up:
            return self._unavailable(self._fleet.reason)
        told = await self._everybody(queues_of)
        if len(self._asks) == 1 and told and merge.is_queues(told[0][1]):
            return json_answer(200, told[0][1].body, NO_STORE)
        whole = merge.queues_of_all(told)
        if whole is None:
            return self._unavailable("No backend shows its queues.")
        return json_answer(200, json.dumps(whole).encode(), NO_STORE)

    async def ask(self, target: str) -> Reply:
        """What the backends say about all GPUs, as from one; raises ``AskError``. Most targets one can tell alone."""
        if len(self._asks) == 1:
            return await self._asks[0](target)
        if target == "/debug/queues":
            lanes = merge.lanes_of_all(await self._everybody(lambda ask: ask(target)))
            return Reply(200, "application/json", json.dumps(lanes).encode())
        here = [member.index for member in self._fleet.members if member.up] or [0]
        return await self._asks[here[0]](target)

    async def _everybody(self, question: "Callable[[Ask], Awaitable[Reply]]") -> merge.Told:
        """What the backends that are there answer, all asked at once; who does not answer is left out."""
        here = [member for member in self._fleet.members if member.up]
        asked = [question(self._asks[member.index]) for member in here]
        found = await asyncio.gather(*asked, return_exceptions=True)
        for each in found:
            if isinstance(each, BaseException) and not isinstance(each, AskError):
                raise each
        return [
            (member.first, reply) for member, reply in zip(here, found, strict=True) if isinstance(reply, Reply)
        ]

    def _unavailable(self, reason: str) -> Answer:
        wait = max(1, self._fleet.retry_after)
        message = "The backend is not available."
        return error_answer(GatewayError(BACKEND_UNAVAILABLE, message, reason, retry_after=wait))


async def queues_of(ask: Ask) -> Reply:
    """``/queue/all``, or ``/queue`` of a backend that has only that."""
    reply = await ask("/queue/all")
    return reply if merge.is_queues(reply) else await ask("/queue")


async def _metrics_of(ask: Ask) -> Reply:
    return await ask("/metrics")


def _told_of(member: Member) -> dict[str, Any]:
    told: dict[str, Any] = {
        "backend": member.body or "unknown",
        "gpus": [member.first, member.first + member.gpus - 1],
        "status": member.state,
    }
    return told if member.up else {**told, "reason": member.reason}


def _reads_only(handler: Handler) -> Handler:
    async def handle(request: Request) -> Answer:
        if request.method in SAFE:
            return await handler(request)
        error = GatewayError(METHOD_NOT_ALLOWED, "This route can only be read.", "Use GET.")
        answer = error_answer(error)
        return Answer(answer.status, (*answer.headers, (b"Allow", b"GET, HEAD")), answer.body)

    return handle
