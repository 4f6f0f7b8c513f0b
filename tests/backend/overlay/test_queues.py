"""One queue per lane under one lock, and the view of all of them."""

import contextvars
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest

from backend.context import current_job, in_lane
from backend.lanes import Lane
from backend.overlay.history import History, outcome_of, showable
from backend.overlay.interrupts import Interrupts
from backend.overlay.items import client_of
from backend.overlay.queues import Queues, RebuildExecutor
from tests.doubles.checkout import loaded


class Server:
    """What a queue tells: that it changed."""

    extra = "of the server"


@pytest.fixture
def queues() -> Iterator[Queues]:
    """Three lanes on the queue class of the ComfyUI-shaped folder; ``changed`` lists the lanes that were told."""
    with loaded() as main:
        changed: list[int] = []
        lanes = [Lane(index, "cpu") for index in range(3)]
        found = Queues(main.execution.PromptQueue, lanes, Interrupts(), Server(), changed.append)
        found.changed = changed  # type: ignore[attr-defined]
        yield found


def item(number: int, prompt_id: str, client: str | None = None) -> tuple[Any, ...]:
    return (number, prompt_id, {}, {} if client is None else {"client_id": client}, [])


def done(queue: Any, number: int, status: str = "success", messages: Any = ()) -> None:
    """End a running item as a worker does."""
    with in_lane(queue.lane.index):
        queue.task_done(number, {"outputs": {}}, type(queue).ExecutionStatus(status, status == "success", messages))


def take(queue: Any) -> tuple[str, int]:
    """The next job, as a worker gets it; the context is a worker's own."""
    found = contextvars.copy_context().run(queue.get, timeout=0)
    return found[0][1], found[1]


def test_lanes_do_not_see_each_others_jobs(queues: Queues) -> None:
    """Each lane's reads count its own; the merged view counts all; new jobs without a lane go to GPU 0."""
    queues.lanes[1].put(item(0, "a"))
    queues.merged.put(item(1, "b"))
    assert [queue.get_tasks_remaining() for queue in [*queues.lanes, queues.merged]] == [1, 1, 0, 2]
    assert take(queues.lanes[1]) == ("a", 0)
    assert take(queues.lanes[0]) == ("b", 1)
    running, pending = queues.merged.get_current_queue_volatile()
    assert ([entry[1] for entry in running], pending) == (["b", "a"], [])
    assert queues.of(None) is queues.merged
    assert queues.of(2) is queues.lanes[2]


def test_a_change_is_told_for_its_lane_only(queues: Queues) -> None:
    """What a queue has for a server is this lane's; everything else is the real one's."""
    queues.lanes[2].put(item(0, "a"))
    assert set(queues.changed) == {2}  # type: ignore[attr-defined]
    assert queues.lanes[2].server.extra == "of the server"  # type: ignore[attr-defined]


def test_history_is_one_in_order_of_completion(queues: Queues) -> None:
    """Every view reads all entries; clearing and deleting touch the lane's own."""
    for index, queue in enumerate(queues.lanes):
        queue.put(item(index, f"job{index}"))
        done(queue, take(queue)[1])
    for queue in [*queues.lanes, queues.merged]:
        assert list(queue.get_history()) == ["job0", "job1", "job2"]
    queues.lanes[0].delete_history_item("job1")
    queues.lanes[2].wipe_history()
    assert list(queues.merged.get_history()) == ["job0", "job1"]
    queues.merged.delete_history_item("job0")
    queues.merged.wipe_history()
    assert queues.merged.get_history() == {}


def test_the_worker_of_a_lane_runs_in_its_jobs_context(queues: Queues) -> None:
    """From taking a job until asking for the next one."""
    queue = queues.lanes[1]
    queue.put(item(0, "a"))
    seen = []

    def work() -> None:
        number = queue.get(timeout=0)[1]
        seen.append(current_job())
        done(queue, number)
        seen.append(current_job())
        queue.get(timeout=0)
        seen.append(current_job())

    contextvars.copy_context().run(work)
    assert seen == ["a", "a", None]


def test_a_waiting_worker_holds_no_lock(queues: Queues) -> None:
    """While one lane waits for work, the others and the readers go on."""
    got: list[Any] = []
    worker = threading.Thread(target=lambda: got.append(queues.lanes[0].get(timeout=30)))
    worker.start()
    deadline = time.monotonic() + 10
    while not queues.lanes[0].not_empty._waiters and time.monotonic() < deadline:  # type: ignore[attr-defined]
        time.sleep(0.001)
    queues.lanes[1].put(item(0, "other"))
    assert queues.merged.get_tasks_remaining() == 1
    queues.lanes[0].put(item(1, "mine"))
    worker.join(10)
    assert got[0][0][1] == "mine"


def test_an_interrupt_finds_the_running_job_only(queues: Queues) -> None:
    """By id on whatever lane it runs; a waiting or finished one is not hit."""
    for index, queue in enumerate(queues.lanes[:2]):
        queue.put(item(index, f"job{index}"))
    number = take(queues.lanes[0])[1]
    assert queues.merged.interrupt("job0")
    assert not queues.merged.interrupt("job1")
    assert not queues.lanes[1].interrupt("job0")
    assert queues.merged.interrupt_if_running("job0")
    done(queues.lanes[0], number)
    assert not queues.merged.interrupt("job0")
    assert not queues.merged.interrupt()
    assert not queues.lanes[0].interrupt()


def test_without_an_id_everything_of_the_view_is_interrupted(queues: Queues) -> None:
    """One lane's view stops that lane, the merged one stops all."""
    for index, queue in enumerate(queues.lanes):
        queue.put(item(index, f"job{index}"))
        take(queue)
    interrupts = queues.shared.interrupts
    assert queues.lanes[1].interrupt()
    assert interrupts._aimed == {1: "job1"}
    assert queues.merged.interrupt()
    assert interrupts._aimed == {0: "job0", 1: "job1", 2: "job2"}


def test_a_lanes_counters_follow_its_queue(queues: Queues) -> None:
    """Accepted, started, ended by outcome, and deleted; each counted once."""
    queue = queues.lanes[0]
    for number in range(5):
        queue.put(item(number, f"job{number}"))
    for status, messages in (("success", []), ("error", []), ("error", [("execution_interrupted", {})])):
        done(queue, take(queue)[1], status, messages)
    assert queue.delete_queue_item(lambda entry: entry[1] == "job3")
    assert not queue.delete_queue_item(lambda entry: entry[1] == "job3")
    assert queues.merged.delete_queue_item(lambda entry: entry[1] == "job4")
    now = queue.lane.stats.snapshot()
    assert now.outcomes == {"success": 1, "error": 1, "interrupted": 1, "deleted": 2}
    assert (now.pending, now.running) == (0, 0)
    queue.put(item(9, "x"))
    queue.put(item(9, "y"))
    queues.merged.wipe_queue()
    assert queue.lane.stats.snapshot().outcomes["deleted"] == 4


def test_a_flag_that_came_before_the_worker_waits_is_seen_at_once(queues: Queues) -> None:
    """``/free`` right after a job finds the worker still busy with its end: it must not wait for the next job."""
    queues.lanes[1].set_flag("free_memory", True)
    got: list[object] = []
    worker = threading.Thread(target=lambda: got.append(queues.lanes[1].get(timeout=600)), daemon=True)
    worker.start()
    worker.join(30)
    assert got == [None]
    assert queues.lanes[1].get_flags() == {"free_memory": True}


def test_flags_are_per_lane_and_reach_all_without_one(queues: Queues) -> None:
    """``/free`` on a port means that lane's worker."""
    queues.lanes[1].set_flag("unload_models", True)
    assert [queue.get_flags() for queue in queues.lanes] == [{}, {"unload_models": True}, {}]
    queues.merged.set_flag("free_memory", True)
    assert queues.merged.get_flags(reset=False) == {"free_memory": True}
    assert [queue.get_flags() for queue in queues.lanes] == [{"free_memory": True}] * 3


def test_a_new_executor_is_asked_for_between_jobs(queues: Queues) -> None:
    """The worker's loop is left where it waits, once."""
    queues.lanes[0].rebuild = True
    with pytest.raises(RebuildExecutor):
        queues.lanes[0].get(timeout=0)
    assert queues.lanes[0].get(timeout=0) is None


def test_the_front_door_counts_its_own_and_nobodys_jobs(queues: Queues) -> None:
    """Waiting and running, on all lanes."""
    for index, client in enumerate(("me", "other", None)):
        queues.lanes[index].put(item(index, f"job{index}", client))
    take(queues.lanes[2])
    assert (queues.count_for("me"), queues.count_for("nobody")) == (2, 1)
    assert client_of((0, "a", {}, None, [])) is None


def test_ending_through_the_merged_view_finds_the_lane(queues: Queues) -> None:
    """Item numbers are unique over all lanes."""
    for index, queue in enumerate(queues.lanes[:2]):
        queue.put(item(index, f"job{index}"))
    numbers = [take(queue)[1] for queue in queues.lanes[:2]]
    assert len(set(numbers)) == 2
    status = type(queues.merged).ExecutionStatus("success", True, [])  # type: ignore[attr-defined]
    queues.merged.task_done(numbers[1], {}, status)
    assert [queue.get_tasks_remaining() for queue in queues.lanes] == [1, 0, 0]


def test_history_knows_the_lane_of_each_entry() -> None:
    """Also after the oldest entries went, as ComfyUI's limit makes them go."""
    history = History()
    with in_lane(2):
        history["a"] = 1
    history["b"] = 2
    assert history.of(2) == ["a"]
    history.pop("a")
    assert history.of(2) == []
    assert history.pop("a", None) is None


def test_what_the_history_cannot_show_becomes_text() -> None:
    """Everything that JSON can hold stays the very same object."""
    fine = {"outputs": {"1": {"x": [1]}}}
    assert showable(fine) is fine
    odd = showable({"outputs": {"1": {"x": [object()]}}})
    assert "object" in odd["outputs"]["1"]["x"][0]
    assert outcome_of(None) == "success"


def test_a_lane_that_is_to_forget_gives_no_job_to_its_old_executor(queues: Queues) -> None:
    """Told while it waits or while a job waits: the worker leaves its loop first, and the job is there afterwards."""
    queue, seen = queues.lanes[0], []

    def worker() -> None:
        for _ in range(2):
            try:
                seen.append(queue.get(timeout=30))
            except RebuildExecutor:
                seen.append(None)

    thread = threading.Thread(target=worker)
    thread.start()
    queue.renew()
    queue.put(item(0, "a"))
    thread.join(30)
    assert not thread.is_alive()
    assert seen[0] is None
    assert seen[1][0][1] == "a"
