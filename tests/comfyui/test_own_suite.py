"""ComfyUI's own ``tests/execution``, unmodified, against gateway ports with four lanes behind them."""

import os
from pathlib import Path

import pytest

from tests.comfyui import stack, suite
from tests.comfyui.stack import Comfy
from tests.comfyui.suite import Result

pytestmark = [pytest.mark.comfyui, pytest.mark.timeout(2 * suite.SUITE_LIMIT)]

KNOWN = {"0.3.64": 185}
"""Tests that pass on the plain version; other versions are compared with their own plain run alone."""


@pytest.fixture(scope="module")
def on_plain(comfy: Comfy, tmp_path_factory: pytest.TempPathFactory) -> Result:
    return suite.run_plain(comfy, tmp_path_factory.mktemp("suite") / "plain")


def report(comfy: Comfy, where: str, result: Result) -> None:
    print(f"\nComfyUI {comfy.version} tests/execution {where}: {result}")


GPUS = tuple(int(gpu) for gpu in os.environ.get("PROOF_GPUS", "0,2").split(","))
"""The GPUs on whose ports the suite runs: on each alone, then on the first two at once."""

HELD = bool(os.environ.get("PROOF_HELD"))

SHARED = ("_offset_", "_jobs_api_", "test_async_resource_cleanup")
"""Tests that look at what two clients of one ComfyUI share on purpose: the length of the one history, the list of all
jobs, and a class variable of a testing node. A second suite at the same time may change it between two looks."""


def same(result: Result, plain: Result, apart: tuple[str, ...] = ()) -> None:
    """What passes on plain ComfyUI passes here, and no test is left out, but for those that name one of ``apart``.

    A test that fails on plain and passes here is told, not held against us: on a slow machine the 20 s that the suite
    waits for its server may be too short for a whole group, in either run.
    """
    changed = {name: (plain.outcomes.get(name), given) for name, given in result.outcomes.items()
               if plain.outcomes.get(name) != given and not any(part in name for part in apart)}
    better = {name for name, (_, given) in changed.items() if given == "passed"}
    if better:
        print(f"{len(better)} tests pass here and not on plain ComfyUI: {', '.join(sorted(better))}")
    worse = {name: ends for name, ends in changed.items() if name not in better}
    assert not worse, f"{len(worse)} tests end worse than on plain ComfyUI: {worse}; see {result.log}"
    assert result.outcomes.keys() == plain.outcomes.keys()


def test_plain_passes(comfy: Comfy, on_plain: Result) -> None:
    """The unpatched ComfyUI passes its own suite here, so that what fails behind a port is our doing."""
    report(comfy, "plain", on_plain)
    assert on_plain.count("passed") > 0
    if comfy.version in KNOWN and not suite.SELECT:
        assert on_plain.count("passed") == KNOWN[comfy.version], on_plain.names("failed") | on_plain.names("error")


@pytest.mark.parametrize("gpu", GPUS)
def test_one_port(comfy: Comfy, on_plain: Result, tmp_path: Path, gpu: int) -> None:
    """The suite on the port of one GPU ends test by test as on plain ComfyUI."""
    result = suite.run_port(comfy, tmp_path / "port", gpu, held=HELD)
    report(comfy, f"on the port of GPU {gpu}", result)
    same(result, on_plain)


def test_one_process(comfy: Comfy, on_plain: Result, tmp_path: Path) -> None:
    """The suite on the last port of one process per GPU ends test by test as on plain ComfyUI."""
    gpu = stack.PROCESSES - 1
    result = suite.run_process(comfy, tmp_path / "process", gpu)
    report(comfy, f"on the port of GPU {gpu} of {stack.PROCESSES} processes", result)
    same(result, on_plain)


def test_two_ports(comfy: Comfy, on_plain: Result, tmp_path: Path) -> None:
    """The suite on two ports of one gateway at the same time ends on both as on plain ComfyUI.

    But for the tests of ``SHARED``, which assume that nobody else uses the server; how many of these hold is printed.
    """
    both = GPUS[0], GPUS[1] if len(GPUS) > 1 else (GPUS[0] + 1) % stack.LANES
    results, shared = suite.run_two_ports(comfy, tmp_path / "two", both)
    for gpu, result in zip(both, results, strict=True):
        report(comfy, f"on the port of GPU {gpu}, with the other one busy", result)
    print(f"{shared} backends were used by both")
    assert shared > 0
    for result in results:
        kept = [name for name in result.outcomes if any(part in name for part in SHARED)]
        held = sum(1 for name in kept if result.outcomes[name] == on_plain.outcomes[name])
        print(f"{len(kept)} tests look at what both share: {held} of them held all the same")
        same(result, on_plain, SHARED)


@pytest.mark.parametrize("mode", ["single", "per-gpu"])
def test_progress_isolation_across_lanes(comfy: Comfy, tmp_path: Path, mode: str) -> None:
    """ComfyUI's own test of progress isolation holds between clients of different GPUs."""
    processes = mode == "per-gpu"
    result = suite.run_across(comfy, tmp_path / "across", "TestProgressIsolation", held=HELD, processes=processes)
    report(comfy, f"TestProgressIsolation over {stack.PROCESSES if processes else stack.LANES} ports, {mode}", result)
    assert "across_ports: a client goes to" in result.log.read_text()
    assert result.outcomes
    assert result.count("passed") == len(result.outcomes)
