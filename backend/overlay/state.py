"""What the patches of one start share: the lanes, their queues, sockets, interrupts, and the slots per lane.

Owns the wiring between these; has no I/O and no ComfyUI name of its own. Built once, before the patches.
"""

import logging
import threading
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from backend.context import PerLane, current_lane, in_lane
from backend.faults import Fault
from backend.issue_lock import Mode
from backend.lanes import Lane, OomLadder
from backend.model_calls import ModelCalls
from backend.observers import Observers
from backend.overlay.events import ClientTable, SocketTable, Target
from backend.overlay.interrupts import Interrupts
from backend.overlay.outbox import Message
from backend.overlay.queues import Queues
from backend.overlay.serialize import Packs
from backend.overlay.versions.version import Version
from backend.waiting import Waiting

log = logging.getLogger("backend.overlay")


class State:
    """One overlay; ``queues`` exists from the moment ComfyUI's server makes its queue."""

    def __init__(
        self, lanes: Sequence[Lane], version: Version, serialize: Sequence[str] = (), issue_lock: Mode = "off",
        threads: int = 0,
    ) -> None:
        self.lanes = tuple(lanes)
        self.version = version
        self.packs = Packs(serialize)
        self.waiting = Waiting()
        self.interrupts = Interrupts(self.packs.wake)
        self.sockets = SocketTable(self.refresh)
        self.observers = Observers(len(self.lanes))
        self.sockets_metadata: ClientTable[Any] = ClientTable()
        self.ladders = {lane.index: OomLadder() for lane in lanes}
        self.threads = threads
        self.model_calls = ModelCalls(lanes, issue_lock)
        self.client_id: PerLane[Any] = PerLane(lambda: None)
        self.last_node_id: PerLane[Any] = PerLane(lambda: None)
        self.last_prompt_id: PerLane[Any] = PerLane(lambda: None)
        self.messages: PerLane[list[tuple[str, Any]]] = PerLane(list)
        self.server: Any = None
        self._on_fault: Callable[[int], None] | None = None
        self.warm = {lane.index: threading.Event() for lane in lanes}
        self.listening = threading.Event()
        self._queues: Queues | None = None

    @property
    def queues(self) -> Queues:
        """Raises ``RuntimeError`` before ComfyUI's server exists."""
        if self._queues is None:
            raise RuntimeError("ComfyUI's server has not made its queue yet")
        return self._queues

    def adopt_queue(self, original: Any, server: Any) -> None:
        """The server has made ``original``: the lanes' queues, of the same class, take its place."""
        self._queues = Queues(type(original), self.lanes, self.interrupts, server, self.queue_changed)
        for queue in self._queues.lanes:
            queue.on_line = log.info
            queue.lane.weights.forget = queue.renew

    def queue_changed(self, lane: int) -> None:
        """Tell the clients of ``lane``, and those of no lane, how much is left."""
        with in_lane(lane):
            self.server.send_sync("status", {"status": self.server.get_queue_info()}, Target(lane, None))

    def refresh(self, lane: int | None, sid: str, message: Message) -> Iterable[Message]:
        """The messages that stand for ``message`` now: a ``status`` counts at the moment it is sent.

        A client of no lane (of the front door) is told its own jobs and nobody's; when it comes back to running
        jobs, also where they stand, which ComfyUI does itself for clients of one lane.
        """
        data = message.get("data")
        if message.get("type") != "status" or not isinstance(data, dict) or "status" not in data:
            return (message,)
        with in_lane(lane):
            status = self.server.get_queue_info()
        if lane is not None:
            return ({**message, "data": {**data, "status": status}},)
        status["exec_info"]["queue_remaining"] = self.queues.count_for(sid) + self.waiting.count_for(sid)
        fresh = {**message, "data": {**data, "status": status}}
        return (fresh, *self._where(sid)) if "sid" in data else (fresh,)

    def recount(self) -> None:
        """The number of jobs that wait at the gateway has changed: every client gets a new ``status``."""
        with in_lane(None):
            self.server.send_sync("status", {"status": self.server.get_queue_info()}, Target(None, None))

    def _where(self, sid: str) -> Iterable[Message]:
        for lane in self.lanes:
            node = self.last_node_id.of(lane.index)
            if node is not None and self.client_id.of(lane.index) == sid:
                prompt_id = self.last_prompt_id.of(lane.index)
                yield {"type": "executing", "data": {"node": node, "display_node": node, "prompt_id": prompt_id}}

    def interrupt(self) -> None:
        """Stop what runs on the current lane; without one, what runs anywhere."""
        self.queues.of(current_lane()).interrupt()

    def fault(self, lane: int, fault: Fault) -> None:
        """The lane can work no more: nothing but a new process helps."""
        self.lanes[lane].stats.fault(fault)
        if self._on_fault is not None:
            self._on_fault(lane)

    def watch_faults(self, told: Callable[[int], None]) -> None:
        """Call ``told`` with every lane that breaks, from whichever thread, and with those that are broken already."""
        self._on_fault = told
        for lane in self.lanes:
            if lane.stats.broken is not None:
                told(lane.index)
