"""One thread per lane that runs ComfyUI's own worker loop for that lane's queue, and never dies.

Owns the threads, their device and context, and what becomes of a job whose loop broke. The loop itself, with all
that differs between versions, is ComfyUI's ``main.prompt_worker``.
"""

import contextlib
import functools
import logging
import threading
import time
import traceback
from collections.abc import Callable
from typing import Any, Final

from backend.context import in_lane
from backend.faults import device_unusable, worker_ended
from backend.lanes import Lane
from backend.overlay.items import ID, client_of, readable
from backend.overlay.patch import Patch, params
from backend.overlay.queues import LaneQueue, RebuildExecutor
from backend.overlay.state import State

log = logging.getLogger("backend.overlay.workers")

PAUSE: Final = 1.0
"""Seconds before a loop that broke without a job is started again."""


def patches(state: State) -> list[Patch]:
    """``main.prompt_worker``: started once by ComfyUI, it becomes one worker per lane."""
    return [
        Patch(
            "main:prompt_worker",
            functools.partial(_start_all, state),
            "one worker per GPU, each with its own executor and caches; an exception ends the job, not the worker",
            shape=params(*state.version.prompt_worker),
        ),
    ]


def _start_all(state: State, original: Callable[..., None]) -> Callable[..., None]:
    @functools.wraps(original)
    def prompt_worker(q: Any, server_instance: Any, *rest: Any) -> None:
        for lane in state.lanes:
            loop = functools.partial(original, state.queues.lanes[lane.index], server_instance, *rest)
            worker = functools.partial(_lane, state, lane, loop)
            try:
                threading.Thread(target=worker, name=f"lane-{lane.index}", daemon=True).start()
            except RuntimeError as error:
                state.fault(lane.index, worker_ended(f"it could not be started: {error}"))

    return prompt_worker


def _lane(state: State, lane: Lane, loop: Callable[[], None]) -> None:
    try:
        with in_lane(lane.index):
            _work(state, lane, loop)
    except BaseException as error:  # noqa: BLE001 (told where it is seen: a lane without its worker runs nothing)
        state.fault(lane.index, worker_ended(type(error).__name__))
        with contextlib.suppress(BaseException):  # the log itself may be what broke
            log.critical("[GPU %d] its worker thread ends: %s", lane.index, type(error).__name__)


def _work(state: State, lane: Lane, loop: Callable[[], None]) -> None:
    try:
        warm_up(lane.device, state.threads)
    except Exception:
        log.exception("[GPU %d] %s cannot be used", lane.index, lane.device)
        state.fault(lane.index, device_unusable(lane.device))
        return
    state.warm[lane.index].set()
    log.info("[GPU %d] worker started on %s", lane.index, lane.device)
    while True:
        try:
            guarded(state, state.queues.lanes[lane.index], loop, time.sleep)
        except BaseException as error:  # noqa: BLE001 (a lane without its worker would take jobs and run none)
            log.error("[GPU %d] a job could not be ended: %s", lane.index, type(error).__name__)  # noqa: TRY400 (the exception may not be printable)
            time.sleep(PAUSE)


def warm_up(device: str, threads: int = 0) -> None:
    """Make ``device`` the thread's own, and its context and allocator with one small product on it.

    ``threads`` is how many torch uses for one operation of this thread; 0 leaves that to torch.
    """
    import torch  # noqa: PLC0415 (ComfyUI's environment has it; loaded by then)

    if threads:
        torch.set_num_threads(threads)
    if device.startswith("cuda"):
        torch.cuda.set_device(torch.device(device))
    square = torch.ones((8, 8), device=device)
    (square @ square).sum().item()


def guarded(state: State, queue: LaneQueue, loop: Callable[[], None], sleep: Callable[[float], None]) -> None:
    """Run the worker's loop once, until it breaks; the job it was at ends with an error."""
    try:
        loop()
    except RebuildExecutor:
        log.info("[GPU %d] a new executor", queue.lane.index)
    except BaseException as error:  # noqa: BLE001 (whatever a node raises, SystemExit included, must not end the lane)
        trace = "".join(traceback.format_tb(error.__traceback__))
        log.error("[GPU %d] the worker's loop broke and starts again: %s\n%s", queue.lane.index, told(error), trace)  # noqa: TRY400 (the exception may not be printable)
        if not fail_running(state, queue, error):
            sleep(PAUSE)


def fail_running(state: State, queue: LaneQueue, error: BaseException) -> bool:
    """End what ``queue`` calls running with ``error``; false when nothing ran."""
    with queue.mutex:
        running = list(queue.currently_running.items())
    for item_id, item in running:
        prompt_id = str(item[ID])
        message = error_message(prompt_id, state.last_node_id.get(), item, error)
        messages = [*state.messages.get(), ("execution_error", message)]
        client = client_of(item)
        _tell(state, client, "execution_error", message)
        status = type(queue).ExecutionStatus("error", False, messages)  # type: ignore[attr-defined] # ComfyUI's
        try:
            queue.task_done(item_id, {}, status, **state.version.done_extra())
        except BaseException as unable:  # noqa: BLE001 (what it cannot end would count as running for ever)
            log.error("[GPU %d] job %s is ended without ComfyUI: %s", queue.lane.index, prompt_id, told(unable))  # noqa: TRY400 (the exception may not be printable)
            queue.give_up(item_id, readable(item), status)
            with contextlib.suppress(BaseException):  # perhaps this is what fails
                state.queue_changed(queue.lane.index)
        _tell(state, client, "executing", {"node": None, "prompt_id": prompt_id})
    state.last_node_id.set(None)
    return bool(running)


def _tell(state: State, client: str | None, event: str, data: dict[str, Any]) -> None:
    if client is None:
        return
    try:
        state.server.send_sync(event, data, client)
    except BaseException as error:  # noqa: BLE001 (the job ends, heard or unheard)
        log.error("%s could not be sent: %s", event, told(error))  # noqa: TRY400 (the exception may not be printable)


def told(error: BaseException) -> str:
    """The text of an exception, also of one that fails at telling it."""
    try:
        return str(error)
    except BaseException:  # noqa: BLE001 (whatever its class does, raising SystemExit included)
        return f"{type(error).__name__} (it cannot be shown)"


def error_message(prompt_id: str, node: Any, item: tuple[Any, ...], error: BaseException) -> dict[str, Any]:
    """The ``execution_error`` of a job whose executor broke, in ComfyUI's shape."""
    entry = item[2].get(node) if isinstance(item[2], dict) else None
    kind = type(error)
    module = "" if kind.__module__ == "builtins" else f"{kind.__module__}."
    return {
        "prompt_id": prompt_id,
        "node_id": node,
        "node_type": entry.get("class_type") if isinstance(entry, dict) else None,
        "executed": [],
        "exception_message": f"{told(error)}\n",
        "exception_type": f"{module}{kind.__qualname__}",
        "traceback": traceback.format_tb(error.__traceback__),
        "current_inputs": {},
        "current_outputs": [],
        "timestamp": int(time.time() * 1000),
    }
