"""The command line: arguments, precedence, exit codes, and what starting costs."""

import os
import subprocess
import sys
import timeit
from argparse import Namespace
from pathlib import Path

import pytest

from gateway.build import version
from gateway.cli import effective, main, split_rest
from gateway.config import Backend, Config


def asked(**given: object) -> Namespace:
    base = {"gpus": None, "no_backend": False, "comfyui": None, "python": None}
    return Namespace(**{**base, **given})


def test_what_stands_after_the_dashes_is_comfyuis():
    """Only the first -- divides."""
    assert split_rest(["up", "--gpus", "2"]) == (["up", "--gpus", "2"], [])
    assert split_rest(["up", "--", "--cpu", "--", "x"]) == (["up"], ["--cpu", "--", "x"])


def test_the_command_line_wins_over_the_environment_and_that_over_the_file():
    """Number of GPUs: --gpus, then COMFY_NUM_GPUS, then the file; ports are consecutive."""
    config = Config()
    assert effective(config, asked(), [], {}).gpus == 4
    assert effective(config, asked(), [], {"COMFY_NUM_GPUS": "2"}).listen.gpu_ports == (8181, 8182)
    six = effective(config, asked(gpus=6), [], {"COMFY_NUM_GPUS": "2"})
    assert six.listen.gpu_ports == (8181, 8182, 8183, 8184, 8185, 8186)


def test_the_backends_options_are_changed_one_by_one():
    """What the command line does not say stays as the file has it; extra arguments are added to the file's."""
    config = Config(backend=Backend(comfyui="/file", python="/py", args=("--a",)))
    kept = effective(config, asked(), ["--b"], {}).backend
    assert (kept.comfyui, kept.python, kept.args, kept.start) == ("/file", "/py", ("--a", "--b"), True)
    changed = effective(config, asked(comfyui="/line", no_backend=True), [], {}).backend
    assert (changed.comfyui, changed.python, changed.start) == ("/line", "/py", False)


@pytest.mark.parametrize("text", ["four", "-1", "2.5", "\u0664"])
def test_a_number_of_gpus_that_is_none_is_named(text: str):
    """A slip in the environment is a line, not a traceback."""
    with pytest.raises(ValueError, match="COMFY_NUM_GPUS"):
        effective(Config(), asked(), [], {"COMFY_NUM_GPUS": text})


TWO_DEVICES = "[listen]\ngpu_ports = [8181, 8182, 8183, 8184]\n[backend]\ndevices = ['cpu', 'cpu']\n"


def test_the_file_is_judged_with_what_comes_on_top_of_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    """Two devices and four ports contradict each other, and no longer when two GPUs are asked for."""
    file = tmp_path / "config.toml"
    file.write_text(TWO_DEVICES, encoding="utf-8")
    started: list[Config] = []
    monkeypatch.setattr("gateway.run.run", lambda config, *rest: started.append(config))
    monkeypatch.delenv("COMFY_NUM_GPUS", raising=False)
    up = ["up", "--config", str(file)]

    assert main(up) == 1
    assert f"{file}:4: [backend] devices: names 2 for 4 GPUs" in capsys.readouterr().err
    assert main([*up, "--gpus", "3"]) == 1
    assert f"{file}:4: [backend] devices: names 2 for 3 GPUs" in capsys.readouterr().err
    assert not started

    assert main([*up, "--gpus", "2"]) == 0
    monkeypatch.setenv("COMFY_NUM_GPUS", "2")
    assert main(up) == 0
    assert [config.listen.gpu_ports for config in started] == [(8181, 8182)] * 2
    assert main(["check", str(file)]) == 0


def test_a_wrong_number_of_gpus_does_not_hide_what_is_wrong_in_the_file(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    """Where the file cannot be read whole, its own lines come first; where it can, the variable is named."""
    file = tmp_path / "config.toml"
    monkeypatch.setenv("COMFY_NUM_GPUS", "70")
    file.write_text("[listen]\nprot = 1\n", encoding="utf-8")
    assert main(["check", str(file)]) == 1
    assert f"{file}:2: [listen] prot" in capsys.readouterr().err
    file.write_text("[listen]\nfront_port = 9000\n", encoding="utf-8")
    for command in (["check", str(file)], ["up", "--config", str(file)]):
        assert main(command) == 1
        assert "1 to 64, not 70" in capsys.readouterr().err


def test_check_says_ok_and_exits_with_0(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    """A good file is one line on stdout."""
    file = tmp_path / "config.toml"
    file.write_text("[listen]\nfront_port = 9000\n", encoding="utf-8")
    assert main(["check", str(file)]) == 0
    assert "ok" in capsys.readouterr().out


def test_check_names_line_and_nearest_key_and_exits_with_1(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    """Like nginx -t: where, what, and what was probably meant."""
    file = tmp_path / "config.toml"
    file.write_text("[listen]\n\nfront_prot = 9000\n", encoding="utf-8")
    assert main(["check", str(file)]) == 1
    said = capsys.readouterr().err
    assert f"{file}:3" in said
    assert "front_port" in said


def test_up_with_a_wrong_file_says_so_and_starts_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    """The same report as check, and exit code 1."""
    file = tmp_path / "config.toml"
    file.write_text("[backend]\ncomfyui = 3\n", encoding="utf-8")
    assert main(["up", "--config", str(file)]) == 1
    assert f"{file}:2" in capsys.readouterr().err


def test_a_wrong_comfyui_is_one_line(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """A folder that is no checkout is named, before anything is started."""
    monkeypatch.chdir(tmp_path)
    assert main(["up", "--comfyui", str(tmp_path)]) == 1
    said = capsys.readouterr().err
    assert f"{tmp_path} is not a ComfyUI checkout" in said
    assert "Traceback" not in said


@pytest.mark.parametrize("argv", [["up", "--gpu", "x"], ["nonsense"], ["check", "--", "--cpu"]])
def test_wrong_arguments_end_in_2(argv: list[str]):
    """As every program with argparse does."""
    with pytest.raises(SystemExit) as caught:
        main(argv)
    assert caught.value.code == 2


def test_the_version_is_the_packages():
    """--version, through the interpreter, exits with 0."""
    done = subprocess.run([sys.executable, "-m", "gateway", "--version"], capture_output=True, text=True, check=True)
    assert done.stdout == f"comfy-gateway {version()}\n"


def test_the_gateway_never_imports_torch_nor_a_web_framework():
    """Everything that `up` needs is loaded, and nothing of the engine's world nor aiohttp is there."""
    code = (
        "import sys, gateway.cli, gateway.run, gateway.check, uvloop;"
        "print(*sorted({name.split('.')[0] for name in sys.modules} & {'torch', 'numpy', 'PIL', 'aiohttp', 'backend'}))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""


def test_starting_costs_a_few_times_what_python_itself_costs():
    """Importing all of the gateway takes less than thirty times what an empty interpreter takes."""

    def start(code: str) -> None:
        subprocess.run([sys.executable, "-c", code], check=True, env={**os.environ, "PYTHONPATH": ""})

    bare = min(timeit.repeat(lambda: start("pass"), number=1, repeat=5))
    whole = min(timeit.repeat(lambda: start("import gateway.cli, gateway.run, uvloop"), number=1, repeat=5))
    print(f"python {bare * 1000:.0f} ms, with the gateway {whole * 1000:.0f} ms, ratio {whole / bare:.1f}")
    assert whole < 30 * bare
