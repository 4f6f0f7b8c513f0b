"""A node that does what none can: it reaches into the overlay and breaks it, to see what is told then."""

import logging
import sys
import threading
from pathlib import Path
from typing import Any


class Desert:
    """Ends its worker's thread past every guard, for their own log raises; once for each ``marker`` file."""

    FUNCTION = "run"
    CATEGORY = "proof"
    RETURN_TYPES = ()
    OUTPUT_NODE = True

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:  # noqa: N802 (ComfyUI's name)
        return {"required": {"marker": ("STRING", {"default": ""})}}

    def run(self, marker: str) -> dict[str, Any]:
        if Path(marker).exists():
            return {"ui": {"text": ["stays"]}}
        Path(marker).touch()
        workers = sys.modules["backend.overlay.workers"]
        thread, log = threading.current_thread(), workers.log

        class Broken(logging.LoggerAdapter):
            def log(self, *_: Any, **__: Any) -> None:
                if threading.current_thread() is thread:
                    raise SystemExit

        workers.log = Broken(log, {})
        raise SystemExit


NODE_CLASS_MAPPINGS = {"ProofDesert": Desert}
