"""Helper threads of nodes: the lane of whoever started them, and nobody's afterwards."""

import asyncio
import gc
import queue
import threading
import weakref
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from multiprocessing.pool import ThreadPool
from typing import Any

import pytest

from backend.context import current_job, current_lane, in_lane, in_sight, outlived, work_on
from backend.lanes import Lane
from backend.overlay.interrupts import Interrupts
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


class Serving:
    """A thread that does what it is handed, for as long as the process lives: many nodes keep one."""

    def __init__(self) -> None:
        self.work: queue.Queue[tuple[Callable[[], Any], queue.Queue[Any]] | None] = queue.Queue()
        self.thread = threading.Thread(target=self._serve, daemon=True)

    def __enter__(self) -> "Serving":
        return self

    def __exit__(self, *_: object) -> None:
        self.work.put(None)
        self.thread.join(30)

    def _serve(self) -> None:
        while (handed := self.work.get()) is not None:
            handed[1].put(handed[0]())

    def do(self, call: Callable[[], Any]) -> Any:
        """What ``call`` returns in the thread."""
        answer: queue.Queue[Any] = queue.Queue()
        self.work.put((call, answer))
        return answer.get(timeout=30)


def test_a_thread_that_outlives_its_job_works_for_the_next_one_of_its_lane(patched: None):
    """While its job runs it is that job's; then the lane's current one's, and no other lane's ever."""
    with Serving() as serving, in_lane(2):
        work_on("first")
        serving.thread.start()
        assert serving.do(where) == (2, "first")
        assert not serving.do(outlived)
        work_on(None)
        assert serving.do(where) == (2, "first")
        with job(1, "elsewhere"):
            assert serving.do(where) == (2, "first")
        work_on("second")
        assert serving.do(where) == (2, "second")
        assert serving.do(outlived)
        work_on(None)


def test_a_task_of_a_pool_that_outlives_its_job_does_so_too(patched: None):
    """An endless task of an executor is such a thread."""
    serving = Serving()
    with ThreadPoolExecutor(1) as pool, serving:
        serving.thread.join = lambda timeout=None: None  # type: ignore[method-assign] # the pool's thread is used
        with job(0, "first"):
            pool.submit(serving._serve)
            assert serving.do(where) == (0, "first")
        with job(0, "second"):
            assert serving.do(where) == (0, "second")


def test_such_a_thread_is_interrupted_with_the_job_it_works_for(patched: None):
    """Not with the one that started it, and not with another lane's."""
    interrupts = Interrupts()
    with Serving() as serving:
        with job(0, "first"):
            serving.thread.start()
            interrupts.aim(0, "first")
            assert serving.do(interrupts.hit)
        interrupts.end(0)
        with job(0, "second"), job(1, "other"):
            interrupts.aim(1, "other")
            assert not serving.do(interrupts.hit)
            interrupts.aim(0, "second")
            assert serving.do(interrupts.hit)
            assert serving.do(interrupts.take)
            assert not serving.do(interrupts.take)


def test_a_thread_of_no_lane_sees_the_only_job_there_is(patched: None):
    """Started at import it belongs to no lane; it sees the one that runs a job, and none when two do or none does."""
    interrupts = Interrupts()
    with Serving() as serving:
        serving.thread.start()
        assert serving.do(in_sight) == (None, None)
        with job(3, "only"):
            assert serving.do(in_sight) == (3, "only")
            assert serving.do(where) == (None, None)
            interrupts.aim(3, "only")
            assert serving.do(interrupts.hit)
            with job(1, "another"):
                assert serving.do(in_sight) == (None, None)
                assert not serving.do(interrupts.hit)
            assert serving.do(interrupts.take)
        assert serving.do(in_sight) == (None, None)


def test_a_request_without_a_gpu_sees_no_job():
    """Said to be of no lane is something else than not said at all."""
    with job(3, "only"), in_lane(None):
        assert in_sight()[0] is None


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
