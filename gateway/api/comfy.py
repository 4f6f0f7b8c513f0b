"""ComfyUI's newer ``/api/jobs`` and cancel on every port: the backend's where it has them and knows, else ours.

Owns who answers: a backend that has these routes shows what it has itself; what waits at the gateway, ended in an
earlier life or belongs to several backends only the journal knows. Errors are in the shape of those routes.
"""

import json
from collections.abc import Iterable, Mapping
from typing import Any, Final

from gateway.api.comfy_shape import SORTS, STATUS, in_order, listed, whole, workflow_of
from gateway.api.hand_in import Desks, told
from gateway.api.route import Call
from gateway.fleet.ask import AskError
from gateway.jobs.desk import Desk
from gateway.jobs.peer import Peer
from gateway.jobs.record import Record
from gateway.request import Kind
from gateway.wire.answer import Answer, Fetch, Made, json_answer

_PAGE: Final = 200
"""Entries that are read at once; each may hold a whole workflow."""


class _RefusedError(Exception):
    """The words of a 400."""


class ComfyJobRoutes:
    """The handlers."""

    def __init__(self, desk: Desk, desks: Desks) -> None:
        self._desk = desk
        self._desks = desks
        self._native: dict[str, bool] = {}
        """Whether the life of a backend has these routes."""

    async def all(self, call: Call) -> Made:
        """``GET /api/jobs``."""
        request = call.incoming.request
        peer = self._desk.peers.of(request.gpu)
        waiting = any(not record.accepted for record in self._desk.journal.unfinished())
        theirs = self._desk.handler(Kind.READ, b"GET", b"/history") is None and not waiting
        if theirs and not request.confined and await self._has(peer):
            return Fetch(request.target, gpu=request.gpu, backend=peer.member.index)
        try:
            return await self._list(call)
        except _RefusedError as error:
            return _error(400, str(error))

    async def one(self, call: Call) -> Made:
        """``GET /api/jobs/{id}``."""
        job, request = call.given["id"], call.incoming.request
        record = self._desk.journal.get(job)
        if request.confined and (record is None or record.owner != request.owner):
            return _error(404, "Job not found")
        peer = self._desk.peers.of(request.gpu if record is None else record.gpu)
        path = request.target.partition(b"?")[0].rpartition(b"/")[2]
        theirs = self._desk.handler(Kind.READ, b"GET", b"/history/" + path) is None
        if theirs and (record is None or record.accepted) and await self._has(peer):
            return Fetch(request.target, gpu=request.gpu, backend=peer.member.index)
        if record is None or record.hidden:
            return _error(404, "Job not found")
        await self._look()
        record = self._desk.journal.get(job) or record
        return json_answer(200, told(whole(record, (await self._entries([record])).get(job))))

    async def cancel(self, call: Call) -> Made:
        """``POST /api/jobs/{id}/cancel``: whether there was anything to cancel; unknown ids are none."""
        return await self._cancel(call, [call.given["id"]])

    async def cancel_many(self, call: Call) -> Made:
        """``POST /api/jobs/cancel`` with ``job_ids``."""
        try:
            found = json.loads(call.incoming.body)
        except (ValueError, RecursionError):
            return _error(400, "Request body must be valid JSON")
        jobs = found.get("job_ids") if isinstance(found, dict) else None
        if not isinstance(jobs, list):
            return _error(400, "job_ids must be a list")
        wrong = [each if isinstance(each, str) else repr(each)[:100] for each in jobs if not _is_id(each)]
        if wrong:
            return json_answer(400, told({"error": "job_ids contains invalid id(s)", "invalid_ids": wrong}))
        return await self._cancel(call, dict.fromkeys(jobs))

    async def _cancel(self, call: Call, jobs: Iterable[str]) -> Answer:
        cancelled = False
        failed: Answer | None = None
        for job in jobs:
            record = self._desk.journal.get(job)
            request = call.incoming.request
            if request.confined and (record is None or record.owner != request.owner):
                continue
            if record is None:
                cancelled |= await self._theirs(call, job)
            elif not record.ended:
                answer = await self._desks.cancel(call, record)
                if answer.status >= 300:
                    failed = failed or answer
                cancelled = True
        return failed or json_answer(200, told({"cancelled": cancelled}))

    async def _theirs(self, call: Call, job: str) -> bool:
        """Whether a backend had this job, which is not in the journal, and cancels it."""
        target = call.incoming.request.target
        if target.partition(b"?")[0].endswith(b"/jobs/cancel"):
            return False  # a job of nobody's is not worth the ways there are to name it
        for peer in self._desk.peers.there:
            if not await self._has(peer):
                continue
            try:
                reply = await peer.send(b"POST", target, call.incoming.lines_for(peer.member), call.incoming.body)
                if reply.status == 200 and json.loads(reply.body).get("cancelled") is True:
                    return True
            except (AskError, ValueError, AttributeError):
                continue
        return False

    async def _has(self, peer: Peer) -> bool:
        member = peer.member
        if not member.up:
            return False
        if (known := self._native.get(member.boot)) is None:
            try:
                known = await peer.status(b"/api/jobs?limit=1") == 200
            except AskError:
                return False
            self._native = {**dict(list(self._native.items())[-len(self._desk.peers) :]), member.boot: known}
        return known

    async def _list(self, call: Call) -> Answer:
        query = call.query
        states = _states(query.get("status"))
        by, order = query.get("sort_by", "created_at").lower(), query.get("sort_order", "desc").lower()
        if by not in SORTS:
            raise _RefusedError("sort_by must be 'created_at' or 'execution_duration'")
        if order not in {"asc", "desc"}:
            raise _RefusedError("sort_order must be 'asc' or 'desc'")
        limit = _whole(query, "limit")
        if limit is not None and limit <= 0:
            raise _RefusedError("limit must be a positive integer")
        offset = max(0, _whole(query, "offset") or 0)
        await self._look()
        request, gpu = call.incoming.request, call.incoming.request.gpu
        records = [
            record
            for record in self._desk.journal.newest_first()
            # As in /history and /queue: what has ended is everybody's, what has not is its lane's.
            if STATUS[record.state] in states and not record.hidden and (record.ended or gpu in {None, record.gpu})
            if request.may_see(record.owner)
        ]
        records = in_order(records, by, falling=order == "desc")
        if query.get("workflow_id"):
            records = await self._of_workflow(records, query["workflow_id"])
        page = records[offset:] if limit is None else records[offset : offset + limit]
        entries = await self._entries(page[:_PAGE])
        more = offset + len(page) < len(records)
        pages = {"offset": offset, "limit": limit, "total": len(records), "has_more": more}
        jobs = [listed(record, entries.get(record.id)) for record in page]
        return json_answer(200, told({"jobs": jobs, "pagination": pages}))

    async def _of_workflow(self, records: list[Record], workflow: str) -> list[Record]:
        found: list[Record] = []
        for start in range(0, len(records), _PAGE):
            part = records[start : start + _PAGE]
            entries = await self._entries(part)
            found += [each for each in part if workflow_of(entries.get(each.id)) == workflow]
        return found

    async def _entries(self, records: list[Record]) -> dict[str, Mapping[str, Any]]:
        """Entries of those that have ended; of the others, what their body says, in the same form."""
        raw = await self._desk.journal.store.entries([record.id for record in records if record.ended])
        found: dict[str, Mapping[str, Any]] = {job: _object(entry) for job, entry in raw.items()}
        for record in records:
            if not record.ended:
                body = _object(await self._desk.journal.store.body(record.id) or b"")
                found[record.id] = {"prompt": [0, record.id, body.get("prompt"), body.get("extra_data") or {}]}
        return found

    async def _look(self) -> None:
        """A page that has just heard the end of a job asks here next: see it, too."""
        try:
            await self._desk.tracker.look()
        except AskError:
            return  # what is known is a little older, then


def _states(text: str | None) -> frozenset[str]:
    known = list(dict.fromkeys(STATUS.values()))
    names = [each.strip().lower() for each in (text or "").split(",") if each.strip()]
    if not names:
        return frozenset(known)
    if wrong := [each for each in names if each not in known]:
        raise _RefusedError(f"Invalid status value(s): {', '.join(wrong)[:200]}. Valid values: {', '.join(known)}")
    return frozenset(names)


def _whole(query: Mapping[str, str], name: str) -> int | None:
    if name not in query:
        return None
    try:
        return int(query[name][:100])
    except ValueError:
        raise _RefusedError(f"{name} must be an integer") from None


def _is_id(value: object) -> bool:
    """Ids of ours are any text; those routes take UUIDs alone, and no client of theirs sends others."""
    return isinstance(value, str) and 0 < len(value) <= 1000


def _object(text: bytes) -> dict[str, Any]:
    try:
        found = json.loads(text)
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def _error(status: int, message: str) -> Answer:
    return json_answer(status, told({"error": message}))
