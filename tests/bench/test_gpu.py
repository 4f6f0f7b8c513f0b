"""The GPU bench runs, dry, and says so; without a GPU it measures nothing."""

import os
import subprocess
import sys

import pytest

from bench import gpu
from bench.gpu import Row, table
from bench.gpu_stands import ROOT, WEIGHTS
from tests.gpu.cards import cuda_devices


def test_ratios_are_over_the_plain_process_of_the_class() -> None:
    """Twice the steps of plain are 2.00; the lanes' own figures stand beside."""
    issuing = {"verdict": "close", "lanes": [{"ratio": 0.1}, {"ratio": 0.3}, {"ratio": None}]}
    rows = [Row("light", "plain", 1, 10.0), Row("light", "lanes", 2, 20.0, issuing), Row("heavy", "plain", 1, 2.0)]
    lines = table(rows)
    assert lines[3] == "| light | lanes | 2 | 20.00 | 2.00 | 0.200 | close |"
    assert lines[4] == "| heavy | plain | 1 | 2.00 | 1.00 |  |  |"


def test_a_prompt_is_of_its_class() -> None:
    """File, size and steps are the class's; the seed is the job's."""
    for weight in WEIGHTS:
        prompt = weight.prompt(7)
        assert prompt["1"]["inputs"]["unet_name"] == weight.file
        assert prompt["4"]["inputs"]["width"] == weight.size
        assert (prompt["5"]["inputs"]["steps"], prompt["5"]["inputs"]["seed"]) == (weight.steps, 7)


@pytest.mark.skipif(cuda_devices() > 0, reason="there is a CUDA device: the bench would measure")
def test_without_a_gpu_nothing_is_measured(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """It says so, and how to see it run all the same."""
    monkeypatch.setattr(gpu, "cards", lambda python: {"count": 0})
    assert gpu.main([]) == 2
    assert "not run: no CUDA device" in capsys.readouterr().out


@pytest.mark.system
@pytest.mark.timeout(600)
def test_dry_it_runs_from_start_to_table() -> None:
    """One plain process, two lanes, two processes of the embedded engine, on the CPU."""
    env = {key: value for key, value in os.environ.items() if key != "COMFYUI_DIR"}
    command = [sys.executable, "-m", "bench.gpu", "--dry", "--lanes", "2", "--jobs", "1"]
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=550, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.startswith("DRY RUN on the CPU")
    assert [line.split(" | ")[1] for line in done.stdout.splitlines()[3:]] == ["plain", "lanes", "processes"]
