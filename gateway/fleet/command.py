"""How the backend is started: the command line and what its environment gets on top of ours.

Pure but for a look at which interpreter is there. The only place that knows the backend's options; must never
import it.
"""

import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

from gateway.config import Backend

READY_PREFIX: Final = "BACKEND-READY "
"""Then one JSON object on the same line of stdout; the backend's contract says the same."""

EXIT_USAGE: Final = 2
EXIT_PORT_IN_USE: Final = 3
EXIT_DEVICE_FAULT: Final = 4


@dataclass(frozen=True)
class Command:
    """What to run, and the variables it gets besides our own."""

    argv: tuple[str, ...]
    env: Mapping[str, str]
    comfyui: Path | None = None
    """The checkout it will run; ``None``: the embedded engine."""


def backend_command(
    backend: Backend,
    gpus: int,
    env: Mapping[str, str],
    exists: Callable[[Path], bool] = Path.exists,
    *,
    lock: Path | None = None,
    orphan: float = 0.0,
    instance: int | None = None,
) -> Command:
    """The command that starts the configured backend with ``gpus`` lanes.

    ``instance``: which of several processes it is that work in the same folders; ``None``: the only one.

    With ``lock`` it lives on for ``orphan`` seconds when no gateway holds that; without, it ends with its parent.
    Raises ``ValueError`` with a line for the user when a named folder or interpreter is not there.
    """
    comfyui = comfyui_folder(backend, env, exists)
    argv = [*_program(backend, comfyui, exists), *_address(backend.url), "--gpus", str(gpus)]
    if backend.devices:
        argv += ["--devices", ",".join(backend.devices)]
    if comfyui is not None:
        argv += ["--comfyui", str(comfyui)]
        if backend.serialize:
            argv += ["--serialize", ",".join(backend.serialize)]
        if backend.allow_unknown:
            argv += ["--allow-unknown"]
        argv += ["--issue-lock", backend.issue_lock]
        if backend.threads:
            argv += ["--threads", str(backend.threads)]
        if not env.get("COMFY_SHARE_WEIGHTS", "").strip():
            argv += ["--share-weights", backend.share_weights]
    if instance is not None:
        argv += ["--instance", str(instance)]
    argv += ["--data", str(Path(backend.data).absolute())]
    if backend.warmup_workflow:
        argv += ["--warmup", str(Path(backend.warmup_workflow).absolute())]
    for name in backend.warmup_models:
        argv += ["--warmup-model", name]
    argv += ["--gateway-lock", str(lock), "--orphan", f"{orphan:g}"] if lock is not None else ["--exit-with-parent"]
    if backend.args:
        argv += ["--", *backend.args]
    # An empty COMFYUI_DIR: the choice has been made here, and is on the command line.
    extra = {"PYTHONUNBUFFERED": "1", "COMFYUI_DIR": "", "COMFY_GATEWAY_LIB": _lent_library()}
    return Command(tuple(argv), extra, comfyui)


def comfyui_folder(backend: Backend, env: Mapping[str, str], exists: Callable[[Path], bool]) -> Path | None:
    """The ComfyUI checkout that config or ``COMFYUI_DIR`` names, if any; ``ValueError`` when it is not one."""
    named = backend.comfyui or env.get("COMFYUI_DIR", "")
    if not named:
        return None
    folder = Path(named).expanduser().absolute()
    if not exists(folder / "main.py"):
        raise ValueError(f"{folder} is not a ComfyUI checkout: there is no main.py in it")
    return folder


def _program(backend: Backend, comfyui: Path | None, exists: Callable[[Path], bool]) -> list[str]:
    if comfyui is None:
        # -P: a folder named backend where the user stands must not be taken for ours.
        return [sys.executable, "-P", "-m", "backend.launch"]
    spec = find_spec("backend")
    if spec is None or spec.origin is None:
        raise ValueError("the package backend is not installed beside the gateway")
    return [str(_interpreter(backend, comfyui, exists)), str(Path(spec.origin).with_name("bootstrap.py"))]


def _interpreter(backend: Backend, comfyui: Path, exists: Callable[[Path], bool]) -> Path:
    if backend.python:
        # Not resolved: a virtual environment's python is a link, and the link is what makes the environment.
        named = Path(backend.python).expanduser().absolute()
        if not exists(named):
            raise ValueError(f"backend.python names {named}, which is not there")
        return named
    for inside in (".venv/bin/python", "venv/bin/python"):
        if exists(comfyui / inside):
            return comfyui / inside
    return Path(sys.executable)


def _address(url: str) -> list[str]:
    if url.startswith("unix:"):
        raise ValueError(f"backend.url is {url}: what the gateway starts listens on a port; set start = false")
    parts = urlsplit(url)
    return ["--host", parts.hostname or "127.0.0.1", "--port", str(parts.port or 80)]


def _lent_library() -> str:
    spec = find_spec("prometheus_client")
    return str(Path(spec.origin).parent.parent) if spec and spec.origin else ""
