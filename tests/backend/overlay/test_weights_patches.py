"""Where one host copy of the weights hangs in ComfyUI: all names or none, the switch, loaders, what is left alone."""

import asyncio
import functools
import gc
import importlib.machinery
import logging
import sys
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch

from backend import share
from backend.context import in_lane
from backend.lanes import Lane
from backend.overlay.patch import PatchSet
from backend.overlay.patches import weights
from backend.overlay.weights import modules
from tests.backend.overlay.test_weights_store import reading, write

LANES = [Lane(0, "cpu"), Lane(1, "cpu")]

SOURCES = {
    "comfy": "",
    "comfy.utils": '''
import torch
opened = []
def load_torch_file(ckpt, safe_load=False, device=None, return_metadata=False):
    opened.append(ckpt)
    values, metadata = reading(ckpt)
    return (values, metadata) if return_metadata else values
def copy_to_param(obj, attr, value):
    getattr(obj, attr).data.copy_(value)
''',
    "comfy.sd": '''
import torch
from comfy.utils import load_torch_file
def load_checkpoint_guess_config(ckpt_path, output_vae=True):
    values, metadata = load_torch_file(ckpt_path, return_metadata=True)
    model = torch.nn.Module()
    model.a, model.b = torch.nn.Linear(48, 64), torch.nn.Linear(64, 32, bias=False)
    model.load_state_dict(values)
    model.metadata = metadata
    return model
load_diffusion_model = lambda unet_path, model_options={}: load_checkpoint_guess_config(unet_path)
def load_clip(ckpt_paths, embedding_directory=None): return [load_checkpoint_guess_config(p) for p in ckpt_paths]
def load_style_model(ckpt_path): raise ValueError(ckpt_path)
def load_gligen(ckpt_path): return load_checkpoint_guess_config(ckpt_path)
''',
    "comfy.controlnet": '''
from comfy.utils import load_torch_file
def load_controlnet(ckpt_path, model=None): return load_controlnet_state_dict(load_torch_file(ckpt_path))
def load_controlnet_state_dict(state_dict, model=None, model_options={}):
    for key, value in state_dict.items():
        value += 1.0
    return state_dict
''',
    "comfy.clip_vision": "def load(ckpt_path): pass",
    "comfy.diffusers_load": "def load_diffusers(model_path, output_vae=True): pass",
    "comfy.sd1_clip": '''
class SDTokenizer:
    def __init__(self, tokenizer_path=None, tokenizer_class=None, tokenizer_args={}):
        self.tokenizer = tokenizer_class.from_pretrained(tokenizer_path, **tokenizer_args)
''',
    "comfy.taesd": "",
    "comfy.taesd.taesd": "class TAESD:\n    def __init__(self, encoder_path=None): pass",
    "comfy.model_management": '''
import torch
offload = torch.device("cpu")
def unet_offload_device(): return offload
def unet_inital_load_device(parameters, dtype): return torch.device("cuda")
def text_encoder_initial_device(load_device, offload_device, model_size=0): return load_device
def pin_memory(tensor): return True
''',
    "execution": '''
class PromptExecutor:
    def execute(self, prompt, prompt_id, extra_data={}, execute_outputs=[]): return self.run()
''',
    "comfy.model_patcher": '''
class ModelPatcher:
    def patch_weight_to_device(self, key, device_to=None, inplace_update=False): pass
    def patch_hook_weight_to_device(self, hooks, combined_patches, key, original_weights, memory_counter): pass
    def patch_cached_hook_weights(self, cached_weights, key, memory_counter): pass
    def unpatch_hooks(self, whitelist_keys_set=None): pass
''',
    "nodes": '''
from comfy.utils import load_torch_file
NODE_CLASS_MAPPINGS = {}
class VAELoader:
    def load_vae(self, vae_name): pass
class Old:
    FUNCTION = "load_model"
    def load_model(self, name): return load_torch_file(name)
class New:
    @classmethod
    def execute(cls, name): return load_torch_file(name)
async def init_builtin_extra_nodes():
    NODE_CLASS_MAPPINGS.update(UpscaleModelLoader=New, PhotoMakerLoader=Old, Other=Old)
    return ["failed"]
''',
}
"""The names as ComfyUI has them, in the order in which they import each other; written from their behaviour."""


@pytest.fixture
def comfy(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Modules with every name the store hangs on."""
    found: dict[str, Any] = {}
    folder = tmp_path_factory.mktemp("comfy")
    for name, source in SOURCES.items():
        module = types.ModuleType(name)
        module.__spec__ = importlib.machinery.ModuleSpec(name, None)
        module.__dict__["reading"] = reading
        monkeypatch.setitem(sys.modules, name, module)
        file = folder / f"{name}.py"
        file.write_text(source)  # some names are known by their source
        exec(compile(source, file, "exec"), module.__dict__)
        parent, _, child = name.rpartition(".")
        if parent:
            setattr(found[parent], child, module)
        found[name] = module
    monkeypatch.setattr(weights, "stores", [])
    monkeypatch.delenv(share.SWITCH, raising=False)
    return found


@pytest.fixture
def shared(comfy: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """ComfyUI with the store."""
    installed = PatchSet(weights.patches(LANES))
    installed.install()
    assert len(installed.patches) > 20
    yield comfy
    installed.remove()


def sharing(model: torch.nn.Module) -> bool:
    return all(
        kept is not None and kept.shared(module._parameters[name])  # type: ignore[arg-type]  # places() gives no None
        for _, module, name in modules.places(model)
        for kept in [modules.kept(module, name)]
    )


def test_loaders_share(shared: dict[str, Any], tmp_path: Path):
    """One file through several loaders is opened once, its metadata included, and all models are over its memory."""
    path = str(write(tmp_path / "a.safetensors"))
    sd = shared["comfy.sd"]
    models = [sd.load_checkpoint_guess_config(path), sd.load_diffusion_model(path), *sd.load_clip([path, path])]
    assert all(sharing(model) for model in models)
    assert models[1].metadata == {"name": "test"}
    assert shared["comfy.utils"].opened == [path]
    now = weights.stores[0].snapshot()
    assert (now.loads, now.avoided) == (1, 3)


def test_a_lane_tells_its_models_as_workflows_name_them(
    shared: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """By the way from their folder; what lies in none, and what no model is left of, is not told."""
    folders = types.ModuleType("folder_paths")
    folders.folder_names_and_paths = {"checkpoints": ([str(tmp_path / "models")], {".safetensors"})}  # type: ignore[attr-defined]  # it is an empty module
    monkeypatch.setitem(sys.modules, "folder_paths", folders)
    (tmp_path / "models/sub").mkdir(parents=True)
    inside, outside = (str(write(tmp_path / each)) for each in ("models/sub/a.safetensors", "b.safetensors"))
    with in_lane(1):
        models = [shared["comfy.sd"].load_checkpoint_guess_config(each) for each in (inside, outside)]
    assert [lane.weights.names() for lane in LANES] == [[], ["sub/a.safetensors"]]
    del models
    gc.collect()
    assert LANES[1].weights.names() == []


def test_a_loader_that_fails_is_no_loader_any_more(shared: dict[str, Any], tmp_path: Path):
    """After an error files are opened as ever."""
    path = str(write(tmp_path / "a.safetensors"))
    with pytest.raises(ValueError, match="x"):
        shared["comfy.sd"].load_style_model("x")
    values = shared["comfy.utils"].load_torch_file(path)
    assert weights.stores[0].file_of(values["a.weight"]) is None


def test_files_opened_elsewhere_are_the_callers_own(shared: dict[str, Any], tmp_path: Path):
    """A LoRA, or what a custom node opens, can be written by who opened it."""
    path = str(write(tmp_path / "a.safetensors"))
    model = shared["comfy.sd"].load_checkpoint_guess_config(path)
    values = shared["comfy.utils"].load_torch_file(path, return_metadata=False)
    values["a.weight"].mul_(0.0)
    assert torch.equal(model.a.weight, reading(Path(path))[0]["a.weight"])


def test_a_loader_that_adds_to_its_tensors_has_its_own(shared: dict[str, Any], tmp_path: Path):
    """ControlNets that hold differences are added up in place, in copies."""
    file = tmp_path / "c.safetensors"
    safetensors.torch.save_file({"difference": torch.zeros(2), "w": torch.ones(5000)}, file)
    for _ in range(2):
        assert float(shared["comfy.controlnet"].load_controlnet(str(file))["w"][0]) == 2.0
    assert weights.stores[0].snapshot().loads == 2


def test_nodes_that_load_by_themselves_are_loaders(shared: dict[str, Any], tmp_path: Path):
    """Loader nodes outside ComfyUI's library are found by name once they are there, old and new kinds."""
    path = str(write(tmp_path / "a.safetensors"))
    nodes = shared["nodes"]
    assert asyncio.run(nodes.init_builtin_extra_nodes()) == ["failed"]
    for number, call in enumerate((nodes.New.execute, nodes.Old().load_model), start=1):
        assert "a.weight" in call(path)
        assert weights.stores[0].snapshot().loads == number, "nobody kept what the first read"


def test_weights_start_on_the_host(shared: dict[str, Any]):
    """A model is not filled on the GPU while there is a host copy to share; with everything on the GPU it is."""
    management = shared["comfy.model_management"]
    cpu, gpu = torch.device("cpu"), torch.device("cuda")
    assert management.unet_inital_load_device(1, None) == cpu
    assert management.text_encoder_initial_device(gpu, cpu) == cpu
    assert management.text_encoder_initial_device(gpu, gpu, 5) == gpu
    management.offload = gpu
    assert management.unet_inital_load_device(1, None) == gpu


def test_masters_are_not_pinned(shared: dict[str, Any], tmp_path: Path):
    """A lane that unloads would unpin them under another's copy; everything else is pinned as ever."""
    model = shared["comfy.sd"].load_checkpoint_guess_config(str(write(tmp_path / "a.safetensors")))
    pin = shared["comfy.model_management"].pin_memory
    assert pin(model.a.weight) is False
    assert pin(torch.ones(3)) is True


def pack_node(pack: str) -> type:
    return type("Node", (), {"RELATIVE_PYTHON_MODULE": f"custom_nodes.{pack}"})


def test_a_node_that_writes_weights_in_place_costs_nobody_anything(
    shared: dict[str, Any], tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    """Its job ends, the other lane's weights are right again, both forget; its next job has a copy of its own."""
    path = str(write(tmp_path / "a.safetensors"))
    shared["nodes"].NODE_CLASS_MAPPINGS["Careless"] = pack_node("careless")
    prompt = {"1": {"class_type": "Careless", "inputs": {}}}
    load = shared["comfy.sd"].load_checkpoint_guess_config
    with in_lane(1):
        other = load(path)
    right = other.a.weight.clone()
    forgotten: list[int] = []
    for lane in LANES:
        lane.weights.forget = functools.partial(forgotten.append, lane.index)
    executor = shared["execution"].PromptExecutor()

    def careless() -> Any:
        model = load(path)
        model.a.weight.data.mul_(2.0)
        return model

    executor.run = careless
    with in_lane(0), caplog.at_level(logging.WARNING):
        executor.execute(prompt, "first")
    assert torch.equal(other.a.weight, right)
    assert forgotten == [0, 1]
    assert "careless" in caplog.text
    assert "first on GPU 0" in caplog.text
    assert [lane.weights.now().writes for lane in LANES] == [1, 0]
    with in_lane(0):
        again = executor.execute(prompt, "second")
    assert torch.equal(again.a.weight, right * 2.0)
    assert torch.equal(other.a.weight, right)
    assert forgotten == [0, 1]
    assert not sharing(again)


@pytest.mark.parametrize("value", ["0", "off", "False", "no"])
def test_the_switch_leaves_everything_out(
    comfy: dict[str, Any], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, value: str
):
    """Off means that no name is touched; the log says so."""
    monkeypatch.setenv(share.SWITCH, value)
    with caplog.at_level(logging.INFO):
        assert weights.patches(LANES) == []
    assert share.SWITCH in caplog.text
    assert weights.stores == []


@pytest.mark.parametrize(("value", "protect"), [("", False), ("1", False), ("strict", True)])
def test_masters_are_read_only_when_asked_for(
    comfy: dict[str, Any], monkeypatch: pytest.MonkeyPatch, value: str, protect: bool
):
    """In strict mode a writer ends the process; by default it does not."""
    monkeypatch.setenv(share.SWITCH, value)
    assert weights.patches(LANES)
    assert weights.stores[0].protect is protect


@pytest.mark.parametrize("name", ["comfy.utils:load_torch_file", "comfy.model_patcher:ModelPatcher", "nodes:VAELoader"])
def test_one_name_that_does_not_fit_leaves_all_out(
    comfy: dict[str, Any], caplog: pytest.LogCaptureFixture, name: str
):
    """Half a store would hand out masters that somebody writes: a warning names the first name, nothing is changed."""
    module, _, attribute = name.partition(":")
    setattr(comfy[module], attribute, lambda other: None)
    assert weights.patches(LANES) == []
    assert attribute in caplog.text
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert weights.stores == []


def test_everything_is_given_back(comfy: dict[str, Any]):
    """After removal ComfyUI's and torch's names are what they were."""
    installed = PatchSet(weights.patches(LANES))
    before = [patch.locate()[2] for patch in installed.patches]
    installed.install()
    assert all(patch.locate()[2] is not old for patch, old in zip(installed.patches, before, strict=True))
    installed.remove()
    assert all(patch.locate()[2] is old for patch, old in zip(installed.patches, before, strict=True))
