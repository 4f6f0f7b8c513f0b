"""Temperature and utilisation, read from a library that answers as NVIDIA's does."""

import logging
import sys
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from gateway.dashboard.cards import Cards
from gateway.fleet.lanes import Fleet


class NVMLError(Exception):
    """As ``pynvml`` has it."""


def library(*cards: tuple[str, int, int], broken: set[str] = frozenset()) -> ModuleType:  # type: ignore[assignment]
    """A ``pynvml`` of these cards: name, temperature, utilisation. The functions in ``broken`` raise."""
    made: Any = ModuleType("pynvml")
    made.NVMLError = NVMLError
    made.inits = 0

    def answers(name: str, value: Any) -> Any:
        def call(*arguments: Any) -> Any:
            if name in broken:
                raise NVMLError(f"{name} is not supported")
            return value(*arguments)

        return call

    def init() -> None:
        made.inits += 1

    def temperature(card: tuple[str, int, int], sensor: int) -> int:
        assert sensor == 0  # NVML_TEMPERATURE_GPU, the only one there is
        if card[1] < 0:
            raise NVMLError("not supported")
        return card[1]

    calls = {
        "nvmlInit": init,
        "nvmlDeviceGetCount": lambda: len(cards),
        "nvmlDeviceGetHandleByIndex": lambda index: cards[index],
        "nvmlDeviceGetName": lambda card: card[0],
        "nvmlDeviceGetTemperature": temperature,
        "nvmlDeviceGetUtilizationRates": lambda card: SimpleNamespace(gpu=card[2], memory=0),
    }
    for name, value in calls.items():
        setattr(made, name, answers(name, value))
    return made  # type: ignore[no-any-return]


def fleet(*devices: str) -> Fleet:
    made = Fleet(len(devices))
    made.members[0].backend_up("comfyui", list(devices))
    return made


@pytest.fixture
def install(monkeypatch: pytest.MonkeyPatch) -> Any:
    def put(found: ModuleType | None) -> ModuleType | None:
        monkeypatch.setitem(sys.modules, "pynvml", found)
        return found

    return put


TWO = ("H200", 41, 7), ("H200", 63, 98)


async def test_each_gpu_has_its_own_cards_figures(install: Any):
    """By the number that torch gives the card, through what CUDA shows of the machine; the library starts once."""
    found = install(library(*TWO))
    members = fleet("cuda:0", "cuda:1").members
    first, second = {"temperature": 41, "utilisation": 7}, {"temperature": 63, "utilisation": 98}
    cards = Cards({})
    assert await cards.look(members) == {0: first, 1: second}
    assert await cards.look(members) == {0: first, 1: second}
    assert found.inits == 1
    assert await Cards({"CUDA_VISIBLE_DEVICES": "1,0"}).look(members) == {0: second, 1: first}
    assert await Cards({"CUDA_VISIBLE_DEVICES": "1"}).look(members) == {0: second}


async def test_what_is_not_certain_is_left_out(install: Any):
    """Cards that differ are in CUDA's own order, which only a setting makes the bus'."""
    install(library(("H200", 41, 7), ("T4", 63, 98)))
    members = fleet("cuda:0", "cuda:1").members
    assert await Cards({}).look(members) == {}
    assert set(await Cards({"CUDA_DEVICE_ORDER": "PCI_BUS_ID"}).look(members)) == {0, 1}
    assert await Cards({"CUDA_VISIBLE_DEVICES": "GPU-8a5c"}).look(members) == {}


async def test_lanes_on_the_cpu_ask_nobody(install: Any):
    """The library is not even loaded."""
    found = install(library(*TWO))
    assert await Cards({}).look(fleet("cpu", "cpu").members) == {}
    assert found.inits == 0


@pytest.mark.parametrize("broken", ["nvmlDeviceGetCount", "nvmlDeviceGetTemperature", "nvmlDeviceGetUtilizationRates"])
async def test_a_card_that_cannot_be_asked_tells_nothing(install: Any, broken: str):
    """A driver that is reloaded, a card without a sensor: no figure, no error, and the next look asks again."""
    install(library(*TWO, broken={broken}))
    assert await Cards({}).look(fleet("cuda:0", "cuda:1").members) == {}


async def test_one_card_that_cannot_be_asked_takes_no_other_along(install: Any):
    """As one does that has fallen off the bus."""
    install(library(("H200", -1, 0), ("H200", 63, 98)))
    assert await Cards({}).look(fleet("cuda:0", "cuda:1").members) == {1: {"temperature": 63, "utilisation": 98}}


@pytest.mark.parametrize("there", [True, False])
async def test_without_library_or_driver_it_is_said_once(install: Any, caplog: pytest.LogCaptureFixture, there: bool):
    """In the log, with the reason; nothing is shown."""
    install(library(*TWO, broken={"nvmlInit"}) if there else None)
    cards = Cards({})
    with caplog.at_level(logging.INFO, "gateway.dashboard"):
        for _ in range(3):
            assert await cards.look(fleet("cuda:0").members) == {}
    assert len(caplog.messages) == 1
    assert ("nvmlInit is not supported" if there else "pynvml") in caplog.messages[0]
