"""When a process one of whose lanes broke may leave."""

import asyncio

from backend import faults
from backend.faults import before_leaving, device_broken, worker_ended
from tests.doubles.wait import until


async def test_a_poisoned_process_waits_for_nobody():
    """Other lanes' jobs are lost with it, however long they would run."""
    await before_leaving(device_broken("cuda:1"), lambda: True, 0.0)


async def test_a_lost_worker_lets_the_others_end_their_jobs():
    """The process stays while another lane is at a job, and goes when none is."""
    running = [True]
    looks = 0

    def others_run() -> bool:
        nonlocal looks
        looks += 1
        return running[0]

    waiting = asyncio.create_task(before_leaving(worker_ended("SystemExit"), others_run, 0.0))
    await until(lambda: looks >= 2)
    assert not waiting.done()
    running[0] = False
    await waiting


async def test_it_does_not_stay_for_ever(monkeypatch):
    """Jobs that follow each other do not keep a lane broken."""
    monkeypatch.setattr(faults, "GRACE", 0.05)
    monkeypatch.setattr(faults, "LOOK", 0.01)
    await before_leaving(worker_ended("SystemExit"), lambda: True, 0.0)
