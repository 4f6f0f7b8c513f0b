"""Seconds by node class, as ComfyUI's own execution gives them."""

import sys
from collections.abc import Iterator
from enum import Enum
from typing import Any

import pytest

from backend.context import in_lane
from backend.overlay.patch import Patch
from backend.overlay.patches import execution
from backend.overlay.state import State
from tests.doubles.checkout import loaded, make_state


class Result(Enum):
    SUCCESS = 0
    FAILURE = 1
    PENDING = 2


@pytest.fixture
def run() -> Iterator[Any]:
    """Calls the patched ``execute`` in lane 0 so that it ends as told; gives what was counted."""
    with loaded():
        state = make_state(1)
        patch = next(one for one in execution.patches(state) if one.target == "execution:execute")
        plan: list[Any] = []

        async def original(*args: Any) -> Any:
            return plan.pop(0), None, None

        module = sys.modules["execution"]
        module.execute = original  # type: ignore[attr-defined]
        Patch(patch.target, patch.replace, "").install()

        async def call(node: str, *results: Result, lane: int | None = 0) -> dict[str, int]:
            graph = type("Graph", (), {"get_node": staticmethod(lambda name: {"class_type": f"Class{name}"})})
            for result in results:
                plan.append(result)
                with in_lane(lane):
                    await module.execute(None, graph, None, node, {}, set(), "job", None, {}, {})
            return counted(state)

        yield call


def counted(state: State) -> dict[str, int]:
    return {name: count for name, (count, _) in state.lanes[0].stats.snapshot().nodes.items()}


async def test_a_node_that_waits_in_between_ran_once(run: Any) -> None:
    """Lazy inputs, expansion and awaiting call it several times; it is one execution."""
    assert await run("a", Result.PENDING, Result.PENDING) == {}
    assert await run("a", Result.SUCCESS) == {"Classa": 1}
    assert await run("b", Result.SUCCESS) == {"Classa": 1, "Classb": 1}


async def test_a_failure_ends_what_waited(run: Any) -> None:
    """Nothing is kept of a job that is over."""
    await run("a", Result.PENDING)
    assert await run("b", Result.FAILURE) == {"Classb": 1}


async def test_without_a_lane_nothing_is_counted(run: Any) -> None:
    """Plain calls stay plain."""
    assert await run("a", Result.SUCCESS, lane=None) == {}


@pytest.mark.parametrize(("result", "expected"), [((Result.PENDING, None), "PENDING"), (None, ""), ((), "")])
def test_how_a_call_ended(result: Any, expected: str) -> None:
    """An answer of another shape is nothing that is known."""
    assert execution.how(result) == expected
