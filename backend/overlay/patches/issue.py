"""``BaseModel.apply_model``: what issuing one call of a diffusion model takes, and one lane at a time where that helps.

Owns where this hooks in, and which calls only issue: those of models that are wholly on their lane's device. What is
counted and decided is in ``backend.model_calls``.
"""

import functools
from collections.abc import Callable
from typing import Any, Final

from backend.context import current_job, current_lane
from backend.lanes import Lane
from backend.model_calls import ModelCalls
from backend.overlay.patch import Patch, params_start
from backend.overlay.state import State

EVERY: Final = 8
"""Calls of a lane between two looks at its device."""
BEHIND: Final = 1.1
"""The device was behind the host when it took this much longer than the host did."""


def patches(state: State) -> list[Patch]:
    """The one place through which samplers call diffusion models."""
    return [
        Patch(
            "comfy.model_base:BaseModel.apply_model",
            functools.partial(_apply, state.model_calls, {lane.index: Device(lane) for lane in state.lanes}),
            "counts the share of a step that issuing takes; with the issue lock, one lane at a time issues",
            shape=params_start("self", "x", "t"),
            required=False,
        ),
    ]


class Device:
    """Asks one lane's device, now and then, whether it was still at work when the host had issued everything.

    A thread that waits for a full launch queue is busy as far as the system can see; only the device knows better.
    Used by that lane's calls, as a rule one at a time; two at once lose an answer at most.
    """

    def __init__(self, lane: Lane, make: Callable[[], Any] | None = None) -> None:
        """``make`` gives a new timing event; by default one of CUDA, for a lane on CUDA."""
        self._lane = lane
        self._make = make or (_cuda_event if lane.device.startswith("cuda") else None)
        self._calls = 0
        self._asked: tuple[Any, Any, float] | None = None

    def begin(self) -> Any:
        """A call begins: an event to hand to ``end``, if this one is looked at."""
        if self._make is None:
            return None
        self._calls += 1
        self._answer()
        return self._mark() if self._calls % EVERY == 0 and self._asked is None else None

    def end(self, began: Any, wall: float) -> None:
        """The host has issued the call that ``began``, in ``wall`` seconds."""
        if began is not None and (ended := self._mark()) is not None:
            self._asked = (began, ended, wall)

    def _answer(self) -> None:
        asked = self._asked
        if asked is None:
            return
        began, ended, wall = asked
        try:
            if not ended.query():
                return
            self._lane.issuing.device_was(ahead=began.elapsed_time(ended) / 1000.0 > BEHIND * wall)
        except RuntimeError:
            self._make = None  # a device that cannot be asked this, or is broken, is not asked again
        self._asked = None

    def _mark(self) -> Any:
        make = self._make
        if make is None:
            return None
        try:
            event = make()
            if event is not None:
                event.record()
        except RuntimeError:
            self._make = None
            return None
        return event


def _cuda_event() -> Any:
    import torch  # noqa: PLC0415 (ComfyUI's environment has it; loaded by then)

    # What is recorded while a graph is captured becomes part of the graph, and asking would spoil it.
    if torch.cuda.is_current_stream_capturing():
        return None
    return torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call] # torch gives it no types


def resident(model: Any) -> bool:
    """Whether all weights of a ``BaseModel`` are on its device; one that does not say so is taken not to be."""
    if getattr(model, "model_lowvram", True):
        return False
    dynamic = getattr(getattr(model, "current_patcher", None), "is_dynamic", None)
    return not (callable(dynamic) and dynamic())


def _apply(calls: ModelCalls, devices: dict[int, Device], original: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(original)
    def apply_model(self: Any, x: Any, t: Any, *args: Any, **kwargs: Any) -> Any:
        lane = current_lane()
        if lane is None:
            return original(self, x, t, *args, **kwargs)
        what = (type(self).__name__, tuple(getattr(x, "shape", ())))
        with calls.around(lane, (current_job(), id(self)), what, resident(self), devices[lane]):
            return original(self, x, t, *args, **kwargs)

    return apply_model
