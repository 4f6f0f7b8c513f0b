"""What a workflow is, as far as its duration goes: its class, and the models that it needs.

Pure. Owns the reading of a prompt in ComfyUI's API format for the scheduler. Must never judge it: what cannot be read
has a class of its own.
"""

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Final

_FILES: Final = (".safetensors", ".sft", ".ckpt", ".pt", ".pt2", ".pth", ".bin", ".gguf", ".onnx", ".engine", ".pkl")
"""Suffixes of model files (ComfyUI ``folder_paths.py: supported_pt_extensions``, and custom nodes' own)."""


@dataclass(frozen=True)
class Workflow:
    """Jobs of one ``kind`` are expected to take equally long; ``models`` must be on the GPU for that."""

    kind: str
    """16 hexadecimal digits."""
    models: frozenset[str] = frozenset()


UNKNOWN: Final = Workflow("unknown")


def read(prompt: object) -> Workflow:
    """The class of a graph: the types of its nodes, how often each is there, and the names of its models."""
    nodes = [node for node in prompt.values() if isinstance(node, Mapping)] if isinstance(prompt, Mapping) else []
    if not nodes:
        return UNKNOWN
    models = frozenset(name for node in nodes for name in _models(node))
    types = sorted(str(node.get("class_type")) for node in nodes)
    text = "\0".join([*types, "", *sorted(models)])
    return Workflow(hashlib.sha256(text.encode(errors="replace")).hexdigest()[:16], models)


def _models(node: Mapping[str, object]) -> Iterator[str]:
    inputs = node.get("inputs")
    if not isinstance(inputs, Mapping):
        return
    for value in inputs.values():
        if isinstance(value, str) and value.lower().endswith(_FILES):
            yield value
