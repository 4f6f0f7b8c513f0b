"""The store of weights: one file is one set of tensors, read once, never written, gone when nobody uses it."""

import ctypes
import gc
import os
import signal
import subprocess
import sys
import threading
import weakref
from pathlib import Path
from typing import Any

import pytest
import safetensors
import safetensors.torch
import torch

from backend.context import in_lane
from backend.overlay.weights import pages
from backend.overlay.weights.files import File, FileKey
from backend.overlay.weights.loading import as_loading, current, loading
from backend.overlay.weights.sealed import Memory, content
from backend.overlay.weights.store import Store

LINUX = pytest.mark.skipif(sys.platform != "linux", reason="mappings are looked at through Linux's /proc")


def write(path: Path, dtype: torch.dtype = torch.float32, seed: int = 0) -> Path:
    generator = torch.Generator().manual_seed(seed)
    values = {
        "a.weight": torch.randn((64, 48), generator=generator).to(dtype),
        "a.bias": torch.randn((64,), generator=generator).to(dtype),
        "b.weight": torch.randn((32, 64), generator=generator).to(dtype),
    }
    safetensors.torch.save_file(values, path, metadata={"name": "test"})
    return path


def reading(path: Path) -> tuple[dict[str, torch.Tensor], Any]:
    """As ComfyUI reads a file: its tensors are one private mapping."""
    with safetensors.safe_open(path, framework="pt", device="cpu") as file:
        return {key: file.get_tensor(key) for key in file.keys()}, file.metadata()  # noqa: SIM118 (no mapping)


def pickled(path: Path) -> tuple[Any, None]:
    return torch.load(path, weights_only=True), None


def test_many_lanes_asking_at_once_read_the_file_once(tmp_path: Path):
    """Eight threads that want one file get the same memory, each in a dictionary of its own."""
    path, store, reads = write(tmp_path / "a.safetensors"), Store(), []
    start, found = threading.Barrier(8), []

    def read() -> Any:
        reads.append(threading.get_ident())
        return reading(path)

    def lane(index: int) -> None:
        start.wait(timeout=30)
        with in_lane(index):
            found.append(store.load(str(path), read))

    threads = [threading.Thread(target=lane, args=(index,)) for index in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert len(reads) == 1
    assert {values["a.weight"].data_ptr() for values, _, _ in found} == {found[0][0]["a.weight"].data_ptr()}
    assert len({id(values) for values, _, _ in found}) == 8
    assert all(metadata == {"name": "test"} for _, metadata, _ in found)
    now = store.snapshot()
    assert (now.loads, now.avoided, now.files) == (1, 7, 1)
    assert sum(loads for loads, _ in now.loads_by_lane.values()) == 1
    assert set(now.loads_by_lane) == set(range(8))


def test_two_names_of_one_file_are_one_file(tmp_path: Path):
    """A link leads to the same tensors."""
    path, store = write(tmp_path / "a.safetensors"), Store()
    (tmp_path / "b.safetensors").symlink_to(path)
    first = store.load(str(path), lambda: reading(path))
    second = store.load(str(tmp_path / "b.safetensors"), lambda: pytest.fail("read twice"))
    assert first[2] is second[2]


def test_a_changed_file_is_read_anew(tmp_path: Path):
    """Other contents under an old name are never taken for the old ones, and the old ones stay what they were."""
    path, store = write(tmp_path / "a.safetensors"), Store()
    old, _, kept = store.load(str(path), lambda: reading(path))
    before = old["a.bias"].clone()
    write(tmp_path / "new", seed=1).rename(path)
    os.utime(path, ns=(1, 1))
    new, _, _ = store.load(str(path), lambda: reading(path))
    assert not torch.equal(new["a.bias"], before)
    assert torch.equal(old["a.bias"], before)
    assert kept is not None


def test_a_file_that_changes_while_it_is_read_is_not_shared(tmp_path: Path):
    """What was read then belongs to the reader alone."""
    path, store = write(tmp_path / "a.safetensors"), Store()

    def read() -> Any:
        os.utime(path, ns=(1, 1))
        return reading(path)

    assert store.load(str(path), read)[2] is None
    assert store.snapshot().files == 0


def test_a_failed_read_leaves_no_trace(tmp_path: Path):
    """The error reaches who asked, and the next one reads."""
    path, store = write(tmp_path / "a.safetensors"), Store()

    def fail() -> Any:
        raise ValueError("broken")

    with pytest.raises(ValueError, match="broken"):
        store.load(str(path), fail)
    assert store.load(str(path), lambda: reading(path))[2] is not None


def test_what_nobody_uses_is_gone(tmp_path: Path):
    """With the last user a file's memory goes, its conversions too, and the next load reads again."""
    path, store = write(tmp_path / "a.safetensors", torch.float16), Store()
    values, _, file = store.load(str(path), lambda: reading(path))
    half = store.master(values["a.weight"], torch.float32)
    gone = [weakref.ref(file), weakref.ref(half)]
    assert store.snapshot().anonymous == half.nbytes
    del values, file, half
    gc.collect()
    assert [reference() for reference in gone] == [None, None]
    now = store.snapshot()
    assert (now.files, now.mapped, now.anonymous) == (0, 0, 0)
    assert store.load(str(path), lambda: reading(path))[2] is not None
    assert store.snapshot().loads == 2


def test_files_that_cannot_be_mapped_are_shared_as_well(tmp_path: Path):
    """A .pt file is read once, counted as anonymous memory; dictionaries inside it are each caller's own."""
    path, store = tmp_path / "a.pt", Store()
    torch.save({"inner": {"w": torch.ones(5000)}, "step": 3}, path)
    first, _, file = store.load(str(path), lambda: pickled(path))
    second, _, _ = store.load(str(path), lambda: pickled(path))
    assert first["inner"]["w"] is second["inner"]["w"]
    second["inner"].pop("w")
    assert "w" in first["inner"]
    assert second["step"] == 3
    assert file is not None
    assert not file.mapped
    assert store.snapshot().anonymous >= 20_000


@LINUX
def test_masters_are_mapped_read_only_while_they_are_shared(tmp_path: Path):
    """The kernel itself holds writers off, and lets them again when the file is no longer shared."""
    path, store = write(tmp_path / "a.safetensors"), Store()
    values, _, file = store.load(str(path), lambda: reading(path))
    assert file is not None
    assert file.mapped
    assert file.protected
    assert permissions(values["a.weight"]) == "r--p"
    del file
    gc.collect()
    values["a.weight"].add_(1.0)
    assert permissions(values["a.weight"]) == "rw-p"


@LINUX
def test_conversions_are_read_only_too(tmp_path: Path):
    """A converted master lies in pages of its own that cannot be written."""
    path, store = write(tmp_path / "a.safetensors", torch.float16), Store()
    values, _, _file = store.load(str(path), lambda: reading(path))
    assert permissions(store.master(values["a.weight"], torch.float32)) == "r--p"


def permissions(tensor: torch.Tensor) -> str:
    for line in Path("/proc/self/maps").read_text().splitlines():
        start, _, end = line.split()[0].partition("-")
        if int(start, 16) <= tensor.data_ptr() < int(end, 16):
            return line.split()[1]
    raise AssertionError("the tensor lies in no mapping")


@LINUX
def test_a_writer_of_masters_ends_itself_and_not_the_pictures(tmp_path: Path):
    """Whoever writes a master in spite of everything is stopped by the kernel at that very instruction."""
    path = write(tmp_path / "a.safetensors")
    code = (
        "import sys, safetensors.torch\n"
        "from backend.overlay.weights.store import Store\n"
        "values, _, file = Store().load(sys.argv[1], lambda: (safetensors.torch.load_file(sys.argv[1]), None))\n"
        "values['a.weight'].data.mul_(2.0)\n"
    )
    root = Path(__file__).resolve().parents[3]
    ended = subprocess.run([sys.executable, "-c", code, str(path)], cwd=root, check=False)
    assert ended.returncode == -signal.SIGSEGV


@LINUX
def test_written_pages_are_counted(tmp_path: Path):
    """Where masters are writable, the kernel's count of pages that are no longer the file's tells on a writer."""
    path, store = write(tmp_path / "a.safetensors"), Store(protect=False)
    values, _, file = store.load(str(path), lambda: reading(path))
    assert file is not None
    assert not file.protected
    assert file.written() == 0
    before = file.digest()
    values["a.weight"].data.mul_(2.0)
    assert 0 < (file.written() or 0) <= values["a.weight"].nbytes + 2 * pages.PAGE
    assert file.digest() != before


def test_one_conversion_serves_all(tmp_path: Path):
    """A tensor in another type is made once, whoever asks and through whichever view."""
    path, store = write(tmp_path / "a.safetensors", torch.float16), Store()
    values, _, _file = store.load(str(path), lambda: reading(path))
    again, _, _ = store.load(str(path), lambda: reading(path))
    first = store.master(values["a.weight"], torch.float32)
    assert store.master(again["a.weight"][:], torch.float32) is first
    assert torch.equal(first, values["a.weight"].float())
    part = store.master(values["a.weight"][16:32], torch.float32)
    assert torch.equal(part, values["a.weight"][16:32].float())
    assert store.snapshot().conversions == 2


def test_a_tensor_in_place_is_its_own_master(tmp_path: Path):
    """No memory is spent where type and layout fit, slices included; a transposed one is laid out anew, once."""
    path, store = write(tmp_path / "a.safetensors"), Store()
    values, _, _file = store.load(str(path), lambda: reading(path))
    part = values["a.weight"][16:32]
    assert store.master(part, torch.float32) is part
    turned = store.master(values["a.weight"].t(), torch.float32)
    assert turned.is_contiguous()
    assert torch.equal(turned, values["a.weight"].t())
    assert store.master(values["a.weight"].t(), torch.float32) is turned


def test_computed_tensors_are_shared_when_they_are_equal():
    """What two loads compute alike is kept once; what differs, or comes from elsewhere, is not."""
    store, origin = Store(), ("file", "Model", "a.weight")
    first = store.master(torch.ones(4000), torch.float32, origin)
    assert store.master(torch.ones(4000), torch.float32, origin) is first
    other = store.master(torch.zeros(4000), torch.float32, origin)
    assert torch.equal(other, torch.zeros(4000))
    assert torch.equal(first, torch.ones(4000))
    assert store.master(torch.ones(4000), torch.float32, ("other",)) is not first


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float8_e4m3fn])
@pytest.mark.parametrize("protect", [True, False])
def test_conversions_are_torchs_own(dtype: torch.dtype, protect: bool):
    """Bit by bit what ``Tensor.to`` gives, in protected and in ordinary memory, large and small."""
    store = Store(protect)
    for size in (3, 5000):
        source = torch.linspace(-3.0, 3.0, size)
        made = store.master(source, dtype, (size,))
        assert content(made) == content(source.to(dtype))


def test_masters_work_inside_and_outside_of_inference_mode(tmp_path: Path):
    """A file first read by a running job serves code that needs gradients, and the other way round."""
    path, store = write(tmp_path / "a.safetensors", torch.float16), Store()
    with torch.inference_mode():
        values, _, _file = store.load(str(path), lambda: reading(path))
        master = store.master(values["a.weight"], torch.float32)
    assert not values["a.weight"].is_inference()
    assert not master.is_inference()
    inner = torch.ones(48, requires_grad=True)
    (master @ inner).sum().backward()
    assert inner.grad is not None


def test_a_digest_tells_every_byte(tmp_path: Path):
    """Equal for equal contents, different for one other value."""
    one, same = write(tmp_path / "1", seed=1), write(tmp_path / "2", seed=1)
    other = write(tmp_path / "3", seed=2)
    memory = Memory(protect=True)
    digests = [File(FileKey.of(path), reading(path)[0], None, memory).digest() for path in (one, same, other)]
    assert digests[0] == digests[1] != digests[2]


def test_bytes_are_counted_once_and_by_lane(tmp_path: Path):
    """A snapshot names what the process holds, and what each lane points at of it."""
    path, store = write(tmp_path / "a.safetensors"), Store()
    _, _, file = store.load(str(path), lambda: reading(path))
    assert file is not None
    with in_lane(2):
        held = store.held([file])
    held.mapped = file.nbytes
    now = store.snapshot()
    assert now.by_lane[2].mapped == file.nbytes
    assert now.mapped + now.anonymous == file.nbytes
    del held
    gc.collect()
    assert store.snapshot().by_lane == {}


def test_a_lane_tells_the_files_of_its_models_by_the_paths_it_asked_for(tmp_path: Path):
    """Links stay what they were asked by, files of other lanes and of models that are gone are left out."""
    path, store = write(tmp_path / "a.safetensors"), Store()
    link = tmp_path / "b.safetensors"
    link.symlink_to(path)
    _, _, file = store.load(str(link), lambda: reading(path))
    assert file is not None
    with in_lane(2):
        held = store.held([file])
    assert (store.paths_of(2), store.paths_of(1)) == ({str(link)}, set())
    store.load(str(path), lambda: reading(path))
    assert store.paths_of(2) == {str(link), str(path)}
    del held
    gc.collect()
    assert store.paths_of(2) == set()


def test_loadings_nest_and_end():
    """A loader inside a loader belongs to the outer one; afterwards, and after an error, there is none."""

    @as_loading
    def inner() -> Any:
        return current()

    with loading() as outer:
        assert inner() is outer
        assert current() is outer
    assert current() is None
    with pytest.raises(ValueError, match="broken"), loading():
        raise ValueError("broken")
    assert current() is None


def test_blocks_that_make_room_for_masters_are_given_back(monkeypatch: pytest.MonkeyPatch):
    """The allocator is told once when the first of several loaders starts, and put back when the last one ends."""
    calls: list[tuple[str, int]] = []
    monkeypatch.setattr(pages, "_allocator", lambda name, *arguments: calls.append((name, arguments[-1].value)))
    policy = pages.Passing()
    with policy:
        low = [value for name, value in calls if name == "mallopt"]
        with policy:
            pass
        assert [value for name, value in calls if name == "mallopt"] == low
    assert calls[-1][0] == "malloc_trim"
    assert min(low) < 1024 * 1024 <= min(value for name, value in calls[len(low) :] if name == "mallopt")


HEAP = """
import ctypes, threading
from backend.overlay.weights import pages

library = ctypes.CDLL(None)
library.malloc.restype = ctypes.c_void_p
library.malloc.argtypes, library.free.argtypes = [ctypes.c_size_t], [ctypes.c_void_p]
size, count = 30_000, 1000
blocks = (ctypes.c_void_p * count)()  # not in the thread's heap, whose end is to be free

def resident():
    return int(open("/proc/self/statm").read().split()[1]) * pages.PAGE

def work():
    pages.trim_own()
    for place in range(count):
        blocks[place] = library.malloc(size)
        ctypes.memset(blocks[place], 1, size)
    for block in blocks:
        library.free(block)
    before = resident()
    pages.trim_own()
    print(before - resident())

thread = threading.Thread(target=work)
thread.start()
thread.join()
"""


@pytest.mark.skipif(
    sys.platform != "linux" or not hasattr(ctypes.CDLL(None), "malloc_trim"), reason="another C library's heaps"
)
def test_what_a_threads_heap_keeps_is_given_back():
    """Small blocks that a thread has freed, 30 MB: the heap keeps them, until that thread is told. In a process of its
    own, where nothing else is in the heap."""
    root = Path(__file__).parents[3]
    ended = subprocess.run(
        [sys.executable, "-c", HEAP], cwd=root, capture_output=True, text=True, check=True, timeout=120
    )
    assert int(ended.stdout) > 15_000_000
