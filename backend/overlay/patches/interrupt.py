"""ComfyUI's interrupt: a flag per process becomes the ``prompt_id`` it is aimed at, per lane.

Owns the functions' behaviour; the flags are in ``backend.overlay.interrupts``. ``nodes.interrupt_processing`` and
``nodes.before_node_execution`` call these through their module and need no patch.
"""

import importlib
from typing import Any

from backend.overlay.patch import Patch, params
from backend.overlay.patches.modules import with_property
from backend.overlay.state import State

MODULE = "comfy.model_management"


def patches(state: State) -> list[Patch]:
    """The three functions, and the variable for those who read it."""
    interrupts = state.interrupts

    def interrupt_current_processing(value: Any = True) -> None:
        if value:
            state.interrupt()
        else:
            interrupts.reset()

    def throw_exception_if_processing_interrupted() -> None:
        if interrupts.take():
            stop = _exception()
            raise stop

    return [
        Patch(
            f"{MODULE}:interrupt_current_processing",
            lambda _: interrupt_current_processing,
            "an interrupt stops the job it was meant for; the next job's start does not clear another lane's",
            shape=params("value"),
        ),
        Patch(
            f"{MODULE}:processing_interrupted",
            lambda _: interrupts.hit,
            "asked at every step, without a lock",
            shape=params(),
        ),
        Patch(
            f"{MODULE}:throw_exception_if_processing_interrupted",
            lambda _: throw_exception_if_processing_interrupted,
            "asked at every step, without a lock; only the job it was meant for is stopped",
            shape=params(),
        ),
        Patch(
            f"{MODULE}:__class__",
            with_property("interrupt_processing", interrupts.hit, interrupt_current_processing),
            "custom nodes that read the variable see their own lane's",
            rebind=False,
        ),
    ]


def _exception() -> type[BaseException]:
    found: type[BaseException] = importlib.import_module(MODULE).InterruptProcessingException
    return found
