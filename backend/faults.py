"""A lane that can work no more, and when the process that has it may leave. Knows neither lanes nor bodies."""

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

GRACE: Final = 60.0
"""Seconds that jobs running on other lanes get to end, when the process could still finish them."""
LOOK: Final = 0.2
"""Seconds between two looks whether they have."""


@dataclass(frozen=True)
class Fault:
    """Why a lane can work no more, as a clause about it: "its device cuda:1 is broken"."""

    reason: str
    whole_process: bool
    """Whether the other lanes' jobs are lost as well: CUDA refuses the whole process after some errors."""


def device_broken(device: str) -> Fault:
    """An error after which nothing but a new process can use the device."""
    return Fault(f"its device {device} is broken", whole_process=True)


def device_unusable(device: str) -> Fault:
    """A device that could not even be warmed up."""
    return Fault(f"its device {device} cannot be used", whole_process=True)


def worker_ended(why: str) -> Fault:
    """The thread that runs the lane's jobs is gone, which nothing should ever bring about."""
    return Fault(f"its worker thread has ended ({why})", whole_process=False)


async def before_leaving(fault: Fault, others_run: Callable[[], bool], flush: float) -> None:
    """Wait until the process may end: ``flush`` seconds for the last events, and for other lanes' running jobs.

    The latter only where they can still end well, and ``GRACE`` seconds at most: new ones follow for ever.
    """
    await asyncio.sleep(flush)
    until = time.monotonic() + (0.0 if fault.whole_process else GRACE)
    while time.monotonic() < until and others_run():  # noqa: ASYNC110 (threads run the jobs, and set no event)
        await asyncio.sleep(LOOK)
