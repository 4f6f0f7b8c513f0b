"""Starts what the proofs look at: plain ComfyUI, ComfyUI behind the overlay, and the gateway in front of either.

Knows command lines, folders and how to see that a process is ready. Must not know what is proved, and never writes
into the ComfyUI checkout: user, temp, output and database live in a folder of the proof's own.
"""

import contextlib
import fcntl
import json
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

ROOT = Path(__file__).resolve().parents[2]
NODES = Path(__file__).resolve().parent / "nodes"
LANES = 4
PROCESSES = int(os.environ.get("PROOF_PROCESSES", "2"))
"""GPUs where each has a process of its own, which is a whole ComfyUI."""
FIRST_PORT, LAST_PORT = 18_000, 18_999
"""Neither the system's for outgoing connections, nor those that the other tests take (``tests/conftest.py``)."""
START_LIMIT = float(os.environ.get("COMFYUI_START_LIMIT", "180"))
"""Seconds a ComfyUI may take to answer; a loaded machine is slow, not broken."""


@dataclass(frozen=True)
class Comfy:
    """One ComfyUI checkout and the interpreter of its environment."""

    folder: Path
    python: str
    version: str

    @property
    def plain_arguments(self) -> list[str]:
        """The configuration that the overlay supports first, as far as this version knows the words."""
        known = (self.folder / "comfy/cli_args.py").read_text()
        wanted = ["--disable-dynamic-vram", "--cache-classic", "--disable-assets"]
        return [word for word in wanted if f'"{word}"' in known] if "--disable-dynamic-vram" in known else []


def named_comfy() -> Comfy | None:
    """The ComfyUI that ``COMFYUI_DIR`` and ``COMFYUI_PYTHON`` name; ``None`` when there is none."""
    text = os.environ.get("COMFYUI_DIR", "")
    if not text:
        return None
    folder = Path(text).resolve()
    own = [folder / ".venv/bin/python", folder / "venv/bin/python"]
    found = next((str(python) for python in own if python.exists()), sys.executable)
    version = re.search(r'__version__\s*=\s*"([^"]+)"', (folder / "comfyui_version.py").read_text())
    assert version, f"{folder} has no version"
    return Comfy(folder, os.environ.get("COMFYUI_PYTHON", "") or found, version[1])


_kept: list[IO[str]] = []
"""Locks of the ports that were handed out, held as long as this process lives."""


def free_port(count: int = 1) -> int:
    """First of ``count`` neighbouring ports that nobody listens on and no other run of the proofs was given."""
    for first in range(FIRST_PORT, LAST_PORT - count):
        locks = [lock for port in range(first, first + count) if (lock := _lock(port))]
        if len(locks) == count and all(_is_free(port) for port in range(first, first + count)):
            _kept.extend(locks)
            return first
        for lock in locks:
            lock.close()
    raise RuntimeError(f"no {count} free ports between {FIRST_PORT} and {LAST_PORT}")


def _lock(port: int) -> IO[str] | None:
    """Claim a port between runs: a server may be started long after its port was chosen, and again."""
    folder = Path(tempfile.gettempdir()) / "comfy-proof-ports"
    folder.mkdir(exist_ok=True)
    lock = (folder / str(port)).open("w")
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        lock.close()
        return None
    return lock


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


def environment(extra: Mapping[str, str] | None = None) -> dict[str, str]:
    """What every child sees: one thread per process, byte code outside the checkout, no settings of ours."""
    env = {key: value for key, value in os.environ.items() if not key.startswith(("COMFYUI_", "COMFY_", "PYTEST_"))}
    env.pop("PYTHONDONTWRITEBYTECODE", None)
    env.setdefault("PYTHONPYCACHEPREFIX", str(Path(os.environ.get("TMPDIR", "/tmp")) / "comfy-proof-pycache"))
    env.update({"OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1", **(extra or {})})
    return env


class Running:
    """A child process in its own group, its output in a file."""

    def __init__(self, name: str, command: Sequence[str], cwd: Path, log: Path, env: Mapping[str, str]) -> None:
        self.name, self.log = name, log
        with log.open("ab") as out:
            self.process = subprocess.Popen(
                list(command), cwd=cwd, stdout=out, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL,
                env=dict(env), start_new_session=True,
            )

    def tail(self, lines: int = 25) -> str:
        """The end of its output, for messages."""
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-lines:])

    def wait_for(self, url: str, seconds: float = START_LIMIT) -> None:
        """Return once ``url`` answers 200; raise with the log's end when the process dies or the time is over."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            if self.process.poll() is not None:
                raise RuntimeError(f"{self.name} ended with {self.process.returncode}:\n{self.tail()}")
            try:
                with urllib.request.urlopen(url, timeout=5) as answer:
                    if answer.status == 200:
                        return
            except (OSError, urllib.error.URLError):
                pass
            time.sleep(0.1)
        raise RuntimeError(f"{self.name} did not answer {url} within {seconds:.0f} s:\n{self.tail()}")

    def wait_for_line(self, start: str, seconds: float = START_LIMIT) -> None:
        """Return once a line of its output starts so; raise as ``wait_for`` does."""
        deadline = time.monotonic() + seconds
        while not any(line.startswith(start) for line in self.log.read_text(errors="replace").splitlines()):
            if self.process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"{self.name} said no {start!r}:\n{self.tail()}")
            time.sleep(0.1)

    def children(self) -> list[int]:
        """Ids of the processes that it has started itself."""
        parents = {int(path.parent.name): int(path.read_text().rpartition(")")[2].split()[1])
                   for path in Path("/proc").glob("[0-9]*/stat")}
        return [child for child, parent in parents.items() if parent == self.process.pid]

    def kill(self) -> None:
        """End it, what it started, and the rest of its group at once."""
        for child in self.children():
            with contextlib.suppress(ProcessLookupError):
                os.kill(child, signal.SIGKILL)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()

    def stop(self, seconds: float = 15) -> None:
        """Ask it to end as Ctrl-C does, then end it."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGINT)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(seconds)
        self.kill()


@dataclass(frozen=True)
class Folders:
    """Where one ComfyUI of the proofs writes."""

    root: Path

    def make(self) -> "Folders":
        for name in ("user", "output", "temp", "input"):
            (self.root / name).mkdir(parents=True, exist_ok=True)
        return self

    @property
    def output(self) -> Path:
        return self.root / "output"

    @property
    def input(self) -> Path:
        return self.root / "input"

    def kept_out_of_checkout(self) -> list[str]:
        """Arguments for what every run redirects, the own test suite's included."""
        return ["--user-directory", str(self.root / "user"), "--temp-directory", str(self.root / "temp"),
                "--database-url", "sqlite:///:memory:"]

    def arguments(self) -> list[str]:
        """Arguments that send everything ComfyUI writes here."""
        return [*self.kept_out_of_checkout(), "--output-directory", str(self.output), "--input-directory",
                str(self.input)]


def model_paths(folder: Path, models: Path) -> Path:
    """Write the YAML file that shows ComfyUI the tiny models and the proofs' own nodes."""
    path = folder / "extra_model_paths.yaml"
    kinds = "\n".join(f"  {kind}: {kind}" for kind in ("checkpoints", "loras", "diffusion_models"))
    path.write_text(f"proof:\n  base_path: {models}\n{kinds}\nproof_nodes:\n  custom_nodes: {NODES}\n")
    return path


def start_plain(comfy: Comfy, folders: Folders, port: int, arguments: Sequence[str]) -> Running:
    """Start ComfyUI as its README says; nothing of ours runs in it but the nodes named in ``arguments``."""
    command = [comfy.python, "main.py", "--port", str(port), *arguments]
    return Running("plain ComfyUI", command, comfy.folder, folders.root / "plain.log", environment())


def start_overlay(
    comfy: Comfy, folders: Folders, port: int, arguments: Sequence[str], *,
    lanes: int = LANES, env: Mapping[str, str] | None = None, own: Sequence[str] = (),
) -> Running:
    """Start the backend's overlay body under ComfyUI's interpreter with ``lanes`` virtual lanes.

    ``own`` are arguments of the backend itself.
    """
    import prometheus_client  # noqa: PLC0415 (only its place matters)

    lib = str(Path(prometheus_client.__file__).parents[1])
    command = [comfy.python, str(ROOT / "backend/bootstrap.py"), "--comfyui", str(comfy.folder), "--gpus", str(lanes),
               "--cpu", "--port", str(port), *own, "--", *arguments]
    return Running("overlay", command, folders.root, folders.root / "overlay.log",
                   environment({"COMFY_GATEWAY_LIB": lib, "COMFY_WEIGHTS_DIGESTS": "1", **(env or {})}))


def start_naive(comfy: Comfy, folders: Folders, port: int, arguments: Sequence[str]) -> Running:
    """Start the naive approach: the control on which every scenario must find a problem."""
    command = [comfy.python, str(Path(__file__).with_name("naive.py")), "--comfyui", str(comfy.folder), "--lanes",
               str(LANES), "--", "--port", str(port), "--cpu", *arguments]
    return Running("naive", command, folders.root, folders.root / "naive.log", environment())


def start_supervised(
    comfy: Comfy, folders: Folders, front: int, ports: Sequence[int], backend: int, arguments: Sequence[str],
    env: Mapping[str, str] | None = None, *, mode: str = "single",
) -> Running:
    """Start ``comfy-gateway up --comfyui DIR``, which starts and watches the backend itself, or one for each port."""
    config = folders.root / "up.toml"
    config.write_text(gateway_config(folders.root, f"http://127.0.0.1:{backend}", front, ports).replace("[backend]\n", (
        f"[backend]\nmode = {json.dumps(mode)}\ncomfyui = {json.dumps(str(comfy.folder))}\n"
        f"python = {json.dumps(comfy.python)}\n"
        f"args = {json.dumps(list(arguments))}\ndevices = {json.dumps(['cpu'] * len(ports))}\n")))
    command = [sys.executable, "-m", "gateway", "up", "--config", str(config)]
    return Running("comfy-gateway up", command, ROOT, folders.root / "up.log",
                   environment({"COMFY_WEIGHTS_DIGESTS": "1", **(env or {})}))


def gateway_config(folder: Path, backend: str, front: int, ports: Sequence[int], *, limited: bool = False) -> str:
    """A configuration in front of ``backend``; buckets are wide unless ``limited``, for proofs are no users.

    The journal is the site's own: another site's unfinished jobs are not to be put back here.
    """
    text = (f"[listen]\nfront_port = {front}\ngpu_ports = {list(ports)}\n\n[backend]\nurl = {json.dumps(backend)}\n\n"
            f"[jobs]\njournal = {json.dumps(str(folder / 'journal'))}\n")
    return text if limited else text + "\n[rate]\nenabled = false\n"


def start_gateway(folder: Path, backend: str, front: int, ports: Sequence[int], *, limited: bool = False) -> Running:
    """Start ``comfy-gateway up --no-backend`` on these ports in front of ``backend``."""
    config = folder / f"gateway-{front}.toml"
    config.write_text(gateway_config(folder, backend, front, ports, limited=limited))
    command = [sys.executable, "-m", "gateway", "up", "--no-backend", "--config", str(config)]
    return Running("gateway", command, ROOT, folder / "gateway.log", environment())
