"""``POST /prompt``: a job is in the journal before anybody is told that it has been taken, and never taken twice.

Owns the order: read, recognise, journal, send, answer. What has been sent and got no answer stays in the journal, and
whoever finds out what became of it settles it here. Must never know how a job runs or who watches it.
"""

import asyncio
import hashlib
import json
import logging
import uuid
from collections.abc import Callable
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
from gateway.fleet.ask import AskError, Reply
from gateway.fleet.member import Member
from gateway.jobs.answers import accepted_answer, gone, unanswered, why
from gateway.jobs.entry import made
from gateway.jobs.incoming import Incoming, globally, relayed
from gateway.jobs.journal import Journal
from gateway.jobs.peer import Peers
from gateway.jobs.prompt import Prompt, again, read, to_utf8
from gateway.jobs.record import Record, State
from gateway.jobs.store import StoreError, TakenError
from gateway.wire.answer import Answer, error_answer

log = logging.getLogger("gateway.jobs")

_LONGEST_KEY: Final = 1000
_TAKES_NONE: Final = 503
_DOUBT: Final = 1.0
"""Seconds after which a backend that broke a connection off and still lives has not died of it."""


class Submissions:
    """Takes submissions and puts jobs into the backend's queues, for the first time or once more."""

    def __init__(self, journal: Journal, peers: Peers, *, accept_while_down: bool, patience: float) -> None:
        """``patience``: seconds that a client is kept waiting for an answer which the backend's death took away."""
        self.held: set[Member] = set()
        """Backends to which nothing new may go now."""
        self.claim: Callable[[str, str], None] = _any_client
        """Asked whether a client id may be used by this owner; raises ``GatewayError``."""
        self.admit: Callable[[str], None] = _anybody
        """Asked with a job's owner before it is taken; raises ``GatewayError`` when its quota is used up."""
        self._journal = journal
        self._peers = peers
        self._accept_while_down = accept_while_down
        self.patience = patience
        self._waiting: dict[str, asyncio.Future[Answer]] = {}
        """The answer that the first submission of each id waits for; whoever submits it again waits with it."""
        self._sending: set[str] = set()
        self._tasks: asyncio.TaskGroup

    def start(self, tasks: asyncio.TaskGroup) -> None:
        """Begin; ``tasks`` owns what goes on when a client has left."""
        self._tasks = tasks

    def under_way(self, job: str) -> bool:
        """Whether the job is being sent right now."""
        return job in self._sending

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
            raise GatewayError(BAD_REQUEST, "This prompt_id cannot name a job.", str(error)) from error
        if prompt is None:
            return await self._pass(incoming)
        key = self._key(incoming)
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

    def found(self, record: Record) -> None:
        """The backend has this job after all: whoever waits to hear so is answered."""
        waiting = self._waiting.get(record.id)
        if waiting is not None and not waiting.done():
            waiting.set_result(accepted_answer(record))

    async def send_again(self, record: Record, **noted: Any) -> Reply | None:
        """Put a journaled job into its lane's queue; raises ``AskError`` when the backend does not answer.

        ``None`` when there is nothing to send any more. A refusal ends the job.
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
            await self._journal.note(record.id, durable=True, boot=member.boot, booted=member.booted, **noted)
            reply = await peer.submit(again(body), record.gpu)
            if reply.status == _TAKES_NONE:
                # The lane is broken and the backend about to start again: this says nothing about the job.
                await self._journal.note(record.id, boot="")
                raise AskError(f"The backend takes no jobs for GPU {record.gpu}: {why(reply)}")
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
                reply = await peer.submit(again(body), gpu)
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

    def _key(self, incoming: Incoming) -> str:
        key = incoming.field(b"idempotency-key").strip()
        if len(key) > _LONGEST_KEY:
            raise GatewayError(BAD_REQUEST, "The Idempotency-Key is too long.", f"At most {_LONGEST_KEY} characters.")
        # Two clients that count 1, 2, 3 must not meet.
        request = incoming.request
        return f"{request.owner or request.client} {key}" if key else ""

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
        if not waiting.done():
            waiting.set_result(answer)
        return waiting.result()

    async def _journal_and_send(self, prompt: Prompt, incoming: Incoming, key: str, digest: str) -> Answer:
        request = incoming.request
        member = self._peers.of(request.gpu).member
        fault = "" if request.gpu is None else member.fault(request.gpu)
        away = not member.up or member in self.held or bool(fault)
        if away and not self._accept_while_down:
            reason = member.reason or fault or "A job that was running when the backend died is being tried alone."
            wait = max(1, member.retry_after)
            raise GatewayError(BACKEND_UNAVAILABLE, "The backend is not available.", reason, retry_after=wait)
        record = self._journal.draft(
            prompt.id,
            gpu=request.gpu,
            port=incoming.port,
            client=request.client,
            client_id=prompt.client_id,
            owner=request.owner,
            key=key,
            digest=digest,
            boot="" if away else member.boot,
            booted=member.booted,
            **incoming.known,
        )
        body = to_utf8(prompt.body, incoming.field(b"content-type"))
        try:
            await self._write_down(record, body)
        except TakenError:
            return await self._taken(record)
        except StoreError as error:
            text = "The job could not be written down, so it has not been taken."
            raise GatewayError(BACKEND_UNAVAILABLE, text, str(error), retry_after=5) from error
        if away:
            return await self._promise(record)
        return await self._send(record, prompt.body, incoming, body)

    async def _write_down(self, record: Record, body: bytes) -> None:
        self.admit(record.owner)
        # At once, so that of a burst none slips past its quota.
        self._journal.usage.note(record)
        try:
            await self._journal.add(record, body)
        except BaseException:
            self._journal.usage.drop(record)
            raise

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

    async def _promise(self, record: Record) -> Answer:
        """Answer for the backend, which will get the job when it can take it."""
        answer = {"prompt_id": record.id, "number": record.seq, "node_errors": {}, "gpu_id": record.gpu}
        record = await self._journal.note(record.id, answer=answer) or record
        return accepted_answer(record)

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
        kept = self._journal.get(record.id) or record
        member = self._peers.of(record.gpu).member
        await self._journal.note(
            record.id,
            boot=member.boot,
            booted=member.booted,
            place=float(number) if isinstance(number, int | float) else 0.0,
            attempts=kept.attempts + 1,
            answer=kept.answer or said or None,
        )
        if waiting is not None and not waiting.done():
            waiting.set_result(relayed(reply))

    def _renumbered(self, reply: Reply, record: Record) -> Reply:
        """The answer with the GPU's number as users know it."""
        return globally(reply, self._peers.of(record.gpu).member.first)

    async def _fail(self, record: Record, body: bytes, kind: str, message: str) -> None:
        at = self._journal.clock()
        error = {"type": kind, "message": message}
        entry = made(record, body, "execution_error", error, at)
        await self._journal.move(record.id, State.FAILED, at=at, error=error, entry=entry)


def _release(incoming: Incoming) -> None:
    """Give its place on the lane back; one that the backend has taken stays."""
    if incoming.place is not None:
        incoming.place.release()


def _anybody(_owner: str) -> None:
    """No quotas."""


def _any_client(_client_id: str, _owner: str) -> None:
    """Client ids are everybody's."""
