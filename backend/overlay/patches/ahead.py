"""``PromptExecutor`` at the end of a preload: what its nodes loaded goes to the lane's device and stays in host memory.

Owns that. A model is found among the kept outputs by what ComfyUI's own code asks of it: a patcher, or an object that
has one.
"""

import functools
import importlib
from collections.abc import Callable, Iterator
from typing import Any, Final

from backend.context import current_lane
from backend.overlay.patch import Patch, params
from backend.overlay.state import State

DEEPEST: Final = 6
_PLAIN: Final = (str, bytes, int, float, bool, type(None))


def patches(state: State) -> list[Patch]:
    """One more layer around the executor."""
    return [
        Patch(
            "execution:PromptExecutor.execute",
            functools.partial(_execute, state),
            "models that were loaded ahead of any job go to the device at once",
            shape=params("self", "prompt", "prompt_id", "extra_data", "execute_outputs"),
        ),
    ]


def _execute(state: State, original: Callable[..., None]) -> Callable[..., None]:
    @functools.wraps(original)
    def execute(self: Any, prompt: Any, prompt_id: str, extra_data: Any = None, execute_outputs: Any = ()) -> None:
        original(self, prompt, prompt_id, {} if extra_data is None else extra_data, execute_outputs)
        lane = current_lane()
        ahead = state.queues.shared.ahead
        if lane is None or prompt_id not in ahead or not self.success:
            return
        values = list(leaves(getattr(self.caches.outputs, "cache", {})))
        try:
            _place(state, lane, values)
        except Exception as error:  # noqa: BLE001 (memory, mostly: it is the answer to whoever asked)
            ahead.found(prompt_id, 0, f"{type(error).__name__}: {error}")
        else:
            ahead.found(prompt_id, len(values))

    return execute


def leaves(value: Any, depth: int = DEEPEST) -> Iterator[Any]:
    """Every object in what a cache keeps, once, plain values left out."""
    seen: set[int] = set()

    def walk(found: Any, left: int) -> Iterator[Any]:
        if isinstance(found, _PLAIN) or left == 0:
            return
        if isinstance(found, dict):
            found = list(found.values())
        if isinstance(found, (list, tuple)):
            for each in found:
                yield from walk(each, left - 1)
        elif id(found) not in seen:
            seen.add(id(found))
            yield found

    yield from walk(value, depth)


def patchers(value: Any) -> Iterator[Any]:
    """The model patchers behind one output: itself, a text encoder's or VAE's, or those of a ControlNet."""
    if hasattr(value, "model_patches_models") and hasattr(value, "load_device"):
        yield value
    elif (inner := getattr(value, "patcher", None)) is not None:
        yield inner
    elif callable(models := getattr(value, "get_models", None)):
        yield from models()


def _place(state: State, lane: int, values: list[Any]) -> None:
    import torch  # noqa: PLC0415 (ComfyUI loads it first)

    from backend.overlay.weights import modules  # noqa: PLC0415 (needs torch)

    found = [patcher for value in values for patcher in patchers(value)]
    files = {
        id(file): file
        for patcher in found if isinstance(getattr(patcher, "model", None), torch.nn.Module)
        for _, kept in modules.remembering(patcher.model)
        for each in kept.values()
        for file in each.holding.files
    }
    state.lanes[lane].weights.kept.extend(files.values())
    if found:
        with torch.inference_mode():
            importlib.import_module("comfy.model_management").load_models_gpu(found)
