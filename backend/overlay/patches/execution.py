"""``PromptExecutor``: one job is tried again after an out-of-memory error; nodes and cache hits are counted.

Owns where these hook in. What runs a job, and in what order, stays ComfyUI's.
"""

import functools
import gc
import importlib
import time
from collections.abc import Callable
from typing import Any

from backend.context import PerLane, current_job, current_lane
from backend.faults import device_broken
from backend.overlay.oom import Attempts
from backend.overlay.patch import Patch, params, params_start
from backend.overlay.state import State


def patches(state: State) -> list[Patch]:
    """The executor's patches."""
    attempts = {lane.index: _attempts(state, lane.index) for lane in state.lanes}
    return [
        Patch(
            "execution:PromptExecutor.execute",
            functools.partial(_execute, state, attempts),
            "a job that ran out of memory is tried once more; packs named in the configuration run one at a time",
            shape=params("self", "prompt", "prompt_id", "extra_data", "execute_outputs"),
        ),
        Patch(
            "execution:PromptExecutor.handle_execution_error",
            functools.partial(_handle_error, attempts),
            "the failure of a try that is repeated reaches neither client nor history",
            shape=params("self", "prompt_id", "prompt", "current_outputs", "executed", "error", "ex"),
        ),
        Patch(
            "execution:PromptExecutor.add_message",
            functools.partial(_add_message, state),
            "counts nodes whose output was kept; keeps the messages of a job whose executor breaks",
            shape=params("self", "event", "data", "broadcast"),
        ),
        Patch(
            "execution:execute",
            functools.partial(_execute_node, state),
            "seconds by node class",
            shape=params_start(*state.version.execute_node),
            required=False,
        ),
    ]


def _attempts(state: State, lane: int) -> Attempts:
    def rebuild() -> None:
        state.queues.lanes[lane].rebuild = True

    return Attempts(
        state.lanes[lane], state.ladders[lane], functools.partial(_free_memory, state, lane), rebuild,
        lambda: state.fault(lane, device_broken(state.lanes[lane].device)),
    )


def _free_memory(state: State, lane: int) -> None:
    """Free what the current lane holds on its device; the other lanes' models stay."""
    mm = importlib.import_module("comfy.model_management")
    state.interrupts.again(lane)
    mm.unload_all_models()
    mm.cleanup_models_gc()
    gc.collect()
    mm.soft_empty_cache(True)


def _execute(state: State, attempts: dict[int, Attempts], original: Callable[..., None]) -> Callable[..., None]:
    @functools.wraps(original)
    def execute(self: Any, prompt: Any, prompt_id: str, extra_data: Any = None, execute_outputs: Any = ()) -> None:
        def attempt() -> None:
            original(self, prompt, prompt_id, {} if extra_data is None else extra_data, execute_outputs)

        lane = current_lane()
        if lane is None:
            attempt()
            return
        state.messages.set([])
        packs = state.packs.used(prompt, importlib.import_module("nodes").NODE_CLASS_MAPPINGS)
        with state.packs.one_at_a_time(packs, state.interrupts.hit):
            attempts[lane].run(prompt_id, attempt, lambda: bool(self.success))

    return execute


def _handle_error(attempts: dict[int, Attempts], original: Callable[..., None]) -> Callable[..., None]:
    @functools.wraps(original)
    def handle_execution_error(
        self: Any, prompt_id: str, prompt: Any, current_outputs: Any, executed: Any, error: Any, ex: Any
    ) -> None:
        lane = current_lane()
        if lane is not None and current_job() == prompt_id and attempts[lane].failed(prompt_id, ex):
            return
        original(self, prompt_id, prompt, current_outputs, executed, error, ex)

    return handle_execution_error


def _add_message(state: State, original: Callable[..., None]) -> Callable[..., None]:
    @functools.wraps(original)
    def add_message(self: Any, event: str, data: dict[str, Any], broadcast: bool) -> None:
        lane = current_lane()
        if lane is not None:
            if event == "execution_start":
                state.messages.set([])
            state.messages.get().append((event, {**data, "timestamp": int(time.time() * 1000)}))
            if event == "execution_cached":
                state.lanes[lane].stats.cache_hit(len(data.get("nodes", ())))
        original(self, event, data, broadcast)

    return add_message


def _execute_node(state: State, original: Callable[..., Any]) -> Callable[..., Any]:
    so_far: PerLane[dict[tuple[str, str], float]] = PerLane(dict)

    @functools.wraps(original)
    async def execute(
        server: Any, dynprompt: Any, caches: Any, current_item: str, extra_data: Any, executed: Any, prompt_id: str,
        *rest: Any, **named: Any,
    ) -> Any:
        began = time.monotonic()
        result = await original(
            server, dynprompt, caches, current_item, extra_data, executed, prompt_id, *rest, **named
        )
        lane = current_lane()
        if lane is None:
            return result
        held = so_far.get()
        seconds = time.monotonic() - began + held.pop((prompt_id, current_item), 0.0)
        if how(result) == "PENDING":
            # It waits for lazy inputs, its own expansion or an await, and is called again: one execution in the end.
            held[prompt_id, current_item] = seconds
            return result
        if how(result) == "FAILURE":
            held.clear()  # what waited is not called again
        state.lanes[lane].stats.node_executed(str(dynprompt.get_node(current_item).get("class_type")), seconds)
        return result

    return execute


def how(result: Any) -> str:
    """How ComfyUI says a node call ended: ``SUCCESS``, ``FAILURE`` or ``PENDING``."""
    return str(getattr(result[0], "name", "")) if isinstance(result, tuple) and result else ""
