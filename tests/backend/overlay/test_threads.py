"""Helper threads of nodes: the lane of whoever started them, and nobody's afterwards."""

import asyncio
import gc
import threading
import weakref
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from multiprocessing.pool import ThreadPool
from typing import Any

import pytest

from backend.context import current_job, current_lane
from backend.lanes import Lane
from backend.overlay.patches import threads
from tests.backend.overlay.doubles import cpu_lanes, installed, job


@pytest.fixture
def patched() -> Iterator[None]:
    """Threads and pools of a process with four lanes."""
    with installed(threads.patches(cpu_lanes())):
        yield


def where() -> tuple[int | None, str | None]:
    return current_lane(), current_job()


def started(thread_class: Any = threading.Thread) -> Any:
    found: list[Any] = []
    thread = thread_class(target=lambda: found.append(where()))
    thread.start()
    thread.join()
    return found[0]


def test_a_thread_belongs_to_the_lane_that_started_it(patched: None):
    """Also one that a thread starts in turn, and one of a class with its own ``run``."""

    class Own(threading.Thread):
        def run(self) -> None:
            self.found = started()

    with job(2, "p"):
        assert started() == (2, "p")
        own = Own()
        own.start()
    own.join()
    assert own.found == (2, "p")


def test_without_the_patches_a_thread_belongs_to_nobody():
    """What is missing in plain Python: the test above can fail."""
    with job(2, "p"):
        assert started() == (None, None)


def test_threads_of_no_lane_are_left_alone(patched: None):
    """A thread started outside every lane is the plain one, with nothing put around it."""
    assert started() == (None, None)
    thread = threading.Thread(target=lambda: None)
    thread.start()
    assert "run" not in vars(thread)
    thread.join()


def test_a_thread_can_still_start_only_once_and_is_freed(patched: None):
    """The second ``start`` is refused as always, and a finished thread is not held."""
    with job(1):
        thread = threading.Thread(target=lambda: None)
        thread.start()
        thread.join()
        with pytest.raises(RuntimeError, match="only be started once"):
            thread.start()
    gone = weakref.ref(thread)
    gc.disable()
    try:
        del thread
        assert gone() is None
    finally:
        gc.enable()


def test_a_pools_task_belongs_to_its_caller_and_the_pool_to_nobody(patched: None):
    """A pool made and first used by one lane serves another lane, and the server, as theirs."""
    with ThreadPoolExecutor(1) as pool:
        with job(0, "a"):
            assert pool.submit(where).result() == (0, "a")
        with job(3, "b"):
            assert pool.submit(where).result() == (3, "b")
            assert list(pool.map(lambda _: where(), range(2))) == [(3, "b")] * 2
        assert pool.submit(where).result() == (None, None)


def test_asyncios_threads_belong_to_the_caller(patched: None):
    """``to_thread`` and ``run_in_executor`` of an async node run for its lane."""

    async def node() -> list[Any]:
        loop = asyncio.get_running_loop()
        return [await asyncio.to_thread(where), await loop.run_in_executor(None, where)]

    with job(1, "a"):
        assert asyncio.run(node()) == [(1, "a")] * 2


def test_thread_pools_of_multiprocessing_follow_too(patched: None):
    """``map``, ``imap`` and ``apply`` of one shared pool run for whoever calls them."""
    with job(0, "a"):
        pool = ThreadPool(1)
    try:
        with job(2, "b"):
            assert pool.map(lambda _: where(), [1]) == [(2, "b")]
            assert list(pool.imap(lambda _: where(), [1])) == [(2, "b")]
            assert pool.apply(where) == (2, "b")
    finally:
        pool.terminate()


def test_results_arguments_and_errors_pass_through(patched: None):
    """Neither a value nor an exception changes on its way through a lane's pool."""
    with job(0), ThreadPoolExecutor(1) as pool:
        assert pool.submit(divmod, 7, 2).result() == (3, 1)
        assert pool.submit(lambda a, fn: (a, fn), 1, fn=2).result() == (1, 2)
        with pytest.raises(ZeroDivisionError):
            pool.submit(divmod, 1, 0).result()


def test_the_gpu_of_the_lane_is_current_in_the_thread_and_given_back(monkeypatch: pytest.MonkeyPatch):
    """Around a task its lane's GPU is the current device; a pool thread keeps none of it."""
    seen: list[str] = []

    class Device:
        def __init__(self, device: str) -> None:
            self.device = device

        def __enter__(self) -> None:
            seen.append(f"on {self.device}")

        def __exit__(self, *_: object) -> None:
            seen.append(f"off {self.device}")

    monkeypatch.setattr("torch.cuda.device", Device)
    lanes = [Lane(0, "cuda:0"), Lane(1, "cuda:1"), Lane(2, "cpu")]
    with installed(threads.patches(lanes)), ThreadPoolExecutor(1) as pool:
        with job(1):
            pool.submit(lambda: seen.append("work")).result()
        with job(2):
            pool.submit(lambda: seen.append("work")).result()
        pool.submit(lambda: seen.append("work")).result()
    assert seen == ["on cuda:1", "work", "off cuda:1", "work", "work"]
