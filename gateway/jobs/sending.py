"""Jobs into the queues of backends: for the first time, once more, or another's.

Owns which jobs are being sent at this moment, and what the backend's answer means for the journal. What has been sent
and got no answer stays there, and whoever finds out what became of it settles it here. Must never know clients.
"""

import asyncio
import json
import logging
from typing import Any, Final

from gateway.fleet.ask import AskError, Reply
from gateway.jobs.answers import accepted_answer, why
from gateway.jobs.entry import made
from gateway.jobs.incoming import globally, relayed
from gateway.jobs.journal import Journal
from gateway.jobs.peer import Peers
from gateway.jobs.prompt import again
from gateway.jobs.record import Record, State
from gateway.wire.answer import Answer

log = logging.getLogger("gateway.jobs")

_TAKES_NONE: Final = 503


class Sending:
    """The part of a submission that needs no client."""

    def __init__(self, journal: Journal, peers: Peers) -> None:
        self._journal = journal
        self._peers = peers
        self._waiting: dict[str, asyncio.Future[Answer]] = {}
        """The answer that the first submission of each id waits for; whoever submits it again waits with it."""
        self._sending: set[str] = set()

    def doubtful(self, job: str, *, begins: bool) -> None:
        """It is not known whether the backend has this job: until that ends, nobody concludes anything from it."""
        (self._sending.add if begins else self._sending.discard)(job)

    def under_way(self, job: str) -> bool:
        """Whether the job is being sent right now."""
        return job in self._sending

    def found(self, record: Record) -> None:
        """The backend has this job after all: whoever waits to hear so is answered."""
        waiting = self._waiting.get(record.id)
        if waiting is not None and not waiting.done():
            waiting.set_result(accepted_answer(record))

    async def send_again(self, record: Record, *, abroad: bool = False, **noted: Any) -> Reply | None:
        """Put a journaled job into its lane's queue; raises ``AskError`` when the backend does not answer.

        ``None`` when there is nothing to send any more. A refusal ends the job; ``abroad``, it is no lane's again.
        """
        if record.id in self._sending:
            return None
        self._sending.add(record.id)
        try:
            body = await self._journal.store.body(record.id)
            if body is None:
                await self._fail(record, b"", "body_lost", "The journal holds no body for this job.")
                return None
            peer = self._peers.of(record.gpu)
            member = peer.member
            # Should the backend die of this, it counts as one that had the job.
            noted |= {"boot": member.boot, "booted": member.booted}
            kept = await self._journal.note(record.id, durable=True, **noted)
            if kept is None or kept.ended:
                return None
            if kept.cancel:
                await self._cancel(record, body)
                return None
            reply = await peer.submit(again(body), record.gpu, record.trace)
            if reply.status == _TAKES_NONE:
                # The lane is broken and the backend about to start again: this says nothing about the job.
                await self._journal.note(record.id, boot="")
                raise AskError(f"The backend takes no jobs for GPU {record.gpu}: {why(reply)}")
            if abroad and not 200 <= reply.status < 300:
                # This backend may lack a file that the job's own one has.
                left = await self._journal.note(record.id, gpu=None, boot="")
                if left is not None and left.cancel:
                    await self._cancel(left, body)
                return reply
            await self._took(record, reply, body)
            return reply
        finally:
            self._sending.discard(record.id)

    async def move(self, record: Record, gpu: int) -> bool:
        """Put a job that waits for one backend into the queue of another; false when that refuses it.

        Raises ``AskError`` when it does not answer. Either way the job is as safe as before.
        """
        if record.id in self._sending or (body := await self._journal.store.body(record.id)) is None:
            return False
        self._sending.add(record.id)
        try:
            peer = self._peers.of(gpu)
            member = peer.member
            before: dict[str, Any] = {"gpu": record.gpu, "boot": record.boot, "booted": record.booted}
            here = await self._journal.note(record.id, durable=True, gpu=gpu, boot=member.boot, booted=member.booted)
            try:
                reply = await peer.submit(again(body), gpu, record.trace)
            except AskError:
                # It may have come there: whoever looks at that backend's queues finds it, or sends it again.
                await self._journal.note(record.id, boot="")
                raise
            if not 200 <= reply.status < 300:
                await self._journal.note(record.id, **before)
                return False
            await self._took(here or record, reply, body)
            return True
        finally:
            self._sending.discard(record.id)

    async def _took(self, record: Record, reply: Reply, body: bytes) -> None:
        """The backend has answered: it has the job, or will not have it."""
        reply = self._renumbered(reply, record)
        waiting = self._waiting.get(record.id)
        if not 200 <= reply.status < 300:
            await self._fail(record, body, "refused", why(reply))
            if waiting is not None and not waiting.done():
                waiting.set_result(relayed(reply))
            return
        try:
            said = json.loads(reply.body)
        except ValueError:
            said = None
        said = said if isinstance(said, dict) else {}
        if str(said.get("prompt_id", record.id)) != record.id:
            log.warning("the backend gives jobs ids of its own: they cannot be followed and are not in the journal")
            await self._journal.forget([record.id])
            return
        number = said.get("number")
        member = self._peers.of(record.gpu).member
        before = self._journal.get(record.id) or record
        kept = await self._journal.note(
            record.id,
            boot=member.boot,
            booted=member.booted,
            place=float(number) if isinstance(number, int | float) else 0.0,
            attempts=before.attempts + 1,
            answer=before.answer or said or None,
        ) or before
        if waiting is not None and not waiting.done():
            waiting.set_result(relayed(reply))
        if kept.cancel:
            # Wanted stopped while it was on its way: whoever wanted that may have been there before it.
            await self._peers.of(record.gpu).stop(record.id, record.gpu)

    def _renumbered(self, reply: Reply, record: Record) -> Reply:
        """The answer with the GPU's number as users know it."""
        return globally(reply, self._peers.of(record.gpu).member.first)

    async def _cancel(self, record: Record, body: bytes) -> None:
        at = self._journal.clock()
        entry = made(record, body, "execution_interrupted", {}, at)
        await self._journal.move(record.id, State.CANCELED, at=at, entry=entry, boot="")

    async def _fail(self, record: Record, body: bytes, kind: str, message: str) -> None:
        at = self._journal.clock()
        error = {"type": kind, "message": message}
        entry = made(record, body, "execution_error", error, at)
        # No backend has it, so that the history is ours to show.
        await self._journal.move(record.id, State.FAILED, at=at, error=error, entry=entry, boot="")
