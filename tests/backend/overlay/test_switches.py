"""Process-wide switches: put back for the next job, named, and never in the middle of a block."""

import argparse
import logging
import threading
import types
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from PIL import ImageFile

from backend.overlay.patches import switches
from tests.backend.overlay.doubles import cpu_lanes, installed, job

Modules = dict[str, types.ModuleType]
PACK = frozenset({"somebodys-nodes"})
NONE: frozenset[str] = frozenset()


class Setting:
    """A switch of the process, as a variable."""

    def __init__(self) -> None:
        self.value = "start"
        self.switch = switches.Switch("setting", lambda: self.value, lambda value: setattr(self, "value", value))


@pytest.fixture
def setting() -> Setting:
    return Setting()


def test_a_switch_left_changed_is_put_back_before_the_next_job(setting: Setting, caplog: pytest.LogCaptureFixture):
    """The job after a node that changed a switch starts with it as it was, and the log names the node's pack."""
    keeper = switches.Keeper([setting.switch])
    keeper.started(PACK)
    setting.value = "changed"
    keeper.ended(PACK)
    with caplog.at_level(logging.WARNING, "backend.overlay.switches"):
        assert keeper.started(NONE) == ["setting = start (was changed)"]
    assert setting.value == "start"
    assert "changed by somebodys-nodes" in caplog.text
    caplog.clear()
    keeper.ended(NONE)
    assert keeper.started(NONE) == []
    assert caplog.text == ""


def test_a_change_for_the_length_of_a_block_is_not_undone_inside_it(setting: Setting):
    """A job that starts while another is inside such a block leaves the switch alone."""
    keeper = switches.Keeper([setting.switch])
    keeper.started(PACK)
    setting.value = "changed"
    assert keeper.started(NONE) == []
    assert setting.value == "changed"
    setting.value = "start"
    keeper.ended(NONE)
    assert keeper.started(NONE) == []
    # Still changed at the second look: nobody is coming back to restore it.
    setting.value = "changed"
    keeper.ended(NONE)
    assert keeper.started(NONE) == ["setting = start (was changed)"]


def test_a_switch_that_cannot_be_read_is_left_alone():
    """A torch without the switch, or one that refuses to tell, changes nothing."""

    def refuse() -> Any:
        raise RuntimeError("use the new API")

    def write(value: Any) -> None:
        raise AssertionError

    keeper = switches.Keeper([switches.Switch("old", refuse, write)])
    keeper.started(NONE)
    keeper.ended(NONE)
    assert keeper.started(NONE) == []


def test_torchs_switches_are_read_and_written_back():
    """Each of PyTorch's switches can be set to what it says, and says what it was set to."""
    found = switches.torch_switches()
    assert len(found) == 11
    before = [switch.read() for switch in found]
    keeper = switches.Keeper(found)
    keeper.started(PACK)
    try:
        torch.backends.cudnn.benchmark = not torch.backends.cudnn.benchmark
        torch.use_deterministic_algorithms(True, warn_only=True)
        torch.set_default_dtype(torch.float64)
        keeper.ended(PACK)
        assert len(keeper.started(NONE)) == 3
        assert [switch.read() for switch in found] == before
    finally:
        for switch, value in zip(found, before, strict=True):
            switch.write(value)


@pytest.fixture
def patched(comfy: Modules) -> Iterator[Modules]:
    """A ComfyUI with the patches."""
    calls: list[Any] = []

    def pillow(fn: Any, arg: Any) -> Any:
        calls.append(arg)
        return fn(arg)

    comfy["node_helpers"].pillow = pillow  # type: ignore[attr-defined]
    comfy["node_helpers"].calls = calls  # type: ignore[attr-defined]
    with installed(switches.patches(cpu_lanes())):
        yield comfy


def test_jobs_are_looked_at_around_their_execution(patched: Modules):
    """A node that leaves PyTorch's default type changed does so for its own job alone."""
    before = torch.get_default_dtype()
    run = patched["execution"].PromptExecutor().execute  # type: ignore[attr-defined]
    seen: list[torch.dtype] = []

    def change() -> None:
        torch.set_default_dtype(torch.float64)

    with job(0):
        run({"1": {"class_type": "A", "run": change}}, "a")
        run({"1": {"class_type": "B", "run": lambda: seen.append(torch.get_default_dtype())}}, "b")
    assert seen == [before]


def test_a_failed_job_is_over_too(patched: Modules):
    """An exception of any kind passes through, and the job no longer counts as running."""
    run = patched["execution"].PromptExecutor().execute  # type: ignore[attr-defined]

    def fail() -> None:
        torch.set_default_dtype(torch.float64)
        raise KeyboardInterrupt

    with job(0):
        with pytest.raises(KeyboardInterrupt):
            run({"1": {"class_type": "A", "run": fail}}, "a")
        run({}, "b")
    assert torch.get_default_dtype() == torch.float32


def test_a_jobs_preview_method_is_its_lanes(patched: Modules):
    """What a job sets its lane sees; what the server sets all see; what was there before stays."""
    args: argparse.Namespace = patched["comfy.cli_args"].args  # type: ignore[attr-defined]
    with job(0):
        args.preview_method = "taesd"
        assert args.preview_method == "taesd"
    with job(1):
        assert args.preview_method == "none"
    args.preview_method = "auto"
    with job(1):
        assert args.preview_method == "auto"
    assert isinstance(args, argparse.Namespace)
    assert vars(args) == {"preview_method": "auto"}


def test_a_good_picture_is_opened_without_waiting_and_a_broken_one_alone(patched: Modules):
    """Only what fails goes through ComfyUI's own second try, one at a time, so that its switch is put back right."""
    helpers: Any = patched["node_helpers"]
    assert helpers.pillow(str, 1) == "1"
    assert helpers.calls == []
    inside: list[int] = []
    barrier = threading.Barrier(2)

    def broken(arg: threading.local) -> str:
        if not getattr(arg, "failed", False):
            arg.failed = True
            barrier.wait(30)
            raise OSError("truncated")
        inside.append(1)
        assert len(inside) == 1
        inside.pop()
        return "rest"

    found: list[str] = []
    threads = [
        threading.Thread(target=lambda: found.append(helpers.pillow(broken, threading.local()))) for _ in range(2)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == ["rest", "rest"]
    assert ImageFile.LOAD_TRUNCATED_IMAGES is False
