"""The bodies that the contract is held against: the embedded engine, and a ComfyUI where ``COMFYUI_DIR`` names one.

Each of them once as one process with four lanes, and once as four processes behind a gateway.
"""

import json
import os
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import aiohttp
import pytest

from tests.contract.client import Client
from tests.doubles.backend_process import ROOT, BackendProcess
from tests.doubles.product import GENEROUS, Product

GPUS = 4
NO_COMFYUI = "COMFYUI_DIR names no ComfyUI: the contract is held against the embedded engine alone"


@dataclass(frozen=True)
class Body:
    """One running backend and what differs between bodies."""

    name: str
    url: str
    folder: Path
    """Holds its input, output and temp folders."""
    checkpoint: str | None
    behind: bool = False
    """Whether it is one process per GPU behind a gateway's front door."""


def _per_gpu(folder: Path, ends: ExitStack) -> Body:
    product = Product(folder, gpus=GPUS, settings=GENEROUS, mode="per-gpu")
    ends.callback(product.end)
    product.start().ready()
    url = f"http://127.0.0.1:{product.ports[0]}"
    return Body("per-gpu", url, folder / "data", "tiny.safetensors", behind=True)


def _embedded(folder: Path, ends: ExitStack) -> Body:
    process = BackendProcess(folder, ["--gpus", str(GPUS), "--testing-nodes"]).start()
    ends.callback(process.end)
    return Body("embedded", process.url, folder / "data", "tiny.safetensors")


def _checkout(folder: Path) -> tuple[Path, str, list[str]]:
    """The ComfyUI that is named, its interpreter, and the arguments that keep what it writes in ``folder``."""
    checkout = Path(os.environ["COMFYUI_DIR"]).resolve()
    own = [checkout / ".venv/bin/python", checkout / "venv/bin/python"]
    python = os.environ.get("COMFYUI_PYTHON") or next((str(each) for each in own if each.exists()), sys.executable)
    paths = folder / "paths.yaml"
    paths.write_text(f"testing:\n  custom_nodes: {checkout}/tests/execution/testing_nodes\n")
    arguments: list[str] = ["--extra-model-paths-config", str(paths), "--database-url", "sqlite:///:memory:"]
    for kind in ("user", "input", "output", "temp"):
        (folder / kind).mkdir()
        where = folder if kind == "temp" else folder / kind  # ComfyUI adds "temp" itself
        arguments += [f"--{kind}-directory", str(where)]
    return checkout, python, arguments


def _comfyui(folder: Path, ends: ExitStack) -> Body:
    import prometheus_client  # noqa: PLC0415 (only its place matters)

    checkout, python, arguments = _checkout(folder)
    command = [python, str(ROOT / "backend/bootstrap.py"), "--comfyui", str(checkout), "--port", "0"]
    command += ["--gpus", str(GPUS), "--cpu", "--", *arguments]
    lib = str(Path(prometheus_client.__file__).parents[1])
    env = {"COMFY_GATEWAY_LIB": lib, "PYTHONPATH": "", "PYTHONPYCACHEPREFIX": str(folder / "pycache")}
    process = BackendProcess(folder, command=command, env=env).start()
    ends.callback(process.end)
    process.wait_ready(180)
    return Body("comfyui", process.url, folder, None)


def _comfyui_per_gpu(folder: Path, ends: ExitStack) -> Body:
    checkout, python, arguments = _checkout(folder)
    cache = {"PYTHONPYCACHEPREFIX": str(folder / "pycache")}
    product = Product(folder, gpus=GPUS, mode="per-gpu", whole=True, env=cache)
    settings = {"url": product.url, "mode": "per-gpu", "comfyui": str(checkout), "python": python, "args": arguments,
                "devices": ["cpu"] * GPUS}  # fmt: skip
    # What JSON says of strings and lists of them, TOML understands.
    lines = [f"{name} = {json.dumps(value)}" for name, value in settings.items()]
    product.settings = "\n".join(["[backend]", *lines, GENEROUS])
    ends.callback(product.end)
    product.start().ready(400)
    return Body("comfyui-per-gpu", f"http://127.0.0.1:{product.ports[0]}", folder, None, behind=True)


BODIES: dict[str, Callable[[Path, ExitStack], Body]] = {
    "embedded": _embedded, "per-gpu": _per_gpu, "comfyui": _comfyui, "comfyui-per-gpu": _comfyui_per_gpu,
}  # fmt: skip
REAL = ("comfyui", "comfyui-per-gpu")


@pytest.fixture(
    scope="session",
    params=["embedded", "per-gpu", *(pytest.param(name, marks=pytest.mark.comfyui) for name in REAL)],
)
def body(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Body]:
    """A running backend with four lanes."""
    if request.param in REAL and not os.environ.get("COMFYUI_DIR"):
        pytest.skip(NO_COMFYUI)
    with ExitStack() as ends:
        yield BODIES[request.param](tmp_path_factory.mktemp(request.param), ends)


@pytest.fixture
async def client(body: Body) -> AsyncIterator[Client]:
    """A client of that backend; afterwards its lanes are idle again."""
    async with aiohttp.ClientSession() as session:
        found = Client(session, body.url, behind=body.behind)
        yield found
        await found.idle()
