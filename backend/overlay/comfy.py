"""Finds a ComfyUI checkout and brings it into this process: as a module for the overlay, or as it is.

The only file that imports ComfyUI's ``main``. ComfyUI's ``main.py`` prepares its environment only when it is run as
a script; whoever imports it does that first, before torch is loaded.
"""

import importlib
import logging
import os
import re
import runpy
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from backend.instance import comfyui_words
from backend.options import Options

log = logging.getLogger("backend.overlay")

NEEDED = ("main.py", "server.py", "execution.py", "nodes.py", "comfyui_version.py", "comfy/model_management.py")


class NotComfyUIError(ValueError):
    """The folder is no ComfyUI checkout."""


ELSEWHERE: Final = {
    "--port": "the port is that of [backend] url, or of --port straight at the backend",
    "--listen": "the address is that of [backend] url, or of --host straight at the backend; clients see [listen]",
}
"""ComfyUI arguments that have a setting of their own here, and which."""


class ArgumentError(ValueError):
    """ComfyUI arguments that cannot be used here."""


@dataclass(frozen=True)
class Checkout:
    """Where a ComfyUI lies and which version it says it is."""

    folder: Path
    version: str


def find(folder: Path) -> Checkout:
    """Look at ``folder`` without importing anything; raises ``NotComfyUIError``."""
    folder = folder.expanduser().resolve()
    missing = [name for name in NEEDED if not (folder / name).is_file()]
    if missing:
        raise NotComfyUIError(f"{folder} is no ComfyUI: it has no {missing[0]}")
    text = (folder / "comfyui_version.py").read_text(encoding="utf-8")
    found = re.search(r"^__version__\s*=\s*['\"]([^'\"]+)['\"]", text, re.MULTILINE)
    if found is None:
        raise NotComfyUIError(f"{folder / 'comfyui_version.py'} names no version")
    return Checkout(folder, found.group(1))


def arguments(options: Options, cpu: bool) -> list[str]:
    """The command line of ComfyUI that ``options`` ask for; what the user gave comes last, and so counts."""
    own = ["--listen", options.host, "--port", str(options.port)]
    if cpu and "--cpu" not in options.comfyui_args:
        own.append("--cpu")
    apart = comfyui_words(options.instance, options.comfyui_args, (options.comfyui or Path()).absolute())
    return [*own, *options.comfyui_args, *apart]


def refuse_own(words: Sequence[str]) -> None:
    """Raises ``ArgumentError`` for a ComfyUI argument that would move the server from where it is looked for."""
    for word in words:
        given = word.partition("=")[0]
        # As ComfyUI's parser takes a shortened name.
        own = next((name for name in ELSEWHERE if len(given) > len("--p") and name.startswith(given)), None)
        if own is not None:
            raise ArgumentError(f"{word} cannot be given to ComfyUI (after -- or in [backend] args): {ELSEWHERE[own]}")


def missing(error: ModuleNotFoundError, checkout: Checkout) -> str | None:
    """What to do where this interpreter lacks a package of ComfyUI; ``None`` when the name is of ComfyUI or ours."""
    name = (error.name or "").partition(".")[0]
    own = any((checkout.folder / place).exists() for place in (name, f"{name}.py"))
    if not name or own or name == __name__.partition(".")[0]:
        return None
    return (
        f"{sys.executable} has no {name}, which ComfyUI needs: name the Python of ComfyUI's own environment with "
        f'--python PY or python = "PY" in [backend] of config.toml, or install {checkout.folder}/requirements.txt there'
    )


def enter(checkout: Checkout, words: Sequence[str]) -> None:
    """Make this process look as if ``python main.py WORDS`` had been called in the checkout."""
    os.chdir(checkout.folder)
    sys.path.insert(0, str(checkout.folder))
    sys.argv = [str(checkout.folder / "main.py"), *words]
    # ComfyUI sets up its own log, which ours then goes through; two handlers would write every line twice.
    root = logging.getLogger()
    for handler in list(root.handlers):
        root.removeHandler(handler)


def run_as_it_is() -> None:
    """Run the entered checkout's ``main.py`` as the script it is, with nothing changed."""
    runpy.run_path(sys.argv[0], run_name="__main__")


def parse_arguments() -> Any:
    """ComfyUI's own parsed arguments; exits as its parser does on a wrong one."""
    importlib.import_module("comfy.options").enable_args_parsing()
    return importlib.import_module("comfy.cli_args").args


def environment(args: Any) -> dict[str, str]:
    """The variables that ComfyUI's script sets for ``args`` before torch is loaded."""
    chosen = {
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "DO_NOT_TRACK": "1",
        "TORCH_ROCM_AOTRITON_ENABLE_EXPERIMENTAL": "1",
    }
    visible: str | None = None
    if getattr(args, "default_device", None) is not None and getattr(args, "cuda_device", None) != "all":
        first = args.default_device
        visible = ",".join(str(index) for index in [first, *(other for other in range(32) if other != first)])
    cuda_device = getattr(args, "cuda_device", None)
    if cuda_device is not None and cuda_device != "all":
        visible = str(cuda_device)
        chosen["ASCEND_RT_VISIBLE_DEVICES"] = visible
    if visible is not None:
        chosen |= {"CUDA_VISIBLE_DEVICES": visible, "HIP_VISIBLE_DEVICES": visible}
    if getattr(args, "oneapi_device_selector", None) is not None:
        chosen["ONEAPI_DEVICE_SELECTOR"] = args.oneapi_device_selector
    if getattr(args, "deterministic", False) and "CUBLAS_WORKSPACE_CONFIG" not in os.environ:
        chosen["CUBLAS_WORKSPACE_CONFIG"] = ":4096:8"
    return chosen


def check_arguments(args: Any, gpus: int) -> None:
    """Raises ``ArgumentError`` for arguments that leave one device to several lanes unasked."""
    cuda_device = getattr(args, "cuda_device", None)
    if gpus > 1 and cuda_device is not None and "," not in str(cuda_device) and cuda_device != "all":
        raise ArgumentError(
            f"--cuda-device {cuda_device} leaves one GPU for {gpus} lanes: leave it out, or ask for one lane"
        )


def prepare(args: Any) -> None:
    """What ComfyUI's script does between parsing its arguments and loading torch."""
    os.environ.update(environment(args))
    # Chooses torch's allocator through the environment: torch must not be loaded yet.
    allocator = importlib.import_module("cuda_malloc")
    name_torch = getattr(allocator, "get_torch_version_noimport", None)
    if name_torch is not None and "rocm" in name_torch():
        os.environ["OCL_SET_SVM_SIZE"] = "262144"


def load() -> Any:
    """Import the entered checkout's ``main``, and with it torch and all of ComfyUI but its custom nodes."""
    return importlib.import_module("main")
