"""``/history``: from the backend where it knows, from the journal where it does not, in ComfyUI's own shape.

Owns the union of the two, and that what a client removed stays removed. A backend knows what ended in its own life; the
journal shows the rest. Must never change an entry.
"""

import json
from collections.abc import Iterable
from urllib.parse import parse_qs, unquote

from gateway.jobs.everywhere import agreed, tell
from gateway.jobs.incoming import Incoming, relayed
from gateway.jobs.journal import Journal
from gateway.jobs.peer import Peers
from gateway.jobs.record import Record, State
from gateway.wire.answer import Answer, json_answer


class History:
    """Reads that need the journal, and writes."""

    def __init__(self, journal: Journal, peers: Peers) -> None:
        self._journal = journal
        self._peers = peers

    def one_is_here(self, path: bytes) -> bool:
        """Whether ``/history/{id}`` is not simply the backend's: it is away, never had the job's end, or is another."""
        record = self._journal.get(_job_of(path))
        if record is None:
            return False
        return len(self._peers) > 1 or not self._there(record) or (record.ended and self._ours(record))

    def _there(self, record: Record) -> bool:
        return self._peers.of(record.gpu).member.up

    def _ours(self, record: Record) -> bool:
        """Whether its backend, as that is now, cannot know how the job ended."""
        never_ran = record.state is State.CANCELED and record.since(State.RUNNING) is None
        return never_ran or record.boot != self._peers.of(record.gpu).member.boot

    def all_is_here(self) -> bool:
        """Whether ``/history`` has anything that the one backend has not."""
        there = self._peers.there
        if not there:
            return len(self._journal) > 0
        if len(self._peers) > 1:
            return True
        return any(_shown(record) and self._ours(record) for record in self._journal.newest_first())

    async def one(self, incoming: Incoming) -> Answer:
        """``GET /history/{id}``: the entry under its id; nothing, as in ComfyUI, while the job has not ended."""
        record = self._journal.get(_job_of(incoming.request.target.partition(b"?")[0]))
        if record is not None and self._there(record) and not (record.ended and self._ours(record)):
            return relayed(agreed(await tell([self._peers.of(record.gpu)], incoming)))
        if record is None or not _shown(record):
            return json_answer(200, b"{}")
        return json_answer(200, _joined(await self._entries([record])))

    async def all(self, incoming: Incoming) -> Answer:
        """``GET /history``, with ``max_items`` and ``offset`` as ComfyUI means them; the oldest first."""
        query = parse_qs(incoming.request.target.partition(b"?")[2].decode("latin-1"))
        try:
            most = int(query["max_items"][-1]) if "max_items" in query else None
            offset = int(query["offset"][-1]) if "offset" in query else -1
        except ValueError:
            return await self._pass(incoming)
        theirs = await self._theirs(incoming)
        if isinstance(theirs, Answer):
            return theirs
        ours = [
            each
            for each in self._journal.newest_first()
            if _shown(each) and (self._ours(each) or not self._there(each))
        ]
        ours = sorted((each for each in ours if each.id not in theirs), key=lambda each: each.at)
        ids = [*(each.id for each in ours), *theirs]
        if most is not None and offset < 0:
            offset = max(len(ids) - most, 0)
        start = max(offset, 0)
        chosen = ids[start:] if most is None else ids[start : start + most]
        wanted = set(chosen)
        entries = await self._entries([each for each in ours if each.id in wanted])
        merged = {job: entries.get(job) or theirs.get(job) for job in chosen}
        return json_answer(200, _joined({job: entry for job, entry in merged.items() if entry}))

    async def write(self, incoming: Incoming) -> Answer:
        """``POST /history``: the backend removes its entries, and the journal shows the same ones no more."""
        answer = await self._pass(incoming)
        if answer.status >= 300:
            return answer
        try:
            asked = json.loads(incoming.body)
        except ValueError:
            return answer
        gpu = incoming.request.gpu
        chosen: Iterable[Record] = ()
        if isinstance(asked, dict) and asked.get("clear"):
            chosen = list(self._journal.newest_first())
        elif isinstance(asked, dict) and isinstance(ids := asked.get("delete"), list):
            chosen = [record for each in ids if (record := self._journal.get(str(each))) is not None]
        for record in chosen:
            if record.ended and gpu in {None, record.gpu}:
                await self._journal.note(record.id, hidden=True)
        return answer

    async def _theirs(self, incoming: Incoming) -> dict[str, bytes] | Answer:
        """The backends' whole history, entry by entry; the answer of one that gives anything else."""
        if not self._peers.there:
            return {}
        whole: dict[str, bytes] = {}
        for reply in await tell(self._peers, incoming, target=incoming.request.target.partition(b"?")[0]):
            try:
                found = json.loads(reply.body)
            except ValueError:
                return relayed(reply)
            if reply.status != 200 or not isinstance(found, dict):
                return relayed(reply)
            whole |= {str(job): json.dumps(entry).encode() for job, entry in found.items()}
        return whole

    async def _entries(self, records: list[Record]) -> dict[str, bytes]:
        found = await self._journal.store.entries([record.id for record in records])
        return {record.id: found[record.id] for record in records if record.id in found}

    async def _pass(self, incoming: Incoming) -> Answer:
        gpu = incoming.request.gpu
        return relayed(agreed(await tell(self._peers if gpu is None else [self._peers.of(gpu)], incoming)))


def _shown(record: Record) -> bool:
    return record.ended and not record.hidden


def _job_of(path: bytes) -> str:
    """The id in ``/history/{id}``; a slash within it is written ``%2F``."""
    return unquote(path.rpartition(b"/")[2].decode("latin-1"))


def _joined(entries: dict[str, bytes]) -> bytes:
    """One JSON object of entries that are JSON already."""
    members = [b"%b: %b" % (json.dumps(job).encode(), entry) for job, entry in entries.items()]
    return b"{" + b", ".join(members) + b"}"
