"""Finding a checkout and preparing its environment, without loading it."""

import sys
from argparse import Namespace
from pathlib import Path

import pytest

from backend.options import Options
from backend.overlay import comfy
from tests.doubles.checkout import FOLDER


def test_a_checkout_is_known_by_its_files() -> None:
    """The folder and the version that it says."""
    found = comfy.find(FOLDER)
    assert (found.folder, found.version) == (FOLDER, "0.3.64")


def test_another_folder_is_refused_with_what_it_lacks(tmp_path: Path) -> None:
    """Before anything is imported."""
    with pytest.raises(comfy.NotComfyUIError, match=r"no main\.py"):
        comfy.find(tmp_path)
    for name in comfy.NEEDED:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    with pytest.raises(comfy.NotComfyUIError, match="names no version"):
        comfy.find(tmp_path)


@pytest.mark.parametrize(
    ("args", "expected"),
    [
        ({}, {}),
        ({"cuda_device": 2}, dict.fromkeys(
            ("CUDA_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES", "ASCEND_RT_VISIBLE_DEVICES"), "2"
        )),
        ({"cuda_device": "all", "default_device": 1}, {}),
        ({"oneapi_device_selector": "x"}, {"ONEAPI_DEVICE_SELECTOR": "x"}),
        ({"deterministic": True}, {"CUBLAS_WORKSPACE_CONFIG": ":4096:8"}),
    ],
)
def test_the_environment_is_what_the_script_would_set(
    monkeypatch: pytest.MonkeyPatch, args: dict[str, object], expected: dict[str, str]
) -> None:
    """Beside the telemetry variables, which are always set."""
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    found = comfy.environment(Namespace(**args))
    always = {"HF_HUB_DISABLE_TELEMETRY", "DO_NOT_TRACK", "TORCH_ROCM_AOTRITON_ENABLE_EXPERIMENTAL"}
    assert {key: value for key, value in found.items() if key not in always} == expected
    assert always <= set(found)


def test_a_default_device_comes_first_of_all() -> None:
    """ComfyUI moves it to the front of 32."""
    visible = comfy.environment(Namespace(default_device=3))["CUDA_VISIBLE_DEVICES"].split(",")
    assert visible[:4] == ["3", "0", "1", "2"]
    assert sorted(map(int, visible)) == list(range(32))


@pytest.mark.parametrize(
    ("device", "gpus", "fine"),
    [(0, 4, False), ("1", 2, False), ("0,1", 2, True), ("all", 4, True), (None, 4, True), (0, 1, True)],
)
def test_one_visible_device_for_several_lanes_is_a_mistake(device: object, gpus: int, fine: bool) -> None:
    """Said before anything is loaded, with what to do."""
    if fine:
        comfy.check_arguments(Namespace(cuda_device=device), gpus)
    else:
        with pytest.raises(comfy.ArgumentError, match="one GPU"):
            comfy.check_arguments(Namespace(cuda_device=device), gpus)


def test_the_users_arguments_come_last() -> None:
    """So that they count; ``--cpu`` is not said twice."""
    options = Options(host="127.0.0.1", port=8000, comfyui_args=("--fast", "--cpu"))
    words = comfy.arguments(options, cpu=True)
    assert words == ["--listen", "127.0.0.1", "--port", "8000", "--fast", "--cpu"]
    assert comfy.arguments(Options(port=1), cpu=True)[-1] == "--cpu"


@pytest.mark.parametrize("words", [
    ["--port", "1"], ["--cpu", "--port=1"], ["--listen"], ["--listen", "0.0.0.0"], ["--listen=::"], ["--por", "1"],
])
def test_where_the_server_listens_is_not_comfyuis_to_say(words: list[str]) -> None:
    """Refused with the setting that says it."""
    with pytest.raises(comfy.ArgumentError, match=r"\[backend\] url.* --(port|host)"):
        comfy.refuse_own(words)


def test_other_arguments_are_comfyuis() -> None:
    """Also those that begin like a refused one, and values that look like one."""
    comfy.refuse_own(["--lowvram", "--preview-method", "auto", "--log-stdout", "--p", "port", "--", "-", ""])


@pytest.mark.parametrize(("name", "told"), [
    ("torch", True), ("typing_extensions.x", True), ("comfy.new", False), ("nodes", False), ("backend.x", False),
    (None, False),
])
def test_a_package_that_the_interpreter_lacks_is_named(name: str | None, told: bool) -> None:
    """With the interpreter and what to do; a module that the checkout or we ourselves have lost is another matter."""
    found = comfy.missing(ModuleNotFoundError("x", name=name), comfy.Checkout(FOLDER, "0"))
    assert (found is not None) == told
    if found is not None and name is not None:
        for word in (sys.executable, f"has no {name.partition('.')[0]},", "--python", "python = ", "[backend]"):
            assert word in found
