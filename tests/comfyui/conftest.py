"""The proofs' servers: made once a session, on folders of their own, and only where ``COMFYUI_DIR`` names a ComfyUI."""

import http.client
import os
import subprocess
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.comfyui import models, stack
from tests.comfyui.stack import Comfy, Folders, Running
from tests.comfyui.wire import Lane

HERE = Path(__file__).parent
NOT_RUN = "COMFYUI_DIR names no ComfyUI: set it (and COMFYUI_PYTHON, its interpreter) and run `make test-comfyui`"


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Without a ComfyUI the proofs are not run, and said to be so."""
    proofs = [item for item in items if item.path.is_relative_to(HERE) and item.get_closest_marker("comfyui")]
    config.stash[COUNT] = 0 if stack.named_comfy() else len(proofs)
    for item in proofs if config.stash[COUNT] else ():
        item.add_marker(pytest.mark.skip(reason=NOT_RUN))


COUNT = pytest.StashKey[int]()


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """One line that no reader of the result overlooks."""
    if count := config.stash.get(COUNT, 0):
        terminalreporter.write_line(f"{count} proofs against a real ComfyUI were NOT RUN: {NOT_RUN}", yellow=True)
    if HASHED:
        terminalreporter.write_line(
            f"{sum(HASHED)} shared weights (files and conversions) in {len(HASHED)} processes have the same hash at "
            "the end as when they were made, except where a proof failed"
        )


@pytest.fixture(scope="session")
def comfy() -> Comfy:
    named = stack.named_comfy()
    assert named, NOT_RUN
    return named


WRITTEN_BY_USE = ("__pycache__", "user", "output", "temp", "input")
"""Folders that a ComfyUI which somebody uses meanwhile may write to."""


def listing(folder: Path) -> dict[str, tuple[int, int]]:
    """Size and time of change of every file of a checkout."""
    files = (path for path in folder.rglob("*") if path.is_file())
    return {str(path): (path.stat().st_size, path.stat().st_mtime_ns) for path in files
            if not set(path.relative_to(folder).parts) & set(WRITTEN_BY_USE)}


@pytest.fixture(scope="session", autouse=True)
def untouched() -> Iterator[None]:
    """No file of the checkout is another one after all the proofs than before them."""
    named = stack.named_comfy()
    before = listing(named.folder) if named else {}
    yield
    after = listing(named.folder) if named else {}
    changed = {path for path in before.keys() | after.keys() if before.get(path) != after.get(path)}
    assert not changed, f"files of the checkout changed: {sorted(changed)[:10]}"


@pytest.fixture(scope="session")
def tiny_models(comfy: Comfy, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny models, made under ComfyUI's own interpreter; ``PROOF_MODELS`` names a folder that keeps them."""
    folder = Path(os.environ.get("PROOF_MODELS", "") or tmp_path_factory.mktemp("models"))
    if not all(any(folder.rglob(name)) for name in models.NAMES.values()):
        subprocess.run([comfy.python, models.__file__, str(folder)], check=True, stdout=subprocess.DEVNULL,
                       env=stack.environment({"COMFYUI_DIR": str(comfy.folder)}))
    return folder


@dataclass(frozen=True)
class Site:
    """One running ComfyUI: how each of its GPUs is reached, where it writes, and its processes."""

    lanes: list[Lane]
    folders: Folders
    processes: list[Running]
    front: Lane | None = None
    """The gateway's front door."""
    backend: Lane | None = None
    """The backend itself, past the gateway."""


def arguments(comfy: Comfy, folders: Folders, tiny_models: Path, *more: str) -> list[str]:
    """What plain ComfyUI and the overlay are both started with."""
    paths = stack.model_paths(folders.root, tiny_models)
    return [*folders.arguments(), "--extra-model-paths-config", str(paths), "--disable-api-nodes", "--preview-method",
            "auto", *more]


def start_plain_site(comfy: Comfy, tiny_models: Path, folder: Path, *more: str) -> Site:
    """Plain ComfyUI: one lane."""
    folders, port = Folders(folder).make(), stack.free_port()
    running = stack.start_plain(
        comfy, folders, port, ["--cpu", *arguments(comfy, folders, tiny_models, *comfy.plain_arguments, *more)])
    lane = Lane(f"127.0.0.1:{port}")
    return _started(Site([lane], folders, [running], backend=lane), f"http://127.0.0.1:{port}/system_stats")


def start_overlay_site(
    comfy: Comfy, tiny_models: Path, folder: Path, *more: str, lanes: int = stack.LANES,
    env: dict[str, str] | None = None, own: Sequence[str] = (),
) -> Site:
    """The overlay, its lanes reached by the GPU header."""
    folders, port = Folders(folder).make(), stack.free_port()
    running = stack.start_overlay(
        comfy, folders, port, arguments(comfy, folders, tiny_models, *more), lanes=lanes, env=env, own=own)
    host = f"127.0.0.1:{port}"
    reached = [Lane(host, gpu, {"X-TARGET-GPU": str(gpu)}) for gpu in range(lanes)]
    return _started(Site(reached, folders, [running], backend=Lane(host)), f"http://{host}/system_stats")


def start_naive_site(comfy: Comfy, tiny_models: Path, folder: Path) -> Site:
    """The naive approach, its queues reached by the GPU header."""
    folders, port = Folders(folder).make(), stack.free_port()
    running = stack.start_naive(comfy, folders, port, arguments(comfy, folders, tiny_models))
    host = f"127.0.0.1:{port}"
    reached = [Lane(host, gpu, {"X-TARGET-GPU": str(gpu)}) for gpu in range(stack.LANES)]
    return _started(Site(reached, folders, [running], backend=Lane(host)), f"http://{host}/system_stats")


def with_gateway(site: Site, lanes: int = stack.LANES, *, limited: bool = False) -> Site:
    """The same site, its lanes reached by gateway ports."""
    assert site.backend
    first = stack.free_port(lanes + 1)
    ports = list(range(first + 1, first + 1 + lanes))
    gateway = stack.start_gateway(site.folders.root, f"http://{site.backend.host}", first, ports, limited=limited)
    reached = [Lane(f"127.0.0.1:{port}", gpu) for gpu, port in enumerate(ports)]
    found = Site(reached, site.folders, [gateway, *site.processes], Lane(f"127.0.0.1:{first}"), site.backend)
    return _started(found, f"http://127.0.0.1:{first + 1}/system_stats")


def start_supervised_site(
    comfy: Comfy, folders: Folders, started_with: list[str], env: dict[str, str] | None = None, *,
    lanes: int = stack.LANES, mode: str = "single",
) -> Site:
    """The gateway with the backend as its child, or with one for each lane: ``backend`` is the first of them, then."""
    first, backend = stack.free_port(lanes + 1), stack.free_port(1 if mode == "single" else lanes)
    ports = list(range(first + 1, first + 1 + lanes))
    running = stack.start_supervised(comfy, folders, first, ports, backend, started_with, env, mode=mode)
    reached = [Lane(f"127.0.0.1:{port}", gpu) for gpu, port in enumerate(ports)]
    site = Site(reached, folders, [running], Lane(f"127.0.0.1:{first}"), Lane(f"127.0.0.1:{backend}"))
    return _started(site, *(f"http://127.0.0.1:{port}/system_stats" for port in ports))


def _started(site: Site, *urls: str) -> Site:
    try:
        for url in urls:
            site.processes[0].wait_for(url)
    except Exception:
        stop_site(site)
        raise
    return site


def stop_site(site: Site) -> None:
    found = masters(site)
    for running in site.processes:
        running.stop()
    if found is not None:
        HASHED.append(found["hashed"])
        assert found["changed"] == [], f"shared weights were written: {found['changed']}"


HASHED: list[int] = []
"""Masters that were hashed when they were made and again at the end, of each process with the overlay."""


def masters(site: Site) -> dict[str, Any] | None:
    """What the overlay says of its shared weights; ``None`` of plain ComfyUI, and of a process that is gone."""
    if site.backend is None:
        return None
    try:
        answer = site.backend.call("GET", "/debug/weights")
        found: dict[str, Any] = answer.json if answer.status == 200 else {}
    except (OSError, ValueError, http.client.HTTPException):
        return None
    return found if found.get("hashed") is not None else None


@pytest.fixture(scope="session")
def ports(comfy: Comfy, tiny_models: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """Four lanes behind the gateway; ``PROOF_DIRECT=1`` leaves the gateway out, to tell whose fault something is."""
    env = {"PROOF_TICK": "1"}
    site = start_overlay_site(comfy, tiny_models, tmp_path_factory.mktemp("ports"), env=env)
    if not os.environ.get("PROOF_DIRECT"):
        site = with_gateway(site)
    yield site
    stop_site(site)


@pytest.fixture(scope="session")
def processes(comfy: Comfy, tiny_models: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """One process for each of ``stack.PROCESSES`` GPUs behind the gateway that has started them."""
    folders = Folders(tmp_path_factory.mktemp("processes")).make()
    started_with = arguments(comfy, folders, tiny_models)
    site = start_supervised_site(
        comfy, folders, started_with, {"PROOF_TICK": "1"}, lanes=stack.PROCESSES, mode="per-gpu")
    yield site
    stop_site(site)


@pytest.fixture(scope="session")
def plain(comfy: Comfy, tiny_models: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """Plain ComfyUI with one queue: the twin that pictures are compared with."""
    site = start_plain_site(comfy, tiny_models, tmp_path_factory.mktemp("plain"))
    yield site
    stop_site(site)
