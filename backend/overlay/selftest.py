"""Two contexts on the live objects must not see each other; run at every start, in well under two seconds.

Owns what is tried. Finds renamed internals that a look at names and parameters misses.
"""

import contextvars
import importlib
import tempfile
from collections.abc import Callable
from typing import Any

from backend.context import in_job, in_lane
from backend.overlay.state import State

Pair = tuple[int, int | None]


def run(state: State) -> list[str]:
    """What two contexts see of each other, one line each; empty when the overlay holds."""
    pair: Pair = (0, 1 if len(state.lanes) > 1 else None)
    found = []
    for name, attempt in CHECKS.items():
        try:
            problem = attempt(state, pair)
        except Exception as error:  # noqa: BLE001 (whatever breaks here means the same: this ComfyUI is another one)
            problem = f"{type(error).__name__}: {error}"
        if problem:
            found.append(f"{name}: {problem}")
    return found


def _in(lane: int | None, call: Callable[..., Any], *args: Any) -> Any:
    """What ``call(*args)`` returns in a fresh context of ``lane``."""

    def inside() -> Any:
        with in_lane(lane):
            return call(*args)

    return contextvars.copy_context().run(inside)


def _slots(state: State, pair: Pair) -> str | None:
    for name in ("client_id", "last_node_id", "last_prompt_id"):
        before = [_in(lane, getattr, state.server, name) for lane in pair]
        for lane, value in zip(pair, ("a", "b"), strict=True):
            _in(lane, setattr, state.server, name, value)
        seen = [_in(lane, getattr, state.server, name) for lane in pair]
        for lane, value in zip(pair, before, strict=True):
            _in(lane, setattr, state.server, name, value)
        if seen != ["a", "b"]:
            return f"{name} is shared"
    return None


def _queue(state: State, pair: Pair) -> str | None:
    seen = [_in(lane, lambda: state.server.prompt_queue) for lane in (*pair, None)]
    return None if seen[0] is not seen[1] and seen[0] is not seen[2] else "two lanes have one queue"


def _registry(state: State, pair: Pair) -> str | None:
    progress = importlib.import_module("comfy_execution.progress")
    execution = importlib.import_module("execution")
    graph = importlib.import_module("comfy_execution.graph")
    for lane, name in zip(pair, ("a", "b"), strict=True):
        _in(lane, execution.reset_progress_state, name, graph.DynamicPrompt({}))
    seen = [_in(lane, lambda: execution.get_progress_state().prompt_id) for lane in pair]
    same = [_in(lane, lambda: progress.get_progress_state() is execution.get_progress_state()) for lane in pair]
    return None if seen == ["a", "b"] and all(same) else f"lanes see the registries of {seen}"


def _interrupt(state: State, pair: Pair) -> str | None:
    nodes = importlib.import_module("nodes")
    mm = importlib.import_module("comfy.model_management")

    def stopped() -> bool:
        with in_job("selftest"):
            try:
                nodes.before_node_execution()
            except mm.InterruptProcessingException:
                return True
            return False

    state.interrupts.aim(pair[0], "selftest")
    try:
        other, own, again = _in(pair[1], stopped), _in(pair[0], stopped), _in(pair[0], stopped)
    finally:
        state.interrupts.end(pair[0])
    return None if (other, own, again) == (False, True, False) else f"stopped: other, own, again = {other, own, again}"


def _seed(state: State, pair: Pair) -> str | None:
    import torch  # noqa: PLC0415 (ComfyUI's environment has it; loaded by then)

    if pair[1] is None:
        return None  # a single lane has the process's generators to itself
    before = torch.random.get_rng_state()
    generators = [_in(lane, torch.manual_seed, seed) for lane, seed in zip(pair, (1, 2), strict=True)]
    drawn = [_in(lane, torch.randn, 4) for lane in pair]
    wanted = [torch.randn(4, generator=torch.Generator().manual_seed(seed)) for seed in (1, 2)]
    torch.random.set_rng_state(before)
    if generators[0] is generators[1]:
        return "two lanes share one generator"
    return None if all(map(torch.equal, drawn, wanted)) else "one lane's seed changes the other's numbers"


def _prefix(state: State, pair: Pair) -> str | None:
    builder = importlib.import_module("comfy_execution.graph_utils").GraphBuilder
    contexts = [contextvars.copy_context() for _ in pair]
    for context, root in zip(contexts, ("a", "b"), strict=True):
        context.run(builder.set_default_prefix, root, 0, 0)
    seen = [context.run(builder).prefix for context in contexts for _ in range(2)]
    return None if seen == ["a.0.0.", "a.0.1.", "b.0.0.", "b.0.1."] else f"prefixes are {seen}"


def _save_path(state: State, pair: Pair) -> str | None:
    paths = importlib.import_module("folder_paths")
    with tempfile.TemporaryDirectory() as folder:
        seen = [_in(lane, lambda: paths.get_save_image_path("selftest", folder)[2]) for lane in pair]
    return None if int(seen[0]) != int(seen[1]) else "two lanes would write one file"


CHECKS: dict[str, Callable[[State, Pair], str | None]] = {
    "client": _slots,
    "queue": _queue,
    "registry": _registry,
    "interrupt": _interrupt,
    "seed": _seed,
    "prefix": _prefix,
    "save path": _save_path,
}
