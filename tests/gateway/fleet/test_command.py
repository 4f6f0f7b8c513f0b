"""The backend's command line, put together from config and surroundings."""

import sys
from dataclasses import replace
from pathlib import Path

import pytest

from gateway.config import Backend
from gateway.fleet.command import EXIT_DEVICE_FAULT, EXIT_PORT_IN_USE, EXIT_USAGE, READY_PREFIX, backend_command
from gateway.spec import MOST_GPUS


def options(argv: tuple[str, ...]) -> dict[str, str]:
    """The options of a command line by name; a flag has an empty value."""
    own = argv[: argv.index("--")] if "--" in argv else argv
    return {
        name: "" if at + 1 == len(own) or own[at + 1].startswith("--") else own[at + 1]
        for at, name in enumerate(own)
        if name.startswith("--")
    }


def test_the_embedded_engine_runs_on_our_own_interpreter():
    """Without a ComfyUI: our python, as many lanes as ports, the address of the url, tied to our life."""
    command = backend_command(Backend(), 3, {})
    assert command.argv[:4] == (sys.executable, "-P", "-m", "backend.launch")
    found = options(command.argv)
    assert (found["--host"], found["--port"], found["--gpus"]) == ("127.0.0.1", "8188", "3")
    assert "--exit-with-parent" in found
    assert "--comfyui" not in found
    assert command.comfyui is None


def test_a_comfyui_runs_on_its_own_interpreter_by_path():
    """Its environment has none of our packages, so the program is named by its file."""
    backend = Backend(url="http://[::1]:9000", comfyui="/opt/comfy", serialize=("a", "b"), allow_unknown=True,
                      issue_lock="on", threads=2)
    present = {Path("/opt/comfy/main.py"), Path("/opt/comfy/venv/bin/python")}
    command = backend_command(backend, 2, {}, present.__contains__)
    assert command.argv[0] == "/opt/comfy/venv/bin/python"
    assert Path(command.argv[1]).name == "bootstrap.py"
    assert Path(command.argv[1]).is_file()
    found = options(command.argv)
    assert (found["--host"], found["--port"], found["--comfyui"]) == ("::1", "9000", "/opt/comfy")
    assert found["--serialize"] == "a,b"
    assert "--allow-unknown" in found
    assert (found["--issue-lock"], found["--threads"]) == ("on", "2")
    assert found["--share-weights"] == "on"
    strict = replace(backend, share_weights="strict")
    assert options(backend_command(strict, 2, {}, present.__contains__).argv)["--share-weights"] == "strict"
    env = {"COMFY_SHARE_WEIGHTS": "0"}
    assert "--share-weights" not in backend_command(strict, 2, env, present.__contains__).argv, "the environment's is"
    assert (Path(command.env["COMFY_GATEWAY_LIB"]) / "prometheus_client").is_dir()


def test_interpreters_are_looked_for_in_order():
    """Named first, then .venv, then venv, then ours."""
    main, dot, venv = (Path("/c") / name for name in ("main.py", ".venv/bin/python", "venv/bin/python"))
    first = backend_command(Backend(comfyui="/c"), 1, {}, {main, dot, venv}.__contains__)
    ours = backend_command(Backend(comfyui="/c"), 1, {}, {main}.__contains__)
    python = Path("/p/python")
    named = backend_command(Backend(comfyui="/c", python=str(python)), 1, {}, {main, dot, python}.__contains__)
    assert [command.argv[0] for command in (first, ours, named)] == [str(dot), sys.executable, "/p/python"]


def test_the_environment_names_a_comfyui_where_the_config_does_not():
    """COMFYUI_DIR is the fallback, and the child is told by option only."""
    env = {"COMFYUI_DIR": "/from/env"}
    exists = {Path("/from/env/main.py"), Path("/from/config/main.py")}.__contains__
    assert options(backend_command(Backend(), 1, env, exists).argv)["--comfyui"] == "/from/env"
    command = backend_command(Backend(comfyui="/from/config"), 1, env, exists)
    assert options(command.argv)["--comfyui"] == "/from/config"
    assert command.env["COMFYUI_DIR"] == ""


def test_what_is_not_there_is_named():
    """A wrong folder or interpreter is a line for the user, before anything is started."""
    with pytest.raises(ValueError, match=r"/nowhere is not a ComfyUI checkout"):
        backend_command(Backend(comfyui="/nowhere"), 1, {})
    with pytest.raises(ValueError, match=r"backend\.python names /no/python"):
        backend_command(Backend(comfyui="/c", python="/no/python"), 1, {}, {Path("/c/main.py")}.__contains__)
    with pytest.raises(ValueError, match="set start = false"):
        backend_command(Backend(url="unix:/run/comfy.sock"), 1, {})


def test_everything_else_is_passed_on():
    """Devices, the warm-up file as a full path, and ComfyUI's own arguments last and untouched."""
    backend = Backend(devices=("cuda:1", "cuda:0"), warmup_workflow="w.json", data="d", args=("--lowvram", "--", "x"))
    backend = replace(backend, warmup_models=("vae/v",))
    command = backend_command(backend, 2, {})
    found = options(command.argv)
    assert found["--devices"] == "cuda:1,cuda:0"
    assert found["--warmup"] == str(Path("w.json").absolute())
    assert found["--warmup-model"] == "vae/v"
    assert found["--data"] == str(Path("d").absolute())
    assert command.argv[-4:] == ("--", "--lowvram", "--", "x")


def test_both_sides_mean_the_same_ready_line_and_exit_codes():
    """The gateway keeps its own copy of the contract, and it is a true one."""
    from backend import contract  # noqa: PLC0415 (only this test may see both sides)

    assert contract.READY_PREFIX == READY_PREFIX
    ours = (EXIT_USAGE, EXIT_PORT_IN_USE, EXIT_DEVICE_FAULT)
    assert ours == (contract.EXIT_USAGE, contract.EXIT_PORT_IN_USE, contract.EXIT_DEVICE_FAULT)


def test_both_sides_take_the_same_number_of_gpus():
    """What the gateway lets through the backend does not refuse."""
    from backend import options  # noqa: PLC0415 (only this test may see both sides)

    assert options.MOST_GPUS == MOST_GPUS
