"""``/jobs``: jobs as resources. Submit one or many, list, look at one, wait for its end, fetch its files, stop it.

Owns what each of these answers. Must never know backends or how a job is run.
"""

import json
import re
from collections.abc import Callable, Mapping
from typing import Any, Final

from gateway.api.hand_in import Desks, told
from gateway.api.orders import LONGEST_WAIT, Order, orders_in
from gateway.api.reading import object_in, refused, whole_in
from gateway.api.route import Call
from gateway.api.shape import Output, link, outputs_of, shown
from gateway.api.watch import Watch
from gateway.errors import JOB_FAILED, NOT_ACCEPTABLE, NOT_FOUND, GatewayError
from gateway.jobs.desk import Desk
from gateway.jobs.record import Record, State, unnamed
from gateway.wire.answer import Answer, Fetch, Made, json_answer

More = Callable[[Record], Mapping[str, Any]]
"""What others know of a job that has not ended: progress, place in the queue, when it will be done."""

_NO_STORE: Final = (b"Cache-Control", b"no-store")
_WAIT: Final = re.compile(r"(?:^|[,;\s])wait\s*=\s*\"?([0-9]{1,9})\"?(?:$|[,;\s])", re.IGNORECASE)
MOST_LISTED: Final = 1000
_STOPPED: Final = 2.0
"""Seconds that a client waits to hear that its job has been stopped."""


class JobRoutes:
    """The handlers."""

    def __init__(self, desk: Desk, desks: Desks, watch: Watch, gpus: int, more: More, explained: More) -> None:
        self._desk = desk
        self._desks = desks
        self._watch = watch
        self._gpus = gpus
        self._more = more
        self._explained = explained

    def show(self, record: Record) -> dict[str, Any]:
        """The job as all routes here show it."""
        return shown(record, self._more(record))

    def known(self, call: Call) -> Record:
        """The job that the path names; raises ``GatewayError``."""
        record = self._desk.journal.get(call.given["id"])
        pinned = call.incoming.request.gpu
        seen = record is not None and call.incoming.request.may_see(record.owner)
        if record is None or not seen or pinned not in {None, record.gpu}:
            text = "There is no such job."
            raise GatewayError(NOT_FOUND, text, "It was never submitted here, or it is no longer remembered.")
        return record

    # Submit

    async def submit(self, call: Call) -> Made:
        """``POST /jobs``."""
        request = call.incoming.request
        wait = wait_of(call)
        found = object_in(call.incoming)
        key = call.field(b"idempotency-key").strip()
        orders, batch = orders_in(found, self._gpus, request.gpu, key, unnamed(request.owner))
        if batch:
            return await self._many(call, orders, wait)
        made = await self._desks.submit(call, orders[0])
        if isinstance(made, Answer):
            return made
        return await self._after(call, made, wait)

    async def _after(self, call: Call, record: Record, wait: int | None) -> Made:
        picture = accepted_media(call.field(b"accept"))
        if wait:
            record = await self._watch.ended(record.id, wait) or record
        where: tuple[tuple[bytes, bytes], ...] = ((b"Location", link(record.id).encode()), _NO_STORE)
        if wait is not None and call.field(b"prefer"):
            where += ((b"Preference-Applied", b"wait=%d" % wait),)
        if not record.ended:
            return json_answer(202, told(self.show(record)), where)
        if wait is None or picture is None:
            return json_answer(200, told(self.show(record)), where)
        return self._picture(record, picture, where)

    def _picture(self, record: Record, wanted: "Media", headers: tuple[tuple[bytes, bytes], ...]) -> Fetch:
        """The first thing the client can show: what was saved before what was only previewed."""
        job = self.show(record)
        if record.state is not State.SUCCEEDED:
            text = f"The job has ended, and it is {record.state.value}."
            details = str((record.error or {}).get("message", ""))
            raise GatewayError(JOB_FAILED, text, details, headers=headers, job=job)
        outputs = list(enumerate(outputs_of(record)))
        saved = [each for each in outputs if each[1].folder == "output"]
        for number, output in (*saved, *outputs):
            if wanted(output):
                own = f"{link(record.id)}/outputs/{number}".encode()
                return Fetch(output.target, (*headers, (b"Content-Location", own)), record.gpu)
        text = "The job has succeeded, and nothing that it has made is of the type that was asked for."
        raise GatewayError(NOT_ACCEPTABLE, text, "See its outputs.", headers=headers, job=job)

    async def _many(self, call: Call, orders: list[Order], wait: int | None) -> Answer:
        """Each is taken or refused by itself; all answers in one, in the order of the orders."""
        answers: list[dict[str, Any]] = []
        taken: list[Record] = []
        refusals: list[Answer | GatewayError] = []
        for order in orders:
            made: Record | Answer | GatewayError
            try:
                made = await self._desks.submit(call, order)
            except GatewayError as error:
                made = error
            if isinstance(made, Record):
                taken.append(made)
                answers.append({"id": made.id})
            else:
                refusals.append(made)
                answers.append(refusal(made))
        if not taken:
            first = refusals[0]
            if isinstance(first, GatewayError):
                raise first
            return first
        ended = await self._watch.all_ended([record.id for record in taken], wait or 0)
        jobs = [self._latest(each) for each in answers]
        whole = {"jobs": jobs, "taken": len(taken), "refused": len(refusals)}
        return json_answer(200 if ended else 202, told(whole), (_NO_STORE,))

    def _latest(self, answer: dict[str, Any]) -> dict[str, Any]:
        record = self._desk.journal.get(str(answer.get("id")))
        return answer if record is None else self.show(record)

    # Look

    async def all(self, call: Call) -> Made:
        """``GET /jobs``: the youngest first."""
        query = call.query
        limit = whole_in(query, "limit", 1, MOST_LISTED, 100)
        before = whole_in(query, "cursor", 0, 1 << 62, 1 << 62)
        states = states_in(query.get("state"))
        gpu: int | None = whole_in(query, "gpu", 0, self._gpus - 1, -1)
        gpu = call.incoming.request.gpu if gpu == -1 else gpu
        client = query.get("client")
        found: list[Record] = []
        more = False
        for record in self._desk.journal.newest_first():
            if record.seq >= before or record.state not in states or gpu not in {None, record.gpu}:
                continue
            if client is not None and client not in {record.client_id, record.client}:
                continue
            if not call.incoming.request.may_see(record.owner):
                continue
            more = len(found) == limit
            if more:
                break
            found.append(record)
        cursor = str(found[-1].seq) if more else None
        listed = {"jobs": [self.show(record) for record in found], "next": cursor}
        return json_answer(200, told(listed), (_NO_STORE,))

    async def one(self, call: Call) -> Made:
        """``GET /jobs/{id}``; with ``?wait=`` or ``Prefer: wait=`` as soon as it has ended."""
        record = self.known(call)
        if wait := wait_of(call):
            record = await self._watch.ended(record.id, wait) or record
        return json_answer(200, told(self.show(record)), (_NO_STORE,))

    async def output(self, call: Call) -> Made:
        """``GET /jobs/{id}/outputs/{n}``: the file's bytes, as ``/view`` gives them, with all that it can (ranges)."""
        record = self.known(call)
        outputs = outputs_of(record)
        number = call.given["n"]
        if not (number.isascii() and number.isdigit() and len(number) < 8 and int(number) < len(outputs)):
            text = f"This job has {len(outputs)} output(s)."
            details = "They are numbered from 0." if record.ended else "It has not ended yet."
            raise GatewayError(NOT_FOUND, text, details)
        return Fetch(outputs[int(number)].target, (), record.gpu)

    async def explain(self, call: Call) -> Made:
        """``GET /jobs/{id}/explain``: why the job is where it is."""
        record = self.known(call)
        where = {"id": record.id, "state": record.state.value, "gpu": record.gpu, "port": record.port}
        return json_answer(200, told({**where, **self._explained(record)}), (_NO_STORE,))

    async def preview(self, call: Call) -> Made:
        """``GET /jobs/{id}/preview``."""
        progress = self._desk.live.of(self.known(call).id)
        if progress is None or not progress.preview:
            raise GatewayError(NOT_FOUND, "There is no preview of this job.", "It does not run, or makes none.")
        return Answer(200, ((b"Content-Type", b"image/jpeg"), _NO_STORE), progress.preview)

    # Stop

    async def cancel(self, call: Call) -> Made:
        """``DELETE /jobs/{id}``: 200 with the job when it has ended, 202 when it is going to."""
        record = self.known(call)
        if not record.ended:
            answer = await self._desks.cancel(call, record)
            if answer.status >= 300:
                return answer
            record = await self._watch.ended(record.id, _STOPPED) or record
        status = 200 if record.ended else 202
        return json_answer(status, told(self.show(record)), (_NO_STORE,))


Media = Callable[[Output], bool]


def accepted_media(accept: str) -> Media | None:
    """Which files a client would rather have than JSON; ``None``: none, or it does not say."""
    wanted: list[str] = []
    json_at = 0.0
    best = 0.0
    for part in accept.lower().split(","):
        name, *parameters = (each.strip() for each in part.split(";"))
        weight = next((_weight(each) for each in parameters if each.startswith("q=")), 1.0)
        if name in {"application/json", "application/*"}:
            json_at = max(json_at, weight)
        elif name.startswith(("image/", "video/", "audio/")) and weight > 0:
            wanted.append(name)
            best = max(best, weight)
    if not wanted or json_at > best:
        return None
    exact = {name for name in wanted if not name.endswith("/*")}
    kinds = tuple(name[:-1] for name in wanted if name.endswith("/*"))
    return lambda output: output.media in exact or output.media.startswith(kinds)


def _weight(parameter: str) -> float:
    try:
        return float(parameter.removeprefix("q="))
    except ValueError:
        return 0.0


def wait_of(call: Call) -> int | None:
    """Seconds that the client wants to wait; ``None``: it does not say. ``Prefer`` is a wish, the query an order."""
    if "wait" in call.query:
        return whole_in(call.query, "wait", 0, LONGEST_WAIT, 0)
    found = _WAIT.search(call.field(b"prefer"))
    return None if found is None else min(int(found[1]), LONGEST_WAIT)


def states_in(text: str | None) -> frozenset[State]:
    """``queued,running``: the states that are named, or all."""
    if text is None:
        return frozenset(State)
    names = [each.strip() for each in text.split(",") if each.strip()]
    known = {state.value: state for state in State}
    for name in names:
        if name not in known:
            raise refused(f"{name[:100]!r} is no state.", f"The states are {', '.join(known)}.")
    return frozenset(known[name] for name in names)


def refusal(made: Answer | GatewayError) -> dict[str, Any]:
    """One refusal of a batch, as it would have been answered alone."""
    if isinstance(made, GatewayError):
        status, body = made.kind.status, made.body()
    else:
        status, body = made.status, made.body
    try:
        said = json.loads(body)
    except ValueError:
        said = None
    return {"status": status, **(said if isinstance(said, dict) else {"error": {"message": "It was refused."}})}
