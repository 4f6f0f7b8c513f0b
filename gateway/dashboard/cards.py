"""Temperature and utilisation of the cards, from NVIDIA's own library, where ``pynvml`` is installed.

Owns which card is which GPU. torch counts cards its own way, so a card is only named where both ways must agree; what
cannot be known for sure is left out.
"""

import asyncio
import importlib
import logging
import os
from collections.abc import Mapping, Sequence
from typing import Any, Final

from gateway.fleet.member import Member

log = logging.getLogger("gateway.dashboard")

_TEMPERATURE_GPU: Final = 0
"""NVML_TEMPERATURE_GPU."""


class Cards:
    """The cards of this machine; ``look`` never raises and never blocks the loop."""

    def __init__(self, env: Mapping[str, str] | None = None) -> None:
        self._env = os.environ if env is None else env
        self._library: Any = None
        self._tried = False

    async def look(self, members: Sequence[Member]) -> dict[int, dict[str, int]]:
        """``temperature`` (°C) and ``utilisation`` (%) by the GPU that users know."""
        wanted = {
            member.first + at: int(index)
            for member in members
            for at, device in enumerate(member.devices)
            if at < member.gpus and device.startswith("cuda:") and (index := device[5:]).isdigit()
        }
        return await asyncio.to_thread(self._read, wanted) if wanted and self._usable() else {}

    def _usable(self) -> bool:
        if not self._tried:
            self._tried = True
            try:
                library = importlib.import_module("pynvml")
                library.nvmlInit()
                self._library = library
            except Exception as error:  # noqa: BLE001 (no library, no driver or no card: then nothing is told)
                log.info("temperature and utilisation are not shown: %s", error)
        return self._library is not None

    def _read(self, wanted: Mapping[int, int]) -> dict[int, dict[str, int]]:
        library = self._library
        found: dict[int, dict[str, int]] = {}
        try:
            names = {str(library.nvmlDeviceGetName(handle)) for handle in self._handles()}
            visible = visible_cards(self._env, library.nvmlDeviceGetCount(), alike=len(names) == 1)
        except library.NVMLError as error:
            log.debug("the cards cannot be asked: %s", error)
            return found
        for gpu, index in wanted.items():
            if index < len(visible):
                try:
                    found[gpu] = self._figures(visible[index])
                except library.NVMLError as error:
                    log.debug("the card of GPU %d cannot be asked: %s", gpu, error)
        return found

    def _figures(self, card: int) -> dict[str, int]:
        library = self._library
        handle = library.nvmlDeviceGetHandleByIndex(card)
        return {
            "temperature": int(library.nvmlDeviceGetTemperature(handle, _TEMPERATURE_GPU)),
            "utilisation": int(library.nvmlDeviceGetUtilizationRates(handle).gpu),
        }

    def _handles(self) -> list[Any]:
        library = self._library
        return [library.nvmlDeviceGetHandleByIndex(at) for at in range(library.nvmlDeviceGetCount())]


def visible_cards(env: Mapping[str, str], cards: int, *, alike: bool) -> list[int]:
    """NVML's number of each card that CUDA shows, in CUDA's order; empty when that cannot be known.

    CUDA puts the fastest first unless ``CUDA_DEVICE_ORDER=PCI_BUS_ID``; among ``alike`` cards that is the bus' order.
    """
    if not alike and env.get("CUDA_DEVICE_ORDER") != "PCI_BUS_ID":
        return []
    text = env.get("CUDA_VISIBLE_DEVICES")
    if text is None:
        return list(range(cards))
    numbers = [part.strip() for part in text.split(",")]
    if not all(part.isdigit() and int(part) < cards for part in numbers):
        return []
    return [int(part) for part in numbers]
