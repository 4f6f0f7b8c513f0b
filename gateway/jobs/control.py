"""``POST /interrupt`` and ``POST /queue``: what a client wants stopped is written down before the backend hears of it.

Owns the mark that keeps a stopped job from being run again. What the backend makes of the request is its own matter,
and its answer goes back as it stands. Must never decide that a job has been stopped: the tracker sees that.
"""

import json
from collections.abc import Callable, Sequence
from typing import Any

from gateway.errors import BACKEND_UNAVAILABLE, GatewayError
from gateway.fleet.ask import AskError
from gateway.jobs.everywhere import agreed, tell
from gateway.jobs.incoming import Incoming, relayed
from gateway.jobs.journal import Journal
from gateway.jobs.peer import Peer, Peers
from gateway.jobs.record import Record, State
from gateway.jobs.schedule import FRONT
from gateway.jobs.store import StoreError
from gateway.jobs.tracker import Tracker
from gateway.wire.answer import Answer, error_answer


class Control:
    """The two routes, for one lane or, on the front door, for all."""

    def __init__(self, journal: Journal, peers: Peers, tracker: Tracker) -> None:
        self._journal = journal
        self._peers = peers
        self._tracker = tracker

    async def interrupt(self, incoming: Incoming) -> Answer:
        """Stop what runs: the job that the body names, wherever it is, or what runs on this lane."""
        asked = _object(incoming.body)
        wanted = asked.get("prompt_id")
        await self._look()
        if wanted is None and incoming.port == FRONT and incoming.request.gpu is None:
            return await self._own(incoming, asked.get("client_id"))
        if wanted is None or not (record := self._journal.get(str(wanted))):
            if wanted is not None:
                return await self._pass(incoming, [], list(self._peers))
            unkept = await self._mark(self._of(incoming.request.gpu, lambda each: each.state is State.RUNNING))
            return unkept_or(await self._pass(incoming, [], self._meant(incoming)), unkept)
        peer = self._peers.of(record.gpu)
        if record.ended:
            return await self._pass(incoming, [], [peer])
        unkept = await self._mark([record])
        if peer.member.up and record.state is State.QUEUED and record.gpu is not None:
            # ComfyUI's interrupt passes over a job that still waits.
            await self._delete(peer, record.id, record.gpu)
        return unkept_or(await self._pass(incoming, [record], [peer]), unkept)

    async def _own(self, incoming: Incoming, client_id: object) -> Answer:
        """The front door's jobs run on any GPU: what the caller may mean without a name are its own, nobody else's."""
        request = incoming.request
        mine = [
            each
            for each in self._journal.unfinished()
            if each.state is State.RUNNING and each.port == FRONT
            if (each.owner == request.owner if request.owner else each.client == request.client)
            if client_id is None or each.client_id == str(client_id)
        ]
        unkept = await self._mark(mine)
        for record in mine:
            await self._peers.of(record.gpu).stop(record.id, record.gpu)
        self._tracker.look_soon()
        return unkept_or(Answer(200), unkept)

    async def queue(self, incoming: Incoming) -> Answer:
        """Take waiting jobs out: all of this lane, or those that the body names."""
        asked = _object(incoming.body)
        gpu = incoming.request.gpu
        waiting: list[Record] = []
        await self._look()
        if asked.get("clear"):
            waiting = self._of(gpu, lambda each: each.state is State.QUEUED)
        elif isinstance(ids := asked.get("delete"), list):
            names = {str(each) for each in ids}
            waiting = self._of(gpu, lambda each: each.state is State.QUEUED and each.id in names)
        # As in ComfyUI, what is taken out of a queue leaves no history.
        unkept = await self._mark(waiting, hidden=True)
        return unkept_or(await self._pass(incoming, waiting, self._meant(incoming)), unkept)

    def _meant(self, incoming: Incoming) -> list[Peer]:
        """The backend of the request's GPU; all of them at the front door."""
        gpu = incoming.request.gpu
        return list(self._peers) if gpu is None else [self._peers.of(gpu)]

    def _of(self, gpu: int | None, which: Callable[[Record], bool]) -> list[Record]:
        return [each for each in self._journal.unfinished() if gpu in {None, each.gpu} and which(each)]

    async def _mark(self, records: Sequence[Record], *, hidden: bool = False) -> StoreError | None:
        """What kept the mark from being written down; the jobs are to be stopped all the same."""
        for number, record in enumerate(records, 1):
            # The last one's durability is that of all before it.
            try:
                await self._journal.note(record.id, cancel=True, hidden=hidden, durable=number == len(records))
            except StoreError as error:
                # Written when that is possible again, unless the gateway ends before.
                await self._journal.note(record.id, cancel=True, hidden=hidden)
                return error
        return None

    async def _look(self) -> None:
        """What runs by now is not touched by what is meant for waiting jobs, and the other way round."""
        try:
            await self._tracker.look()
        except AskError:
            return  # what is known is a little older, then

    async def _delete(self, peer: Peer, job: str, gpu: int) -> None:
        lines = b"Content-Type: application/json\r\n%b" % peer.line(gpu)
        try:
            await peer.send(b"POST", b"/queue", lines, json.dumps({"delete": [job]}).encode())
        except AskError:
            return  # the mark stands; the interrupt that follows says whether the backend is there

    async def _pass(self, incoming: Incoming, marked: Sequence[Record], peers: Sequence[Peer]) -> Answer:
        """Let the backends do it; what none of them has is done here."""
        unsent = [each for each in marked if not self._is_there(each)]
        await self._tracker.stop(unsent, "it was stopped before the backend had it")
        if marked and not any(peer.member.up for peer in peers):
            return Answer(200)
        reply = agreed(await tell(peers, incoming))
        self._tracker.look_soon()
        return relayed(reply)

    def _is_there(self, record: Record) -> bool:
        member = self._peers.of(record.gpu).member
        return member.ready and record.boot == member.boot


def unkept_or(answer: Answer, unkept: StoreError | None) -> Answer:
    """The answer, unless what it says may not outlive the gateway."""
    if unkept is None or answer.status >= 300:
        return answer
    text = "It is stopped, but that could not be written down: should the gateway restart now, it may run again."
    return error_answer(GatewayError(BACKEND_UNAVAILABLE, text, str(unkept), retry_after=5))


def _object(body: bytes) -> dict[str, Any]:
    """The body as ComfyUI reads it; what is none is for the backend to refuse."""
    try:
        found = json.loads(body)
    except (ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}
