"""What a lane is to both bodies: its counters, and what to do when its device runs out of memory or breaks.

Pure but for one lock per ``LaneStats``: time comes in as a parameter (seconds of one monotonic clock).
Knows nothing of queues' contents, torch, ComfyUI or Prometheus.
"""

import enum
import threading
from collections import deque
from dataclasses import dataclass, field
from typing import Final, Literal

from backend.faults import Fault
from backend.histogram import Histogram, HistogramView
from backend.holdings import Holdings
from backend.issuing import Issuing

Outcome = Literal["success", "error", "interrupted", "deleted"]
OUTCOMES: Final[tuple[Outcome, ...]] = ("success", "error", "interrupted", "deleted")

WAIT_BOUNDS: Final = (0.01, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 600.0, 1800.0)
EXECUTION_BOUNDS: Final = (0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 20.0, 30.0, 60.0, 120.0, 300.0, 600.0, 1800.0)
MAX_NODE_CLASSES: Final = 500
"""Class names come from clients' prompts and custom nodes; beyond this many they count as ``OTHER_CLASS``."""
OTHER_CLASS: Final = "other"
REPORT_EVERY_JOBS: Final = 10
REPORT_EVERY_SECONDS: Final = 60.0


@dataclass(frozen=True)
class LaneSnapshot:
    """One consistent look at a lane's counters."""

    pending: int
    running: int
    outcomes: dict[Outcome, int]
    wait: HistogramView
    execution: HistogramView
    oom_recovered: int
    oom_failed: int
    nodes: dict[str, tuple[int, float]]
    """Per node class: executions and their seconds."""
    cache_hits: int
    model_loads: int
    model_unloads: int
    fault: Fault | None


class LaneStats:
    """Thread-safe counters of one lane; every method may be called from any thread.

    A job goes accepted → started → finished, or accepted → finished("deleted"). The same ``prompt_id`` may be
    on its way more than once (ComfyUI takes it so): each acceptance is one job.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._accepted: dict[str, deque[float]] = {}
        self._started: dict[str, deque[float]] = {}
        self._outcomes: dict[Outcome, int] = dict.fromkeys(OUTCOMES, 0)
        self._wait = Histogram(WAIT_BOUNDS)
        self._execution = Histogram(EXECUTION_BOUNDS)
        self._oom = {True: 0, False: 0}
        self._nodes: dict[str, tuple[int, float]] = {}
        self._cache_hits = 0
        self._model_loads = 0
        self._model_unloads = 0
        self._fault: Fault | None = None
        self._reported_jobs = 0
        self._reported_at: float | None = None

    def accepted(self, prompt_id: str, now: float) -> None:
        """The job stands in the lane's queue."""
        with self._lock:
            self._accepted.setdefault(prompt_id, deque()).append(now)

    def started(self, prompt_id: str, now: float) -> None:
        """The lane's worker took the job; its wait was since acceptance."""
        with self._lock:
            since = _take(self._accepted, prompt_id)
            self._wait.observe(0.0 if since is None else now - since)
            self._started.setdefault(prompt_id, deque()).append(now)

    def finished(self, prompt_id: str, outcome: Outcome, now: float) -> None:
        """The job is over; ``deleted`` is for jobs that were taken out of the queue before they started."""
        with self._lock:
            self._outcomes[outcome] += 1
            if outcome == "deleted":
                _take(self._accepted, prompt_id)
                return
            since = _take(self._started, prompt_id)
            if since is not None:
                self._execution.observe(now - since)

    def oom(self, recovered: bool) -> None:
        """One job met an out-of-memory error; ``recovered`` when its retry went through."""
        with self._lock:
            self._oom[recovered] += 1

    def node_executed(self, class_type: str, seconds: float) -> None:
        """One node ran for ``seconds``."""
        with self._lock:
            if class_type not in self._nodes and len(self._nodes) >= MAX_NODE_CLASSES:
                class_type = OTHER_CLASS
            count, total = self._nodes.get(class_type, (0, 0.0))
            self._nodes[class_type] = (count + 1, total + max(seconds, 0.0))

    def cache_hit(self, nodes: int = 1) -> None:
        """``nodes`` nodes of a job did not have to run."""
        with self._lock:
            self._cache_hits += nodes

    def model_loaded(self) -> None:
        with self._lock:
            self._model_loads += 1

    def model_unloaded(self) -> None:
        with self._lock:
            self._model_unloads += 1

    def fault(self, fault: Fault) -> None:
        """The lane can work no more; the first reason stands."""
        with self._lock:
            self._fault = self._fault or fault

    @property
    def broken(self) -> Fault | None:
        """Why the lane can work no more, if it cannot."""
        return self._fault

    def snapshot(self) -> LaneSnapshot:
        with self._lock:
            return LaneSnapshot(
                pending=sum(map(len, self._accepted.values())),
                running=sum(map(len, self._started.values())),
                outcomes=dict(self._outcomes),
                wait=self._wait.view(),
                execution=self._execution.view(),
                oom_recovered=self._oom[True],
                oom_failed=self._oom[False],
                nodes=dict(self._nodes),
                cache_hits=self._cache_hits,
                model_loads=self._model_loads,
                model_unloads=self._model_unloads,
                fault=self._fault,
            )

    def report_due(self, now: float) -> bool:
        """True once for every ten jobs or minute in which a job ended; the caller then logs ``Lane.line()``."""
        with self._lock:
            jobs = self._outcomes["success"] + self._outcomes["error"] + self._outcomes["interrupted"]
            if self._reported_at is None:
                self._reported_at = now
            new = jobs - self._reported_jobs
            if new >= REPORT_EVERY_JOBS or (new and now - self._reported_at >= REPORT_EVERY_SECONDS):
                self._reported_jobs, self._reported_at = jobs, now
                return True
            return False


def _take(times: dict[str, deque[float]], prompt_id: str) -> float | None:
    waiting = times.get(prompt_id)
    if not waiting:
        return None
    first = waiting.popleft()
    if not waiting:
        del times[prompt_id]
    return first


@dataclass(frozen=True)
class Lane:
    """One GPU's place in the backend: its index (``gpu_id`` on the wire), device, counters, model calls, weights."""

    index: int
    device: str
    stats: LaneStats = field(default_factory=LaneStats)
    issuing: Issuing = field(default_factory=Issuing)
    weights: Holdings = field(default_factory=Holdings)

    def line(self) -> str:
        """The lane's counters since start on one log line; wait is from acceptance to start."""
        now = self.stats.snapshot()
        done = now.outcomes["success"] + now.outcomes["error"]
        success = 100.0 * now.outcomes["success"] / done if done else 100.0
        wait = 1000.0 * now.wait.total / max(now.wait.count, 1)
        execution = 1000.0 * now.execution.total / max(now.execution.count, 1)
        return (
            f"[GPU {self.index}] tasks={done + now.outcomes['interrupted']}, success={success:.1f}%, "
            f"queue={now.pending}, wait={wait:.0f}ms, exec={execution:.0f}ms, "
            f"oom={now.oom_recovered + now.oom_failed}"
        )


class Failure(enum.Enum):
    """What kind of failure an exception means for the device."""

    OOM = "oom"
    FAULT = "fault"
    OTHER = "other"


_OOM_TEXTS: Final = (
    "out of memory",
    "can't allocate memory",
    "cublas_status_alloc_failed",
    "cudnn_status_alloc_failed",
    "not enough memory",
)
# Errors after which CUDA refuses every further call of the process. Others ("no kernel image", "invalid
# configuration argument") leave the device usable.
_FAULT_TEXTS: Final = (
    "illegal memory access",
    "illegal address",
    "illegal instruction",
    "misaligned address",
    "invalid program counter",
    "invalid address space",
    "device-side assert",
    "unspecified launch failure",
    "launch timed out",
    "uncorrectable ecc",
    "hardware stack error",
    "gpu is lost",
    "fallen off the bus",
    "cuda error: unknown error",
)


def classify_text(exception_type: str, message: str) -> Failure:
    """Judge an exception by its full type name and text, as ComfyUI's error messages carry them."""
    text = message.lower()
    # Memory first: "CUDA error: out of memory" names CUDA but leaves the device usable.
    if exception_type.rpartition(".")[2] in {"OutOfMemoryError", "MemoryError"}:
        return Failure.OOM
    if any(mark in text for mark in _OOM_TEXTS):
        return Failure.OOM
    if ("cuda" in text or "hip" in text or "accelerator" in exception_type.lower() or "nvml" in text) and any(
        mark in text for mark in _FAULT_TEXTS
    ):
        return Failure.FAULT
    return Failure.OTHER


def classify(error: BaseException) -> Failure:
    """Judge an exception; subclasses of an out-of-memory error count as one."""
    names = [kind.__name__ for kind in type(error).__mro__]
    for name in names:
        if name in {"OutOfMemoryError", "MemoryError"}:
            return Failure.OOM
    return classify_text(type(error).__name__, str(error))


class Step(enum.Enum):
    """What the lane's worker does next after a job failed."""

    RETRY = "retry"
    """Free this lane's memory (no other lane's) and run the job again."""
    FAIL = "fail"
    """End the job with its error."""
    REBUILD = "rebuild"
    """End the job with its error and make a new executor for this lane."""
    FAULT = "fault"
    """End the job, take no more on this lane, and leave with ``EXIT_DEVICE_FAULT``."""


class OomLadder:
    """Decides after each failure of one lane's jobs; used by that lane's worker alone."""

    REBUILD_AFTER: Final = 3

    def __init__(self) -> None:
        self._retried: str | None = None
        self._failed_in_a_row = 0

    def failed(self, prompt_id: str, failure: Failure) -> Step:
        """The attempt at ``prompt_id`` failed so; a lane runs one job at a time, so one memory is enough."""
        if failure is Failure.FAULT:
            self._retried = None
            return Step.FAULT
        if failure is Failure.OOM and self._retried != prompt_id:
            self._retried = prompt_id
            return Step.RETRY
        self._retried = None
        self._failed_in_a_row += 1
        if self._failed_in_a_row >= self.REBUILD_AFTER:
            self._failed_in_a_row = 0
            return Step.REBUILD
        return Step.FAIL

    def succeeded(self, prompt_id: str) -> bool:
        """The job went through; true when that was its retry."""
        recovered = self._retried == prompt_id
        self._retried = None
        self._failed_in_a_row = 0
        return recovered

    def interrupted(self) -> None:
        """The job was stopped by a client: neither a success nor a failure of the lane."""
        self._retried = None
