"""Jobs: what was submitted, where it waits, what came of it.

Owns the N queues and the one history, under one lock, so that a job is always in one of them. Knows no socket;
tells ``on_change`` what happened. The same ``prompt_id`` may be submitted again, as in ComfyUI: each is run,
and the history keeps the last.
"""

import heapq
import itertools
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any, Final, Literal

from backend.embedded.node import Prompt
from backend.lanes import Lane
from backend.lanes import Outcome as Ending
from backend.preload import Loaded, Outcome

MAX_HISTORY: Final = 10_000
SECRETS: Final = ("auth_token_comfy_org", "api_key_comfy_org")
"""Keys of ``extra_data`` that are never shown again."""


@dataclass(eq=False)
class Job:
    """One prompt on its way through one lane."""

    number: float
    prompt_id: str
    prompt: Prompt
    extra_data: dict[str, Any]
    outputs: list[str]
    lane: int
    stop: threading.Event = field(default_factory=threading.Event)
    """Set to interrupt this job and no other."""
    node: str | None = None
    """The node it is at."""

    @property
    def client_id(self) -> str | None:
        found = self.extra_data.get("client_id")
        return None if found is None else str(found)

    def item(self) -> list[Any]:
        """The job as ``GET /queue`` and the history show it."""
        shown = {key: value for key, value in self.extra_data.items() if key not in SECRETS}
        return [self.number, self.prompt_id, self.prompt, shown, self.outputs]


@dataclass
class Free:
    """What ``POST /free`` asked a lane to give back."""

    models: bool = False
    outputs: bool = False


@dataclass
class Ahead:
    """What ``POST /preload`` asked a lane to load."""

    models: list[str]
    done: Outcome = field(default_factory=Future)


@dataclass
class _LaneJobs:
    ahead: list[Ahead] = field(default_factory=list)
    waiting: list[tuple[float, int, Job]] = field(default_factory=list)
    running: Job | None = None
    free: Free | None = None


Change = Literal["accepted", "started", "ended"]
Changed = Callable[[Change, Sequence[Job]], None]
"""What happened to these jobs of one lane; called outside the lock, from whichever thread did it."""


class Jobs:
    """The queues of all lanes and the history; every method may be called from any thread."""

    def __init__(self, lanes: Sequence[Lane]) -> None:
        self._stats = [lane.stats for lane in lanes]
        self._lock = threading.Lock()
        self._work = [threading.Condition(self._lock) for _ in lanes]
        self._lanes = [_LaneJobs() for _ in lanes]
        self._order = itertools.count()
        self._history: dict[str, tuple[int, dict[str, Any]]] = {}
        self._closed = False
        self.on_change: Changed = lambda change, jobs: None

    def __len__(self) -> int:
        return len(self._lanes)

    def submit(self, job: Job) -> None:
        """Put the job in its lane's queue, by number, then by arrival."""
        with self._lock:
            heapq.heappush(self._lanes[job.lane].waiting, (job.number, next(self._order), job))
            self._stats[job.lane].accepted(job.prompt_id, time.monotonic())
            self._work[job.lane].notify()
        self.on_change("accepted", [job])

    def preload(self, lane: int, models: list[str]) -> Outcome:
        """Let the lane's worker load these before its next job."""
        made = Ahead(models)
        with self._lock:
            if self._closed:
                made.done.set_result(Loaded(lane, error="The backend stops."))
            else:
                self._lanes[lane].ahead.append(made)
                self._work[lane].notify()
        return made.done

    def take(self, lane: int) -> Job | Free | Ahead | None:
        """Wait for the lane's next work; ``None`` once ``close`` was called. For the lane's worker alone."""
        mine = self._lanes[lane]
        with self._lock:
            self._work[lane].wait_for(lambda: self._closed or mine.free or mine.ahead or mine.waiting)
            if self._closed:
                return None
            if mine.free:
                free, mine.free = mine.free, None
                return free
            if mine.ahead:
                return mine.ahead.pop(0)
            job = mine.running = heapq.heappop(mine.waiting)[2]
            self._stats[lane].started(job.prompt_id, time.monotonic())
        self.on_change("started", [job])
        return job

    def finish(self, job: Job, outcome: Ending, record: dict[str, Any]) -> None:
        """The job's end: it leaves the lane and enters the history in one step."""
        with self._lock:
            self._history.pop(job.prompt_id, None)
            self._history[job.prompt_id] = (job.lane, {"prompt": job.item(), **record})
            if len(self._history) > MAX_HISTORY:
                del self._history[next(iter(self._history))]
            if self._lanes[job.lane].running is job:
                self._lanes[job.lane].running = None
            self._stats[job.lane].finished(job.prompt_id, outcome, time.monotonic())

    def finished(self, job: Job) -> None:
        """Tell of the end; apart from ``finish``, so that the job's own last event can go first."""
        self.on_change("ended", [job])

    def close(self) -> None:
        """Give no more work out; stops what runs."""
        with self._lock:
            self._closed = True
            for condition, mine in zip(self._work, self._lanes, strict=True):
                if mine.running:
                    mine.running.stop.set()
                for ahead in mine.ahead:
                    ahead.done.set_result(Loaded(self._lanes.index(mine), error="The backend stops."))
                mine.ahead.clear()
                condition.notify_all()

    def view(self, lane: int | None) -> tuple[list[Job], list[Job]]:
        """Running and waiting jobs of the lane, or of all; waiting in the order they will start."""
        with self._lock:
            chosen = self._of(lane)
            running = [mine.running for mine in chosen if mine.running]
            waiting = sorted(itertools.chain.from_iterable(mine.waiting for mine in chosen))
        return running, [job for _, _, job in waiting]

    def remaining(self, lane: int | None) -> int:
        """Jobs waiting and running there."""
        with self._lock:
            return sum(len(mine.waiting) + (mine.running is not None) for mine in self._of(lane))

    def running(self, lane: int | None) -> list[Job]:
        """What the lane, or every lane, is at."""
        return self.view(lane)[0]

    def clear(self, lane: int | None) -> None:
        """Take every waiting job out."""
        self._drop(lane, lambda job: True)

    def delete(self, lane: int | None, prompt_ids: Iterable[str]) -> None:
        """Take these waiting jobs out; ids that do not wait there are passed over."""
        wanted = set(prompt_ids)
        self._drop(lane, lambda job: job.prompt_id in wanted)

    def _drop(self, lane: int | None, which: Callable[[Job], bool]) -> None:
        for index in range(len(self._lanes)) if lane is None else [lane]:
            with self._lock:
                mine = self._lanes[index]
                gone = [job for _, _, job in mine.waiting if which(job)]
                mine.waiting = [entry for entry in mine.waiting if not which(entry[2])]
                heapq.heapify(mine.waiting)
                for job in gone:
                    self._stats[index].finished(job.prompt_id, "deleted", time.monotonic())
            if gone:
                self.on_change("ended", gone)

    def interrupt(self, lane: int | None, prompt_id: str | None) -> int:
        """Stop what runs: with an id that job wherever it runs, without one the lane's, or every lane's.

        Returns how many were told to stop. A job that is not running at this moment is not touched.
        """
        with self._lock:
            told = 0
            for mine in self._of(None if prompt_id is not None else lane):
                if mine.running and prompt_id in {None, mine.running.prompt_id}:
                    mine.running.stop.set()
                    told += 1
            return told

    def free(self, lane: int | None, *, models: bool, outputs: bool) -> None:
        """Ask the lane's worker, or all, to give memory back after its job; ``outputs`` includes ``models``."""
        with self._lock:
            for index in range(len(self._lanes)) if lane is None else [lane]:
                asked = self._lanes[index].free or Free()
                self._lanes[index].free = Free(asked.models or models or outputs, asked.outputs or outputs)
                self._work[index].notify()

    def history(self, max_items: int | None = None, offset: int = -1) -> dict[str, Any]:
        """The history, oldest first; ``max_items`` alone gives the newest (ComfyUI ``get_history``)."""
        with self._lock:
            ids = list(self._history)
            if max_items is not None and offset < 0:
                offset = max(len(ids) - max_items, 0)
            start = max(offset, 0)
            chosen = ids[start:] if max_items is None else ids[start : start + max_items]
            return {prompt_id: self._history[prompt_id][1] for prompt_id in chosen}

    def history_of(self, prompt_id: str) -> dict[str, Any]:
        """That job's entry under its id, or nothing."""
        with self._lock:
            found = self._history.get(prompt_id)
        return {} if found is None else {prompt_id: found[1]}

    def forget(self, lane: int | None, prompt_ids: Iterable[str] | None = None) -> None:
        """Remove the lane's entries, or everyone's, from the history: these ids, or all."""
        with self._lock:
            chosen = list(self._history) if prompt_ids is None else list(prompt_ids)
            for prompt_id in chosen:
                if prompt_id in self._history and lane in {None, self._history[prompt_id][0]}:
                    del self._history[prompt_id]

    def _of(self, lane: int | None) -> list[_LaneJobs]:
        return self._lanes if lane is None else [self._lanes[lane]]
