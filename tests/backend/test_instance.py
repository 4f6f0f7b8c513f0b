"""What one of several processes has for itself."""

from pathlib import Path

import pytest

from backend.instance import VISIBLE, alone, comfyui_words, nvidia_devices, temp_name
from backend.options import Options


def hidden(devices: tuple[str, ...] = (), instance: int = 1, there: int = 4, **env: str) -> dict[str, str]:
    return alone(Options(instance=instance, devices=devices), env, there)[1]


def test_each_process_sees_its_own_gpu_alone():
    """By its number, by the device that is named for it, and through what is visible to all of us."""
    assert hidden() == {VISIBLE: "1"}
    assert hidden(("cuda:3",)) == {VISIBLE: "3"}
    assert hidden(**{VISIBLE: "5,GPU-abc"}) == {VISIBLE: "GPU-abc"}
    assert hidden(("cuda:0",), **{VISIBLE: "5,GPU-abc"}) == {VISIBLE: "5"}
    assert alone(Options(instance=1, devices=("cuda:3",)), {}, 4)[0].devices == ("cuda:0",)


def test_with_fewer_gpus_than_processes_they_are_shared_in_turn():
    """As lanes of one process do."""
    assert [hidden(instance=number, there=2)[VISIBLE] for number in range(4)] == ["0", "1", "0", "1"]
    assert hidden(instance=3, there=1) == {VISIBLE: "0"}


def test_without_a_gpu_nothing_is_hidden():
    """On the CPU, and where no device can be seen."""
    assert hidden(there=0) == {}
    assert hidden(("cpu",)) == {}
    assert alone(Options(instance=1, cpu=True), {}, 4)[1] == {}
    assert alone(Options(instance=1, comfyui_args=("--cpu",)), {}, 4)[1] == {}
    assert alone(Options(devices=("cuda:3",)), {}, 4) == (Options(devices=("cuda:3",)), {})


def test_a_device_that_is_not_visible_is_an_error():
    """Rather than another one."""
    with pytest.raises(ValueError, match="names 1 device"):
        hidden(("cuda:1",), **{VISIBLE: "0"})


def test_gpus_are_counted_by_their_device_files(tmp_path: Path):
    """Control devices beside them do not count."""
    for name in ("nvidia0", "nvidia12", "nvidiactl", "nvidia-uvm", "null"):
        (tmp_path / name).touch()
    assert nvidia_devices(tmp_path) == 2
    assert nvidia_devices(tmp_path / "none") == 0


def test_temporary_files_and_database_are_kept_apart(tmp_path: Path):
    """The first process has the usual ones; what the user says about folders is followed."""
    parser = tmp_path / "comfy/cli_args.py"
    parser.parent.mkdir()
    parser.write_text('add("--database-url")')
    database = f"sqlite:///{tmp_path}/user/comfyui-gpu2.db"
    assert comfyui_words(0, [], tmp_path) == comfyui_words(None, [], tmp_path) == []
    assert comfyui_words(2, [], tmp_path) == [
        "--temp-directory", f"{tmp_path}/temp-gpu2", "--database-url", database,
    ]  # fmt: skip
    given = ["--base-directory", "/base", "--database-url=sqlite:///:memory:"]
    assert comfyui_words(2, given, tmp_path) == ["--temp-directory", "/base/temp-gpu2"]
    assert comfyui_words(2, [*given, "--temp-directory=/t"], tmp_path) == ["--temp-directory", "/t/temp-gpu2"]
    parser.write_text("an older one")
    assert comfyui_words(2, [], tmp_path) == ["--temp-directory", f"{tmp_path}/temp-gpu2"]
    assert (temp_name(None), temp_name(0), temp_name(3)) == ("temp", "temp", "temp-gpu3")
