"""In-place writers of shared weights: found when their job ends, put right to the byte, named, and kept apart."""

import gc
import logging
import os
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from backend.context import in_lane
from backend.holdings import Weights
from backend.lanes import Lane
from backend.overlay.patches import weights
from backend.overlay.weights import modules, pages
from backend.overlay.weights.guard import PAUSE, SHARE, Guard
from backend.overlay.weights.loading import loading
from backend.overlay.weights.report import Report
from backend.overlay.weights.sealed import CHUNK, SMALL, Memory, content
from backend.overlay.weights.store import Store
from backend.overlay.weights.witness import Witness
from tests.backend.overlay.test_weights_store import pickled, reading, write

pytestmark = pytest.mark.skipif(
    sys.platform != "linux" or not pages.visible(), reason="this system does not say which memory was written"
)

PACK = frozenset({"careless"})


class Net(torch.nn.Module):
    def __init__(self, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.a, self.b = torch.nn.Linear(48, 64, dtype=dtype), torch.nn.Linear(64, 32, bias=False, dtype=dtype)


@pytest.fixture
def store() -> Iterator[Store]:
    """A store whose masters can be written, and torch's modules as the overlay leaves them."""
    found = Store(protect=False)
    installed = weights.module_patches(found)
    for patch in installed:
        patch.install()
    yield found
    for patch in reversed(installed):
        patch.remove()


def load(store: Store, path: Path) -> Net:
    """As a loader of ComfyUI does, in whatever lane this is; a file in another type is converted."""
    with loading() as inside:
        model = Net()
        read = pickled if path.suffix == ".pt" else reading
        values, _, file = store.load(str(path), lambda: read(path))
        assert file is not None
        inside.files.append(file)
        model.load_state_dict(values)
    return model


def state(model: Net) -> dict[str, torch.Tensor]:
    return {key: value.clone() for key, value in model.state_dict().items()}


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return all(torch.equal(one[key], other[key]) for key in one)


def made(tmp_path: Path, kind: str) -> Path:
    if kind == "half":
        return write(tmp_path / "a.safetensors", torch.float16)
    path = write(tmp_path / "a.safetensors")
    if kind == "pickled":
        torch.save(reading(path)[0], tmp_path / "a.pt")
        return tmp_path / "a.pt"
    return path



@pytest.mark.parametrize("kind", ["mapped", "half", "pickled"])
@pytest.mark.parametrize("name", ["a.weight", "a.bias"])
def test_what_was_written_is_put_right(store: Store, tmp_path: Path, kind: str, name: str):
    """File pages, conversions and pickled files; weights of a page and of a few bytes: every byte is back."""
    path = made(tmp_path, kind)
    model, other = load(store, path), load(store, path)
    before = state(other)
    assert store.written() == []
    model.get_parameter(name).data.fill_(7.0)
    assert float(other.get_parameter(name).detach().flatten()[0]) == 7.0, "they share"
    assert store.written() == [str(path)]
    assert same(state(other), before)
    assert same(state(model), before)
    assert store.written() == []


def test_a_write_of_the_same_bytes_is_none(store: Store, tmp_path: Path):
    """A page that became the process's own without another value is given back without a word."""
    model = load(store, write(tmp_path / "a.safetensors"))
    model.a.weight.data.copy_(model.a.weight.clone())
    (file,) = store.files()
    assert file.written()
    assert store.written() == []
    assert file.written() == 0


def test_only_the_written_file_is_named(store: Store, tmp_path: Path):
    """Another file's models, converted ones too, are left in peace."""
    one, two = write(tmp_path / "1.safetensors", torch.float16), write(tmp_path / "2.safetensors", torch.float16, 1)
    first = load(store, one)
    with in_lane(3):
        _second = load(store, two)
    first.b.weight.data.zero_()
    assert store.written() == [str(one)]
    assert store.lanes_over([str(two)]) == {3}


def test_the_job_is_told_apart(store: Store, tmp_path: Path, caplog: pytest.LogCaptureFixture):
    """The pack's job is named, counted and both lanes forget; afterwards the pack has copies of its own."""
    path, forgotten = write(tmp_path / "a.safetensors"), []
    guard = Guard(store, forgotten.append)
    with in_lane(1):
        other = load(store, path)
    before = state(other)
    with in_lane(0), guard.job(0, "p1", PACK), caplog.at_level(logging.WARNING):
        model = load(store, path)
        model.a.weight.data.mul_(2.0)
    assert same(state(other), before)
    assert forgotten == [0, 1]
    assert [store.ledgers.of(lane).writes for lane in (0, 1)] == [1, 0]
    assert "a.safetensors" in caplog.text
    assert "p1 on GPU 0" in caplog.text
    assert "careless" in caplog.text
    assert guard.packs == PACK
    with in_lane(0), guard.job(0, "p2", PACK | {"innocent"}):
        assert all(not known.shared(module._parameters[name]) for module, known, name in kept(model))
        model.a.weight.data.mul_(2.0)
        fresh = load(store, path)
        fresh.a.weight.data.zero_()
    assert same(state(other), before)
    assert torch.equal(model.a.weight, before["a.weight"] * 2.0)
    assert forgotten == [0, 1]


def kept(model: Net) -> list[tuple[torch.nn.Module, Any, str]]:
    return [(module, modules.kept(module, name), name) for _, module, name in modules.places(model)]


def test_a_writer_is_looked_for_among_the_jobs_with_custom_nodes(store: Store, tmp_path: Path):
    """A job of ComfyUI's own nodes that runs meanwhile is not suspected."""
    path, guard = write(tmp_path / "a.safetensors"), Guard(store)
    inside, done = threading.Event(), threading.Event()

    def plain() -> None:
        with in_lane(1), guard.job(1, "plain", frozenset()):
            inside.set()
            assert done.wait(30)

    thread = threading.Thread(target=plain)
    thread.start()
    assert inside.wait(30)
    with in_lane(0), guard.job(0, "p1", PACK):
        model = load(store, path)
        model.a.weight.data.mul_(2.0)
    done.set()
    thread.join(30)
    assert [store.ledgers.of(lane).writes for lane in (0, 1)] == [1, 0]


def test_jobs_without_custom_nodes_are_looked_at_now_and_then(
    store: Store, tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    """Once in a while, so that no fault of ComfyUI's own stays; nobody's pack is suspected. What a look takes decides
    when the next is due."""
    clock = [0.0]
    forgotten: list[int] = []
    guard = Guard(store, forgotten.append, lambda: clock[0])
    model = load(store, write(tmp_path / "a.safetensors"))
    before = state(model)

    def job() -> bool:
        with in_lane(0), guard.job(0, "plain", frozenset()):
            model.a.weight.data.fill_(7.0)
        return same(state(model), before)

    assert not job()
    clock[0] = PAUSE
    with caplog.at_level(logging.WARNING):
        assert job()
    assert "ComfyUI's own nodes" in caplog.text
    assert forgotten == [0]
    assert guard.packs == frozenset()
    looked = store.written

    def slowly() -> list[str]:
        clock[0] += 5.0
        return looked()

    store.written = slowly  # type: ignore[method-assign]  # a large store
    clock[0] = 2 * PAUSE
    assert job()
    clock[0] += 5.0 / SHARE - 1.0
    assert not job()
    clock[0] += 1.0
    assert job()


def test_a_job_that_fails_is_looked_at_too(store: Store, tmp_path: Path):
    """The error goes on, the weights are right."""
    path, guard = write(tmp_path / "a.safetensors"), Guard(store)
    model = load(store, path)
    before = state(model)

    def fail() -> None:
        with guard.job(0, "p1", PACK):
            model.a.weight.data.mul_(2.0)
            raise ValueError("node")

    with pytest.raises(ValueError, match="node"):
        fail()
    assert same(state(model), before)


@pytest.mark.parametrize("size", [1, 100, SMALL // 4, SMALL // 4 + 1, 3 * CHUNK])
@pytest.mark.parametrize("protect", [True, False])
def test_sealed_memory_holds_what_it_is_given(size: int, protect: bool):
    """Every size, chunks that fill up included; many small ones lie in few mappings and go with the last."""
    memory, before = Memory(protect), maps()
    sources = [torch.arange(size, dtype=torch.float32) + index for index in range(40 if size < CHUNK else 2)]
    copies = [memory.copy(source, torch.float32) for source in sources]
    assert all(content(copy) == content(source) for copy, source in zip(copies, sources, strict=True))
    assert len({copy.data_ptr() for copy in copies}) == len(copies)
    assert all(copy.data_ptr() % 64 == 0 for copy in copies)
    assert maps() > before
    del copies, memory
    gc.collect()
    assert maps() == before


@pytest.mark.parametrize("broken", ["memfd_create", "map_private"])
@pytest.mark.parametrize("kind", ["half", "pickled"])
def test_without_such_memory_ordinary_memory_does(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture,
    broken: str, kind: str,
):
    """Loading goes on with one warning, and nobody takes ordinary pages for a file's and gives them away."""

    def fail(*_: object, **__: object) -> int:
        raise OSError(12, "as asked")

    monkeypatch.setattr(os if broken == "memfd_create" else pages, broken, fail)
    path = made(tmp_path, kind)
    model = load(store, path)
    before = state(model)
    assert caplog.text.count("goes unnoticed") == 1
    model.a.weight.data.mul_(2.0)
    assert store.written() == []
    assert torch.equal(model.a.weight, before["a.weight"] * 2.0)
    assert torch.equal(model.b.weight, before["b.weight"])


def maps() -> int:
    return Path("/proc/self/maps").read_text().count("/memfd:weights")


def test_adopted_tensors_keep_their_shape_and_their_company():
    """Views of one storage are views of one storage afterwards; types, strides and nesting stay."""
    base = torch.arange(100_000, dtype=torch.float32)
    values: dict[str, Any] = {
        "whole": base, "inner": {"part": base[10:50].view(4, 10).t()}, "flag": torch.tensor([True, False]),
        "p": torch.nn.Parameter(torch.ones(3), requires_grad=False), "step": 3, "empty": torch.empty(0),
    }  # fmt: skip
    expected = {"whole": base.clone(), "part": values["inner"]["part"].clone()}
    found = Memory(protect=False).adopt(values)
    assert len(found) == 3
    assert torch.equal(values["whole"], expected["whole"])
    assert torch.equal(values["inner"]["part"], expected["part"])
    assert values["inner"]["part"].stride() == (1, 10)
    assert values["whole"].untyped_storage().data_ptr() == values["inner"]["part"].untyped_storage().data_ptr()
    assert values["whole"].data_ptr() != base.data_ptr()
    assert type(values["p"]) is torch.nn.Parameter
    assert values["flag"].tolist() == [True, False]


def test_a_lanes_bytes_are_added_up(store: Store, tmp_path: Path):
    """Shared once for two trees over one file, own after a write, and on the device; kept until something moves."""
    path, lane = write(tmp_path / "a.safetensors"), Lane(0, "cpu")
    report = Report(store, lane)
    assert report.now() == Weights()
    with in_lane(0):
        first, second = load(store, path), load(store, path)
    size = sum(parameter.nbytes for parameter in first.parameters())
    assert report.now() == Weights(host_shared=size, loads=1, loads_avoided=1)
    modules.own(first.a, "weight")
    assert report.now().host_own == first.a.weight.nbytes
    assert report.now().host_shared == size, "the second tree has all of it"
    del second
    gc.collect()
    first.to("meta")
    now = report.now()
    assert (now.host_shared, now.device, now.copies) == (0, size, 1)
    del first
    gc.collect()
    with in_lane(1):
        _other = load(store, path)
    assert store.ledgers.of(0).evictions == 1
    assert Report(store, Lane(1, "cpu")).now().loads == 1


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_a_witness_sees_every_master(tmp_path: Path, dtype: torch.dtype):
    """Files and conversions are hashed when they are made; one other byte in any of them is told."""
    store = Store(protect=False, witness=Witness())
    assert store.witness is not None
    path = write(tmp_path / "a.safetensors", dtype)
    values, _, file = store.load(str(path), lambda: reading(path))
    half = store.master(values["b.weight"], torch.bfloat16)
    assert len(store.witness) == 2
    assert store.witness.changed() == []
    half[0, 0] += 1.0
    assert len(store.witness.changed()) == 1
    assert file is not None
    values["a.bias"].add_(1.0)
    assert store.witness.changed()[0] == file.key.path
    store.written()
    assert store.witness.changed() == []


def test_without_a_store_a_lane_counts_its_loaded_models():
    """What ComfyUI has loaded for the lane, each parameter once."""
    lane, net = Lane(0, "cpu"), Net()
    lane.weights.models = lambda: [net, net, object()]
    assert Report(None, lane).now() == Weights(host_own=sum(parameter.nbytes for parameter in net.parameters()))
