"""The models on one lane's device: loaded when first used, given back when memory is needed.

One store per lane, used by that lane's worker alone. Values that travel between nodes are ``Part``s, which name
a model and do not hold it: so unloading truly frees, and the next use loads again.
"""

import gc
from dataclasses import dataclass

import torch

from backend.embedded import checkpoint
from backend.embedded.files import Files
from backend.embedded.model import TinyModel
from backend.holdings import Weights
from backend.lanes import LaneStats


class ModelStore:
    """Loaded models of one lane by checkpoint name."""

    def __init__(self, files: Files, device: torch.device, stats: LaneStats) -> None:
        self.device = device
        self._files = files
        self._stats = stats
        self._loaded: dict[str, TinyModel] = {}
        self._loads = 0
        self._evictions = 0

    def get(self, name: str) -> TinyModel:
        """The model, loaded if need be; raises ``FileNotFoundError`` or ``checkpoint.NotOurModelError``."""
        model = self._loaded.get(name)
        if model is None:
            model = checkpoint.load(self._files.model("checkpoints", name), self.device)
            self._loaded[name] = model
            self._loads += 1
            self._stats.model_loaded()
        return model

    def weights(self) -> Weights:
        """What the lane holds: each lane loads a copy of its own, for the one model is tiny."""
        size = sum(parameter.nbytes for model in list(self._loaded.values()) for parameter in model.parameters())
        host = self.device.type == "cpu"
        return Weights(
            host_own=size if host else 0, device=0 if host else size, loads=self._loads, evictions=self._evictions
        )

    def names(self) -> list[str]:
        """Checkpoints that are loaded; from any thread."""
        return list(self._loaded)

    def unload(self) -> None:
        """Give this lane's memory back; other lanes keep theirs."""
        for _ in self._loaded:
            self._stats.model_unloaded()
        self._evictions += len(self._loaded)
        self._loaded.clear()
        gc.collect()
        if self.device.type == "cuda":
            # The allocator keeps one pool per device: this returns only what no lane uses.
            with torch.cuda.device(self.device):
                torch.cuda.empty_cache()


@dataclass(frozen=True)
class Part:
    """What travels as ``MODEL``, ``CLIP`` or ``VAE``: which checkpoint, and where it is kept."""

    store: ModelStore
    name: str

    def model(self) -> TinyModel:
        return self.store.get(self.name)
