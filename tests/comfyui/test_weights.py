"""One host copy of the weights: with it and without it ComfyUI computes the same bytes, and nobody writes the copy."""

import json
import subprocess
from pathlib import Path
from typing import Any

import prometheus_client
import pytest

from tests.comfyui import stack
from tests.comfyui.stack import Comfy

pytestmark = [pytest.mark.comfyui, pytest.mark.timeout(1200)]

RUN = Path(__file__).with_name("weights_run.py")
KINDS = 10
LANES = 4


def run(comfy: Comfy, tiny_models: Path, folder: Path, switch: str) -> dict[str, Any]:
    """The report of one process with the store switched so."""
    lib = str(Path(prometheus_client.__file__).parents[1])
    ended = subprocess.run(
        [comfy.python, str(RUN), str(tiny_models), str(folder)], capture_output=True, text=True, check=False,
        timeout=1100, env=stack.environment({
            "COMFYUI_DIR": str(comfy.folder), "COMFY_SHARE_WEIGHTS": switch, "COMFY_GATEWAY_LIB": lib,
        }),
    )
    assert ended.returncode == 0, ended.stderr[-4000:]
    report: dict[str, Any] = json.loads(ended.stdout.strip().splitlines()[-1])
    return report


@pytest.fixture(scope="module")
def reports(comfy: Comfy, tiny_models: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    """The same scenarios without and with the store, over the same files."""
    folder = tmp_path_factory.mktemp("kinds")
    return {switch: run(comfy, tiny_models, folder, switch) for switch in ("off", "strict")}


def test_every_kind_of_model_computes_the_same(reports: dict[str, dict[str, Any]]) -> None:
    """Ten scenarios (every kind of loader, LoRA, hooks, merges, partial loads) on four lanes, on and off: one hash."""
    without, shared = reports["off"]["results"], reports["strict"]["results"]
    assert len(without) == len(shared) == KINDS * LANES
    wrong = {name: (without[name], found) for name, found in shared.items() if found != without[name]}
    assert wrong == {}
    by_scenario: dict[str, set[str]] = {}
    for name, found in shared.items():
        assert len(found) == 20, found
        by_scenario.setdefault(name.partition(" ")[0], set()).add(found)
    assert {name: len(found) for name, found in by_scenario.items()} == dict.fromkeys(by_scenario, 1)
    print(f"\n{2 * len(shared)} results, {len(by_scenario)} different ones for {len(by_scenario)} scenarios")


def test_every_kind_of_model_is_one_copy(reports: dict[str, dict[str, Any]]) -> None:
    """A second lane's checkpoint, diffusion model, text encoder, VAE, ControlNet, T2I adapter, CLIP vision, style model
    and upscaler: the file is not read again, and every parameter that is in it lies where the first lane's does."""
    found = reports["strict"]["kinds"]
    assert len(found) == 10
    # A text encoder has a scale of four bytes that its file does not name.
    wrong = {kind: told for kind, told in found.items() if not 0 <= told["bytes"] - told["shared"] <= 4 < told["bytes"]}
    assert wrong == {}
    assert {kind: (told["loads"], told["avoided"]) for kind, told in found.items()} == dict.fromkeys(found, (1, 1))
    print("".join(f"\n{kind}: {told['shared']} of {told['bytes']} bytes" for kind, told in found.items()))


def test_unloading_copies_nothing_back(reports: dict[str, dict[str, Any]]) -> None:
    """Whole and partial loads onto a device that gives nothing back end with every parameter over its master."""
    found = reports["strict"]["fake_gpu"]
    assert len(found) == 6
    assert all(turn == {"astray": [], "same": True} for turn in found.values()), found


def test_the_masters_are_the_files_still(reports: dict[str, dict[str, Any]]) -> None:
    """After everything the shared copy has the file's bytes: by hash, and by the kernel's count of written pages."""
    report = reports["strict"]
    assert report["digests"] == [True]
    assert report["written"] == [0]
    assert report["protected"] == [True]


def test_nothing_is_kept_that_nobody_uses(reports: dict[str, dict[str, Any]]) -> None:
    """Loads were avoided while lanes worked, and with the last model all masters are gone."""
    now = reports["strict"]["snapshot"]
    assert now["avoided"] > 0
    assert (now["files"], now["mapped"], now["anonymous"]) == (0, 0, 0)


def test_tokenizers_are_read_once_and_stay_each_lanes_own(reports: dict[str, dict[str, Any]]) -> None:
    """Four kinds: the same tokens as without, also by three at once; who adds words or truncates changes its own."""
    without, shared = reports["off"]["tokenizers"], reports["strict"]["tokenizers"]
    kinds = ("clip_l", "t5", "bert", "qwen")
    assert (without["tables"], shared["tables"]) == (dict.fromkeys(kinds, 3), dict.fromkeys(kinds, 1))
    right = without["tokens"]
    for found in (without, shared):
        assert (found["tokens"], found["at_once"], found["after"]) == (right, [right], [right] * 3)
    assert without["changed"] == shared["changed"] != right
