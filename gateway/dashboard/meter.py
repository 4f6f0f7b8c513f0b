"""Asks the backends how full their devices are and what they think of themselves, while somebody watches.

Owns how often, and how the answers are read. What is not told is left out, never guessed.
"""

import asyncio
import contextlib
import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

from gateway.dashboard.cards import Cards
from gateway.fleet.ask import Ask, AskError
from gateway.fleet.member import Member

_PACE: Final = 2.0
"""Seconds between two questions."""


class Meter:
    """The newest answers. ``asks``: how to ask each backend, in the order of ``members``."""

    def __init__(self, members: Sequence[Member], asks: Sequence[Ask], cards: Cards, pace: float = _PACE) -> None:
        self._members = members
        self._asks = asks
        self._cards = cards
        self._pace = pace
        self._viewers = 0
        self._wanted = asyncio.Event()
        self._of: dict[int, dict[str, Any]] = {}
        self._verdicts: dict[int, Mapping[str, Any]] = {}

    def of(self, gpu: int) -> dict[str, Any]:
        """``memory``, ``weights`` and ``card`` of a GPU; each ``None`` when nobody tells."""
        return {"memory": None, "weights": None, "card": None, **self._of.get(gpu, {})}

    def verdict(self, backend: int) -> Mapping[str, Any] | None:
        """What a backend says of Python's lock; ``None`` when it does not."""
        return self._verdicts.get(backend)

    @contextlib.contextmanager
    def watched(self) -> Iterator[None]:
        """Somebody watches, while the context lasts."""
        self._viewers += 1
        self._wanted.set()
        try:
            yield
        finally:
            self._viewers -= 1
            if not self._viewers:
                self._wanted.clear()

    async def run(self) -> None:
        """Ask until cancelled; rest while nobody watches."""
        while True:
            await self._wanted.wait()
            await self.ask()
            await asyncio.sleep(self._pace)

    async def ask(self) -> None:
        """Ask everybody once."""
        found = await asyncio.gather(*(self._ask(member) for member in self._members))
        self._of = {gpu: told for each in found for gpu, told in each.items()}
        for gpu, told in (await self._cards.look(self._members)).items():
            self._of.setdefault(gpu, {})["card"] = told

    async def _ask(self, member: Member) -> dict[int, dict[str, Any]]:
        if not member.up:
            self._verdicts.pop(member.index, None)
            return {}
        ask = self._asks[member.index]
        stats, queues = await asyncio.gather(_json(ask, "/system_stats"), _json(ask, "/debug/queues"))
        if (verdict := read_verdict(queues)) is None:
            self._verdicts.pop(member.index, None)
        else:
            self._verdicts[member.index] = verdict
        return read_stats(stats, member)


async def _json(ask: Ask, target: str) -> Any:
    try:
        reply = await ask(target)
        return json.loads(reply.body) if reply.status == 200 else None
    except (AskError, ValueError):
        return None


def read_stats(stats: Any, member: Member) -> dict[int, dict[str, Any]]:
    """Memory of each device and the weights on it, by the GPU that users know, out of ``/system_stats``."""
    found: dict[int, dict[str, Any]] = {}
    if not isinstance(stats, dict):
        return found
    devices = stats.get("devices")
    for at, device in enumerate(devices if isinstance(devices, list) else []):
        if at >= member.gpus or not isinstance(device, dict):
            continue
        total, free = device.get("vram_total"), device.get("vram_free")
        if isinstance(total, int | float) and isinstance(free, int | float):
            memory = {
                "used": max(0, total - free),
                "total": total,
                "name": str(device.get("name", "")),
                "type": str(device.get("type", "")),
            }
            found.setdefault(member.first + at, {})["memory"] = memory
    weights = stats.get("weights")
    for told in weights if isinstance(weights, list) else []:
        if isinstance(told, dict) and isinstance(told.get("gpu_id"), int):
            sizes = {name: told.get(name) for name in ("device", "host_shared", "host_own")}
            if all(isinstance(size, int) for size in sizes.values()):
                found.setdefault(member.first + told["gpu_id"], {})["weights"] = sizes
    return found


def read_verdict(queues: Any) -> Mapping[str, Any] | None:
    """``verdict`` and ``advice`` out of ``/debug/queues``."""
    issuing = queues.get("issuing") if isinstance(queues, dict) else None
    if not isinstance(issuing, dict) or not isinstance(issuing.get("verdict"), str):
        return None
    return {"verdict": issuing["verdict"], "advice": str(issuing.get("advice", ""))}
