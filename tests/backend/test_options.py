"""The backend's command line."""

from pathlib import Path

import pytest

from backend.options import Options, parse


def test_defaults():
    """Nothing said is four lanes on the loopback's 8188 with the embedded engine."""
    assert parse([], {}) == Options()
    assert (Options().host, Options().port, Options().gpus) == ("127.0.0.1", 8188, 4)


def test_everything():
    """Every argument arrives, and what follows -- is ComfyUI's."""
    found = parse(
        ["--host", "::1", "--port", "0", "--gpus", "2", "--devices", "cuda:1, 1", "--comfyui", "/c", "--data", "/d",
         "--serialize", "a,b", "--allow-unknown", "--warmup", "w.json", "--exit-with-parent", "--testing-nodes",
         "--issue-lock", "off", "--threads", "3", "--share-weights", "strict",
         "--warmup-model", "vae/a", "--warmup-model", "checkpoints/b c", "--", "--lowvram", "--", "x"],
        {},
    )  # fmt: skip
    assert found == Options(
        host="::1", port=0, gpus=2, devices=("cuda:1", "cuda:1"), comfyui=Path("/c"), data=Path("/d"),
        serialize=("a", "b"), allow_unknown=True, warmup=Path("w.json"), exit_with_parent=True, testing=True,
        issue_lock="off", threads=3, share_weights="strict",
        warmup_models=("vae/a", "checkpoints/b c"),
        comfyui_args=("--lowvram", "--", "x"),
    )  # fmt: skip


def test_the_environment_has_the_seeds_switches():
    """COMFY_NUM_GPUS, COMFYUI_DIR and COMFY_MULTI_GPU_SCHED; arguments go before them."""
    env = {"COMFY_NUM_GPUS": "2", "COMFYUI_DIR": "/c", "COMFY_MULTI_GPU_SCHED": "0"}
    found = parse([], env)
    assert (found.gpus, found.comfyui, found.sched) == (2, Path("/c"), False)
    assert parse(["--gpus", "3", "--comfyui", "/e"], env).gpus == 3
    assert parse(["--comfyui", "/e"], env).comfyui == Path("/e")
    assert parse(["--comfyui", ""], env).comfyui is None


@pytest.mark.parametrize(
    ("word", "mode"), [("", "on"), ("1", "on"), ("writable", "on"), ("Strict", "strict"), ("0", "off"), ("off", "off")]
)
def test_the_environment_says_how_weights_are_shared(word: str, mode: str):
    """COMFY_SHARE_WEIGHTS knows on, strict and off and what older starts said; the argument goes before it."""
    assert parse([], {"COMFY_SHARE_WEIGHTS": word}).share_weights == mode
    assert parse(["--share-weights", "off"], {"COMFY_SHARE_WEIGHTS": word}).share_weights == "off"


def test_devices_say_how_many_lanes():
    """One lane per named device."""
    assert parse(["--devices", "cuda:0,cuda:0,cuda:1"], {"COMFY_NUM_GPUS": "7"}).gpus == 3


@pytest.mark.parametrize(
    ("arguments", "env", "said"),
    [
        (["--gpus", "0"], {}, "at least one"),
        (["--gpus", "3", "--devices", "cuda:0"], {}, "--devices names 1"),
        (["--devices", "banana"], {}, "is not a device"),
        ([], {"COMFY_NUM_GPUS": "many"}, "COMFY_NUM_GPUS"),
        ([], {"COMFY_NUM_GPUS": "²"}, "COMFY_NUM_GPUS is '²'; it must be a whole number"),
        ([], {"COMFY_NUM_GPUS": "99999"}, "99999; 64 is the most"),
        (["--gpus", "65"], {}, "65; 64 is the most"),
        (["--devices", "cuda:²"], {}, "is not a device"),
        (["--devices", "²"], {}, "is not a device"),
        ([], {"COMFY_SHARE_WEIGHTS": "maybe"}, "COMFY_SHARE_WEIGHTS"),
        (["--share-weights", "maybe"], {}, "--share-weights"),
        (["--port", "x"], {}, "--port"),
    ],
)
def test_mistakes_are_told(arguments: list[str], env: dict[str, str], said: str, capsys: pytest.CaptureFixture[str]):
    """A wrong argument ends with code 2 and a line that names it."""
    with pytest.raises(SystemExit) as ended:
        parse(arguments, env)
    assert ended.value.code == 2
    assert said in capsys.readouterr().err
