"""The build whose data path is compiled: it says so, and keeps the same promises as the plain one."""

import ast
import importlib.util
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.doubles.product import ROOT

PROMISES = (
    "tests/gateway/wire",
    "tests/gateway/test_wire_fuzz.py",
    "tests/gateway/test_proxy_answers.py",
    "tests/gateway/test_proxy_bodies.py",
    "tests/gateway/test_proxy_cache.py",
    "tests/gateway/test_proxy_connections.py",
    "tests/gateway/test_proxy_headers.py",
    "tests/gateway/test_proxy_refusals.py",
)
"""What is run against it here; all of tests/gateway holds."""


def run(folder: Path, *arguments: str, **env: str) -> "subprocess.CompletedProcess[str]":
    """This interpreter with what is in ``folder``."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("PYTEST", "COMFY"))}
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=folder,
        env={**clean, "PYTHONPATH": str(folder), **env},
        capture_output=True,
        text=True,
        check=False,
        timeout=550,
    )


def build_script() -> Any:
    """``setup.py`` as a module."""
    spec = importlib.util.spec_from_file_location("build_script", ROOT / "setup.py")
    assert spec is not None
    assert spec.loader is not None
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    return script


def copied(folder: Path) -> Path:
    """The tree, as far as a build and its tests need it."""
    for name in ("gateway", "backend", "tests", "bench"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__", "*.so"))
    for name in ("pyproject.toml", "setup.py", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, folder)
    return folder


@pytest.mark.timeout(600)
def test_the_data_path_keeps_its_promises_compiled(tmp_path: Path):
    """Compiled from the same files, it passes the tests of the wire and of the proxy."""
    reason = build_script().compiler_missing()
    reason = reason or ("" if importlib.util.find_spec("mypyc") else "mypyc is not installed")
    if reason:
        pytest.skip(f"the compiled build was not run: {reason}")
    folder = copied(tmp_path)
    built = run(folder, "setup.py", "--quiet", "build_ext", "--inplace", COMFY_GATEWAY_COMPILE="1", MYPYC_OPT_LEVEL="0")
    assert built.returncode == 0, built.stdout[-4000:] + built.stderr[-4000:]
    assert run(folder, "-m", "gateway", "--version").stdout.endswith(" (compiled)\n")
    done = run(folder, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", *PROMISES)
    assert done.returncode == 0, done.stdout[-8000:]


def test_without_a_compiler_the_build_says_what_to_do():
    """Who asks for a compiled build and cannot have one is told why, and that there is another."""
    done = run(ROOT, "setup.py", "--version", COMFY_GATEWAY_COMPILE="1", CC="/nowhere/cc")
    assert done.returncode == 1
    assert "there is no C compiler (/nowhere/cc)" in done.stderr
    assert "build without the variable" in done.stderr


def functions() -> Iterator[tuple[str, ast.FunctionDef | ast.AsyncFunctionDef]]:
    """Every function that is compiled, and where it stands."""
    for file in build_script().modules(ROOT):
        for node in ast.walk(ast.parse((ROOT / file).read_text(encoding="utf-8"))):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                yield f"{file}:{node.lineno} {node.name}", node


def test_each_error_that_is_caught_has_a_name_of_its_own():
    """mypyc gives a name one type in a function: two ``except … as error`` of different types would break there."""
    wrong = []
    for place, function in functions():
        handlers = [node for node in ast.walk(function) if isinstance(node, ast.ExceptHandler) and node.name]
        caught = {(node.name, ast.unparse(node.type or function)) for node in handlers}
        if len(caught) > len({name for name, _ in caught}):
            wrong.append(place)
    assert wrong == []


def test_what_is_set_to_none_is_not_read_again():
    """mypyc takes it for ``None`` up to the function's end, whatever was called meanwhile; ask a property instead."""
    wrong = []
    for place, function in functions():
        cleared: dict[str, int] = {}
        for node in ast.walk(function):
            if isinstance(node, ast.Assign) and isinstance(node.value, ast.Constant) and node.value.value is None:
                cleared |= {ast.unparse(each): node.lineno for each in node.targets if isinstance(each, ast.Attribute)}
        wrong += [
            f"{place}: {ast.unparse(node)}"
            for node in ast.walk(function)
            if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load)
            and cleared.get(ast.unparse(node), node.lineno) < node.lineno
        ]
    assert wrong == []
