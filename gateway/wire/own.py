"""Requests that are answered here: by a task that makes a whole answer, one in parts, or one to fetch from the backend.

Owns that task, the back-pressure of an answer in parts, and that it ends when the client leaves. Must never know what
is asked or who answers.
"""

import asyncio
import contextlib
import logging
from collections.abc import Awaitable
from typing import Final, Protocol

from gateway.errors import INTERNAL, GatewayError
from gateway.wire.answer import Answer, Fetch, Made, Stream, error_answer, render_head
from gateway.wire.exchange import Exchange
from gateway.wire.exchange import Owner as ExchangeOwner

_log = logging.getLogger("gateway.own")

# What a request with a body says of it, and conditions that are meant for the resource it named.
_OF_THE_BODY: Final = (b"content-", b"expect:", b"accept:", b"if-", b"range:", b"idempotency-key:", b"prefer:")


class Owner(ExchangeOwner, Protocol):
    """Where such a request finds what it needs."""

    tasks: "set[asyncio.Task[None]]"


class OwnAnswer(Exchange):
    """An exchange that may also be answered by a coroutine; ``run`` or what ``Exchange`` offers is called once."""

    _task: asyncio.Task[None] | None = None
    _room: asyncio.Event | None = None
    _added = b""

    def run(self, owner: Owner, work: Awaitable[Made]) -> None:
        """Answer with what ``work`` gives or raises; it is cancelled when the client leaves."""
        self._task = asyncio.get_running_loop().create_task(self._work(work), name="own-route")
        owner.tasks.add(self._task)
        self._task.add_done_callback(owner.tasks.discard)

    def drop_task(self) -> None:
        """Nobody wants the answer any more."""
        if self._task is not None:
            self._task.cancel()
            self._task = None

    async def _work(self, work: Awaitable[Made]) -> None:
        try:
            made = await work
        except GatewayError as error:
            made = error_answer(error)
        except Exception:  # noqa: BLE001 - whatever a handler raises, the client gets an answer and the log the trace
            _log.exception("own route %r failed", self.head.target)
            made = error_answer(GatewayError(INTERNAL, "The gateway failed to answer."))
        if isinstance(made, Stream):
            await self._pour(made)
            return
        self._task = None
        if self.ended:
            return
        if isinstance(made, Answer):
            self.answer(made)
        else:
            self._fetch(made)

    async def _pour(self, stream: Stream) -> None:
        """Send the parts as they come, and no faster than the client takes them."""
        async with contextlib.aclosing(stream.parts) as parts:
            if self.head.method == b"HEAD":
                self._task = None
                self.answer(Answer(stream.status, stream.headers))
                return
            self._begin_stream(stream)
            try:
                async for part in parts:
                    self.answer_data(part)
                    if self._room is not None:
                        await self._room.wait()
            except Exception:  # noqa: BLE001 - half an answer is broken off, and the log has the trace
                _log.exception("own route %r failed on its way", self.head.target)
                self._task = None
                self.fail(GatewayError(INTERNAL, "The gateway failed to answer."))
                return
        self._task = None
        self.end_answer([], reusable=False)

    def _begin_stream(self, stream: Stream) -> None:
        client = self.client
        if client is None:
            return
        self.status, self.answered = stream.status, True
        self._chunked_out = bool(self.head.minor)
        self._delimited = not self._chunked_out
        self._keep = self._chunked_out and client.may_keep(continued=self._continued)
        client.write(render_head(stream, chunked=self._chunked_out, keep=self._keep, request_id=self.request_id))

    def client_blocked(self) -> None:
        """Take no more than the client does."""
        super().client_blocked()
        if self._task is not None:
            self._room = asyncio.Event()

    def client_ready(self) -> None:
        """Go on."""
        super().client_ready()
        if self._room is not None:
            room, self._room = self._room, None
            room.set()

    def _fetch(self, made: Fetch) -> None:
        """Have the backend answer, in the place of the request that the client sent."""
        head = self.head
        own = head.method in {b"GET", b"HEAD"}
        lines = [line for line in (head.fields.rewritten or b"").split(b"\r\n") if line]
        kept = [line for line in lines if not line.lower().startswith((b"transfer-encoding:", b"connection:"))]
        if not own:
            kept = [line for line in kept if not line.lower().startswith(_OF_THE_BODY)]
        owner = self._owner
        pool = owner.pools[made.backend]
        if made.gpu is not None:
            pool = owner.pool_of[made.gpu]
            kept.append(owner.gpu_lines[made.gpu].rstrip())
        kept.append(b"X-Request-ID: %b" % self.request_id)
        self._added = b"".join(b"%b: %b\r\n" % pair for pair in made.headers)
        self._fetching = True
        method = head.method if own else b"GET"
        self.forward(b"%b %b HTTP/1.1\r\n%b\r\n\r\n" % (method, made.target, b"\r\n".join(kept)), pool)

    def rewrite(self, lines: bytes) -> bytes:
        """Add what was asked to be added."""
        return lines + self._added if self._added else lines
