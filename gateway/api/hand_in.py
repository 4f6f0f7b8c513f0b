"""From an order to a job, and from a wish to stop one to the routes that do it: always the ways that clients have.

Owns how such a request is made out of the client's own: its address, credentials and origin stay, what spoke of the
body goes. Must never write to the journal.
"""

import json
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Final

from gateway.api.orders import Order
from gateway.api.route import Call
from gateway.errors import BACKEND_BROKE, GatewayError
from gateway.fleet.lanes import Fleet
from gateway.jobs.desk import Desk
from gateway.jobs.incoming import Incoming
from gateway.jobs.record import Record
from gateway.jobs.schedule import Schedule
from gateway.request import Kind
from gateway.wire.answer import Answer
from gateway.wire.fields import GPU_HEADER

_OF_THE_BODY: Final = (b"content-", b"transfer-encoding", b"expect", b"accept", b"if-", b"range", b"prefer")
_OWN: Final = (b"idempotency-key", GPU_HEADER.lower())


class Desks:
    """Hands in at the desk."""

    def __init__(self, desk: Desk, fleet: Fleet) -> None:
        self._desk = desk
        self._fleet = fleet

    @property
    def line(self) -> Schedule:
        """What waits at the front door."""
        return self._desk.schedule

    async def submit(self, call: Call, order: Order) -> Record | Answer:
        """The job, or the answer of who refused it. Raises ``GatewayError``."""
        handler = self._desk.handler(Kind.SUBMIT, b"POST", b"/prompt")
        assert handler is not None, "the desk takes every submission"  # noqa: S101 (for the type checker)
        gpu = order.gpu
        if gpu is None:
            chosen = self._fleet.choose(self._fleet.near(call.incoming.request.client))
            gpu = None if self._desk.schedule.enabled else chosen
        extra = ((b"Idempotency-Key", order.key.encode("utf-8")),) if order.key else ()
        incoming = rewritten(call.incoming, b"/prompt", order.body(), gpu, extra)
        known = {"webhook": order.webhook} if order.webhook else {}
        place = None if gpu is None else self._fleet.reserve(gpu)
        incoming = replace(incoming, place=place, known=known)
        if order.gpu is not None:
            # Wherever it came in: nothing may move it to another GPU.
            incoming = replace(incoming, port=f"gpu{order.gpu}")
        answer = await handler(incoming)
        if not 200 <= answer.status < 300:
            return answer
        try:
            job = str(json.loads(answer.body)["prompt_id"])
        except (ValueError, KeyError, TypeError):
            job = ""
        record = self._desk.journal.get(job)
        if record is None:
            text = "The backend took the job and does not say under which id."
            raise GatewayError(BACKEND_BROKE, text, "Its jobs can be had by its own routes only.")
        return record

    async def cancel(self, call: Call, record: Record) -> Answer:
        """Have a job stopped, wherever it is; the answer of who does it."""
        handler = self._desk.handler(Kind.CONTROL, b"POST", b"/interrupt")
        assert handler is not None, "the desk takes every interrupt"  # noqa: S101 (for the type checker)
        body = json.dumps({"prompt_id": record.id}).encode()
        return await handler(rewritten(call.incoming, b"/interrupt", body, record.gpu))


def rewritten(
    incoming: Incoming, target: bytes, body: bytes, gpu: int | None, extra: tuple[tuple[bytes, bytes], ...] = ()
) -> Incoming:
    """The same client's request as a POST of JSON to ``target``, for this GPU."""
    json_type = (b"Content-Type", b"application/json")
    drop = (*_OF_THE_BODY, *_OWN)
    headers = [pair for pair in incoming.request.headers if not pair[0].lower().startswith(drop)]
    lines = [line for line in incoming.lines.split(b"\r\n") if line and not line.lower().startswith(drop)]
    lines.append(b"%b: %b" % json_type)
    request = replace(
        incoming.request, method=b"POST", target=target, headers=[*headers, json_type, *extra], gpu=gpu
    )
    return replace(incoming, request=request, body=body, lines=b"".join(b"%b\r\n" % each for each in lines))


def told(value: Mapping[str, Any]) -> bytes:
    """JSON as all routes here write it."""
    return json.dumps(value, separators=(",", ":")).encode()
