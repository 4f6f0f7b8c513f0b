"""Public clients on all ports at once: every picture and every event arrives at the client that asked.

Once with four lanes of one process behind the ports, and once with a process for each.
"""

import contextlib
import hashlib
import io
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from tests.comfyui import stack, workflows
from tests.comfyui.conftest import Site
from tests.comfyui.recorder import Recorder
from tests.comfyui.scenarios import run_all

pytestmark = [pytest.mark.comfyui, pytest.mark.timeout(900)]

SCRIPTS = Path(__file__).with_name("clients")
PYTHON_CLIENTS = {
    "comfy_api_simplified_client.py": "comfy-api-simplified==1.6.0",
    "comfyui_workflow_client_client.py": "comfyui-workflow-client==0.1.0",
    "comfy_script_client.py": "comfy-script[default]==0.6.1",
}
NODE_CLIENTS = {
    "saintno.mjs": "@saintno/comfyui-sdk@0.3.1",
    "stable_canvas.mjs": "@stable-canvas/comfyui-client@1.5.9",
}
JOBS = 3


@pytest.fixture(scope="session")
def python_clients(tmp_path_factory: pytest.TempPathFactory) -> str:
    """An interpreter that has the Python clients; ``PROOF_CLIENTS_PYTHON`` names one that is there already."""
    if given := os.environ.get("PROOF_CLIENTS_PYTHON"):
        return given
    folder = tmp_path_factory.mktemp("clients") / "venv"
    subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
    python = str(folder / "bin/python")
    subprocess.run([python, "-m", "pip", "install", "-q", *PYTHON_CLIENTS.values()], check=True)
    return python


@pytest.fixture(scope="session")
def node_modules(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the npm clients; ``PROOF_NODE_MODULES`` names one that is there already."""
    if not shutil.which("node"):
        pytest.skip("the npm clients need node")
    if given := os.environ.get("PROOF_NODE_MODULES"):
        return Path(given)
    folder = tmp_path_factory.mktemp("npm")
    (folder / "package.json").write_text('{"private": true}')
    subprocess.run(["npm", "install", "--no-audit", "--no-fund", *NODE_CLIENTS.values(), "ws"], check=True, cwd=folder,
                   stdout=subprocess.DEVNULL)
    return folder / "node_modules"


def pixels(data: bytes) -> str:
    """A hash of what a picture shows: clients add their own text to the file."""
    image = Image.open(io.BytesIO(data)).convert("RGB")
    return hashlib.sha256(image.tobytes() + repr(image.size).encode()).hexdigest()


def drive(command: list[str], site: Site, twin: Site, folder: Path, name: str) -> None:
    """Run one client on every port at once and compare what each was given with the twin's pictures."""
    with contextlib.ExitStack() as held:
        recorders = [held.enter_context(Recorder(lane.host)) for lane in site.lanes]
        _drive(command, site, twin, folder, name, recorders)


def _drive(
    command: list[str], site: Site, twin: Site, folder: Path, name: str, recorders: list[Recorder]
) -> None:
    seed = int.from_bytes(hashlib.sha256(name.encode()).digest()[:3], "big")
    version = site.lanes[0].get("/system_stats")["system"]["comfyui_version"]
    children = []
    for lane, recorder in zip(site.lanes, recorders, strict=True):
        own, first = folder / f"gpu{lane.gpu}", seed + 100 * lane.gpu
        own.mkdir()
        for number in range(first, first + JOBS):
            (own / f"{number}.json").write_text(json.dumps(workflows.watched(number, prefix="clients")))
        with (own / "log").open("wb") as log:
            children.append((lane, own, first, subprocess.Popen(
                [*command, recorder.host, str(first), str(JOBS), str(own)], cwd=folder, stdout=log, stderr=log,
                stdin=subprocess.DEVNULL, env=stack.environment())))
    got, right = 0, 0
    for (lane, own, first, child), recorder in zip(children, recorders, strict=True):
        try:
            code = child.wait(180)
        finally:
            child.kill()
            child.wait()
        log = (own / "log").read_text()
        assert code == 0, f"{name} on GPU {lane.gpu} ended with {code}:\n{log[-1500:]}"
        if '{"progress"' in log:
            progress = json.loads(next(line for line in log.splitlines() if line.startswith('{"progress"')))["progress"]
            sent = recorder.events("progress")
            print(f"{name} on GPU {lane.gpu}: {progress} progress events heard of {sent} sent to it")
            # These two listen only once their POST, and a look at the history after it, is answered: what comes
            # before is sent to them, on any ComfyUI, and not heard. On a busy machine that may be all of it.
            assert progress <= sent
            assert sent == 10 * JOBS or version != "0.3.64"  # newer versions send ten a second at most
        prompts = [workflows.watched(number, prefix="clients") for number in range(first, first + JOBS)]
        alone = run_all(twin.lanes, prompts)
        for number, entry in zip(range(first, first + JOBS), alone, strict=True):
            expected = pixels(twin.lanes[0].picture(entry["outputs"]["3"]["images"][0]))
            got += 1
            right += pixels((own / f"{number}.png").read_bytes()) == expected
    print(f"\n{name}: {got} jobs on {len(site.lanes)} ports at once, {right} pictures right")
    assert right == got == JOBS * len(site.lanes)


@pytest.fixture(params=["ports", "processes"])
def site(request: pytest.FixtureRequest) -> Site:
    """Either of the two."""
    found: Site = request.getfixturevalue(request.param)
    return found


@pytest.mark.parametrize("script", PYTHON_CLIENTS)
def test_python_client(site: Site, plain: Site, python_clients: str, tmp_path: Path, script: str) -> None:
    """A client of PyPI gets its own pictures on each of the ports at once."""
    drive([python_clients, str(SCRIPTS / script)], site, plain, tmp_path, script)


@pytest.mark.parametrize("script", NODE_CLIENTS)
def test_node_client(site: Site, plain: Site, node_modules: Path, tmp_path: Path, script: str) -> None:
    """A client of npm gets its own pictures, and is sent all of its progress, on each of the ports at once."""
    # Modules are looked up from where a script lies.
    (tmp_path / "node_modules").symlink_to(node_modules)
    shutil.copy(SCRIPTS / script, tmp_path)
    drive(["node", str(tmp_path / script)], site, plain, tmp_path, script)
