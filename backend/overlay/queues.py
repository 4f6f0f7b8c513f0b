"""One ComfyUI queue per lane, and the view of all of them that code without a lane sees.

Owns the shared lock, item numbers, and that a lane's counters follow its queue. Subclasses the
``PromptQueue`` it is given, so the queue's own logic stays ComfyUI's. Knows nothing of HTTP, sockets or executors.
"""

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from backend.context import judging, work_on
from backend.holdings import Weights
from backend.lanes import Lane
from backend.overlay.ahead import Aheads, reason
from backend.overlay.history import History, outcome_of, showable
from backend.overlay.interrupts import Interrupts
from backend.overlay.items import ID, Item, client_of

if TYPE_CHECKING:

    class _PromptQueue:
        """What is used of ComfyUI's class; the real one is put underneath at run time."""

        mutex: threading.RLock
        not_empty: threading.Condition
        queue: list[Item]
        currently_running: dict[int, Item]
        history: dict[str, Any]

        def __init__(self, server: Any) -> None: ...
        def put(self, item: Item) -> None: ...
        def get(self, timeout: float | None = None) -> tuple[Item, int] | None: ...
        def task_done(self, item_id: int, history_result: Any, status: Any, **kwargs: Any) -> None: ...
        def wipe_queue(self) -> None: ...
        def delete_queue_item(self, function: Callable[[Item], bool]) -> bool: ...
        def get_flags(self, reset: bool = True) -> dict[str, Any]: ...
        def set_flag(self, name: str, data: Any) -> None: ...
        def get_current_queue_volatile(self) -> tuple[list[Item], list[Item]]: ...

else:
    _PromptQueue = object


class RebuildExecutor(BaseException):
    """Raised where a lane's worker waits for work: leave the loop, so that a new executor is made."""


class Shared:
    """What all queues of one process have in common."""

    def __init__(self, interrupts: Interrupts) -> None:
        self.mutex = threading.RLock()
        self.history = History()
        self.interrupts = interrupts
        self.ahead = Aheads()
        self.next_item = 0


class _Told:
    """Stands where a queue expects the server: a change of this lane's queue is told for this lane only."""

    def __init__(self, server: Any, changed: Callable[[], None]) -> None:
        self._server = server
        self.queue_updated = changed

    def __getattr__(self, name: str) -> Any:
        return getattr(self._server, name)


class LaneQueue(_PromptQueue):
    """The queue of one lane; its worker is the only one that calls ``get``."""

    def __init__(self, shared: Shared, lane: Lane, server: Any, changed: Callable[[], None]) -> None:
        self.shared = shared
        super().__init__(_Told(server, changed))
        self.mutex = shared.mutex
        self.not_empty = threading.Condition(shared.mutex)
        self.history = shared.history
        self.lane = lane
        self.rebuild = False
        self.on_line: Callable[[str], None] = lambda line: None
        self._depth = 0
        self._before = Weights()

    @property
    def task_counter(self) -> int:
        """Item ids count over all lanes, so that the merged view can hold them in one dict."""
        return self.shared.next_item

    @task_counter.setter
    def task_counter(self, value: int) -> None:
        self.shared.next_item = max(value, self.shared.next_item)

    def put(self, item: Item) -> None:
        if item[ID] not in self.shared.ahead:
            self.lane.stats.accepted(str(item[ID]), time.monotonic())
        super().put(item)

    def get(self, timeout: float | None = None) -> tuple[Item, int] | None:
        """ComfyUI's ``get``; the worker's context belongs to the job from here until it asks again."""
        work_on(None)
        with self.mutex:
            # What was asked of the worker while it was not waiting yet, such as to free memory, wakes nobody any more.
            if not (self.queue or self.rebuild or self.get_flags(reset=False)):
                self.not_empty.wait(timeout)
            if self.rebuild:
                self.rebuild = False
                raise RebuildExecutor
            found = super().get(timeout=None if timeout is None else 0)
            if found is not None:
                prompt_id = str(found[0][ID])
                self.shared.interrupts.begin(self.lane.index, prompt_id)
                if prompt_id in self.shared.ahead:
                    self.shared.ahead.begin(prompt_id)
                else:
                    self.lane.stats.started(prompt_id, time.monotonic())
                work_on(prompt_id)
        if found is not None:
            self._before = self.lane.weights.now()
        return found

    def task_done(self, item_id: int, history_result: Any, status: Any, **kwargs: Any) -> None:
        now = time.monotonic()
        result = showable(history_result)  # outside the lock that all lanes and readers share
        if isinstance(result, dict):
            # A key of our own beside ComfyUI's: what the lane holds now, and what this job's loads were.
            result = {**result, "weights": self.lane.weights.now().since(self._before).shown()}
        with self.mutex:
            item = self.currently_running[item_id]
            try:
                super().task_done(item_id, result, status, **kwargs)
            except BaseException:
                # It may have taken the item out already. Still running, it can be ended as failed.
                self.currently_running[item_id] = item
                raise
            self.shared.interrupts.end(self.lane.index)
        self._over(str(item[ID]), status, now)

    def give_up(self, item_id: int, shown: Item, status: Any) -> None:
        """End a job that ``task_done`` fails at: the history has the item as ``shown``, with ``status``."""
        now = time.monotonic()
        with self.mutex:
            prompt_id = str(self.currently_running.pop(item_id)[ID])
            self.history[prompt_id] = {"prompt": shown, "outputs": {}, "status": status._asdict()}
            self.shared.interrupts.end(self.lane.index)
        self._over(prompt_id, status, now)

    def _over(self, prompt_id: str, status: Any, now: float) -> None:
        if prompt_id in self.shared.ahead:
            self._preloaded(prompt_id, reason(status))
            return
        self.lane.stats.finished(prompt_id, outcome_of(status), now)
        if self.lane.stats.report_due(now):
            self.on_line(self.lane.line())

    def renew(self) -> None:
        """The next job runs on a new executor, which has kept nothing."""
        with self.mutex:
            self.rebuild = True
            self.not_empty.notify()

    def _preloaded(self, prompt_id: str, error: str | None) -> None:
        with self.mutex:
            self.history.pop(prompt_id, None)
        self.lane.weights.preloaded(self.shared.ahead.end(prompt_id, self.lane.index, error))

    def set_flag(self, name: str, data: Any) -> None:
        if data and name in {"unload_models", "free_memory"}:
            self.lane.weights.released()
        super().set_flag(name, data)

    def wipe_queue(self) -> None:
        with self._dropping():
            super().wipe_queue()

    def delete_queue_item(self, function: Callable[[Item], bool]) -> bool:
        with self._dropping():
            return super().delete_queue_item(function)

    def wipe_history(self) -> None:
        with self.mutex:
            for prompt_id in self.shared.history.of(self.lane.index):
                self.history.pop(prompt_id, None)

    def delete_history_item(self, id_to_delete: str) -> None:
        with self.mutex:
            if self.shared.history.lanes.get(id_to_delete) == self.lane.index:
                self.history.pop(id_to_delete, None)

    def interrupt(self, prompt_id: str | None = None) -> bool:
        """Stop the running job with this id (``None``: whichever runs); false when it does not run here."""
        with self.mutex:
            for item in self.currently_running.values():
                if prompt_id is None or item[ID] == prompt_id:
                    self.shared.interrupts.aim(self.lane.index, str(item[ID]))
                    return True
        return False

    interrupt_if_running = interrupt

    @contextmanager
    def _dropping(self) -> Iterator[None]:
        # ComfyUI's delete calls its wipe when one item is left: only the outermost call counts.
        with self.mutex:
            self._depth += 1
            before = list(self.queue)
            try:
                yield
            finally:
                self._depth -= 1
                if self._depth == 0:
                    kept = {id(item) for item in self.queue}
                    for item in before:
                        if id(item) not in kept and item[ID] in self.shared.ahead:
                            self._preloaded(item[ID], "It was taken out of the queue.")
                        elif id(item) not in kept:
                            self.lane.stats.finished(str(item[ID]), "deleted", time.monotonic())


class MergedQueue(_PromptQueue):
    """All lanes' queues where code without a lane expects one: reads see all, changes reach all, new jobs go to GPU 0.

    ComfyUI's own reading methods work on the merged attributes below.
    """

    def __init__(self, shared: Shared, lanes: Sequence[LaneQueue], server: Any) -> None:
        self.mutex = shared.mutex
        self.not_empty = lanes[0].not_empty
        self.server = server
        self.lanes = lanes
        self.shared = shared

    @property
    def queue(self) -> list[Item]:  # type: ignore[override] # computed here, stored in the base
        return [item for lane in self.lanes for item in lane.queue]

    @property
    def currently_running(self) -> dict[int, Item]:  # type: ignore[override] # computed here, stored in the base
        return {number: item for lane in self.lanes for number, item in lane.currently_running.items()}

    @property
    def history(self) -> dict[str, Any]:  # type: ignore[override] # shared here, stored in the base
        return self.shared.history

    def put(self, item: Item) -> None:
        if not judging():
            self.lanes[0].put(item)

    def get(self, timeout: float | None = None) -> tuple[Item, int] | None:
        return self.lanes[0].get(timeout=timeout)

    def task_done(self, item_id: int, history_result: Any, status: Any, **kwargs: Any) -> None:
        for lane in self.lanes:
            if item_id in lane.currently_running:
                lane.task_done(item_id, history_result, status, **kwargs)
                return

    def wipe_queue(self) -> None:
        for lane in self.lanes:
            lane.wipe_queue()

    def delete_queue_item(self, function: Callable[[Item], bool]) -> bool:
        return any(lane.delete_queue_item(function) for lane in self.lanes)

    def wipe_history(self) -> None:
        with self.mutex:
            self.shared.history.clear()
            self.shared.history.lanes.clear()

    def set_flag(self, name: str, data: Any) -> None:
        for lane in self.lanes:
            lane.set_flag(name, data)

    def get_flags(self, reset: bool = True) -> dict[str, Any]:
        merged: dict[str, Any] = {}
        for lane in self.lanes:
            merged.update(lane.get_flags(reset))
        return merged

    def interrupt(self, prompt_id: str | None = None) -> bool:
        """Stop the job with this id wherever it runs; ``None``: everything that runs."""
        with self.mutex:
            if prompt_id is None:
                return any([lane.interrupt() for lane in self.lanes])  # noqa: C419 (all of them, not the first)
            return any(lane.interrupt(prompt_id) for lane in self.lanes)

    interrupt_if_running = interrupt


class Queues:
    """The lanes' queues and the merged one."""

    def __init__(
        self, base: type, lanes: Sequence[Lane], interrupts: Interrupts, server: Any,
        changed: Callable[[int], None],
    ) -> None:
        """``base`` is ComfyUI's queue class; ``changed`` is called with the lane whose queue changed."""
        self.shared = Shared(interrupts)
        lane_class: Any = type("LaneQueue", (LaneQueue, base), {})
        merged_class: Any = type("MergedQueue", (MergedQueue, base), {})
        self.lanes: list[LaneQueue] = [
            lane_class(self.shared, lane, server, lambda index=lane.index: changed(index)) for lane in lanes
        ]
        self.merged: MergedQueue = merged_class(self.shared, self.lanes, server)

    def of(self, lane: int | None) -> LaneQueue | MergedQueue:
        """The queue that code of ``lane`` sees."""
        return self.merged if lane is None else self.lanes[lane]

    def count_for(self, client_id: str) -> int:
        """Jobs waiting or running that are this client's or nobody's."""
        with self.shared.mutex:
            items = [*self.merged.currently_running.values(), *self.merged.queue]
        return sum(1 for item in items if client_of(item) in (client_id, None))
