"""The registry of nodes' progress: one per lane instead of one per process.

Owns where the registries are kept. With one, every lane writes into that of the job started last, and a look at it
while another lane changes it kills the worker. Also whose node call a thread still belongs to.
"""

import functools
import importlib
from collections.abc import Callable
from typing import Any

from backend.context import PerLane, in_sight, outlived
from backend.overlay.patch import Patch, params
from backend.overlay.patches.modules import with_property
from backend.overlay.state import State

MODULE = "comfy_execution.progress"


def patches(state: State) -> list[Patch]:
    """``add_progress_handler`` uses the first, and needs no patch of its own."""
    registries: PerLane[Any] = PerLane(lambda: None)
    return [
        Patch(
            f"{MODULE}:get_progress_state",
            lambda _: _get(registries),
            "each lane has its own registry of nodes' progress",
            shape=params(),
        ),
        Patch(
            f"{MODULE}:reset_progress_state",
            lambda _: _reset(registries),
            "a job that starts replaces its own lane's registry only",
            shape=params("prompt_id", "dynprompt"),
        ),
        Patch(
            f"{MODULE}:__class__",
            with_property("global_progress_registry", lambda: registries.of(in_sight()[0]), registries.set),
            "code that reads the registry as a variable sees its lane's",
            required=False,
            rebind=False,
        ),
        Patch(
            "comfy_execution.utils:get_executing_context",
            _executing,
            "a thread that outlives its job would label another job's progress with the first one's node",
        ),
    ]


def _registry(prompt_id: str, dynprompt: Any) -> Any:
    return importlib.import_module(MODULE).ProgressRegistry(prompt_id, dynprompt)


def _reset(registries: PerLane[Any]) -> Callable[[str, Any], None]:
    def reset_progress_state(prompt_id: str, dynprompt: Any) -> None:
        before = registries.get()
        if before is not None:
            before.reset_handlers()
        registries.set(_registry(prompt_id, dynprompt))

    return reset_progress_state


def _get(registries: PerLane[Any]) -> Callable[[], Any]:
    def get_progress_state() -> Any:
        lane, _ = in_sight()
        found = registries.of(lane)
        if found is None:
            found = _registry("", importlib.import_module("comfy_execution.graph").DynamicPrompt({}))
            registries.put(lane, found)
        return found

    return get_progress_state


def _executing(original: Callable[[], Any]) -> Callable[[], Any]:
    """Without a node call of its own a thread is, to ComfyUI, one of the job and node its lane is at."""

    @functools.wraps(original)
    def get_executing_context() -> Any:
        return None if outlived() else original()

    return get_executing_context
