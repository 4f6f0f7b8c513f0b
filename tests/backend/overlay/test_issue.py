"""Where model calls are counted and locked, and how a device is asked whether it was behind."""

import sys
import types
from typing import Any

import pytest

from backend.context import in_job, in_lane
from backend.lanes import Lane
from backend.overlay import versions
from backend.overlay.patches import issue
from backend.overlay.state import State
from tests.backend.overlay.doubles import installed


class BaseModel:
    """A diffusion model, as far as samplers see it."""

    model_lowvram = False

    def apply_model(self, x: Any, t: Any, c_concat: Any = None, **kwargs: Any) -> Any:
        return (x, t, c_concat, kwargs)


@pytest.fixture
def state(monkeypatch: pytest.MonkeyPatch) -> State:
    """Two lanes, and a ``comfy.model_base`` to patch."""
    package, module = types.ModuleType("comfy"), types.ModuleType("comfy.model_base")
    module.BaseModel = type("BaseModel", (BaseModel,), {"apply_model": BaseModel.apply_model})  # type: ignore[attr-defined]
    package.model_base = module  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "comfy", package)
    monkeypatch.setitem(sys.modules, "comfy.model_base", module)
    return State([Lane(0, "cpu"), Lane(1, "cpu")], versions.known()[0])


def test_a_lanes_calls_are_counted_and_go_through_unchanged(state: State) -> None:
    """Arguments and result are the model's own; a call of no lane is nobody's."""
    with installed(issue.patches(state)):
        model = sys.modules["comfy.model_base"].BaseModel()
        with in_lane(1), in_job("job"):
            assert model.apply_model(1, 2, 3, control=4) == (1, 2, 3, {"control": 4})
        assert model.apply_model(1, t=2) == (1, 2, None, {})
    assert [lane.issuing.view().calls for lane in state.lanes] == [0, 1]


def test_it_is_left_out_where_the_model_looks_different(state: State) -> None:
    """A version without this way in is run without the count."""
    sys.modules["comfy.model_base"].BaseModel.apply_model = lambda self, latent: latent  # type: ignore[attr-defined]
    (patch,) = issue.patches(state)
    misfit = patch.check()
    assert misfit is not None
    assert not misfit.required


def test_only_what_is_wholly_on_its_device_counts_as_resident() -> None:
    """Partly loaded, managed dynamically, or unknown: such a call waits for copies, and must not hold others."""
    whole = BaseModel()
    assert issue.resident(whole)
    whole.model_lowvram = True
    assert not issue.resident(whole)
    assert not issue.resident(object())
    dynamic = BaseModel()
    dynamic.current_patcher = types.SimpleNamespace(is_dynamic=lambda: True)  # type: ignore[attr-defined]
    assert not issue.resident(dynamic)
    dynamic.current_patcher = types.SimpleNamespace(is_dynamic=lambda: False)  # type: ignore[attr-defined]
    assert issue.resident(dynamic)


class Event:
    """A timing event of a device that is done when it is told to be."""

    done = True
    took = 10.0
    broken = False

    def record(self) -> None:
        if Event.broken:
            raise RuntimeError("CUDA error")

    def query(self) -> bool:
        return Event.done

    def elapsed_time(self, other: "Event") -> float:
        return Event.took


@pytest.fixture(autouse=True)
def calm(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (("done", True), ("took", 10.0), ("broken", False)):
        monkeypatch.setattr(Event, name, value)


def calls(device: issue.Device, count: int, wall: float) -> None:
    for _ in range(count):
        device.end(device.begin(), wall)


@pytest.mark.parametrize(("wall", "ahead"), [(0.002, 1.0), (0.010, 0.0)])
def test_the_device_says_who_was_first(wall: float, ahead: float) -> None:
    """Ten milliseconds of device time: a host that took two was ahead, one that took ten was not."""
    lane = Lane(0, "cuda:0")
    calls(issue.Device(lane, Event), issue.EVERY + 1, wall)
    assert lane.issuing.view().ahead == ahead


def test_nobody_waits_for_the_devices_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    """While the device is not done there is no answer, and no second question."""
    lane = Lane(0, "cuda:0")
    device = issue.Device(lane, Event)
    monkeypatch.setattr(Event, "done", False)
    calls(device, 5 * issue.EVERY, 0.001)
    assert lane.issuing.view().ahead is None
    monkeypatch.setattr(Event, "done", True)
    calls(device, 1, 0.001)
    assert lane.issuing.view().ahead == 1.0


def test_a_device_that_cannot_be_asked_is_let_be(monkeypatch: pytest.MonkeyPatch) -> None:
    """A broken device's error comes from the model, never from the count; a lane on the CPU is not asked at all."""
    lane = Lane(0, "cuda:0")
    device = issue.Device(lane, Event)
    monkeypatch.setattr(Event, "broken", True)
    calls(device, 3 * issue.EVERY, 0.001)
    monkeypatch.setattr(Event, "broken", False)
    calls(device, 3 * issue.EVERY, 0.001)
    assert lane.issuing.view().ahead is None
    assert issue.Device(Lane(0, "cpu")).begin() is None


def test_no_event_while_a_graph_is_captured() -> None:
    """What makes no event is asked again at a later call."""
    lane = Lane(0, "cuda:0")
    events = iter([None, *(Event() for _ in range(10))])
    device = issue.Device(lane, lambda: next(events))
    calls(device, 3 * issue.EVERY, 0.001)
    assert lane.issuing.view().ahead == 1.0
