"""Loaded models per lane: own lists, own frees, own counts, no strangers."""

import functools
import gc
import pickle
import sys
import threading
import types
from collections.abc import Iterator
from typing import Any

import pytest
import torch

from backend.context import in_lane
from backend.lanes import Lane
from backend.overlay.patches import model_lists, models, tidying
from backend.overlay.patches.model_lists import LaneList, WrongLaneError
from backend.overlay.serialize import Packs
from tests.backend.overlay.doubles import Patcher, cpu_lanes, installed, job

Modules = dict[str, types.ModuleType]


@pytest.fixture
def lanes() -> list[Lane]:
    return cpu_lanes()


@pytest.fixture
def management(comfy: Modules, lanes: list[Lane]) -> Iterator[Any]:
    """ComfyUI's ``model_management`` with the patches."""
    with installed(models.patches(lanes)):
        yield comfy["comfy.model_management"]


def test_a_lane_list_is_a_list_per_lane():
    """Every way of reading and changing it reaches the current lane's list only."""
    shared = LaneList()
    same = shared
    with in_lane(0):
        shared.extend([3, 1, 2])
        shared.insert(0, 4)
        shared += [9]
        assert shared is same
        shared.sort(reverse=True)
        assert [*shared] == list(shared) == [9, 4, 3, 2, 1] == shared.copy()
        assert (len(shared), shared[0], shared[1:3], shared.index(3), shared.pop()) == (5, 9, [4, 3], 2, 1)
        assert shared == [9, 4, 3, 2]
        assert 9 in shared
        assert sorted(shared) == [2, 3, 4, 9]
        assert list(reversed(shared)) == [2, 3, 4, 9]
        shared[0] = 8
        del shared[1]
        assert repr(shared) == "[8, 3, 2]"
        assert pickle.loads(pickle.dumps(shared)) == [8, 3, 2]
    with in_lane(1):
        assert not shared
        assert list(shared) == []
    assert isinstance(shared, list)


def test_lanes_load_and_free_only_their_own(management: Any):
    """What one lane loads the others neither see nor free, though all are on one device."""
    patchers = [Patcher(), Patcher()]
    for lane in (0, 1):
        with job(lane):
            management.load_models_gpu([patchers[lane]])
    with job(0):
        management.unload_all_models()
        assert management.loaded_models() == []
    with job(1):
        assert management.loaded_models() == [patchers[1]]
    assert (patchers[0].model.memory, patchers[1].model.memory) == (0, 100)
    assert management.loaded_models() == []


def test_loads_and_unloads_are_counted_by_lane(management: Any, lanes: list[Lane]):
    """A model that is loaded already is not loaded again; one that went away counts as unloaded."""
    patcher = Patcher()
    with job(2):
        management.load_models_gpu([patcher])
        management.load_models_gpu([patcher])
        management.unload_all_models()
        other = Patcher()
        management.load_models_gpu([other])
        del other
        management.cleanup_models_gc()
    found = [(lane.stats.snapshot().model_loads, lane.stats.snapshot().model_unloads) for lane in lanes]
    assert found == [(0, 0), (0, 0), (2, 2), (0, 0)]


def test_another_lanes_model_is_refused_by_name(management: Any):
    """A node that hands on a model loaded elsewhere gets an error that says whose it is and what to read."""
    patcher = Patcher("SDXL")
    with job(0):
        management.load_models_gpu([patcher])
    with job(1), pytest.raises(WrongLaneError, match=r"SDXL cannot be used by GPU 1 .*GPU 0 has it.*custom-nodes\.md"):
        management.load_models_gpu([patcher])
    with job(0):
        management.load_models_gpu([patcher])
        management.unload_all_models()
    with job(1):
        management.load_models_gpu([patcher])


def test_lanes_of_one_gpu_hand_a_serialized_packs_model_on(management: Any, lanes: list[Lane]):
    """The job that used it last is over when another one of the same pack runs: the model changes lists."""
    packs, patcher = Packs(["pack"]), Patcher()
    name = frozenset({"pack"})
    for lane in (0, 1, 0, 2):
        with job(lane), packs.one_at_a_time(name):
            management.load_models_gpu([patcher])
            assert management.loaded_models() == [patcher]
        for other in {0, 1, 2, 3} - {lane}:
            with job(other):
                assert management.loaded_models() == []
    with job(0):
        management.unload_all_models()
    assert patcher.model.memory == 100


@pytest.mark.parametrize(("before", "now"), [(False, True), (True, False), (False, False)])
def test_what_another_lane_may_be_using_does_not_change_hands(management: Any, before: bool, now: bool):
    """One of the two jobs is not serialized: nothing says that the lane that has it is done with it."""
    packs, patcher = Packs(["pack"]), Patcher()
    name = frozenset({"pack"})
    with job(0), packs.one_at_a_time(name):
        management.load_models_gpu([patcher])
    with job(0), packs.one_at_a_time(name if before else frozenset()):
        management.load_models_gpu([patcher])
    with job(1), packs.one_at_a_time(name if now else frozenset()), pytest.raises(WrongLaneError):
        management.load_models_gpu([patcher])
    with job(0):
        assert management.loaded_models() == [patcher]


def test_a_model_does_not_leave_a_list_that_is_being_walked(management: Any, monkeypatch: pytest.MonkeyPatch):
    """While a lane loads or frees, another waits for its model, and is refused when that takes too long."""
    monkeypatch.setattr(model_lists, "BUSY_SECONDS", 0.01)
    packs, shared, other = Packs(["pack"]), Patcher(), Patcher()
    name = frozenset({"pack"})
    refused: list[type[BaseException]] = []

    def taker() -> None:
        with job(1), packs.one_at_a_time(name):
            try:
                management.load_models_gpu([shared])
            except WrongLaneError as error:
                refused.append(type(error))

    def meanwhile() -> None:
        thread = threading.Thread(target=taker)
        thread.start()
        thread.join(30)

    with job(0), packs.one_at_a_time(name):
        management.load_models_gpu([other, shared])  # the last one stands first and is freed last
    with job(0):
        other.during_detach = meanwhile
        management.free_memory(1e30, torch.device("cpu"), keep_loaded=[])
    assert refused == [WrongLaneError]
    with job(0), packs.one_at_a_time(name):
        management.load_models_gpu([shared])
    taker()
    assert refused == [WrongLaneError]


def test_a_model_bound_to_another_gpu_is_refused(comfy: Modules):
    """A patcher says on which GPU it runs: only that GPU's lane, and the CPU's models every lane, may load it."""
    management: Any = comfy["comfy.model_management"]
    with installed(models.patches([Lane(0, "cuda:0"), Lane(1, "cuda:1")])), job(1):
        assert management.get_torch_device() == torch.device("cuda:1")
        management.load_models_gpu([Patcher(device="cuda:1"), Patcher(device="cpu"), Patcher(device="cuda")])
        with pytest.raises(WrongLaneError, match="it is bound to cuda:0"):
            management.load_models_gpu([Patcher(device="cuda:0")])
        with in_lane(None):
            assert management.get_torch_device() == torch.device("cpu")


def test_models_that_go_away_inside_a_loop_break_nothing(management: Any):
    """While ComfyUI walks its list no entry dies in it, even when the last user drops the model meanwhile."""
    first, second = Patcher(), Patcher()
    keep = [first, second]
    with job(0):
        management.load_models_gpu([first, second])
        # The list holds second first: its unloading drops the one that comes next.
        second.during_detach = keep.clear
        first.during_detach = keep.clear
        del first, second
        assert len(management.free_memory(1e30, torch.device("cpu"))) == 2
        gc.collect()
        assert management.current_loaded_models == []


def test_the_same_without_the_patches_raises(comfy: Modules):
    """Plain ComfyUI's loop meets the dead entry: the test above can fail."""
    management: Any = comfy["comfy.model_management"]
    first, second = Patcher(), Patcher()
    keep = [first, second]
    management.load_models_gpu([first, second])
    second.during_detach = first.during_detach = keep.clear
    del first, second
    with pytest.raises((AttributeError, IndexError)):
        management.free_memory(1e30, torch.device("cpu"))


def test_a_models_end_on_another_thread_does_not_touch_the_list(management: Any):
    """The finalizer may run anywhere; the entry goes when its own lane looks next."""
    patcher = Patcher()
    with job(0):
        management.load_models_gpu([patcher])
    holder = [patcher]
    del patcher

    def drop() -> None:
        with job(1):
            holder.clear()
            gc.collect()

    thread = threading.Thread(target=drop)
    thread.start()
    thread.join()
    with job(0):
        assert len(management.current_loaded_models) == 1
        assert management.loaded_models() == []


def test_four_lanes_loading_and_freeing_at_once(management: Any, lanes: list[Lane]):
    """A hundred rounds of load, free and drop on each of four lanes end without an error and with balanced counts."""
    errors: list[Exception] = []

    def worker(lane: int) -> None:
        with job(lane):
            try:
                for index in range(100):
                    patcher = Patcher()
                    management.load_models_gpu([patcher, Patcher()])
                    if index % 3 == 0:
                        management.unload_all_models()
                management.unload_all_models()
                management.cleanup_models_gc()
            except Exception as error:  # noqa: BLE001 (whatever it is, it is to be shown)
                errors.append(error)

    threads = [threading.Thread(target=worker, args=(lane,)) for lane in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    for lane in lanes:
        counts = lane.stats.snapshot()
        assert counts.model_loads == counts.model_unloads == 200


def test_a_list_in_use_is_refused(comfy: Modules):
    """Models loaded before the start would belong to no lane: the check says so."""
    management: Any = comfy["comfy.model_management"]
    management.current_loaded_models.append(1)
    misfit = models.patches(cpu_lanes())[0].check()
    assert misfit is not None
    assert "no models loaded yet, found 1" in str(misfit)


def test_emptying_the_cache_is_rationed_between_gpus(comfy: Modules, monkeypatch: pytest.MonkeyPatch):
    """With several GPUs a lane empties the cache at most once in ten seconds unless it must; the server always may."""
    management: Any = comfy["comfy.model_management"]
    now = [100.0]
    monkeypatch.setattr(tidying.time, "monotonic", lambda: now[0])
    with installed(models.patches([Lane(0, "cuda:0"), Lane(1, "cuda:1")])):
        with job(0):
            management.soft_empty_cache()
        with job(1):
            management.soft_empty_cache()
            management.soft_empty_cache(force=True)
            now[0] += 10.0
            management.soft_empty_cache()
        management.soft_empty_cache()
    assert management.emptied == [False, True, False, False]


def test_one_gpu_empties_its_cache_as_always(management: Any):
    """Where nobody else is stalled, nothing is rationed."""
    with job(0):
        management.soft_empty_cache()
        management.soft_empty_cache()
    assert management.emptied == [False, False]


def test_newer_memory_state_is_per_lane(newer_comfy: Modules):
    """Cast buffers and mappings of one lane are not another's; pins are counted by one thread at a time."""
    management: Any = newer_comfy["comfy.model_management"]
    with installed(models.patches([Lane(0, "cuda:0"), Lane(1, "cuda:1")])):
        with job(0):
            management.STREAM_CAST_BUFFERS[None] = "mine"
            management.DIRTY_MMAPS.add(1)
            assert management.get_all_torch_devices() == [torch.device("cuda:0")]
            assert management.get_all_torch_devices(exclude_current=True) == []
            assert management.pin_memory("tensor") is True
        with job(1):
            assert management.STREAM_CAST_BUFFERS.get(None) is None
            assert list(management.DIRTY_MMAPS) == []
            management.STREAM_CAST_BUFFERS.clear()
            assert management.unpin_memory("tensor") is True
        with job(0):
            assert dict(management.STREAM_CAST_BUFFERS.items()) == {None: "mine"}
            assert set(management.STREAM_CAST_BUFFERS) | {1} == {None, 1}
        assert len(management.get_all_torch_devices()) == 2


def test_an_older_version_has_no_newer_patches(comfy: Modules):
    """What the version does not have is not patched and not complained about."""
    targets = {patch.target for patch in models.patches(cpu_lanes())}
    assert "comfy.model_management:get_all_torch_devices" not in targets
    assert "comfy.model_management:soft_empty_cache" in targets


def test_each_lane_frees_its_own_cached_results(comfy: Modules, monkeypatch: pytest.MonkeyPatch):
    """When memory is short a lane's callback frees its own results, and its end leaves the others' in place."""
    module: Any = types.ModuleType("comfy.memory_management")
    module.state = None
    exec(
        "def set_ram_cache_release_state(callback, headroom):\n    global state\n    state = (callback, headroom)\n"
        "def extra_ram_release(target, free_active=False):\n    raise AssertionError\n",
        vars(module),
    )
    monkeypatch.setitem(sys.modules, "comfy.memory_management", module)
    with installed(models.patches(cpu_lanes())):
        for lane in (0, 1):
            with job(lane):
                mine = functools.partial(lambda lane, target, free_active=False: (lane, target), lane)
                module.set_ram_cache_release_state(mine, 10 + lane)
        with job(1):
            module.set_ram_cache_release_state(None, 0)
            assert module.extra_ram_release(5) == 0
        with job(0):
            assert module.extra_ram_release(5, free_active=True) == (0, 5)
        assert module.state == (None, 10)
