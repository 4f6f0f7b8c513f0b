"""What a node is to the engine: its class as a value, what it gets to work with, what it gives back.

Knows ComfyUI's words for inputs and outputs (``INT``, ``IMAGE``, …) as they stand in ``/object_info``; knows no
node by name and nothing of queues, sockets or HTTP.
"""

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    import torch
    from PIL import Image

    from backend.embedded.files import Files
    from backend.embedded.store import ModelStore

Spec = tuple[Any, dict[str, Any]]
"""One input: its type (a name, or a list of choices) and its settings (``default``, ``min``, ``max`` …)."""
Inputs = Mapping[str, Spec]
Link = tuple[str, int]
Prompt = dict[str, dict[str, Any]]
"""API format: node id → ``class_type`` and ``inputs``; an input that is ``[node id, slot]`` is a link."""

ANY = "*"


class Interrupted(Exception):  # noqa: N818 (not an error: a client asked for it)
    """A client stopped this job."""


class Progress(Protocol):
    def __call__(
        self, value: float, total: float, preview: "Callable[[], Image.Image] | None" = None
    ) -> None: ...


@dataclass
class Run:
    """What one running node may use; everything in it belongs to this lane and this job."""

    node_id: str
    device: "torch.device"
    files: "Files"
    models: "ModelStore"
    progress: Progress
    check: Callable[[], None]
    """Raises ``Interrupted`` when a client stopped the job; call it in every longer loop."""
    prompt: Prompt
    extra_pnginfo: Mapping[str, Any]
    attempt: int = 0
    """0, or 1 when the job runs again after the lane's memory was freed."""
    model_call: Callable[[], AbstractContextManager[None]] = nullcontext
    """Around each step's use of the model, which is counted."""


@dataclass(frozen=True)
class Result:
    """A node's outputs, and what an output node shows to clients."""

    values: tuple[Any, ...] = ()
    ui: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class NodeClass:
    """One kind of node under its ComfyUI name."""

    name: str
    run: Callable[..., Result]
    """Called with a ``Run`` and the inputs by name."""
    category: str
    display_name: str
    inputs: Callable[["Files"], Inputs]
    """Required inputs; a function, for choices that are files."""
    hidden: Mapping[str, str] = field(default_factory=dict)
    outputs: tuple[str, ...] = ()
    output_names: tuple[str, ...] = ()
    output_node: bool = False
    description: str = ""
    python_module: str = "nodes"
    changed: Callable[["Files", Mapping[str, Any]], Any] | None = None
    """Beyond its inputs, what the node's output depends on (ComfyUI ``IS_CHANGED``); NaN: run every time."""
    check: Callable[["Files", Mapping[str, Any]], str | None] | None = None
    """Judges plain input values instead of the choices list (ComfyUI ``VALIDATE_INPUTS``); the text says why not."""
    checked: frozenset[str] = frozenset()
    """Inputs that ``check`` judges."""


def is_link(value: Any) -> bool:
    """``[node id, slot]``, as far as its form goes."""
    return (
        isinstance(value, list)
        and len(value) == 2
        and isinstance(value[0], str)
        and isinstance(value[1], int)
        and not isinstance(value[1], bool)
    )


def choices(spec: Spec) -> list[Any] | None:
    """The list an input's value must be from, in either of ComfyUI's two spellings; ``None`` for other types."""
    kind, settings = spec
    if isinstance(kind, list):
        return kind
    if kind == "COMBO":
        return list(settings.get("options", []))
    return None


def object_info(node: NodeClass, files: "Files") -> dict[str, Any]:
    """The node as ``GET /object_info`` describes it (ComfyUI ``server.py``, ``node_info``)."""
    required = {name: _spelled(spec) for name, spec in node.inputs(files).items()}
    described: dict[str, Any] = {"required": required}
    if node.hidden:
        described["hidden"] = dict(node.hidden)
    return {
        "input": described,
        "input_order": {kind: list(names) for kind, names in described.items()},
        "output": list(node.outputs),
        "output_is_list": [False] * len(node.outputs),
        "output_name": list(node.output_names or node.outputs),
        "name": node.name,
        "display_name": node.display_name,
        "description": node.description,
        "python_module": node.python_module,
        "category": node.category,
        "output_node": node.output_node,
    }


def _spelled(spec: Spec) -> list[Any]:
    kind, settings = spec
    return [kind, settings] if settings else [kind]
