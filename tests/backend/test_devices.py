"""Which devices the lanes get."""

import sys

import pytest

from backend import devices


@pytest.mark.parametrize(
    ("gpus", "given", "cuda", "expected"),
    [
        (4, [], 0, ["cpu"] * 4),
        (2, [], 4, ["cuda:0", "cuda:1"]),
        (4, [], 4, ["cuda:0", "cuda:1", "cuda:2", "cuda:3"]),
        (4, [], 1, ["cuda:0"] * 4),
        (3, [], 2, ["cuda:0", "cuda:1", "cuda:0"]),
        (2, ["cuda:1", "cuda:1"], 0, ["cuda:1", "cuda:1"]),
        (2, ["3", "cuda"], 4, ["cuda:3", "cuda:0"]),
        (1, ["CPU:0"], 4, ["cpu"]),
    ],
)
def test_each_lane_gets_a_device(gpus: int, given: list[str], cuda: int, expected: list[str]):
    """The given list as it stands, else CUDA devices in turn, else virtual lanes on the CPU."""
    assert devices.choose(gpus, given, cuda) == expected


@pytest.mark.parametrize("name", ["gpu0", "cuda:", "cuda:x", "cuda:-1", "", "cuda:0,cuda:1"])
def test_what_is_no_device_is_refused(name: str):
    """A misspelt device is an error at start, not at the first job."""
    with pytest.raises(ValueError, match="is not a device"):
        devices.normal(name)


def test_the_choice_needs_no_torch_when_it_is_clear(monkeypatch: pytest.MonkeyPatch):
    """With a list or with cpu asked for, torch is not loaded."""
    monkeypatch.setitem(sys.modules, "torch", None)
    assert devices.find(2, cpu=True) == ["cpu", "cpu"]
    assert devices.find(1, ["cuda:1"]) == ["cuda:1"]


def test_memory_of_the_machine():
    """On the CPU used is this process, free and total are the machine's."""
    found = devices.memory("cpu")
    assert 0 < found.used < found.total
    assert 0 < found.free <= found.total
