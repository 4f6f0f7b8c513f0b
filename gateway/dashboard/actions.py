"""``/admin/…``: the line paused, a GPU drained, its memory freed, a backend's last lines, settings read again.

Owns what these answer. That only an administrator gets here is the gate's rule: ``/admin/`` needs that scope.
"""

import json
from collections.abc import Callable, Sequence
from typing import Any, Final

from gateway.api.hand_in import rewritten, told
from gateway.api.reading import whole_in
from gateway.api.route import Call
from gateway.dashboard.board import state_of
from gateway.errors import BACKEND_UNAVAILABLE, BAD_REQUEST, NOT_FOUND, GatewayError
from gateway.fleet.ask import AskError
from gateway.fleet.lanes import Fleet
from gateway.jobs.answers import unanswered
from gateway.jobs.incoming import relayed
from gateway.jobs.pauses import Pauses
from gateway.jobs.peer import Peers
from gateway.observe.tail import KEPT, Tail
from gateway.wire.answer import Answer, Made, json_answer

_NO_STORE: Final = ((b"Cache-Control", b"no-store"),)
_ALL_OF_IT: Final = json.dumps({"unload_models": True, "free_memory": True}).encode()


class ActionRoutes:
    """The handlers. ``tails``: each backend's last lines; ``reload`` reads the settings again."""

    def __init__(
        self,
        fleet: Fleet,
        peers: Peers,
        pauses: Pauses,
        tails: Sequence[Tail],
        reload: Callable[[], dict[str, Any]],
    ) -> None:
        self._fleet = fleet
        self._pauses = pauses
        self._peers = peers
        self._tails = tails
        self._reload = reload

    async def line(self, call: Call) -> Made:
        """``GET /admin/line``: whether the front door's line goes on, and how many wait in it."""
        return self._line()

    async def pause_line(self, call: Call) -> Made:
        """``POST /admin/line/pause``: jobs of the front door are taken and wait; what is on a GPU goes on."""
        return self._line(paused=True)

    async def resume_line(self, call: Call) -> Made:
        """``POST /admin/line/resume``: they are sent again."""
        return self._line(paused=False)

    async def drain(self, call: Call) -> Made:
        """``POST /admin/gpus/{gpu}/drain``: the front door gives it no new jobs; its own port goes on."""
        gpu = self._gpu(call)
        self._pauses.drain(gpu, drained=True)
        return self._said(gpu)

    async def resume(self, call: Call) -> Made:
        """``POST /admin/gpus/{gpu}/resume``."""
        gpu = self._gpu(call)
        self._pauses.drain(gpu, drained=False)
        return self._said(gpu)

    async def free(self, call: Call) -> Made:
        """``POST /admin/gpus/{gpu}/free``: ComfyUI's ``/free``, models and cached outputs, for this GPU."""
        gpu = self._gpu(call)
        peer = self._peers.of(gpu)
        if not peer.member.up:
            wait = max(1, peer.member.retry_after)
            text = "The backend is not available."
            raise GatewayError(BACKEND_UNAVAILABLE, text, peer.member.reason, retry_after=wait)
        asked = rewritten(call.incoming, b"/free", _ALL_OF_IT, gpu)
        try:
            reply = await peer.send(b"POST", b"/free", asked.lines_for(peer.member), _ALL_OF_IT)
        except AskError as error:
            raise unanswered(error) from error
        return relayed(reply) if reply.status != 200 else self._said(gpu)

    async def reload(self, _call: Call) -> Made:
        """``POST /admin/reload``: what has changed, and what differs but is only read at the start."""
        outcome = self._reload()
        if errors := outcome.pop("errors"):
            text = "The settings cannot be used; they stay as they are."
            raise GatewayError(BAD_REQUEST, text, "; ".join(errors), errors=errors)
        return json_answer(200, told(outcome), _NO_STORE)

    async def log(self, call: Call) -> Made:
        """``GET /admin/backends/{backend}/log``: its last lines, with ``?after=`` those behind that number."""
        number = _number(call.given["backend"])
        if number is None or number >= len(self._tails):
            text = f"The backends are numbered 0 to {len(self._tails) - 1}."
            raise GatewayError(NOT_FOUND, "There is no such backend.", text)
        query = call.query
        after = whole_in(query, "after", 0, 1 << 62, 0)
        limit = whole_in(query, "limit", 1, KEPT, KEPT)
        tail = self._tails[number]
        lines: list[dict[str, Any]] = [line._asdict() for line in tail.after(after)[-limit:]]
        return json_answer(200, told({"backend": number, "lines": lines, "newest": tail.newest}), _NO_STORE)

    def _line(self, *, paused: bool | None = None) -> Answer:
        schedule = self._pauses.schedule
        if not schedule.enabled:
            text = "Jobs go to a GPU at once, for [schedule] enabled is false."
            raise GatewayError(NOT_FOUND, "The front door has no line.", text)
        if paused is not None:
            self._pauses.pause(paused=paused)
        found = {"paused": schedule.paused, "waiting": schedule.waiting_count}
        return json_answer(200, told(found), _NO_STORE)

    def _gpu(self, call: Call) -> int:
        gpu = _number(call.given["gpu"])
        if gpu is None or gpu >= self._fleet.gpus:
            raise GatewayError(NOT_FOUND, "There is no such GPU.", f"The GPUs are 0 to {self._fleet.gpus - 1}.")
        return gpu

    def _said(self, gpu: int) -> Answer:
        state, reason = state_of(self._fleet, gpu)
        found = {"gpu": gpu, "state": state, "reason": reason, "jobs": self._fleet.load(gpu)}
        return json_answer(200, told(found), _NO_STORE)


def _number(text: str) -> int | None:
    return int(text) if text.isascii() and text.isdigit() and len(text) < 6 else None
