"""Requests that concern all backends: asked of each of them, answered as by one that has all their GPUs.

Owns which requests these are where there is more than one backend; with a single one nothing here is used. What
concerns jobs is the journal's first, if there is one. Must never know connections.
"""

import asyncio
import json
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Final
from urllib.parse import unquote_to_bytes

from gateway.errors import BACKEND_UNAVAILABLE, BAD_REQUEST, GatewayError
from gateway.fleet import ahead, merge
from gateway.fleet.ask import AskError
from gateway.fleet.lanes import Fleet
from gateway.jobs.answers import unanswered
from gateway.jobs.everywhere import agreed, tell, told
from gateway.jobs.incoming import Incoming, globally, relayed
from gateway.jobs.peer import Peers
from gateway.jobs.whereabouts import Whereabouts
from gateway.observe.metrics import CONTENT_TYPE
from gateway.request import Kind
from gateway.wire.answer import Answer, Fetch, Made, json_answer

Handler = Callable[[Incoming], Awaitable[Made]]

_READ, _SUBMIT, _CONTROL = Kind.READ, Kind.SUBMIT, Kind.CONTROL

_MERGED: Final[Mapping[bytes, Callable[[merge.Told], dict[str, Any]]]] = {
    b"/queue": merge.queue_of_all,
    b"/prompt": merge.remaining_of_all,
    b"/system_stats": merge.devices_of_all,
    b"/debug/queues": merge.lanes_of_all,
}
_ANYWHERE: Final = frozenset({b"/debug/queues", b"/queue/all", b"/metrics"})
"""What shows all GPUs on every port."""
_OF_ONE: Final = frozenset({b"/queue", b"/system_stats"})
"""What names its GPU on that GPU's port."""
_TOLD_TO_ALL: Final = frozenset({b"/queue", b"/history", b"/interrupt", b"/free"})


class Spread:
    """What the proxy asks whether a request is for it."""

    def __init__(self, peers: Peers, fleet: Fleet, whereabouts: Whereabouts) -> None:
        self._peers = peers
        self._fleet = fleet
        self._whereabouts = whereabouts

    def handler(self, kind: Kind, method: bytes, target: bytes, gpu: int | None) -> Handler | None:
        """Who takes this request; ``None``: it goes the way of bytes. ``target`` has no ``/gpuN``."""
        if kind is _SUBMIT:
            return self._submit if gpu is None or self._fleet.member(gpu).first else None
        if kind is not _READ and kind is not _CONTROL:
            return None
        path = _path(target)
        if kind is _CONTROL:
            if method == b"POST" and path == b"/preload":
                return self._preload
            whole = method == b"POST" and (path in _TOLD_TO_ALL if gpu is None else path == b"/interrupt")
            return self._write if whole else None
        if path == b"/view":
            return self._view
        if path == b"/history" or path.startswith(b"/history/"):
            return self._history
        if gpu is not None and path in _OF_ONE:
            return self._of_one if self._fleet.member(gpu).first else None
        if path in _ANYWHERE or (gpu is None and path in _MERGED):
            return {b"/metrics": self._metrics, b"/queue/all": self._queue_all}.get(path, self._merged)
        return None

    async def _merged(self, incoming: Incoming) -> Made:
        made = _MERGED[_path(incoming.request.target)](await told(self._peers, incoming))
        return json_answer(200, json.dumps(made).encode())

    async def _of_one(self, incoming: Incoming) -> Made:
        peer = self._peers.of(incoming.request.gpu)
        (reply,) = await tell([peer], incoming)
        if reply.status == 200 and _path(incoming.request.target) == b"/system_stats":
            return json_answer(200, json.dumps(merge.devices_of_all([(peer.member.first, reply)])).encode())
        return relayed(globally(reply, peer.member.first))

    async def _queue_all(self, incoming: Incoming) -> Made:
        whole = merge.queues_of_all(await told(self._peers, incoming))
        if whole is None:
            raise GatewayError(BACKEND_UNAVAILABLE, "No backend shows its queues.", retry_after=1)
        return json_answer(200, json.dumps(whole).encode())

    async def _metrics(self, incoming: Incoming) -> Made:
        text = merge.all_samples(await told(self._peers, incoming))
        return Answer(200, ((b"Content-Type", CONTENT_TYPE),), text)

    async def _history(self, incoming: Incoming) -> Made:
        replies = await tell(self._peers, incoming)
        if agreed(replies).status != 200:
            return relayed(replies[0])
        whole = merge.history_of_all([(0, reply) for reply in replies])
        return json_answer(200, json.dumps(whole).encode())

    async def _write(self, incoming: Incoming) -> Made:
        gpu = incoming.request.gpu
        if gpu is None or _names_a_job(incoming.body):
            return relayed(agreed(await tell(self._peers, incoming)))
        return relayed(agreed(await tell([self._peers.of(gpu)], incoming)))

    async def _preload(self, incoming: Incoming) -> Made:
        request = incoming.request
        try:
            parts = ahead.shares(incoming.body, request.gpu, [peer.member for peer in self._peers])
        except ValueError as error:
            raise GatewayError(BAD_REQUEST, f"{error}.", "Ask at the front door.") from error
        target = request.target
        asked = [
            self._peers.of(each.first).send(request.method, target, incoming.lines_for(each), body)
            for each, body in parts
        ]
        try:
            replies = await asyncio.gather(*asked)
        except AskError as error:
            raise unanswered(error) from error
        status, body = ahead.together([(each.first, reply) for (each, _), reply in zip(parts, replies, strict=True)])
        return json_answer(status, json.dumps(body).encode())

    async def _submit(self, incoming: Incoming) -> Answer:
        peer = self._peers.of(incoming.request.gpu)
        place = incoming.place
        try:
            (reply,) = await tell([peer], incoming)
            if place is not None and 200 <= reply.status < 300:
                place.accepted()
        finally:
            if place is not None:
                place.release()
        return relayed(globally(reply, peer.member.first))

    async def _view(self, incoming: Incoming) -> Made:
        request = incoming.request
        gpu = self._whereabouts.gpu(request.target)
        if gpu is not None and self._fleet.member(gpu).up:
            return Fetch(request.target, gpu=gpu)
        first = self._fleet.home(request.client) if request.gpu is None else self._fleet.member(request.gpu)
        failed: AskError | None = None
        for member in sorted((each for each in self._fleet.members if each.up), key=lambda each: each is not first):
            try:
                status = await self._peers.of(member.first).status(request.target)
            except AskError as error:
                failed = error
                continue
            if status < 400:
                return Fetch(request.target, backend=member.index)
        if failed is not None:
            raise unanswered(failed) from failed
        return Fetch(request.target, backend=first.index)


def _path(target: bytes) -> bytes:
    path = unquote_to_bytes(target.partition(b"?")[0])
    return path.removeprefix(b"/api") if path.startswith(b"/api/") else path


def _names_a_job(body: bytes) -> bool:
    try:
        found = json.loads(body)
    except (ValueError, RecursionError):
        return False
    return isinstance(found, dict) and bool(found.get("prompt_id"))
