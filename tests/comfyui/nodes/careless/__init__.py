"""A custom node that changes a model's weights in place, past ComfyUI's patches, as careless packs do.

Runs inside ComfyUI, plain or behind the overlay, and knows nothing of either.
"""

from typing import Any, ClassVar

SIZES = {"default": 2.0, "min": -8.0, "max": 8.0}


class WriteWeights:
    """Multiplies the network's last layer, in whatever memory it is."""

    FUNCTION = "run"
    CATEGORY = "careless"
    RETURN_TYPES: ClassVar[tuple[str, ...]] = ("MODEL",)

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:  # noqa: N802 (ComfyUI's name)
        return {"required": {"model": ("MODEL",), "factor": ("FLOAT", SIZES)}}

    def run(self, model: Any, factor: float) -> tuple[Any]:
        for name, weight in model.model.diffusion_model.named_parameters():
            if name.startswith("out."):
                weight.data.mul_(factor)
        return (model,)


NODE_CLASS_MAPPINGS = {"CarelessWriteWeights": WriteWeights}
