"""``doctor``: what about this machine would keep the gateway from working well, each with the next step.

Owns the checks. Looks, and changes nothing; torch and CUDA are asked in the backend's own interpreter.
"""

import json
import re
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

from gateway.build import compiled
from gateway.config import Config
from gateway.spec import MB
from gateway.tools.door import Door, ToolError

OK: Final = "ok"
WARN: Final = "warning"
BAD: Final = "problem"

DRIVER: Final = Path("/proc/driver/nvidia/version")
_KNOWN: Final = "from backend.overlay.versions import known; print(' '.join(each.number for each in known()))"
_LEAST_DISK: Final = 5 * 1024 * MB
_ASK_TORCH: Final = """
import json, sys
try:
    import torch
except Exception as error:
    print(json.dumps({"error": f"{type(error).__name__}: {error}"})); sys.exit()
found = {"torch": torch.__version__, "cuda": torch.version.cuda, "devices": []}
if torch.cuda.is_available():
    for i in range(torch.cuda.device_count()):
        found["devices"].append([torch.cuda.get_device_name(i), torch.cuda.get_device_properties(i).total_memory])
print(json.dumps(found))
"""


@dataclass(frozen=True)
class Finding:
    """One thing looked at."""

    level: str
    what: str
    advice: str = ""


def examine(config: Config, env: Mapping[str, str]) -> Iterator[Finding]:
    """Everything there is to say, in the order in which it matters."""
    yield _python()
    yield _data_path()
    yield from _ports(config)
    yield _files(config)
    yield _disk(config)
    folder = config.backend.comfyui or env.get("COMFYUI_DIR", "")
    yield from _comfyui(Path(folder).expanduser()) if folder else _no_comfyui()
    yield _driver(DRIVER)
    yield from _torch(_interpreter(config, folder), config.gpus, config.backend.devices)


def render(findings: list[Finding]) -> list[str]:
    """One line each, and the verdict."""
    lines = [f"{each.level:8} {each.what}" + (f": {each.advice}" if each.advice else "") for each in findings]
    bad = sum(each.level == BAD for each in findings)
    return [*lines, f"{bad} problem{'s' * (bad != 1)}" if bad else "nothing stands in the way"]


def _python() -> Finding:
    return Finding(OK, f"Python {sys.version.split()[0]} at {sys.executable}")


def _data_path() -> Finding:
    if compiled():
        return Finding(OK, "the data path is compiled")
    return Finding(OK, "the data path is plain Python", "`make fast` compiles it, for a third less CPU per request")


def _ports(config: Config) -> Iterator[Finding]:
    url = urlsplit(config.backend.url)
    listen = config.listen
    wanted = [(host, port) for host in listen.host for port in (listen.front_port, *listen.gpu_ports)]
    if config.backend.start and url.port:
        wanted.append((url.hostname or "127.0.0.1", url.port))
    taken = [f"{host}:{port}" for host, port in wanted if port and not _free(host, port)]
    if taken and _gateway_at(listen.front_port, tls=bool(config.tls.certificate)):
        yield Finding(OK, f"a gateway runs at port {listen.front_port}", "comfy-gateway status says how it is")
    elif taken:
        yield Finding(BAD, f"ports in use: {', '.join(taken)}", "stop what listens there (ss -ltnp), or set [listen]")
    else:
        yield Finding(OK, f"{len(wanted)} ports are free")


def _gateway_at(port: int, *, tls: bool) -> bool:
    try:
        return Door(f"{'https' if tls else 'http'}://127.0.0.1:{port}", insecure=True).ask("GET", "/live").status == 200
    except ToolError:
        return False


def _free(host: str, port: int) -> bool:
    try:
        family, kind, proto, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind, proto) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
    except OSError:
        return False
    return True


def _files(config: Config) -> Finding:
    import resource  # noqa: PLC0415 (not there on every platform)

    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = config.listen.max_connections + config.limits.pool_connections
    if hard != resource.RLIM_INFINITY and hard < wanted:
        what = f"{hard} open files are allowed, {wanted} may be needed"
        return Finding(WARN, what, "raise it: ulimit -n, LimitNOFILE=")
    return Finding(OK, f"open files: {wanted} may be needed, {'any number' if hard < 0 else hard} allowed")


def _disk(config: Config) -> Finding:
    folder = Path(config.backend.data)
    while not folder.exists():
        folder = folder.resolve().parent
    free = shutil.disk_usage(folder).free
    if free < _LEAST_DISK:
        return Finding(WARN, f"{free // MB} MB free at {folder}", "pictures and the journal go there")
    return Finding(OK, f"{free // (1024 * MB)} GB free at {folder}")


def _no_comfyui() -> Iterator[Finding]:
    yield Finding(OK, "no ComfyUI is named: the embedded engine will run", "name one with COMFYUI_DIR or --comfyui")


def _comfyui(folder: Path) -> Iterator[Finding]:
    if not (folder / "main.py").is_file():
        yield Finding(BAD, f"{folder} is no ComfyUI", "name the folder that holds main.py")
        return
    version = "unknown"
    file = folder / "comfyui_version.py"
    if file.is_file():
        version = file.read_text(encoding="utf-8", errors="replace").partition('"')[2].partition('"')[0]
    yield _version(version, folder)
    done = _backend([sys.executable, "-m", "backend.overlay.scan", str(folder)])
    if done is None:
        yield Finding(WARN, "its custom nodes could not be looked through", "see the log of the backend at its start")
    elif done:
        for line in done.splitlines():
            yield Finding(WARN, line)
    else:
        yield Finding(OK, "no custom node pins a device or keeps state that lanes would share")


def _version(version: str, folder: Path) -> Finding:
    known = (_backend([sys.executable, "-c", _KNOWN]) or "").split()
    if version in known:
        return Finding(OK, f"ComfyUI {version} at {folder}")
    what = f"ComfyUI {version} at {folder} is untried (known: {', '.join(known) or 'not to be found out'})"
    return Finding(WARN, what, "if it does not start, set [backend] allow_unknown, or run it plain: docs/overlay.md")


def _driver(file: Path) -> Finding:
    try:
        found = re.search(r"\d+\.\d+(?:\.\d+)?", file.read_text(encoding="ascii", errors="replace"))
    except OSError:
        return Finding(OK, "no NVIDIA driver is loaded")
    return Finding(OK, f"NVIDIA driver {found[0] if found else 'of an unknown version'}")


def _interpreter(config: Config, folder: str) -> str:
    if config.backend.python:
        return config.backend.python
    for name in (".venv", "venv"):
        candidate = Path(folder) / name / "bin" / "python"
        if folder and candidate.exists():
            return str(candidate)
    return sys.executable


def _torch(python: str, gpus: int, devices: tuple[str, ...]) -> Iterator[Finding]:
    text = _backend([python, "-c", _ASK_TORCH])
    try:
        found: dict[str, Any] = json.loads(text or "")
    except ValueError:
        yield Finding(BAD, f"{python} cannot be run", "set [backend] python to ComfyUI's interpreter")
        return
    if "error" in found:
        what = f"{python} has no torch that works ({found['error']})"
        yield Finding(BAD, what, "install ComfyUI's requirements there")
        return
    cards = found["devices"]
    yield Finding(OK, f"torch {found['torch']} in {python}, CUDA {found['cuda'] or 'none'}")
    for number, (name, memory) in enumerate(cards):
        yield Finding(OK, f"cuda:{number} {name}, {memory // (1024 * MB)} GB")
    wanted = [device for device in devices if device.startswith("cuda")]
    missing = [device for device in wanted if int(device.partition(":")[2] or 0) >= len(cards)]
    if missing:
        yield Finding(BAD, f"[backend] devices names {', '.join(missing)}, which torch does not see", "see nvidia-smi")
    elif not devices and not cards:
        yield Finding(WARN, "torch sees no CUDA device", f"the {gpus} lanes will share the CPU; see nvidia-smi")
    elif not devices and len(cards) < gpus:
        yield Finding(WARN, f"{gpus} GPUs are configured, torch sees {len(cards)}", "set --gpus or [listen] gpu_ports")


def _backend(argv: list[str]) -> str | None:
    """What a short program prints; ``None`` when it fails."""
    try:
        # The interpreter is the one that the user names; it would be started anyhow.
        done = subprocess.run(argv, capture_output=True, text=True, check=False, timeout=120)  # noqa: S603
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip() if done.returncode == 0 else None
