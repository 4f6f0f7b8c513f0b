"""Looks at a backend's queues, so that the fleet knows how full each of its lanes is.

Owns how often: twice a second while anything is on its way or a client is there, seldom otherwise. For a backend that
somebody else runs it also says when it comes and goes. Must never decide where a job goes.
"""

import asyncio
import json
import logging
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

from gateway.fleet.ask import Ask, AskError, Reply
from gateway.fleet.member import Member

log = logging.getLogger("gateway.fleet")

COUNTS: Final = "/debug/queues"
QUEUES: Final = "/queue/all"
PLAIN: Final = "/prompt"
"""What plain ComfyUI has: the number of its waiting and running jobs, without their graphs."""


@dataclass(frozen=True)
class Pace:
    """Seconds between looks."""

    busy: float = 0.5
    idle: float = 5.0
    absent: float = 1.0


class Poller:
    """Asks again and again; ``run`` never ends by itself.

    ``present`` says whether any client is there. ``judges`` makes it the one who says whether the backend is up,
    ``advises`` the one who tells when one process per GPU would be better.
    """

    def __init__(
        self,
        member: Member,
        ask: Ask,
        present: Callable[[], bool],
        *,
        judges: bool = False,
        advises: bool = False,
        pace: Pace | None = None,
    ) -> None:
        self._member = member
        self._ask = ask
        self._present = present
        self._judges = judges
        self._advises = advises
        self._pace = pace or Pace()
        self._wake = asyncio.Event()
        self._target = COUNTS
        self._was_up = False
        member.on_activity = self._wake.set

    async def run(self) -> None:
        """Look, rest, look."""
        while True:
            await self.step()
            await self._rest()

    async def step(self) -> None:
        """One look, if there is anybody to look at."""
        if self._member.up or self._judges:
            if not self._was_up:
                self._target = COUNTS  # another backend may know other routes
            await self._look()
        self._was_up = self._member.up

    async def _rest(self) -> None:
        if not self._member.up:
            await asyncio.sleep(self._pace.absent if self._judges else self._pace.busy)
            return
        if not (self._member.working or self._present()):
            self._wake.clear()
            try:
                async with asyncio.timeout(self._pace.idle):
                    await self._wake.wait()
            except TimeoutError:
                return
        await asyncio.sleep(self._pace.busy)

    async def _look(self) -> None:
        if self._judges and not self._member.up:
            try:
                body, devices = await identify(self._ask)
            except AskError as error:
                self._member.backend_down(str(error), retry_after=5)
                return
            # It does not say which life of it this is: each time that it comes counts as a new one.
            self._member.backend_up(body, devices, boot=f"met-{uuid.uuid4()}", booted=time.time())
        mark = self._member.look_begins()
        try:
            found = await self._counts()
        except AskError as error:
            self._member.failed()
            if self._judges and error.refused:
                self._member.backend_down(str(error), retry_after=5)
            log.debug("no look at the queues: %s", error)
            return
        self._member.look_ends(mark, *found)
        self._member.passed()

    async def _counts(self) -> tuple[list[tuple[int, int]], list[str], list[tuple[str, ...] | None]]:
        """``(running, pending)`` of each lane, why it takes no jobs, and what it holds, by the cheapest route."""
        order = [COUNTS, QUEUES, PLAIN]
        for target in order[order.index(self._target) :]:
            reply = await self._ask(target)
            if reply.status == 200 and (counts := read_counts(target, reply.body, self._member.gpus)) is not None:
                self._target = target
                self._heed(read_advice(reply.body))
                self._member.demand, self._member.calls = read_issuing(reply.body)
                return counts, read_faults(reply.body, len(counts)), read_models(reply.body, len(counts))
        raise AskError("The backend shows no queues.")


    def _heed(self, advice: str) -> None:
        if self._advises and advice != self._member.advice:
            self._member.advice = advice
            if advice:
                log.warning("GPU %d and further: %s", self._member.first, advice)


async def identify(ask: Ask) -> tuple[str, list[str]]:
    """What a backend that we did not start is, and its devices; raises ``AskError`` unless it serves ``/prompt``."""
    reply = await ask(PLAIN)
    if reply.status != 200:
        raise AskError(f"GET {PLAIN} was answered with {reply.status}: that is no ComfyUI.")
    stats = _json(await ask("/system_stats"))
    system = stats.get("system") if isinstance(stats, dict) else None
    version = system.get("comfyui_version") if isinstance(system, dict) else None
    listed = stats.get("devices") if isinstance(stats, dict) else None
    devices = [device for device in listed if isinstance(device, dict)] if isinstance(listed, list) else []
    return (f"comfyui {version}" if version else "comfyui"), [str(device.get("name")) for device in devices]


def read_counts(target: str, body: bytes, gpus: int) -> list[tuple[int, int]] | None:
    """``(running, pending)`` of each lane that the backend has, out of one of the three answers; else ``None``.

    Plain ComfyUI has one lane, whatever the number of ports. At most ``gpus`` are looked at.
    """
    try:
        found = json.loads(body)
        if target == PLAIN:
            return [(0, int(found["exec_info"]["queue_remaining"]))]
        running, pending = ("running", "queued") if target == COUNTS else ("running_count", "pending_count")
        queues = {int(queue["gpu_id"]): (_count(queue[running]), _count(queue[pending])) for queue in found["queues"]}
        return [queues[gpu] for gpu in range(min(gpus, len(queues)))] or None
    except (ValueError, KeyError, TypeError):
        return None


def read_faults(body: bytes, lanes: int) -> list[str]:
    """Why each of so many lanes takes no jobs, out of an answer to ``COUNTS``; empty where it takes them."""
    found = json.loads(body).get("queues", ())
    told = {queue["gpu_id"]: str(queue["faulted"]) for queue in found if queue.get("faulted")}
    return [told.get(gpu, "") for gpu in range(lanes)]


def read_models(body: bytes, lanes: int) -> list[tuple[str, ...] | None]:
    """The model files that each of so many lanes has built models of, out of an answer to ``COUNTS``, if it tells."""
    found = json.loads(body).get("queues", ())
    told = {queue["gpu_id"]: tuple(map(str, queue["models"])) for queue in found if _is_list(queue.get("models"))}
    return [told.get(gpu) for gpu in range(lanes)]


def read_advice(body: bytes) -> str:
    """What a backend says of itself in an answer to ``COUNTS``, when its lanes wait for Python's lock; else nothing."""
    found = json.loads(body).get("issuing")
    bound = isinstance(found, dict) and found.get("verdict") == "gil-bound"
    return str(found.get("advice", "")) if bound else ""


def read_issuing(body: bytes) -> tuple[float | None, int]:
    """How much of Python a backend's lanes ask for, and their model calls, out of an answer to ``COUNTS``."""
    found = json.loads(body).get("issuing")
    if not isinstance(found, dict):
        return None, 0
    demand, lanes = found.get("demand"), found.get("lanes")
    calls = [lane.get("calls") for lane in lanes if isinstance(lane, dict)] if isinstance(lanes, list) else []
    return demand if isinstance(demand, int | float) else None, sum(each for each in calls if isinstance(each, int))


def _is_list(value: Any) -> bool:
    return isinstance(value, list)


def _count(value: Any) -> int:
    return len(value) if isinstance(value, list) else int(value)


def _json(reply: Reply) -> Any:
    if reply.status != 200:
        return None
    try:
        return json.loads(reply.body)
    except ValueError:
        return None
