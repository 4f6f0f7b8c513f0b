"""Running inside another environment's interpreter lends it two names and nothing else."""

import json
import os
import subprocess
import sys
from pathlib import Path

import prometheus_client

BOOTSTRAP = Path(__file__).resolve().parents[2] / "backend" / "bootstrap.py"
LIB = Path(prometheus_client.__file__).parents[1]

LOOK = """
import importlib.util, json, runpy, sys
space = runpy.run_path(sys.argv[1])
space["lend"]()
import backend.launch, backend.lanes
seen = {name: importlib.util.find_spec(name) is not None
        for name in ("prometheus_client", "aiohttp", "torch", "gateway", "lanes", "process", "httptools")}
seen["where"] = backend.launch.__file__
seen["path"] = sys.path
print(json.dumps(seen))
"""


def look(lib: str) -> dict[str, object]:
    """What a bare interpreter, without any site-packages, can import after lending."""
    env = {**os.environ, "COMFY_GATEWAY_LIB": lib}
    found = subprocess.run(
        [sys.executable, "-S", "-I", "-c", LOOK, str(BOOTSTRAP)], env=env, capture_output=True, text=True, check=True
    )
    answer: dict[str, object] = json.loads(found.stdout)
    return answer


def test_only_two_names_are_lent():
    """backend and prometheus_client are found; nothing else of their folders is."""
    found = look(str(LIB))
    assert found["prometheus_client"] is True
    assert [found[name] for name in ("aiohttp", "torch", "gateway", "lanes", "process", "httptools")] == [False] * 6
    assert Path(str(found["where"])).parent == BOOTSTRAP.parent
    assert str(BOOTSTRAP.parent) not in found["path"]  # type: ignore[operator]
    assert str(LIB) not in found["path"]  # type: ignore[operator]


def test_without_the_folder_only_backend_is_lent():
    """No COMFY_GATEWAY_LIB, no prometheus_client."""
    assert look("")["prometheus_client"] is False


def test_run_by_path_it_is_the_backend():
    """`python backend/bootstrap.py --help` is the backend's own help, and its folder is off the import path."""
    found = subprocess.run(
        [sys.executable, "-S", str(BOOTSTRAP), "--help"], capture_output=True, text=True, check=True, cwd="/"
    )
    assert "--comfyui DIR" in found.stdout
