"""ComfyUI's real web frontend in headless Chromium, on a GPU port, under a prefix, and while the backend restarts."""

import json
import os
import re
import shutil
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.comfyui import stack, workflows
from tests.comfyui.conftest import (
    Site,
    arguments,
    start_overlay_site,
    start_plain_site,
    start_supervised_site,
    stop_site,
    with_gateway,
)
from tests.comfyui.stack import Comfy, Folders

pytestmark = [pytest.mark.comfyui, pytest.mark.timeout(600)]

SCRIPT = Path(__file__).with_name("browser") / "frontend.mjs"
CHROMIUM = os.environ.get("CHROMIUM", "/usr/bin/chromium")
PAGE_LOAD = {"0.3.64": 471}
"""Requests of one cold page load, give or take those that depend on timing; counted on the plain version."""


@pytest.fixture(scope="session")
def browser_modules(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with playwright-core; ``PROOF_NODE_MODULES`` names one that has it already."""
    if not shutil.which("node") or not Path(CHROMIUM).exists():
        pytest.skip(f"the frontend's proof needs node and a Chromium ({CHROMIUM}; CHROMIUM names another)")
    if given := os.environ.get("PROOF_NODE_MODULES"):
        return Path(given)
    folder = tmp_path_factory.mktemp("browser")
    (folder / "package.json").write_text('{"private": true}')
    subprocess.run(["npm", "install", "--no-audit", "--no-fund", "playwright-core"], check=True, cwd=folder,
                   stdout=subprocess.DEVNULL)
    return folder / "node_modules"


def browse(
    modules: Path, folder: Path, url: str, *steps: str, restart: Callable[[], None] | None = None,
) -> dict[str, dict[str, Any]]:
    """Run the script; answers with what each step said, by its name."""
    folder.mkdir()
    (folder / "node_modules").symlink_to(modules)
    shutil.copy(SCRIPT, folder)
    (folder / "workflow.json").write_text(json.dumps(workflows.sampled(1, steps=6, prefix="browser")))
    command = ["node", str(folder / "frontend.mjs"), url, str(folder / "workflow.json"), *steps]
    said: dict[str, dict[str, Any]] = {}
    env = stack.environment({"CHROMIUM": CHROMIUM, "SHOT": str(folder / "shot.png")})
    with (folder / "stderr").open("wb") as errors, subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=errors, text=True, env=env,
    ) as child:
        assert child.stdout
        for line in child.stdout:
            fact = json.loads(line)
            said[fact["step"]] = fact
            if fact["step"] == "ready_for_restart" and restart:
                restart()
    assert "error" not in said, f"{said['error']}; see {folder}/shot.png"
    assert "end" in said, (folder / "stderr").read_text()[-2000:]
    return said


def bare(failures: list[str]) -> set[str]:
    """Failures without a prefix, to compare what different ways in were told."""
    return {re.sub(r" /gpu\d+/", " /", failure) for failure in failures}


def accept(name: str, said: dict[str, dict[str, Any]], plain: dict[str, dict[str, Any]]) -> None:
    """Nothing failed but what fails on plain ComfyUI; the job ran, was seen to progress, and its picture was shown."""
    end = said["end"]
    ours, expected = bare(end["failed"]), bare(plain["end"]["failed"])
    print(f"\n{name}: {end['requests']} requests, by status {end['kinds']}, {end['sockets']} sockets; also on plain: "
          f"{sorted(ours & expected)}")
    aborted = {failure for failure in ours if failure.startswith("net::ERR_ABORTED")}  # the page left first
    assert not ours - expected - aborted, f"failed here and not on plain ComfyUI: {ours - expected}"
    assert not [status for status in end["kinds"] if int(status) >= 500 or int(status) == 429]
    if "queue" in said:
        assert said["queue"]["clicked"] or not plain["queue"]["clicked"], "the Run button was not there"
        assert said["queue"]["progress"] >= plain["queue"]["progress"] / 2  # newer versions drop what comes too fast
        assert said["queue"]["previews"] >= said["queue"]["progress"] / 2
        assert said["queue"]["shown"], said["queue"]["titles"]
        assert {200, 206} & set(said["queue"]["views"])


STEPS = ("load", "queue", "save=sub/a", "open=sub/a")


@pytest.fixture(scope="module")
def on_plain(
    comfy: Comfy, tiny_models: Path, browser_modules: Path, tmp_path_factory: pytest.TempPathFactory,
) -> dict[str, dict[str, Any]]:
    """What the same visit is told by plain ComfyUI."""
    folder = tmp_path_factory.mktemp("frontend")
    site = start_plain_site(comfy, tiny_models, folder / "plain")
    try:
        said = browse(browser_modules, folder / "browser", f"http://{site.lanes[0].host}/", *STEPS)
    finally:
        stop_site(site)
    print(f"\nplain: {said['end']['requests']} requests; fail on plain: {sorted(set(said['end']['failed']))}")
    return said


@pytest.fixture
def limited(comfy: Comfy, tiny_models: Path, tmp_path: Path) -> Iterator[Site]:
    """Four lanes behind a gateway with its default limits: the page must load under them."""
    site = with_gateway(start_overlay_site(comfy, tiny_models, tmp_path / "site"), limited=True)
    yield site
    stop_site(site)


def full_load(comfy: Comfy, said: dict[str, dict[str, Any]], plain: dict[str, dict[str, Any]]) -> None:
    """As many requests as plain ComfyUI is asked, give or take what depends on timing."""
    asked, usual = said["end"]["requests"], plain["end"]["requests"]
    assert abs(asked - usual) <= 0.05 * usual
    assert asked >= PAGE_LOAD.get(comfy.version, 20)


def saved_under(said: dict[str, dict[str, Any]], name: str) -> None:
    """The frontend's own request kept its encoded slash, was answered 200, and the workflow could be opened."""
    assert said[f"save={name}" if f"save={name}" in said else "save"]["status"] == 200
    assert "workflows%2F" + name.replace("/", "%2F") in said["save"]["path"]
    assert said["open"].get("nodes") == 7, said["open"]


def test_gpu_port(
    comfy: Comfy, limited: Site, on_plain: dict[str, Any], browser_modules: Path, tmp_path: Path,
) -> None:
    """On GPU 1's port with default limits: page, queue, progress, picture; ``sub/a`` saved, and opened under /gpu0/."""
    said = browse(browser_modules, tmp_path / "port", f"http://{limited.lanes[1].host}/", *STEPS)
    accept("frontend on GPU 1's port", said, on_plain)
    full_load(comfy, said, on_plain)
    saved_under(said, "sub/a")
    assert (limited.folders.root / "user/default/workflows/sub/a.json").exists()
    assert said["queue"]["gpus"] == [1], said["queue"]
    assert limited.front
    prefixed = browse(browser_modules, tmp_path / "prefix", f"http://{limited.front.host}/gpu0/",
                      "load", "open=sub/a", "queue", "save=sub/b", "open=sub/b")
    accept("frontend under /gpu0/", prefixed, on_plain)
    saved_under(prefixed, "sub/b")


def test_before_plain_comfyui(
    comfy: Comfy, tiny_models: Path, on_plain: dict[str, Any], browser_modules: Path, tmp_path: Path,
) -> None:
    """``up --no-backend`` in front of a plain, unpatched ComfyUI: the same visit, on the port and under /gpu0/."""
    site = with_gateway(start_plain_site(comfy, tiny_models, tmp_path / "site"), limited=True)
    try:
        said = browse(browser_modules, tmp_path / "port", f"http://{site.lanes[0].host}/", *STEPS)
        accept("frontend before plain ComfyUI", said, on_plain)
        full_load(comfy, said, on_plain)
        saved_under(said, "sub/a")
        assert site.front
        prefixed = browse(browser_modules, tmp_path / "prefix", f"http://{site.front.host}/gpu0/",
                          "load", "open=sub/a", "queue", "save=sub/b", "open=sub/b")
        accept("frontend before plain ComfyUI under /gpu0/", prefixed, on_plain)
        saved_under(prefixed, "sub/b")
    finally:
        stop_site(site)


def test_reconnects_after_restart(
    comfy: Comfy, tiny_models: Path, on_plain: dict[str, Any], browser_modules: Path, tmp_path: Path,
) -> None:
    """The backend is killed under an open page: the frontend finds its way back, and the next job is shown."""
    folders = Folders(tmp_path / "site").make()
    site = start_supervised_site(comfy, folders, arguments(comfy, folders, tiny_models))

    def kill_backend() -> None:
        (backend,) = site.processes[0].children()
        os.kill(backend, signal.SIGKILL)

    try:
        said = browse(browser_modules, tmp_path / "port", f"http://{site.lanes[1].host}/", "load", "wait_restart",
                      "queue", restart=kill_backend)
    finally:
        stop_site(site)
    assert said["wait_restart"]["sockets"] > 1
    assert {200, 206} & set(said["queue"]["views"])
    refused = {failure for failure in said["end"]["failed"] if failure.startswith("5")}
    print(f"\nafter a restart: {said['wait_restart']['sockets']} sockets, told while it was down: {sorted(refused)}")
    assert all(failure.startswith(("502", "503")) for failure in refused)
