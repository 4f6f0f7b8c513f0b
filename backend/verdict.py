"""Whether the lanes of one process stand in each other's way at Python's lock, and what to do about it.

Pure. Owns the judgement and its words; the ratios come from ``backend.issuing``, the bounds from ``bench.gil``.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal

from backend.issuing import IssueView
from backend.lanes import Lane

State = Literal["unknown", "cpu", "fine", "close", "gil-bound"]

CLOSE: Final = 0.5
"""Sum of the lanes' h/T from which they begin to wait for each other: four lanes gave nine tenths and more below it."""
BOUND: Final = 0.8
"""Here four lanes gave 58 % to 81 % of four times one, in two runs of the bench, and about 46 % half as far again."""
AHEAD: Final = 0.5
"""Share of calls whose device outlasted the host, from which the lane's own thread is not what it waits for."""


@dataclass(frozen=True)
class Verdict:
    """``demand``: how many threads' worth of issuing all lanes ask for at once, of the one that there is."""

    state: State
    demand: float | None
    advice: str


def judge(lanes: Sequence[tuple[str, IssueView]]) -> Verdict:
    """Judge lanes, each given as its device and its counters.

    A lane that has run nothing yet is taken to be as the others are. A lane whose device is found behind the host
    asks for nothing: its thread's time is then an upper bound, since waiting for a full device counts as work.
    """
    found = [(device, view) for device, view in lanes if view.ratio is not None]
    if not found:
        return Verdict("unknown", None, "no lane has run enough steps of a model yet")
    on_devices = [view for device, view in found if device != "cpu"]
    if not on_devices:
        return Verdict("cpu", None, "the lanes compute on the CPU: their threads' time is the model's, not Python's")
    shares = [0.0 if (view.ahead or 0.0) >= AHEAD else view.ratio or 0.0 for view in on_devices]
    count = sum(device != "cpu" for device, _ in lanes)
    demand = round(sum(shares) / len(shares) * count, 3)
    return Verdict(*_words(demand, count))


def _words(demand: float, lanes: int) -> tuple[State, float, str]:
    part = f"issuing a step takes {demand / lanes:.0%} of it on each of {lanes} lanes"
    if demand < CLOSE or lanes == 1:
        return "fine", demand, f"{part}: the lanes do not wait for each other"
    if demand < BOUND:
        return "close", demand, f"{part}: the lanes begin to wait for each other; larger batches shorten the waiting"
    return "gil-bound", demand, (
        f"{part}: the lanes wait for Python's lock. One process per GPU scales better for models as light as these: "
        'mode = "per-gpu" in [backend]; larger batches help as well'
    )


def describe(lanes: Sequence[Lane]) -> dict[str, Any]:
    """The verdict and every lane's figures, as ``GET /debug/queues`` shows them."""
    views = [(lane, lane.issuing.view()) for lane in lanes]
    verdict = judge([(lane.device, view) for lane, view in views])
    return {
        "verdict": verdict.state,
        "demand": verdict.demand,
        "advice": verdict.advice,
        "lanes": [
            {
                "gpu_id": lane.index,
                "calls": view.calls,
                "ratio": _short(view.ratio),
                "waited": _short(view.waited),
                "ahead": _short(view.ahead),
            }
            for lane, view in views
        ],
    }


def _short(value: float | None) -> float | None:
    return None if value is None else round(value, 4)
