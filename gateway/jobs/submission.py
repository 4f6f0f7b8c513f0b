"""``POST /prompt``: a job is in the journal before anybody is told that it has been taken, and never taken twice.

Owns the order: read, recognise, journal, send, answer. Must never know how a job runs or who watches it.
"""

import asyncio
import hashlib
import logging
import uuid
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, Final

from gateway.errors import (
    BACKEND_TIMEOUT,
    BACKEND_UNAVAILABLE,
    BAD_REQUEST,
    INTERNAL,
    KEY_REUSED,
    UNSUPPORTED_ENCODING,
    GatewayError,
)
from gateway.fleet.ask import AskError
from gateway.fleet.member import Member
from gateway.jobs.answers import accepted_answer, gone, unanswered
from gateway.jobs.counts import Counts
from gateway.jobs.incoming import Incoming, relayed
from gateway.jobs.journal import Journal
from gateway.jobs.judge import Judge, within
from gateway.jobs.ledger import Ledger, key_of
from gateway.jobs.peer import Peers
from gateway.jobs.prompt import Prompt, read, to_utf8
from gateway.jobs.record import Record
from gateway.jobs.schedule import Schedule
from gateway.jobs.sending import Sending
from gateway.jobs.store import TakenError
from gateway.wire.answer import Answer, error_answer

log = logging.getLogger("gateway.jobs")

_DOUBT: Final = 1.0
"""Seconds after which a backend that broke a connection off and still lives has not died of it."""


class Submissions(Sending):
    """Takes submissions."""

    def __init__(
        self,
        journal: Journal,
        peers: Peers,
        schedule: Schedule,
        counts: Counts,
        *,
        accept_while_down: bool,
        patience: float,
    ) -> None:
        """``patience``: seconds that a client is kept waiting for an answer which the backend's death took away."""
        super().__init__(journal, peers)
        self.held: set[Member] = set()
        """Backends to which nothing new may go now."""
        self.claim: Callable[[str, str], None] = _any_client
        """Asked whether a client id may be used by this owner; raises ``GatewayError``."""
        self.ledger = Ledger(journal)
        self._schedule = schedule
        self._counts = counts
        self._judge = Judge(peers)
        self._accept_while_down = accept_while_down
        self.patience = patience
        self._tasks: asyncio.TaskGroup

    def start(self, tasks: asyncio.TaskGroup) -> None:
        """Begin; ``tasks`` owns what goes on when a client has left."""
        self._tasks = tasks

    async def __call__(self, incoming: Incoming) -> Answer:
        """Take a submission; raises ``GatewayError``."""
        try:
            task = await self._begin(incoming)
        except BaseException:
            _release(incoming)
            raise
        if isinstance(task, Answer):
            _release(incoming)
            return task
        return await asyncio.shield(task)

    async def _begin(self, incoming: Incoming) -> "asyncio.Task[Answer] | Answer":
        """The answer of a submission that is no new job, or the task of one that is; the task settles its place."""
        if incoming.field(b"content-encoding").lower() not in {"", "identity"}:
            raise GatewayError(
                UNSUPPORTED_ENCODING, "A submission cannot be compressed here.", "Leave Content-Encoding out."
            )
        try:
            prompt = read(incoming.body, incoming.field(b"content-type"), str(uuid.uuid4()))
        except ValueError as error:
            raise GatewayError(BAD_REQUEST, "This submission cannot be read.", str(error)) from error
        if prompt is None:
            return await self._pass(incoming)
        key = key_of(incoming)
        digest = hashlib.sha256(incoming.body).hexdigest()
        request = incoming.request
        if request.confined:
            self.claim(prompt.client_id, request.owner)
        if (earlier := self._earlier(prompt, key, digest)) is not None:
            record = self._journal.get(earlier)
            if record is not None and not request.may_see(record.owner):
                raise GatewayError(KEY_REUSED, "This prompt_id is taken.", "Leave it out, or send a new UUID.")
            return await self._answer_of(earlier)
        # Whatever becomes of the client, this goes on to its end.
        self._waiting[prompt.id] = asyncio.get_running_loop().create_future()
        submission = self._submit(prompt, incoming, key, digest)
        return self._tasks.create_task(submission, name="submission")

    # One submission

    async def _pass(self, incoming: Incoming) -> Answer:
        """What is no job goes to the backend as it stands, which says what is wrong with it."""
        request = incoming.request
        peer = self._peers.of(request.gpu)
        member = peer.member
        if not member.up:
            wait = max(1, member.retry_after)
            text = "The backend is not available."
            raise GatewayError(BACKEND_UNAVAILABLE, text, member.reason, retry_after=wait)
        try:
            reply = await peer.send(request.method, request.target, incoming.lines_for(member), incoming.body)
        except AskError as error:
            raise unanswered(error) from error
        if 200 <= reply.status < 300:
            log.warning("the backend took a submission that is no JSON object; it is not in the journal")
        return relayed(reply)

    def _earlier(self, prompt: Prompt, key: str, digest: str) -> str | None:
        """The id of the job that this submission means, if it is there already."""
        if key and (record := self._journal.by_key(key)) is not None:
            if record.digest != digest:
                text = "This Idempotency-Key came with another body before."
                raise GatewayError(KEY_REUSED, text, "Use a new key for a new job.", prompt_id=record.id)
            return record.id
        known = prompt.id in self._waiting or self._journal.get(prompt.id) is not None
        return prompt.id if known else None

    async def _answer_of(self, job: str) -> Answer:
        """What the first submission of this id was answered, or is going to be."""
        if (waiting := self._waiting.get(job)) is not None:
            return await asyncio.shield(waiting)
        record = self._journal.get(job)
        return accepted_answer(record) if record is not None else gone()

    async def _submit(self, prompt: Prompt, incoming: Incoming, key: str, digest: str) -> Answer:
        waiting = self._waiting[prompt.id]
        self._sending.add(prompt.id)
        try:
            answer = await self._journal_and_send(prompt, incoming, key, digest)
        except GatewayError as error:
            answer = error_answer(error)
        except Exception:
            # A task group dies of what its tasks raise, and with it every other submission.
            log.exception("submission of %s failed", prompt.id)
            answer = error_answer(GatewayError(INTERNAL, "The gateway failed to submit this."))
        finally:
            _release(incoming)
            self._sending.discard(prompt.id)
            self._waiting.pop(prompt.id, None)
            if self._journal.get(prompt.id) is None:
                self._schedule.withdraw(prompt.id)
        if not waiting.done():
            waiting.set_result(answer)
        return waiting.result()

    async def _journal_and_send(self, prompt: Prompt, incoming: Incoming, key: str, digest: str) -> Answer:
        request = incoming.request
        if request.gpu is None and self._schedule.enabled:
            return await self._line_up(prompt, incoming, key, digest)
        member = self._peers.of(request.gpu).member
        fault = "" if request.gpu is None else member.fault(request.gpu)
        away = not member.up or member in self.held or bool(fault)
        if away and not self._accept_while_down:
            reason = member.reason or fault or "A job that was running when the backend died is being tried alone."
            wait = max(1, member.retry_after)
            raise GatewayError(BACKEND_UNAVAILABLE, "The backend is not available.", reason, retry_after=wait)
        if request.gpu is not None:
            within(lambda: self._schedule.check_lane(request.gpu or 0))
        record = self.ledger.draft(prompt, incoming, key, digest)
        record = replace(record, boot="" if away else member.boot, booted=member.booted)
        body = to_utf8(prompt.body, incoming.field(b"content-type"))
        if (other := await self._written(record, body)) is not None:
            return other
        if away:
            return await self._promise(record)
        return await self._send(record, prompt.body, incoming, body)

    async def _line_up(self, prompt: Prompt, incoming: Incoming, key: str, digest: str) -> Answer:
        """A job of the front door: to a lane at once if one has room for it, else into the line."""
        peers, schedule = self._peers, self._schedule
        there = [peer for peer in peers.there if peer.member not in self.held]
        if not there and not self._accept_while_down:
            reason = min((peer.member for peer in peers), key=lambda each: each.retry_after)
            text = reason.reason or "A job that was running when the backend died is being tried alone."
            wait = max(1, reason.retry_after)
            raise GatewayError(BACKEND_UNAVAILABLE, "The backend is not available.", text, retry_after=wait)
        record = self.ledger.draft(prompt, incoming, key, digest)
        within(lambda: schedule.check(schedule.share_of(record)))
        body = to_utf8(prompt.body, incoming.field(b"content-type"))
        gpu = schedule.at_once(record) if there else None
        if gpu is not None:
            member = peers.of(gpu).member
            record = replace(record, gpu=gpu, boot=member.boot, booted=member.booted)
            incoming = replace(
                incoming, request=replace(incoming.request, gpu=gpu), place=member.reserve(gpu)
            )
            try:
                if (other := await self._written(record, body)) is not None:
                    return other
                return await self._send(record, prompt.body, incoming, body)
            finally:
                _release(incoming)
        # It will be sent when its client has long gone: what is wrong with it is to be said now.
        node_errors = await self._judge.judge(there, prompt.body, incoming) if there else {}
        if isinstance(node_errors, Answer):
            return node_errors
        if (other := await self._written(record, body)) is not None:
            return other
        answer = await self._promise(record, node_errors)
        self._sending.discard(record.id)
        schedule.join(record)
        # Before the client knows of its job, its socket counts it: some take 0 for the end.
        await self._counts.tell()
        return answer

    async def _written(self, record: Record, body: bytes) -> Answer | None:
        """Write a job down; the answer when there is one already. Raises ``GatewayError``."""
        try:
            await self.ledger.write(record, body)
        except TakenError:
            return await self._taken(record)
        return None

    async def _taken(self, record: Record) -> Answer:
        """Two submissions with one key and different ids at one moment: the other was first."""
        other = self._journal.by_key(record.key) if record.key else None
        if other is None:
            return gone()
        if other.digest != record.digest:
            raise GatewayError(KEY_REUSED, "This Idempotency-Key came with another body before.", prompt_id=other.id)
        return await self._answer_of(other.id)

    async def _send(self, record: Record, sent: bytes, incoming: Incoming, body: bytes) -> Answer:
        try:
            peer = self._peers.of(record.gpu)
            reply = await peer.send(b"POST", incoming.request.target, incoming.lines_for(peer.member), sent)
        except AskError as error:
            _release(incoming)
            return await self._unanswered(record, error)
        taken = 200 <= reply.status < 300
        if taken:
            if incoming.place is not None:
                incoming.place.accepted()
            await self._took(record, reply, body)
        else:
            # It never was a job: its id, and its key, may be used again.
            await self._journal.forget([record.id])
        return relayed(self._renumbered(reply, record))

    async def _unanswered(self, record: Record, error: AskError) -> Answer:
        """The backend has not answered: nothing of it came there, or nobody knows."""
        if error.refused and not self._accept_while_down:
            await self._journal.forget([record.id])
            raise unanswered(error)
        if self._accept_while_down:
            return await self._promise(record)
        log.warning("no answer to the submission of %s (%s): waiting for what becomes of it", record.id, error)
        await asyncio.sleep(_DOUBT)
        member = self._peers.of(record.gpu).member
        if member.up and member.boot == record.boot:
            await self._journal.note(record.id, boot="")
        self._sending.discard(record.id)
        try:
            async with asyncio.timeout(self.patience):
                return await asyncio.shield(self._waiting[record.id])
        except TimeoutError:
            text = "The backend did not answer; the job is in the journal and will be run when the backend is back."
            raise GatewayError(BACKEND_TIMEOUT, text, str(error), prompt_id=record.id) from error

    async def _promise(self, record: Record, node_errors: Mapping[str, Any] | None = None) -> Answer:
        """Answer for the backend, which will get the job when it can take it."""
        answer = {"prompt_id": record.id, "number": record.seq, "node_errors": node_errors or {}, "gpu_id": record.gpu}
        record = await self._journal.note(record.id, answer=answer) or record
        return accepted_answer(record)

def _release(incoming: Incoming) -> None:
    """Give its place on the lane back; one that the backend has taken stays."""
    if incoming.place is not None:
        incoming.place.release()


def _any_client(_client_id: str, _owner: str) -> None:
    """Client ids are everybody's."""
