"""A request that is handed over whole: its body collected, its handler run, its answer as pages elsewhere may read it.

Owns the body on that way and what the handler is told. Must never know which requests these are: ``proxy.py`` says so.
"""

import re
import time
from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Final

from gateway.auth.gate import ANYBODY, Principal
from gateway.auth.origin import granted
from gateway.cache.answering import SharedAnswer
from gateway.fleet.member import Reservation
from gateway.jobs.incoming import Incoming
from gateway.request import Kind, Request
from gateway.service import FRONT, Service
from gateway.wire.answer import Answer, Made, Stream
from gateway.wire.body import Pair
from gateway.wire.client import ClientConnection
from gateway.wire.exchange import too_large
from gateway.wire.head import RequestHead

if TYPE_CHECKING:
    from gateway.observe.tracing import Traced, Tracing  # loads the SDK

Handler = Callable[[Incoming], Awaitable[Made]]

_TRACEPARENT: Final = re.compile(rb"(?im)^traceparent:[^\r]*\r\n")


class HandedOver(SharedAnswer):
    """One request with all that a handler within the gateway needs to know of it."""

    _asked = 0.0
    """When the backend was asked; 0 before."""
    _kind = Kind.READ
    _prefix = b""
    _desk: Handler | None = None
    """Who takes the whole request, for it concerns jobs; ``None``: it goes the way of bytes."""
    _parts: bytearray | None = None
    """The body, when it is handed over whole."""
    _place: Reservation | None = None
    _who: Principal = ANYBODY
    _confined = False
    """Whether it may meet its owner's jobs only."""
    _cors = b""
    """The other site's page that may read the answer; empty: none."""

    _span: "Traced | None" = None
    """Its span; ``None`` where nothing is traced."""

    def __init__(self, proxy: Service, client: ClientConnection, head: RequestHead) -> None:
        super().__init__(proxy, client, head)
        self._proxy = proxy
        self._started = time.monotonic()
        self._gpu = client.gpu
        self._peer = self._address = client.peer
        self._target = head.target
        """As the backend sees it: raw, without ``/gpuN``."""

    def answer(self, answer: Answer) -> None:
        """Answer the request here; a page of another site that is allowed here may read it."""
        if self._cors:
            answer = replace(answer, headers=(*answer.headers, *granted(self._cors)))
        super().answer(answer)

    def _begin_stream(self, stream: Stream) -> None:
        if self._cors:
            stream = replace(stream, headers=(*stream.headers, *granted(self._cors)))
        super()._begin_stream(stream)

    def body(self, data: bytes) -> None:
        """Pass a part of the request's body on, or keep it."""
        if self._desk is None:
            super().body(data)
            return
        self.received += len(data)
        if self.received > self._proxy.max_body:
            self.fail(too_large(self._proxy.max_body))
            return
        if self._parts is None:
            self._parts = bytearray()
        self._parts += data

    def body_end(self, trailers: list[Pair]) -> None:
        """The request's body is complete."""
        super().body_end(trailers)
        if self._desk is not None and self._asked:
            self._hand_over(self._desk)

    def _collect(self, desk: Handler) -> None:
        """Nothing stands against the request: take its body, then hand it over."""
        self._asked = time.monotonic()
        if not self.head.has_body or self._upload_ended is not None:
            self._hand_over(desk)
        else:
            self.invite_body()

    def _hand_over(self, desk: Handler) -> None:
        gpu = self._gpu
        front = self.client is not None and self.client.gpu is None and not self._prefix
        lines = self.head.fields.rewritten or b""
        if gpu is not None:
            lines += self._proxy.gpu_lines[gpu]
        lines += b"X-Request-ID: %b\r\n" % self.request_id
        request = self._request(self._target, self._address, gpu)
        place, self._place = self._place, None
        port = FRONT if front else f"gpu{gpu}"
        trace = ""
        if self._span is not None:
            lines, trace = traced(lines, self._span), self._span.parent
        self.run(self._proxy, desk(Incoming(request, bytes(self._parts or b""), lines, port, place, trace=trace)))

    def begin_span(self, tracing: "Tracing") -> None:
        """It is traced from here on, within what its client says it is a part of."""
        values = [value for name, value in self.head.fields.pairs if name.lower() == b"traceparent"]
        self._span = tracing.request(values[0].decode("latin-1") if len(values) == 1 else "")

    def end_span(self, span: "Traced", status: int, gpu: str, kind: str) -> None:
        """It is over. The query stays here: it may hold what is nobody else's business."""
        told: dict[str, str | int] = {
            "http.request.method": self.head.method.decode("latin-1"),
            "url.path": self.head.target.partition(b"?")[0].decode("latin-1"),
            "http.response.status_code": status,
            "client.address": self._address,
            "comfy.gpu": gpu,
            "comfy.kind": kind,
            "comfy.request_id": self.request_id.decode("latin-1"),
        }
        span.end(told, f"status {status}" if status >= 500 else "")

    def _request(self, target: bytes, client: str, gpu: int | None) -> Request:
        pairs, request_id = self.head.fields.pairs, self.request_id.decode()
        whose = self._who.name, self._confined, self._who.scope.value
        return Request(self.head.method, target, pairs, client, gpu, self._kind, request_id, *whose)


def traced(lines: bytes, span: "Traced") -> bytes:
    """The lines with this span as the parent of whatever the backend makes of it, in place of the client's own."""
    return b"%btraceparent: %b\r\n" % (_TRACEPARENT.sub(b"", lines), span.parent.encode())
