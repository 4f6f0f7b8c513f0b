"""One lane's thread: takes its jobs one by one, runs each to an end, gives memory back when asked or needed.

Owns the promise that every job ends and that the thread lives on, whatever a node raises. Knows no socket.
"""

import logging
import threading
import time
from collections.abc import Callable
from typing import Any

import torch

from backend import context
from backend.embedded.executor import Attempt, Events, Executor, Failure
from backend.embedded.jobs import Ahead, Free, Job, Jobs
from backend.embedded.store import ModelStore
from backend.faults import device_broken, worker_ended
from backend.holdings import Weights
from backend.lanes import Failure as Kind
from backend.lanes import Lane, OomLadder, Outcome, Step, classify
from backend.preload import Loaded

log = logging.getLogger("backend.embedded.worker")


class Worker:
    """The thread of one lane. ``on_fault`` is called once, from it, when its device broke or it ends unasked."""

    def __init__(
        self, lane: Lane, jobs: Jobs, models: ModelStore, make_executor: Callable[[], Executor], events: Events,
        on_fault: Callable[[Lane], None],
    ) -> None:  # fmt: skip
        self.lane = lane
        self.refused: str | None = None
        """Why the lane cannot work, when its warm-up failed."""
        self._jobs = jobs
        self._models = models
        self._make_executor = make_executor
        self._executor = make_executor()
        self._events = events
        self._on_fault = on_fault
        self._ladder = OomLadder()
        self._warm_up: Job | None = None
        self._ready: Callable[[], None] = lambda: None
        self._thread = threading.Thread(target=self._main, name=f"lane-{lane.index}", daemon=True)

    def start(self, warm_up: Job | None, ready: Callable[[], None]) -> None:
        """Start the thread; it calls ``ready`` when the device is warm and ``warm_up`` has run, or failed."""
        self._warm_up = warm_up
        self._ready = ready
        self._thread.start()

    def abandon_warm_up(self) -> None:
        """Stop a warm-up workflow that still runs."""
        if self._warm_up is not None:
            self._warm_up.stop.set()

    def join(self, timeout: float) -> bool:
        """Wait for the thread's end, if it was ever started; whether it came."""
        if self._thread.ident is None:
            return True
        self._thread.join(timeout)
        return not self._thread.is_alive()

    def _main(self) -> None:
        with context.in_lane(self.lane.index):
            try:
                self._warm()
            except Exception as error:  # noqa: BLE001 (reported by whoever waits for ready)
                self.refused = f"lane {self.lane.index} on {self.lane.device}: {error}"
            self._ready()
            if self.refused is None:
                self._live()

    def _live(self) -> None:
        try:
            self._work()
        except BaseException as error:  # noqa: BLE001 (told where it is seen: a lane without its worker runs nothing)
            self.lane.stats.fault(worker_ended(type(error).__name__))
        if self.lane.stats.broken is not None:
            self._on_fault(self.lane)

    def _warm(self) -> None:
        # One thread per lane: the sums' order, and so the bytes of a picture, never depend on how many lanes run.
        torch.set_num_threads(1)
        device = self._models.device
        if device.type == "cuda":
            torch.cuda.set_device(device)
        square = torch.ones((64, 64), device=device)
        torch.nn.functional.conv2d((square @ square)[None, None], torch.ones((1, 1, 3, 3), device=device))
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        if self._warm_up is not None:
            failure = self._executor.run(self._warm_up, _Silence()).failure
            if failure is not None:
                raise RuntimeError(f"warm-up workflow: {failure.error}")
            self._executor.forget()

    def _work(self) -> None:
        while (work := self._jobs.take(self.lane.index)) is not None:
            try:
                if self._do(work) is Step.FAULT:
                    return
            except Exception:
                log.exception("lane %d: %s could not be ended", self.lane.index, type(work).__name__)
            if self.lane.stats.report_due(time.monotonic()):
                log.info("%s", self.lane.line())

    def _do(self, work: Job | Free | Ahead) -> Step | None:
        if isinstance(work, Free):
            self._free(work)
            return None
        if isinstance(work, Ahead):
            self._preload(work)
            return None
        with context.in_job(work.prompt_id):
            return self._job(work)

    def _free(self, work: Free) -> None:
        if work.outputs:
            self._executor.forget()
        self._models.unload()

    def _preload(self, work: Ahead) -> None:
        began, loaded, error = time.monotonic(), 0, None
        try:
            for name in work.models:
                self._models.get(name)
                loaded += 1
        except Exception as failure:  # noqa: BLE001 (it is the answer to whoever asked)
            error = f"{type(failure).__name__}: {failure}"
        self.lane.weights.preloaded(loaded)
        work.done.set_result(Loaded(self.lane.index, loaded, time.monotonic() - began, error))

    def _job(self, job: Job) -> Step | None:
        """Run the job to its end; the step the ladder took last, if it failed."""
        messages = _Messages(job, self._events)
        attempt = Attempt()
        before = self.lane.weights.now()
        step: Step | None = None
        try:
            messages.add("execution_start", {})
            attempt, step = self._attempts(job, messages)
        except BaseException as error:
            log.exception("lane %d: unexpected", self.lane.index)
            attempt.failure = Failure(None, error.with_traceback(None), [], {})
        finally:
            self._end(job, attempt, messages, before)
        if step is Step.REBUILD:
            log.warning("lane %d: three jobs failed in a row, new executor", self.lane.index)
            self._models.unload()
            self._executor = self._make_executor()
        return step

    def _attempts(self, job: Job, messages: "_Messages") -> tuple[Attempt, Step | None]:
        attempt = self._executor.run(job, self._events, 0, messages.cached)
        step = self._judge(job, attempt)
        if step is not Step.RETRY:
            return attempt, step
        log.warning("lane %d: out of memory in %s: memory freed, trying again", self.lane.index, job.prompt_id)
        self._models.unload()
        self._executor.forget(for_retry=True)
        attempt = self._executor.run(job, self._events, 1)
        step = self._judge(job, attempt)
        self.lane.stats.oom(recovered=attempt.failure is None)
        return attempt, step

    def _judge(self, job: Job, attempt: Attempt) -> Step | None:
        failure = attempt.failure
        if failure is None:
            self._ladder.succeeded(job.prompt_id)
            return None
        if failure.interrupted:
            self._ladder.interrupted()
            return None
        kind = classify(failure.error)
        step = self._ladder.failed(job.prompt_id, kind)
        if kind is Kind.FAULT:
            log.error("lane %d: the device %s is broken: %s", self.lane.index, self.lane.device, failure.error)
            self.lane.stats.fault(device_broken(self.lane.device))
        return step

    def _end(self, job: Job, attempt: Attempt, messages: "_Messages", before: Weights) -> None:
        outcome, event, data = _ending(job, attempt)
        last = messages.keep(event, data)
        record = {
            "outputs": attempt.outputs,
            "status": {
                "status_str": "success" if outcome == "success" else "error",
                "completed": outcome == "success",
                "messages": messages.kept,
            },
            "meta": attempt.meta,
            "weights": self.lane.weights.now().since(before).shown(),
        }
        # History first: whoever hears the last event finds the job there.
        self._jobs.finish(job, outcome, record)
        self._events.send(job, event, last)
        self._jobs.finished(job)
        self._events.send(job, "executing", {"node": None, "prompt_id": job.prompt_id})


def _ending(job: Job, attempt: Attempt) -> tuple[Outcome, str, dict[str, Any]]:
    failure = attempt.failure
    if failure is None:
        return "success", "execution_success", {}
    node = job.prompt.get(failure.node_id or "", {})
    where = {"node_id": failure.node_id, "node_type": node.get("class_type"), "executed": attempt.executed}
    if failure.interrupted:
        return "interrupted", "execution_interrupted", where
    kind = type(failure.error)
    name = kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"
    return "error", "execution_error", {
        **where,
        "exception_message": f"{failure.error}\n",
        "exception_type": name,
        "traceback": failure.trace,
        "current_inputs": failure.inputs,
        "current_outputs": attempt.kept + attempt.executed,
    }


class _Messages:
    """The job's own events as the history keeps them, with their time in milliseconds."""

    def __init__(self, job: Job, events: Events) -> None:
        self._job = job
        self._events = events
        self.kept: list[tuple[str, dict[str, Any]]] = []

    def keep(self, event: str, data: dict[str, Any]) -> dict[str, Any]:
        full = {"prompt_id": self._job.prompt_id, **data, "timestamp": int(time.time() * 1000)}
        self.kept.append((event, full))
        return full

    def add(self, event: str, data: dict[str, Any]) -> None:
        self._events.send(self._job, event, self.keep(event, data))

    def cached(self, nodes: list[str]) -> None:
        self.add("execution_cached", {"nodes": nodes})


class _Silence:
    """Nobody listens to a warm-up."""

    def send(self, job: Job, event: str, data: dict[str, Any]) -> None:
        pass

    def preview(self, job: Job, image: object, metadata: dict[str, Any]) -> None:
        pass
