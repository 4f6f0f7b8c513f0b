"""The tiny model's file, the model and the lane's store."""

import threading
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from backend.embedded import checkpoint, model
from backend.embedded.files import Files
from backend.embedded.store import ModelStore, Part
from backend.lanes import LaneStats


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    found = tmp_path_factory.mktemp("data")
    checkpoint.ensure(found / "models" / "checkpoints")
    return found


def test_the_weights_are_the_same_every_time(folder: Path, tmp_path: Path):
    """Two makers, whatever the process-wide generator holds, write the same bytes; it is left as it was."""
    torch.manual_seed(1)
    before = torch.get_rng_state()
    made = checkpoint.ensure(tmp_path)
    assert made.read_bytes() == (folder / "models/checkpoints" / checkpoint.NAME).read_bytes()
    assert torch.equal(before, torch.get_rng_state())


def test_makers_at_once_leave_one_whole_file(tmp_path: Path):
    """Threads that all find it missing end with one good file and nothing beside it."""
    threads = [threading.Thread(target=checkpoint.ensure, args=(tmp_path,)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [path.name for path in tmp_path.iterdir()] == [checkpoint.NAME]
    checkpoint.load(tmp_path / checkpoint.NAME, torch.device("cpu"))


def test_other_files_are_refused_with_a_way_out(tmp_path: Path):
    """A real checkpoint, or junk, is told apart before its tensors are used."""
    foreign = tmp_path / "sd15.safetensors"
    save_file({"x": torch.zeros(1)}, foreign)
    with pytest.raises(checkpoint.NotOurModelError, match="--comfyui DIR"):
        checkpoint.load(foreign, torch.device("cpu"))
    junk = tmp_path / "junk.safetensors"
    junk.write_bytes(b"not a checkpoint")
    with pytest.raises(checkpoint.NotOurModelError, match="cannot be read"):
        checkpoint.load(junk, torch.device("cpu"))


def test_the_store_loads_once_and_gives_back(folder: Path):
    """Loads and unloads are counted; a part that outlives an unload loads again."""
    stats = LaneStats()
    store = ModelStore(Files(folder), torch.device("cpu"), stats)
    part = Part(store, checkpoint.NAME)
    assert part.model() is part.model()
    store.unload()
    part.model()
    assert (stats.snapshot().model_loads, stats.snapshot().model_unloads) == (2, 1)
    with pytest.raises(FileNotFoundError, match=r"none\.safetensors"):
        store.get("none.safetensors")


def test_tokens():
    """Always as many as the model takes; words, not their case, decide; long texts are cut."""
    assert len(model.tokenize("")) == len(model.tokenize("word " * 500)) == model.TOKENS
    assert model.tokenize("A Fox") == model.tokenize("a  fox") != model.tokenize("a dog")
    assert max(model.tokenize("every word of this, and more")) < model.VOCABULARY


@pytest.mark.parametrize(("height", "width"), [(16, 16), (64, 64), (24, 40), (104, 72)])
def test_shapes(folder: Path, height: int, width: int):
    """Any size in eights goes through the codec and the denoiser."""
    loaded = checkpoint.load(folder / "models/checkpoints" / checkpoint.NAME, torch.device("cpu"))
    with torch.inference_mode():
        latent = loaded.first_stage_model.encode(torch.rand((2, 3, height, width)))
        assert latent.shape == (2, 4, height // 8, width // 8)
        text = loaded.cond_stage_model(torch.tensor([model.tokenize("x")] * 2))
        clean = loaded.denoiser(latent, torch.tensor([3.0, 0.1]), text)
        assert clean.shape == latent.shape
        picture = loaded.first_stage_model.decode(clean)
    assert picture.shape == (2, 3, height, width)
    assert bool(picture.isfinite().all())
    assert float(picture.min()) >= 0
    assert float(picture.max()) <= 1


def test_the_codec_keeps_colours(folder: Path):
    """A flat colour comes back as nearly itself."""
    loaded = checkpoint.load(folder / "models/checkpoints" / checkpoint.NAME, torch.device("cpu"))
    for colour in ((0.8, 0.3, 0.3), (0.4, 0.6, 0.5)):
        flat = torch.tensor(colour).view(1, 3, 1, 1).expand(1, 3, 64, 64)
        with torch.inference_mode():
            back = loaded.first_stage_model.decode(loaded.first_stage_model.encode(flat))
        assert float((back - flat).abs().mean()) < 0.06
