"""Threads that a node starts allocate on their lane's device, whoever runs them and whatever ran there before."""

import asyncio
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from multiprocessing.pool import ThreadPool

import pytest

from tests.gpu.cards import lanes_on

LANES = 4

Where = tuple[int | None, str]


def here(kind: str) -> Where:
    """The lane this code belongs to, and the device on which it allocates unless told otherwise."""
    import torch  # noqa: PLC0415 (collecting must be cheap)

    from backend.context import current_lane  # noqa: PLC0415 (as above)

    where = torch.empty(8, device=kind).device
    return current_lane(), "cpu" if where.type == "cpu" else f"cuda:{where.index}"


def in_thread(work: Callable[[], Where]) -> Where:
    found: list[Where] = []
    thread = threading.Thread(target=lambda: found.append(work()))
    thread.start()
    thread.join(60)
    return found[0]


def in_executor(work: Callable[[], Where]) -> Where:
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(work).result(60)


def in_asyncio(work: Callable[[], Where]) -> Where:
    async def run() -> Where:
        return await asyncio.to_thread(work)

    return asyncio.run(run())


def in_pool(work: Callable[[], Where]) -> Where:
    with ThreadPool(1) as pool:
        return pool.apply_async(work).get(60)


@pytest.mark.parametrize("way", [in_thread, in_executor, in_asyncio, in_pool])
def test_helper_threads_are_on_their_lanes_device(kind: str, way: Callable[[Callable[[], Where]], Where]) -> None:
    """A plain thread, an executor, asyncio, a thread pool: each of four lanes gets its own device in it."""
    from backend.lanes import Lane  # noqa: PLC0415 (collecting must be cheap)
    from backend.overlay.patches import threads  # noqa: PLC0415 (as above)
    from backend.overlay.workers import warm_up  # noqa: PLC0415 (as above)
    from tests.backend.overlay.doubles import installed, job  # noqa: PLC0415 (as above)

    lanes = [Lane(index, device) for index, device in enumerate(lanes_on(kind, LANES))]
    found: dict[int, Where] = {}

    def worker(lane: Lane) -> None:
        warm_up(lane.device)
        with job(lane.index):
            found[lane.index] = way(lambda: here(kind))

    with installed(threads.patches(lanes)):
        workers = [threading.Thread(target=worker, args=(lane,)) for lane in lanes]
        for each in workers:
            each.start()
        for each in workers:
            each.join(120)
    assert found == {lane.index: (lane.index, lane.device) for lane in lanes}
