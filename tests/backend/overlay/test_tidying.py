"""Collections and emptied caches are shared by the lanes; what a user or a lack of memory asks for is not put off."""

import gc
import sys
import types
from collections.abc import Callable
from typing import Any

import pytest

from backend.context import current_lane, in_lane
from backend.lanes import Lane
from backend.overlay.patches import tidying
from backend.overlay.patches.tidying import SECONDS, Collector, Ration
from tests.backend.overlay.doubles import cpu_lanes, installed, job
from tests.doubles.wait import wait_until

TWO = [Lane(0, "cuda:0"), Lane(1, "cuda:1")]


class Stand:
    """A collector with a clock and a timer set by hand."""

    def __init__(self) -> None:
        self.now, self.collected, self.trimmed, self.own = 100.0, 0, 0, 0
        self.waiting: list[tuple[float, Callable[[], object]]] = []
        self.ration = Ration()
        module = types.SimpleNamespace(collect=self._collect, isenabled=gc.isenabled)
        self.gc = Collector(self.ration, module, lambda *later: self.waiting.append(later), lambda: self.now,
                            after=self._trim, own=self._trim_own)

    def _trim_own(self) -> None:
        self.own += 1

    def _trim(self) -> None:
        assert self.collected == self.trimmed + 1, "only what was collected can be given back"
        self.trimmed += 1

    def _collect(self, *_: int) -> int:
        self.collected += 1
        return 7

    def of(self, lane: int) -> int:
        with in_lane(lane):
            return self.gc.collect()


def test_lanes_share_a_collection():
    """Four lanes that ask within ten seconds get one at once, and together one more when the time has come."""
    stand = Stand()
    assert [stand.of(lane) for lane in range(4)] == [7, 0, 0, 0]
    assert stand.own == 4, "each thread has memory of its own to give back"
    assert [seconds for seconds, _ in stand.waiting] == [SECONDS]
    stand.now += SECONDS
    stand.waiting.pop()[1]()
    assert stand.collected == stand.trimmed == 2
    assert stand.of(1) == 0
    assert len(stand.waiting) == 1


def test_a_lane_that_was_told_to_free_collects_at_once():
    """Once, and the others still wait."""
    stand = Stand()
    stand.of(0)
    stand.ration.freed(1)
    assert [stand.of(1), stand.of(1), stand.of(2)] == [7, 0, 0]


def test_outside_of_lanes_nothing_is_put_off():
    """The server's own collections are its own; whatever else the module has is there."""
    stand = Stand()
    assert [stand.gc.collect(), stand.gc.collect()] == [7, 7]
    assert stand.gc.isenabled() is gc.isenabled()


def test_what_was_put_off_takes_place(monkeypatch: pytest.MonkeyPatch):
    """By a thread that belongs to no lane."""
    lanes: list[int | None] = []
    monkeypatch.setattr(tidying, "SECONDS", 0.05)
    module = types.SimpleNamespace(collect=lambda: lanes.append(current_lane()) or 0)
    collector = Collector(Ration(), module, tidying._in_a_while)
    with in_lane(3):
        wait_until(lambda: collector.collect() == collector.collect() == 0 and None in lanes)
    assert lanes[0] == 3


@pytest.fixture
def management(comfy: dict[str, types.ModuleType]) -> Any:
    return comfy["comfy.model_management"]


def test_what_a_user_frees_is_given_back_at_once(management: Any):
    """``/free`` on one lane right after another's empties the cache: inside it, and at the worker's collection."""
    with installed(tidying.patches(TWO)):
        with job(0):
            management.soft_empty_cache()
            management.soft_empty_cache()
        assert len(management.emptied) == 1
        with job(1):
            management.unload_all_models()
            management.soft_empty_cache()
        assert len(management.emptied) == 2


def test_after_that_it_is_rationed_again(management: Any, monkeypatch: pytest.MonkeyPatch):
    """The worker's own collection ends what was urgent."""
    main = types.ModuleType("main")
    main.gc = gc  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "main", main)
    with installed(tidying.patches(TWO)), in_lane(0):
        management.soft_empty_cache()
        management.unload_all_models()
        main.gc.collect()
        management.soft_empty_cache()
        management.soft_empty_cache()
    assert len(management.emptied) == 2
    assert main.gc is gc


def test_one_lane_collects_as_always(monkeypatch: pytest.MonkeyPatch):
    """Where nobody else stands still, nothing is put off."""
    main = types.ModuleType("main")
    found = types.SimpleNamespace(collections=0)

    def collect(*_: int) -> int:
        found.collections += 1
        return 7

    monkeypatch.setattr(gc, "collect", collect)
    main.gc = gc  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "main", main)
    patch = next(one for one in tidying.patches(cpu_lanes(1)) if one.target == "main:gc")
    patch.install()
    with in_lane(0):
        assert [main.gc.collect() for _ in range(3)] == [7, 7, 7]
    assert found.collections == 3
    patch.remove()
    assert main.gc is gc


def test_only_the_module_itself_is_replaced(monkeypatch: pytest.MonkeyPatch):
    """A ``main`` whose ``gc`` is something else keeps it."""
    main = types.ModuleType("main")
    main.gc = object()  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "main", main)
    patch = next(one for one in tidying.patches(TWO) if one.target == "main:gc")
    misfit = patch.check()
    assert misfit is not None
    assert not misfit.required
