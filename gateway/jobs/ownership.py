"""``[auth] isolate``: on every native route a key meets its own jobs, and nobody else's.

Owns what a confined request may see and touch: answers are filtered, and what it asks for is narrowed to its own jobs
before it is asked. Must never change what a request means to somebody who is not confined.
"""

import asyncio
import contextlib
import json
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from typing import Any, Final
from urllib.parse import parse_qs, unquote, unquote_to_bytes

from gateway.errors import FORBIDDEN, NOT_FOUND, GatewayError
from gateway.fleet.ask import AskError
from gateway.fleet.lanes import Fleet
from gateway.fleet.merge import queue_of_all
from gateway.jobs.everywhere import agreed, tell, told
from gateway.jobs.incoming import Incoming, relayed
from gateway.jobs.journal import Journal
from gateway.jobs.peer import Peers
from gateway.jobs.record import UNNAMED, Record, State, unnamed
from gateway.jobs.tracker import Tracker
from gateway.jobs.whereabouts import Whereabouts
from gateway.request import Kind, resolved
from gateway.wire.answer import Answer, Fetch, Made, json_answer

Handler = Callable[[Incoming], Awaitable[Made]]

_PATIENCE: Final = 5.0
"""Seconds that a file is waited for whose job has just said that it is there."""
_STEP: Final = 0.05
_MOST: Final = 20_000
"""Files, and clients, whose owner is remembered."""
# Only what the backend itself gives out: every other way to a file of another's job is closed to a confined key.
_VIEWS: Final = frozenset({b"/view", b"/viewvideo"})
# What is only let through as it is narrowed here, under the spelling that is narrowed.
_NARROWED: Final = frozenset({b"view", b"viewvideo", b"queue", b"history", b"interrupt"})
_QUEUES: Final = ("queue_running", "queue_pending")

File = tuple[str, str, str]
"""Type, subfolder, name."""


class Ownership:
    """Who owns which job, client and file."""

    def __init__(
        self, journal: Journal, peers: Peers, tracker: Tracker, fleet: Fleet, whereabouts: Whereabouts
    ) -> None:
        self._journal = journal
        self._fleet = fleet
        self._whereabouts = whereabouts
        self._tracker = tracker
        self._peers = peers
        self._clients: OrderedDict[str, str] = OrderedDict()
        self._files: OrderedDict[File, str] = OrderedDict()
        journal.watchers.append(self.note)

    def note(self, record: Record) -> None:
        """A job has changed: its client and its files are its owner's."""
        if record.client_id and not record.ended:
            _put(self._clients, record.client_id, record.owner)
        self.files(record.id, record.outputs.values())

    def files(self, job: str, outputs: Iterable[object]) -> None:
        """These outputs (ComfyUI's, by node) are the job's."""
        record = self._journal.get(job)
        if record is not None:
            for file in files_in(outputs):
                _put(self._files, file, record.owner)

    def claim(self, client_id: str, owner: str) -> None:
        """Use a client id; raises ``GatewayError`` (403) when it is another's, whose events it would take or get."""
        if client_id.partition(":")[0] == UNNAMED and client_id != unnamed(owner):
            text = "This client id is for jobs that name none, and not for this key's."
            raise GatewayError(FORBIDDEN, text, "Choose another, such as a UUID.")
        if client_id and self._clients.get(client_id, owner) != owner:
            text = "This client id is in use by another key."
            raise GatewayError(FORBIDDEN, text, "Choose another, such as a UUID.")
        if client_id:
            _put(self._clients, client_id, owner)

    def handler(self, owner: str, kind: Kind, method: bytes, target: bytes, usual: Handler | None) -> Handler | None:
        """Who takes a confined request in place of ``usual``; ``None``: the way of bytes. Raises ``GatewayError``."""
        raw, _, query = target.partition(b"?")
        path = unquote_to_bytes(raw).removeprefix(b"/api")
        if _unclear(raw, path):
            raise GatewayError(NOT_FOUND, "There is nothing under this path for this key.", "Spell it plainly.")
        if kind is Kind.EVENTS:
            self.claim(_first(query, "clientId"), owner)
            return usual
        if kind is Kind.READ:
            return self._reader(owner, path, usual)
        if kind is Kind.CONTROL and method == b"POST":
            return self._writer(owner, path, usual)
        return usual

    def _reader(self, owner: str, path: bytes, usual: Handler | None) -> Handler | None:
        if path in _VIEWS:
            return lambda incoming: self._view(owner, incoming)
        if path == b"/queue":
            return lambda incoming: self._queue(owner, incoming, usual)
        if path.rstrip(b"/") == b"/history":
            return lambda incoming: self._history(owner, incoming, usual)
        if path.startswith(b"/history/") and not self._mine(owner, path.removeprefix(b"/history/").decode("latin-1")):
            return _nothing
        return usual

    def _writer(self, owner: str, path: bytes, usual: Handler | None) -> Handler | None:
        narrowed = {b"/interrupt": self._interrupt, b"/queue": self._delete, b"/history": self._forget}.get(path)
        if narrowed is None or usual is None:
            return usual
        return lambda incoming: narrowed(owner, incoming, usual)

    # Reads

    async def _view(self, owner: str, incoming: Incoming) -> Made:
        asked = _asked(incoming.request.target.partition(b"?")[2])
        if asked is not None:
            if asked[0] == "input":
                # Uploads are ComfyUI's shared folder; workflows name them.
                return self._fetched(incoming)
            for _ in range(int(_PATIENCE / _STEP)):
                found = self._files.get(asked)
                if found is not None:
                    break
                await asyncio.sleep(_STEP)
            if found == owner:
                return self._fetched(incoming)
        raise GatewayError(FORBIDDEN, "This file is none of this key's jobs.", "Look at /history for those that are.")

    def _fetched(self, incoming: Incoming) -> Fetch:
        request = incoming.request
        made = self._whereabouts.gpu(request.target)
        gpu = request.gpu if made is None else made
        return Fetch(request.target, gpu=gpu, backend=self._fleet.home(request.client).index)

    async def _queue(self, owner: str, incoming: Incoming, usual: Handler | None) -> Made:
        answer: Made
        if usual is None:
            replies = await told(self._meant(incoming), incoming)
            answer = relayed(replies[0][1])
            found = _object(replies[0][1].body) if len(replies) == 1 else queue_of_all(replies)
        else:
            answer = await usual(incoming)
            if not isinstance(answer, Answer):
                return answer
            found = _object(answer.body)
        if answer.status != 200 or not all(isinstance(found.get(name), list) for name in _QUEUES):
            return answer
        for name in _QUEUES:
            found[name] = [item for item in found[name] if self._mine(owner, _id_of(item))]
        return json_answer(200, json.dumps(found).encode())

    async def _history(self, owner: str, incoming: Incoming, usual: Handler | None) -> Made:
        answer = await usual(incoming) if usual is not None else relayed(agreed(await tell(self._peers, incoming)))
        if not isinstance(answer, Answer) or answer.status != 200:
            return answer
        found = _object(answer.body)
        mine = {job: each for job, each in found.items() if self._mine(owner, job)}
        return json_answer(200, json.dumps(mine).encode())

    # Writes

    async def _interrupt(self, owner: str, incoming: Incoming, usual: Handler) -> Made:
        wanted = _object(incoming.body).get("prompt_id")
        if wanted is not None:
            return await usual(incoming) if self._mine(owner, str(wanted)) else Answer(200)
        answer: Made = Answer(200)
        for record in self._own(owner, incoming, State.RUNNING):
            answer = await usual(_asking(incoming, {"prompt_id": record.id}))
        return answer

    async def _delete(self, owner: str, incoming: Incoming, usual: Handler) -> Made:
        asked = _object(incoming.body)
        ids = asked.get("delete")
        mine = [str(each) for each in ids if self._mine(owner, str(each))] if isinstance(ids, list) else []
        if asked.get("clear"):
            mine += [record.id for record in self._own(owner, incoming, State.QUEUED)]
        return await usual(_asking(incoming, {"delete": mine})) if mine else Answer(200)

    async def _forget(self, owner: str, incoming: Incoming, usual: Handler) -> Made:
        asked = _object(incoming.body)
        ids = asked.get("delete")
        mine = [str(each) for each in ids if self._mine(owner, str(each))] if isinstance(ids, list) else []
        if asked.get("clear"):
            with contextlib.suppress(AskError):
                # What has just ended is in the backend's history, too.
                await self._tracker.look()
            gpu = incoming.request.gpu
            every = self._journal.newest_first()
            mine += [each.id for each in every if each.ended and each.owner == owner and gpu in {None, each.gpu}]
        return await usual(_asking(incoming, {"delete": mine})) if mine else Answer(200)

    def _own(self, owner: str, incoming: Incoming, state: State) -> list[Record]:
        gpu = incoming.request.gpu
        every = self._journal.unfinished()
        return [each for each in every if each.owner == owner and each.state is state and gpu in {None, each.gpu}]

    def _mine(self, owner: str, job: str) -> bool:
        record = self._journal.get(job) or self._journal.get(unquote(job))
        return record is not None and record.owner == owner

    def _meant(self, incoming: Incoming) -> Iterable[Any]:
        gpu = incoming.request.gpu
        return self._peers if gpu is None else [self._peers.of(gpu)]


def files_in(outputs: Iterable[object]) -> Iterator[File]:
    """The files that outputs name (ComfyUI: ``{"images": [{"filename", "subfolder", "type"}]}``)."""
    for output in outputs:
        if not isinstance(output, Mapping):
            continue
        for listed in output.values():
            for each in listed if isinstance(listed, list | tuple) else ():
                if isinstance(each, Mapping) and isinstance(each.get("filename"), str):
                    subfolder = str(each.get("subfolder") or "").strip("/")
                    yield str(each.get("type") or "output"), subfolder, each["filename"]


async def _nothing(_incoming: Incoming) -> Answer:
    return json_answer(200, b"{}")


def _asking(incoming: Incoming, value: object) -> Incoming:
    """The same request with another body."""
    lines = [line for line in incoming.lines.split(b"\r\n") if line and not line.lower().startswith(b"content-type:")]
    kept = b"".join(b"%b\r\n" % line for line in lines) + b"Content-Type: application/json\r\n"
    return replace(incoming, body=json.dumps(value).encode(), lines=kept)


def _object(body: bytes) -> dict[str, Any]:
    try:
        found = json.loads(body)
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def _id_of(item: object) -> str:
    """The id of a queue's item: the second of a list (ComfyUI execution.py: PromptQueue)."""
    return str(item[1]) if isinstance(item, list) and len(item) > 1 else ""


def _unclear(raw: bytes, path: bytes) -> bool:
    """Whether some reader of the ``raw`` path may find jobs there that nobody here keeps to their owners.

    ``path`` is what is gone by here. Newer ComfyUI has ``/api/jobs`` under ``/api/api/jobs``, too, and decodes both;
    our own routes have taken the plain spelling of these before.
    """
    meant = resolved(raw)
    while meant.startswith(b"/api/"):
        meant = meant.removeprefix(b"/api")
    first = meant.split(b"/")[1]
    if first == b"jobs":
        return True
    plain = path == meant or (first == b"history" and (path.startswith(b"/history/") or path == b"/history"))
    return first in _NARROWED and not plain


def _asked(query: bytes) -> File | None:
    """The file that a view names; ``None`` where readers may differ about which one that is.

    ComfyUI takes ``[output]`` behind a name for its type, whatever ``type`` says (folder_paths.py:
    annotated_filepath), and of a field that is there twice the first, even when that is empty.
    """
    fields = parse_qs(query.decode("latin-1"), keep_blank_values=True)
    values = [fields.get(each, [""]) for each in ("type", "subfolder", "filename")]
    if any(len(each) > 1 for each in values):
        return None
    kind, subfolder, name = (each[0] for each in values)
    if name.endswith("]") or "/" in name or name == ".." or "\\" in name + subfolder:
        return None
    if subfolder.startswith("/") or ".." in subfolder.split("/"):
        return None
    return kind or "output", subfolder.strip("/"), name


def _first(query: bytes, name: str) -> str:
    return parse_qs(query.decode("latin-1")).get(name, [""])[0]


def _put(table: "OrderedDict[Any, str]", key: object, owner: str) -> None:
    table[key] = owner
    table.move_to_end(key)
    if len(table) > _MOST:
        table.popitem(last=False)
