"""Modules over shared weights: loading, moving, converting and writing, as torch does it and without a second copy."""

import copy
import functools
import io
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch

from backend.context import in_lane
from backend.overlay.patches import weights
from backend.overlay.weights import hooks, modules
from backend.overlay.weights.files import File
from backend.overlay.weights.loading import loading
from backend.overlay.weights.store import Store
from tests.backend.overlay.test_weights_store import reading

GPU = torch.device("meta")
"""Stands for a GPU: it takes part in moves, and raises when anybody wants to copy something back from it."""


class Block(torch.nn.Module):
    """A layer, a norm and a buffer that it counts in."""

    def __init__(self, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(48, 64, dtype=dtype)
        self.norm = torch.nn.LayerNorm(64, dtype=dtype)
        self.register_buffer("count", torch.zeros(8, dtype=dtype))


class Net(torch.nn.Module):
    """Two blocks."""

    def __init__(self, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.blocks = torch.nn.ModuleList([Block(dtype), Block(dtype)])


@pytest.fixture
def store() -> Store:
    return Store()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A file with the weights of a ``Net``."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        values = {key: torch.randn_like(value) for key, value in Net().state_dict().items()}
    file = tmp_path / "net.safetensors"
    safetensors.torch.save_file(values, file)
    return file


@pytest.fixture
def patched(store: Store) -> Iterator[None]:
    """``torch.nn.Module`` as the overlay leaves it."""
    installed = weights.module_patches(store)
    for patch in installed:
        patch.install()
    yield
    for patch in reversed(installed):
        patch.remove()


pytestmark = pytest.mark.usefixtures("patched")


def loaded(store: Store, path: Path, make: Callable[[], torch.nn.Module] = Net, **options: Any) -> Any:
    """What a loader of ComfyUI does: open the file, build the modules, fill them."""
    with loading() as inside:
        values, _, file = store.load(str(path), lambda: reading(path))
        assert file is not None
        inside.files.append(file)
        model = make()
        model.load_state_dict(values, **options)
    return model


def plain(path: Path, make: Callable[[], torch.nn.Module] = Net) -> Any:
    """The same without the store."""
    model = make()
    model.load_state_dict(reading(path)[0])
    return model


def states(model: torch.nn.Module) -> list[str]:
    """``master``, ``clean`` or ``own`` for each parameter."""
    found = []
    for _, module, name in modules.places(model):
        parameter, kept = module._parameters[name], modules.kept(module, name)
        assert parameter is not None
        if kept is None or not kept.clean(parameter):
            found.append("own")
        else:
            found.append("master" if kept.shared(parameter) else "clean")
    return found


def same(one: torch.nn.Module, other: torch.nn.Module) -> bool:
    left, right = one.state_dict(), other.state_dict()
    return left.keys() == right.keys() and all(
        torch.equal(left[key], right[key]) and left[key].dtype == right[key].dtype for key in left
    )


@contextmanager
def unwritten(store: Store) -> Iterator[None]:
    """Every master holds the same bytes afterwards."""
    files: list[File] = store.files()
    before = [file.digest() for file in files]
    yield
    assert [file.digest() for file in files] == before


def test_two_loads_are_two_trees_over_one_memory(store: Store, path: Path):
    """Each lane has its own modules and parameters; their bytes are the file's, and equal to a plain load's."""
    one, two = loaded(store, path), loaded(store, path)
    assert same(one, plain(path))
    assert states(one) == states(two) == ["master"] * 8
    for left, right in zip(one.parameters(), two.parameters(), strict=True):
        assert left is not right
        assert left.data_ptr() == right.data_ptr()
        assert left.requires_grad


def test_buffers_are_each_trees_own(store: Store, path: Path):
    """Modules write their buffers, so nothing of them is shared."""
    one, two = loaded(store, path), loaded(store, path)
    one.blocks[0].count.add_(1.0)
    assert torch.equal(two.blocks[0].count, plain(path).blocks[0].count)
    assert not torch.equal(one.blocks[0].count, two.blocks[0].count)


def test_outside_a_loader_nothing_changes(store: Store, path: Path):
    """A custom node that fills a module by itself gets its own copy, as ever."""
    values, _, _file = store.load(str(path), lambda: reading(path))
    model = Net()
    model.load_state_dict(values)
    assert states(model) == ["own"] * 8
    assert model.blocks[0].layer.weight.data_ptr() != values["blocks.0.layer.weight"].data_ptr()


def test_a_wanted_type_is_converted_once(store: Store, path: Path):
    """Modules of another type share one conversion, with the values that copying would have given."""
    half = functools.partial(Net, torch.float16)
    one, two = loaded(store, path, half), loaded(store, path, half)
    assert same(one, plain(path, half))
    assert [left.data_ptr() for left in one.parameters()] == [right.data_ptr() for right in two.parameters()]
    assert one.blocks[0].count.dtype == torch.float16


@pytest.mark.parametrize("strict", [True, False])
@pytest.mark.parametrize("change", ["missing", "unexpected", "shape", "fits"])
def test_names_and_shapes_are_judged_by_torch(store: Store, path: Path, tmp_path: Path, change: str, strict: bool):
    """Missing and unexpected keys, wrong shapes, strict or not: the same answer or error as without the store."""
    values, _ = reading(path)
    if change == "missing":
        del values["blocks.0.layer.bias"]
    elif change == "unexpected":
        values["more"] = torch.zeros(3)
    elif change == "shape":
        values["blocks.0.layer.bias"] = torch.zeros(65)
    other = tmp_path / "other.safetensors"
    safetensors.torch.save_file(values, other)

    def outcome(load: Callable[[], Any]) -> Any:
        try:
            found = load()
        except RuntimeError as error:
            return str(error)
        return found.missing_keys, found.unexpected_keys

    wanted = outcome(lambda: Net().load_state_dict(reading(other)[0], strict=strict))

    def shared() -> Any:
        with loading() as inside:
            file_values, _, file = store.load(str(other), lambda: reading(other))
            assert file is not None
            inside.files.append(file)
            return Net().load_state_dict(file_values, strict=strict)

    assert outcome(shared) == wanted


class Tied(torch.nn.Module):
    """One parameter in two places, as text encoders have it."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = torch.nn.Embedding(48, 64)
        self.head = torch.nn.Linear(64, 48, bias=False)
        self.head.weight = self.embedding.weight


@pytest.mark.parametrize("names", [["embedding.weight"], ["head.weight"], ["embedding.weight", "head.weight"]])
def test_tied_parameters_stay_tied(store: Store, tmp_path: Path, names: list[str]):
    """Whichever of its names a file uses, both places are one parameter over the master, and stay it on the move."""
    value = torch.arange(48.0 * 64).reshape(48, 64)
    file = tmp_path / "tied.safetensors"
    safetensors.torch.save_file({name: value.clone() for name in names}, file)
    model = loaded(store, file, Tied, strict=False)
    assert model.head.weight is model.embedding.weight
    assert torch.equal(model.head.weight, value)
    assert states(model) == ["master"] * 2
    hooks.copying(in_place)(model, "head.weight", value * 2)
    assert torch.equal(model.embedding.weight, value * 2)
    assert torch.equal(loaded(store, file, Tied, strict=False).head.weight, value)


def in_place(obj: Any, attr: str, value: torch.Tensor) -> None:
    """As ComfyUI's ``copy_to_param`` writes."""
    *parents, name = attr.split(".")
    for parent in parents:
        obj = getattr(obj, parent)
    getattr(obj, name).data.copy_(value)


def test_coming_back_from_a_gpu_copies_nothing(store: Store, path: Path):
    """Unloading points at the masters again; the stand-in for a GPU would raise on any copy from it."""
    model = loaded(store, path)
    with unwritten(store):
        for _ in range(3):
            model.to(GPU)
            assert set(states(model)) == {"clean"}
            drop_buffers(model)
            model.to("cpu")
            assert set(states(model)) == {"master"}
    assert [p.data_ptr() for p in model.parameters()] == [p.data_ptr() for p in loaded(store, path).parameters()]


def drop_buffers(model: torch.nn.Module) -> None:
    """Buffers are copied back, which the stand-in for a GPU cannot do."""
    for module in model.modules():
        if "count" in module._buffers:
            module._buffers["count"] = None


def test_parts_can_move_alone(store: Store, path: Path):
    """Partial loading moves single modules, in any order and both ways."""
    model = loaded(store, path)
    model.blocks[1].layer.to(GPU)
    assert states(model) == ["master"] * 4 + ["clean"] * 2 + ["master"] * 2
    model.blocks[1].layer.cpu()
    assert states(model) == ["master"] * 8


def test_a_replaced_parameter_is_nobodys_master(store: Store, path: Path):
    """A patched weight keeps its values on the move; putting the old one back restores the sharing."""
    model = loaded(store, path)
    layer = model.blocks[0].layer
    old = layer.weight
    layer.weight = torch.nn.Parameter(torch.ones(64, 48), requires_grad=False)
    model.to("cpu")
    assert torch.equal(layer.weight, torch.ones(64, 48))
    assert states(model)[0] == "own"
    layer.weight = torch.nn.Parameter(old, requires_grad=False)
    assert states(model)[0] == "master"


def test_a_patched_weight_is_really_copied_back(store: Store, path: Path):
    """What is not the master's values any more has to be copied from the GPU: the stand-in says that it was tried."""
    model = loaded(store, path)
    model.blocks[0].layer.weight = torch.nn.Parameter(torch.empty(64, 48, device=GPU))
    with pytest.raises(NotImplementedError, match="meta"):
        model.blocks[0].layer.to("cpu")


@pytest.mark.parametrize("convert", [
    lambda m: m.to(torch.float16), lambda m: m.half(), lambda m: m.to("cpu", torch.float16),
    lambda m: m.to(torch.zeros(1, dtype=torch.float16)), lambda m: m.bfloat16(), lambda m: m.to(torch.bfloat16).float(),
    lambda m: m.half().float().to("cpu"), lambda m: m.float(), lambda m: m.to(dtype=torch.float8_e4m3fn),
])  # fmt: skip
def test_conversions_are_torchs_and_made_once(store: Store, path: Path, convert: Callable[[Any], Any]):
    """All ways to convert a model give torch's own bytes, rounding twice included, in one memory for all lanes."""
    one, two = convert(loaded(store, path)), convert(loaded(store, path))
    assert same(one, convert(plain(path)))
    assert set(states(one)) == {"master"}
    assert [left.data_ptr() for left in one.parameters()] == [right.data_ptr() for right in two.parameters()]


def test_a_conversion_on_the_gpu_comes_back_converted(store: Store, path: Path):
    """Values that were rounded on the way out are the rounded ones when they return."""
    model = loaded(store, path).to(GPU, torch.float16)
    drop_buffers(model)
    model.to("cpu").to(torch.float32)
    other = plain(path).half().float()
    drop_buffers(other)
    assert same(model, other)


def test_a_layout_of_its_own_is_not_taken_back(store: Store, path: Path):
    """Who asks for a memory format gets it, and keeps it."""
    model = loaded(store, path, lambda: torch.nn.Sequential(Net()).__getitem__(0))
    before = model.blocks[0].layer.weight.clone()
    model.to(memory_format=torch.channels_last)
    assert torch.equal(model.blocks[0].layer.weight, before)


def test_writing_a_weight_in_place_never_reaches_the_master(store: Store, path: Path):
    """The writer gets memory of its own with its values; everybody else's stay."""
    one, two = loaded(store, path), loaded(store, path)
    with unwritten(store):
        hooks.copying(in_place)(one, "blocks.0.layer.weight", torch.ones(64, 48))
        assert torch.equal(one.blocks[0].layer.weight, torch.ones(64, 48))
        one.to("cpu")
        assert torch.equal(one.blocks[0].layer.weight, torch.ones(64, 48))
    assert same(two, plain(path))
    assert states(one) == ["own"] + ["master"] * 7


def test_filling_a_sharing_module_again_never_reaches_the_masters(store: Store, path: Path):
    """``load_state_dict`` on its own copies into parameters, so they are made the module's own before."""
    model = loaded(store, path)
    part = {"blocks.0.layer.weight": torch.ones(64, 48)}
    with unwritten(store):
        model.load_state_dict(part, strict=False)
    assert torch.equal(model.blocks[0].layer.weight, torch.ones(64, 48))
    assert states(model) == ["own"] + ["master"] * 7


def test_a_copy_of_a_module_is_its_own(store: Store, path: Path):
    """Copied and pickled modules own their weights and forget the masters, so that changes to them last."""
    model = loaded(store, path)
    twin = copy.deepcopy(model)
    assert states(twin) == ["own"] * 8
    with torch.no_grad():
        twin.blocks[0].layer.weight.fill_(3.0)
    twin.to("cpu")
    assert torch.equal(twin.blocks[0].layer.weight, torch.full((64, 48), 3.0))
    packed = io.BytesIO()
    torch.save(model, packed)
    packed.seek(0)
    assert same(torch.load(packed, weights_only=False), model)


class Patcher:
    """What the wrappers know of ComfyUI's model patcher."""

    def __init__(self, model: torch.nn.Module, patches: dict[str, float], inplace: bool = False) -> None:
        self.model, self.patches = model, patches
        self.weight_inplace_update = inplace
        self.offload_device = torch.device("cpu")
        self.backup: dict[str, Any] = {}
        self.hook_backup: dict[str, Any] = {}

    def weight(self, key: str) -> torch.nn.Parameter:
        return dict(self.model.named_parameters())[key]

    def patch(self, key: str, device_to: Any = None, inplace_update: bool = False) -> None:
        """As ``patch_weight_to_device``: keeps the weight, then sets or writes the patched one."""
        weight = self.weight(key)
        inplace = inplace_update or self.weight_inplace_update
        if key not in self.backup:
            self.backup[key] = (weight.to("cpu", copy=inplace), inplace)
        if inplace:
            weight.data.add_(self.patches[key])
            return
        path, _, name = key.rpartition(".")
        new = torch.full(weight.shape, self.patches[key], device=device_to)
        setattr(self.model.get_submodule(path), name, torch.nn.Parameter(new, requires_grad=False))

    def hook(self, hooks_of: Any, combined: Any, key: str, originals: Any = None, memory_counter: Any = None) -> None:
        """As ``patch_hook_weight_to_device``: writes in place, keeping a copy."""
        if key not in combined:
            return
        weight = self.weight(key)
        self.hook_backup.setdefault(key, (weight.to("cpu", copy=True), weight.device))
        weight.data.copy_(torch.full(weight.shape, combined[key]))

    def unhook(self, only: Any = None) -> None:
        """As ``unpatch_hooks``."""
        for key in [key for key in self.hook_backup if only is None or key in only]:
            copying = hooks.copying(in_place)
            copying(self.model, key, self.hook_backup.pop(key)[0])


KEY = "blocks.0.layer.weight"


def test_a_backup_of_a_weight_on_the_gpu_is_its_master(store: Store, path: Path):
    """Patching a loaded model makes no host copy; the stand-in for a GPU could not give one."""
    model = loaded(store, path)
    model.blocks[0].layer.to(GPU)
    patcher = Patcher(model, {KEY: 2.0})
    hooks.patching(Patcher.patch)(patcher, KEY, GPU)
    kept = patcher.backup[KEY]
    assert kept.weight.data_ptr() == modules.kept(model.blocks[0].layer, "weight").master.data_ptr()
    assert kept.inplace_update is False
    assert states(model)[0] == "own"
    model.blocks[0].layer.weight = torch.nn.Parameter(kept.weight, requires_grad=False)
    model.blocks[0].layer.to("cpu")
    assert states(model) == ["master"] * 8


@pytest.mark.parametrize("how", ["patcher", "argument", "keyword"])
def test_patching_in_place_writes_memory_of_its_own(store: Store, path: Path, how: str):
    """Also for those who ask for it, the masters stay."""
    model = loaded(store, path)
    before = model.blocks[0].layer.weight.clone()
    patcher = Patcher(model, {KEY: 2.0}, inplace=how == "patcher")
    arguments = (None, True) if how == "argument" else ()
    more = {"inplace_update": True} if how == "keyword" else {}
    with unwritten(store):
        hooks.patching(Patcher.patch)(patcher, KEY, *arguments, **more)
    assert torch.equal(model.blocks[0].layer.weight, before + 2.0)
    assert torch.equal(patcher.backup[KEY][0], before)


def test_hooks_write_their_own_and_masters_return(store: Store, path: Path):
    """A weight under a hook is private; when the hook ends it is the master again, and its memory is free."""
    model = loaded(store, path)
    patcher = Patcher(model, {})
    hook, unhook = hooks.hooking(3)(Patcher.hook), hooks.unhooking(Patcher.unhook)
    other = "blocks.1.norm.weight"
    with unwritten(store):
        hook(patcher, None, {KEY: 5.0, other: 6.0}, KEY, memory_counter=None)
        hook(patcher, None, {KEY: 5.0, other: 6.0}, key=other)
        hook(patcher, None, {KEY: 5.0}, "blocks.0.layer.bias")
        assert states(model) == ["own", "master", "master", "master", "master", "master", "own", "master"]
        assert torch.equal(model.blocks[0].layer.weight, torch.full((64, 48), 5.0))
        unhook(patcher, {KEY})
        assert states(model)[0] == "master"
        assert states(model)[6] == "own"
        unhook(patcher)
    assert states(model) == ["master"] * 8
    assert same(model, plain(path))


def test_lanes_share_while_all_of_them_move(store: Store, path: Path):
    """Four threads that load, move, convert and write at once disturb neither each other nor the masters."""
    wanted = plain(path)
    keep = loaded(store, path)
    problems: list[str] = []

    def lane(index: int) -> None:
        with in_lane(index), torch.inference_mode():
            for turn in range(12):
                model = loaded(store, path)
                model.blocks[turn % 2].layer.to(GPU)
                model.blocks[turn % 2].layer.to("cpu")
                if not same(model, wanted):
                    problems.append(f"lane {index} turn {turn}: other weights")
                hooks.copying(in_place)(model, KEY, torch.full((64, 48), float(index)))
                if float(model.half().blocks[0].layer.weight[3, 3]) != index:
                    problems.append(f"lane {index} turn {turn}: another lane's patch")

    with unwritten(store):
        threads = [threading.Thread(target=lane, args=(index,)) for index in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
    assert problems == []
    assert same(keep, wanted)
    assert store.snapshot().loads == 1


def test_each_lane_is_told_what_it_points_at(store: Store, path: Path):
    """Trees and bytes by lane, while they live."""
    kept = []
    for lane in (0, 0, 3):
        with in_lane(lane):
            kept.append(loaded(store, path))
    size = sum(parameter.nbytes for parameter in kept[0].parameters())
    held = store.snapshot().by_lane
    assert {lane: (of.trees, of.mapped + of.anonymous) for lane, of in held.items()} == {0: (2, 2 * size), 3: (1, size)}
    kept.clear()
    assert store.snapshot().by_lane == {}


class Filler(torch.nn.Module):
    """Takes its weight out of the state dictionary by itself, as quantized layers do."""

    def __init__(self, wrap: Callable[[torch.Tensor], torch.Tensor]) -> None:
        super().__init__()
        self.wrap = wrap

    def _load_from_state_dict(self, state_dict: Any, prefix: str, *_: Any) -> None:
        self.weight = torch.nn.Parameter(self.wrap(state_dict.pop(f"{prefix}weight")), requires_grad=False)


class Quantized(torch.Tensor):
    """A tensor of a kind of its own."""


def test_what_a_module_took_by_itself_is_a_master_too(store: Store, tmp_path: Path):
    """A module that keeps the file's tensor as it is shares it, and writing it in place is no more allowed."""
    file = tmp_path / "w.safetensors"
    safetensors.torch.save_file({"weight": torch.ones(64, 64)}, file)
    one, two = (loaded(store, file, lambda: Filler(lambda value: value)) for _ in range(2))
    assert states(one) == ["master"]
    with unwritten(store):
        hooks.copying(in_place)(one, "weight", torch.zeros(64, 64))
    assert torch.equal(one.weight, torch.zeros(64, 64))
    assert torch.equal(two.weight, torch.ones(64, 64))


def test_weights_of_other_kinds_are_written_in_copies(store: Store, tmp_path: Path):
    """What lies inside a quantized weight may be a file's, so it is copied before anybody writes it."""
    file = tmp_path / "w.safetensors"
    safetensors.torch.save_file({"weight": torch.ones(64, 64)}, file)
    model = loaded(store, file, lambda: Filler(lambda value: value.as_subclass(Quantized)))
    assert type(model.weight) is Quantized
    with unwritten(store):
        hooks.copying(in_place)(model, "weight", torch.zeros(64, 64))
    assert torch.equal(model.weight.as_subclass(torch.Tensor), torch.zeros(64, 64))


def test_a_patched_weight_that_is_only_asked_for_changes_nothing(store: Store, path: Path):
    """Newer patchers return a weight without setting it: there is no backup then, and the master stays in place."""
    model = loaded(store, path)
    model.blocks[0].layer.to(GPU)
    patcher = Patcher(model, {KEY: 2.0})
    for arguments, more in (((), {"return_weight": True}), ((None, False, True), {})):
        hooks.patching(lambda self, key, *_, **__: None)(patcher, KEY, *arguments, **more)
        assert patcher.backup == {}


def test_masters_are_known_wherever_they_are_looked_at(store: Store, path: Path):
    """Files, conversions and views of both; nothing else."""
    model, half = loaded(store, path), loaded(store, path, functools.partial(Net, torch.float16))
    assert store.is_master(model.blocks[0].layer.weight)
    assert store.is_master(half.blocks[0].layer.weight[3:])
    assert not store.is_master(torch.ones(3))
    assert not store.is_master(torch.empty(3, device=GPU))
