"""One request, phase by phase: identify, limit, choose, connect, send, answer, relay, finish.

Owns the order of the phases and which GPU a request is for. The phases from connect to relay are ``wire.exchange``;
no algorithm lives here: what a request costs, who may ask, which lane is free are asked of those who know.
"""

import asyncio
import re
import secrets
import time
from typing import Final

from gateway.auth.guard import PAGES, Guard
from gateway.auth.origin import PREFLIGHT, shared_lines
from gateway.auth.quotas import Quotas
from gateway.cache.asking import SHAREABLE
from gateway.errors import (
    BACKEND_UNAVAILABLE,
    GATEWAY_BUSY,
    METHOD_NOT_ALLOWED,
    RATE_LIMITED,
    GatewayError,
)
from gateway.fleet.member import RETRY_AFTER, Member
from gateway.handover import HandedOver, traced
from gateway.handover import Handler as DeskHandler
from gateway.jobs.desk import Desk
from gateway.request import Kind, Request, classify, client_id_of, decoded, resolved, split_prefix
from gateway.service import FRONT, Service
from gateway.service import Handler as OwnRoute
from gateway.wire.answer import Answer
from gateway.wire.backend import BackendConnection
from gateway.wire.client import ClientConnection
from gateway.wire.exchange import CLIENT_LEFT, too_large
from gateway.wire.fields import is_sane_id, under_prefix
from gateway.wire.head import AnswerHead, RequestHead
from gateway.wire.outbound import outbound
from gateway.ws_bridge import Bridge, Claim, Renewal

# What is still answered for a GPU that takes no jobs: what became of those that it had.
_RESULTS: Final = re.compile(rb"(?:/api)?/(?:history|view)(?![^/?])")

_EXTENSIONS: Final = re.compile(rb"(?im)^sec-websocket-extensions:[^\r]*\r\n")

_METHODS: Final = b"GET, HEAD, POST, PUT, PATCH, DELETE, OPTIONS"
# An enumeration's own ``value`` is found by Python code.
_NAMES: Final = {kind: kind.value for kind in Kind}

_ALLOW: Final = ((b"Allow", _METHODS),)


class Proxy(Service):
    """The ``Service`` of client connections: each request they read begins here."""

    def begin(self, client: ClientConnection, head: RequestHead) -> None:
        """Take a request on."""
        request = ProxiedRequest(self, client, head)
        client.exchange = request
        self.running.add(request)
        self.metrics.in_flight += 1
        if self.tracing is not None:
            request.begin_span(self.tracing)
        try:
            request.begin()
        except GatewayError as error:
            request.fail(error)


class ProxiedRequest(HandedOver):
    """One request as the gateway sees it; the relay itself is ``Exchange``, what is answered here ``HandedOver``."""

    _label = FRONT
    _own = False
    """Whether it is a route of ours, which chooses a GPU itself."""
    _joins = False
    """Whether it is for the events of all backends."""
    _claim: Claim | None = None
    _timer: asyncio.TimerHandle | None = None

    def __repr__(self) -> str:
        return f"<request {self.head.method!r} {self.head.target[:80]!r} gpu={self._label} status={self.status}>"

    # Identify

    def begin(self) -> None:
        """Take the request as far as it goes without waiting."""
        proxy, head, client = self._proxy, self.head, self.client
        if client is None:
            return
        fields = head.fields
        if self._gpu is not None:
            self._label = proxy.labels[self._gpu]
        sent_id = fields.request_id
        self.request_id = sent_id if sent_id and is_sane_id(sent_id) else proxy.next_id()
        if head.method in {b"CONNECT", b"TRACE"}:
            raise GatewayError(METHOD_NOT_ALLOWED, "This method is not supported here.", headers=_ALLOW)
        if head.target == b"*":
            self.answer(Answer(204, _ALLOW))
            return
        if fields.rewritten is None:
            own = client.transport.get_extra_info("sockname") if fields.host is None else None
            proto = b"https" if proxy.secure else b"http"
            lines, fields.address, fields.named = outbound(fields, client.peer, own, proxy.trusted, proto)
            fields.rewritten = lines if proxy.guard is None else proxy.guard.gate.for_backend(head, lines)
        self._address = fields.address
        own_route = self._front_door(head.target) if self._gpu is None else None
        front = client.gpu is None
        if proxy.api is not None and (found := proxy.api.find(head.method, self._target, front=front)) is not None:
            self._own = True
            self._kind, self._desk = found
        else:
            self._kind = classify(head.method, self._target, upgrade=fields.upgrade)
        if proxy.guard is not None and self._guarded(proxy.guard):
            return
        if own_route is not None:
            self.run(proxy, own_route(self._request(head.target, self._address, None)))
            return
        if fields.length and fields.length > proxy.max_body:
            raise too_large(proxy.max_body)
        if not self._own:
            self._desk = self._whose(proxy.desk)
        if proxy.spread is not None and self._desk is None:
            self._desk = proxy.spread.handler(self._kind, head.method, self._target, self._gpu)
        self._limit()

    def _whose(self, desk: Desk | None) -> DeskHandler | None:
        """Who takes the request because it concerns jobs."""
        if desk is None:
            return None
        kind, method, target = self._kind, self.head.method, self._target
        usual = desk.handler(kind, method, target, front=self._gpu is None)
        return desk.ownership.handler(self._who.name, kind, method, target, usual) if self._confined else usual

    def _front_door(self, target: bytes) -> OwnRoute | None:
        """What only port 8180 has: prefixes, which are taken off, and own routes, whose handler is returned."""
        proxy = self._proxy
        path, _, query = target.partition(b"?")
        if proxy.own_routes and (handler := proxy.own_routes.get(decoded(path))) is not None:
            return handler
        prefix = split_prefix(target, proxy.gpus)
        if prefix is None:
            return None
        if prefix.redirect:
            return _moved(path + b"/" + (b"?" + query if query else b""))
        self._gpu = prefix.gpu
        self._label = proxy.labels[prefix.gpu]
        self._prefix = b"/gpu%d" % prefix.gpu
        self._target = prefix.rest
        return None

    def _guarded(self, guard: Guard) -> bool:
        """See whether it may pass; true when it is answered with that. Raises ``GatewayError``."""
        head, now = self.head, time.time()
        self._cors = guard.gate.granted(head)
        if self._cors and head.method == b"OPTIONS" and head.has(b"access-control-request-method"):
            self.answer(Answer(204, PREFLIGHT))
            return True
        path = resolved(self._target.partition(b"?")[0])
        self._who = guard.gate.passes(head, path, self._address, self._kind, now)
        self._confined = guard.gate.confines(self._who)
        if path.startswith(PAGES):
            self.run(self._proxy, guard.page(head, self._address))
            return True
        return False

    # Limit, choose

    def _limit(self) -> None:
        proxy = self._proxy
        fleet = proxy.fleet
        gpu, kind = self._gpu, self._kind
        there = fleet if gpu is None else fleet.member(gpu)
        if not there.up and self._desk is None:
            text = "The backend is not available."
            raise GatewayError(BACKEND_UNAVAILABLE, text, there.reason, retry_after=there.retry_after)
        if self._desk is None and gpu is not None and (fault := fleet.fault(gpu)) and not _RESULTS.match(self._target):
            raise GatewayError(BACKEND_UNAVAILABLE, fault, "The backend starts again.", retry_after=RETRY_AFTER)
        if gpu is None and kind is Kind.SUBMIT and not self._own:
            gpu = fleet.choose(fleet.near(self._address))
            if proxy.desk is None or not proxy.desk.schedule.enabled:
                self._gpu, self._label = gpu, proxy.labels[gpu]
        if kind is Kind.SUBMIT and proxy.quotas is not None:
            self._within_quota(proxy.quotas)
        verdict = proxy.limiter.check(gpu, kind, self._address, time.monotonic())
        if not verdict.allowed:
            proxy.metrics.denied(self._label, kind.value)
            self._note = "limited"
            text = "Too many requests."
            hint = f"Try again in {verdict.retry_after} s."
            raise GatewayError(RATE_LIMITED, text, hint, retry_after=verdict.retry_after, headers=verdict.headers)
        if kind is Kind.SUBMIT and (gpu := self._gpu) is not None and not self._own:
            # At once, so that the next of a burst finds this lane fuller, however long this one's body takes.
            self._place = fleet.reserve(gpu)
        if verdict.delay:
            self._note = "delayed"
            self._timer = asyncio.get_running_loop().call_later(verdict.delay, self._delayed)
            return
        self._send()

    def _within_quota(self, quotas: Quotas) -> None:
        try:
            quotas.rate(self._who, time.time())
        except GatewayError:
            self._proxy.metrics.denied(self._label, "quota")
            self._note = "over quota"
            raise

    def _delayed(self) -> None:
        self._timer = None
        self._send()

    # Connect, send

    def _send(self) -> None:
        """Claim what must be claimed, and forward."""
        if self.head.fields.upgrade and (client_id := client_id_of(self._target)):
            # ComfyUI forgets the new socket when the old one ends after it (its issue 16010).
            self._claim = claim = self._proxy.bridges.claim((self._label, client_id), self._evicted, self._go)
            if claim.waiting:
                self._note = "takes over"
                return
        self._go()

    def _go(self) -> None:
        if self.ended:
            return
        proxy = self._proxy
        if self._desk is not None:
            self._collect(self._desk)
            return
        self._asked = time.monotonic()
        if proxy.cache is not None and (group := self.group(self._kind, self._target)) is not None:
            member = self._member()
            pool = proxy.pools[member.index]
            if self.share(proxy.cache, pool, member.boot, group, self._target, self._added_lines()):
                return
        self.ask_alone()

    def ask_alone(self) -> None:
        """Forward it."""
        proxy, head = self._proxy, self.head
        lines = head.fields.rewritten or b""
        if self._gpu is None and proxy.confluences is not None and self._kind is Kind.EVENTS:
            lines = self._for_all(lines)
        if self._span is not None:
            lines = traced(lines, self._span)
        self.forward(
            b"%b %b HTTP/1.1\r\n%b%b\r\n" % (head.method, self._target, lines, self._added_lines()),
            proxy.pools[self._member().index],
        )

    def _member(self) -> Member:
        """The backend that this goes to."""
        fleet, gpu = self._proxy.fleet, self._gpu
        return fleet.home(self._address) if gpu is None else fleet.member(gpu)

    def _added_lines(self) -> bytes:
        gpu = self._gpu
        return b"%bX-Request-ID: %b\r\n" % (b"" if gpu is None else self._proxy.gpu_lines[gpu], self.request_id)

    def _for_all(self, lines: bytes) -> bytes:
        """Ask for events that can be joined with those of other backends: not compressed, and under one client id."""
        self._joins = True
        if not client_id_of(self._target):
            self._target += b"%bclientId=%b" % (b"&" if b"?" in self._target else b"?", secrets.token_hex(16).encode())
        return _EXTENSIONS.sub(b"", lines)

    def _evicted(self) -> None:
        """The same client asks again while this handshake is under way."""
        self.fail(GatewayError(BACKEND_UNAVAILABLE, "The same clientId has connected again.", retry_after=1))

    def unconnected(self, error: GatewayError) -> None:
        """What traffic shows counts as much as a look."""
        if error.kind is not GATEWAY_BUSY:
            self._member().failed()
        super().unconnected(error)

    def retrying(self) -> None:
        """Count it."""
        self._proxy.metrics.retried("reused_connection")
        self._note = "retried"

    # Answer, relay

    def answer_begins(self, answer: AnswerHead) -> None:
        """A submission's place is settled by the answer's status; what a write has changed is kept no more."""
        if self._kind not in SHAREABLE and answer.status < 400 and self._proxy.cache is not None:
            self._proxy.cache.written(self._pool, self._target)
        place = self._place
        if place is not None:
            self._place = None
            if 200 <= answer.status < 300:
                place.accepted()
            else:
                place.release()
        if self.client is None:
            self._note = f"client left, backend said {answer.status}"

    def rewrite(self, lines: bytes) -> bytes:
        """Under a prefix, what the backend points to on this host is under it, too."""
        if not (self._cors or self._prefix or self._added):
            return lines
        if self._cors:
            lines = shared_lines(lines, self._cors)
        lines = under_prefix(lines, self._prefix, self.head.fields.host or b"") if self._prefix else lines
        return super().rewrite(lines)

    def outlives_client(self) -> bool:
        """A submission that has been sent whole is a job or is none; only the backend's answer says which."""
        return self._kind is Kind.SUBMIT and not self._fetching

    def upgraded(self, head: bytes, backend: BackendConnection, rest: bytes) -> None:
        """Hand both sockets to a bridge."""
        client = self.client
        claim, self._claim = self._claim, None
        if client is None:
            backend.abort()
            if claim is not None:
                claim.release()
            return
        client.write(head)
        opened, label, target, peer, request_id = (
            self._started,
            self._label,
            self._target,
            self._peer,
            self.request_id,
        )
        access = self._proxy.access

        def closed(bridge: Bridge) -> None:
            if access.enabled:
                access.line(
                    client=peer,
                    method=b"GET",
                    target=target,
                    status=101,
                    received=bridge.client.passed,
                    sent=bridge.backend.passed,
                    seconds=time.monotonic() - opened,
                    gpu=label,
                    kind=Kind.EVENTS.value,
                    request_id=request_id,
                    note="bridge closed",
                )

        renewal: Renewal | None = Renewal(self._head_bytes, head, client_id_of(target))
        socket: asyncio.Transport = backend.transport
        if self._joins and (confluences := self._proxy.confluences) is not None and renewal is not None:
            home = self._proxy.fleet.members[self._proxy.pools.index(self._pool)]
            socket, rest, renewal = confluences.join(backend.transport, rest, home, renewal), b"", None
        elif claim is None:
            renewal = None
        self._proxy.bridges.join(
            label,
            client.transport,
            socket,
            to_client=rest,
            to_backend=client.surrender(),
            claim=claim,
            closed=closed,
            renewal=renewal,
        )

    # Finish

    def finished(self) -> None:
        """Give everything back, count, and log."""
        proxy = self._proxy
        if self._place is not None:
            self._place.release()
            self._place = None
        if self._claim is not None:
            self._claim.release()
            self._claim = None
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._task is not None:
            self.drop_task()
        if self._line is not None or self._rest is not None:
            self.leave_line()
        proxy.running.discard(self)
        metrics = proxy.metrics
        metrics.in_flight -= 1
        now = time.monotonic()
        seconds = now - self._started
        asked = self._asked
        backend_seconds = now - asked if asked else 0.0
        status = self.status or CLIENT_LEFT
        if self._span is not None:
            self.end_span(self._span, status, self._label, _NAMES[self._kind])
        metrics.request(self._label, self._kind, status, seconds, backend_seconds, self.received, self.sent)
        if proxy.access.enabled:
            proxy.access.line(
                client=self._address,
                method=self.head.method,
                target=self.head.target,
                status=status,
                received=self.received,
                sent=self.sent,
                seconds=seconds,
                backend_seconds=backend_seconds,
                gpu=self._label,
                kind=_NAMES[self._kind],
                request_id=self.request_id,
                note=self._note,
            )


def _moved(location: bytes) -> OwnRoute:
    async def answer(_request: Request) -> Answer:
        return Answer(308, ((b"Location", location),))

    return answer
