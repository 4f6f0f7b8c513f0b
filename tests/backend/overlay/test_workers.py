"""The guard around ComfyUI's worker loop."""

import sys
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from backend.context import in_lane
from backend.faults import device_broken
from backend.overlay import workers
from backend.overlay.queues import RebuildExecutor
from backend.overlay.state import State
from tests.doubles.checkout import loaded, make_state


class Deserter(BaseException):
    """Leaves the program when it is shown."""

    def __str__(self) -> str:
        raise SystemExit(1)


class Unprintable(Exception):  # noqa: N818
    def __str__(self) -> str:
        raise RuntimeError


class Server:
    """Keeps what is sent."""

    def __init__(self) -> None:
        self.sent: list[tuple[str, Any, Any]] = []

    def send_sync(self, event: str, data: Any, sid: Any = None) -> None:
        if event != "status":
            self.sent.append((event, data, sid))

    def get_queue_info(self) -> dict[str, Any]:
        return {"exec_info": {"queue_remaining": 0}}


@pytest.fixture
def state() -> Iterator[State]:
    """Lanes with queues, and a server that keeps what it is told to send."""
    with loaded() as main:
        found = make_state()
        found.server = Server()
        found.adopt_queue(main.execution.PromptQueue(None), found.server)
        yield found


def guarded(
    state: State, error: BaseException, *, running: bool = True, client: str | None = "me", extra: Any = None
) -> list[float]:
    """Let lane 1's loop break with ``error``; gives the pauses that were made."""
    queue = state.queues.lanes[1]
    pauses: list[float] = []

    def loop() -> None:
        if running:
            queue.get(timeout=0)
        state.last_node_id.set("7")
        raise error

    if running:
        if extra is None:
            extra = {} if client is None else {"client_id": client}
        queue.put((0, "job", {"7": {"class_type": "Breaks"}}, extra, []))
    with in_lane(1):
        workers.guarded(state, queue, loop, pauses.append)
    return pauses


@pytest.mark.parametrize(
    "error", [RuntimeError("x"), SystemExit(1), KeyboardInterrupt(), GeneratorExit(), Unprintable(), Deserter()]
)
def test_the_job_ends_with_an_error_and_its_client_hears(state: State, error: BaseException) -> None:
    """Whatever escapes the loop: the history has the job, the client its error and its end, the lane is free."""
    assert guarded(state, error) == []
    entry = state.queues.merged.get_history()["job"]  # type: ignore[attr-defined]
    assert entry["status"]["status_str"] == "error"
    events = [(event, sid) for event, _, sid in state.server.sent]
    assert events == [("execution_error", "me"), ("executing", "me")]
    told = state.server.sent[0][1]
    assert (told["prompt_id"], told["node_id"], told["node_type"]) == ("job", "7", "Breaks")
    assert told["exception_type"].endswith(type(error).__name__)
    assert state.queues.lanes[1].lane.stats.snapshot().outcomes["error"] == 1
    assert state.last_node_id.of(1) is None


def test_a_job_without_a_client_is_told_to_nobody(state: State) -> None:
    """Its history entry is all there is."""
    guarded(state, RuntimeError("x"), client=None)
    assert state.server.sent == []
    assert "job" in state.queues.merged.get_history()  # type: ignore[attr-defined]


@pytest.mark.parametrize("extra", [5, True, 1.5])
def test_a_job_that_comfyui_cannot_end_is_ended_all_the_same(state: State, extra: Any) -> None:
    """Its ``task_done`` raises after it took the item out: history, counters and the lane are as after any error."""
    assert guarded(state, TypeError("x"), extra=extra) == []
    entry = state.queues.merged.get_history()["job"]  # type: ignore[attr-defined]
    assert entry["status"]["status_str"] == "error"
    assert entry["status"]["messages"][-1][1]["exception_type"] == "TypeError"
    assert entry["prompt"][3] == {}
    shown = state.lanes[1].stats.snapshot()
    assert (shown.running, shown.outcomes["error"]) == (0, 1)
    assert state.queues.lanes[1].currently_running == {}
    assert state.queues.shared.history.of(1) == ["job"]


def test_a_job_that_ran_but_cannot_be_ended_as_it_ended_fails(state: State, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its client hears an error and the end, though neither ComfyUI's ending nor the first message succeeds."""
    queue = state.queues.lanes[1]

    def breaks(*_: object, **__: object) -> None:
        raise OSError

    def loop() -> None:
        item, number = queue.get(timeout=0) or ((), 0)
        state.interrupts.aim(1, item[1])
        queue.task_done(number, {}, type(queue).ExecutionStatus("success", True, []))  # type: ignore[attr-defined]

    heard: list[str] = []

    def send_sync(event: str, data: Any, sid: Any = None) -> None:
        heard.append(event)
        if event == "execution_error":
            raise RuntimeError

    monkeypatch.setattr(sys.modules["execution"].PromptQueue, "task_done", breaks)
    monkeypatch.setattr(state.server, "send_sync", send_sync)
    queue.put((0, "job", {}, {"client_id": "me"}, []))
    with in_lane(1):
        workers.guarded(state, queue, loop, lambda _: pytest.fail("a job was running"))
    assert [event for event in heard if event != "status"] == ["execution_error", "executing"]
    entry = state.queues.merged.get_history()["job"]  # type: ignore[attr-defined]
    assert (entry["status"]["status_str"], entry["prompt"][3]) == ("error", {"client_id": "me"})
    assert state.lanes[1].stats.snapshot().running == 0
    assert state.interrupts._aimed == {}


def test_a_loop_that_breaks_without_a_job_is_not_started_in_a_rush(state: State) -> None:
    """A pause before the next try, or a broken start would eat the processor."""
    assert guarded(state, RuntimeError("x"), running=False) == [workers.PAUSE]


def test_a_new_executor_is_no_failure(state: State) -> None:
    """The loop is left and started again, and nothing is told."""
    assert guarded(state, RebuildExecutor(), running=False) == []
    assert state.server.sent == []


def test_messages_of_the_broken_job_are_kept(state: State) -> None:
    """The history shows what had happened before the end."""
    with in_lane(1):
        state.messages.set([("execution_start", {"prompt_id": "job"})])
    guarded(state, RuntimeError("x"))
    messages = state.queues.merged.get_history()["job"]["status"]["messages"]  # type: ignore[attr-defined]
    assert [message[0] for message in messages] == ["execution_start", "execution_error"]


def test_a_device_that_cannot_be_used_is_a_fault(state: State) -> None:
    """The lane says so instead of taking jobs; whoever watches is told at once, also when it watches later."""
    broken = type(state.lanes[2])(2, "cuda:99")
    workers._lane(state, broken, lambda: pytest.fail("its loop must not start"))
    told: list[int] = []
    state.watch_faults(told.append)
    state.fault(0, device_broken("cpu"))
    assert told == [2, 0]


def test_a_worker_that_ends_past_every_guard_is_a_fault(state: State, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the guard itself breaks, the thread ends, its lane says why, and whoever watches is told."""
    told: list[int] = []
    state.watch_faults(told.append)
    log = type("Broken", (), {"__getattr__": lambda self, name: pytest.fail("the log is broken", pytrace=False)})()
    loop_log = workers.log
    monkeypatch.setattr(workers, "guarded", lambda *_: (monkeypatch.setattr(workers, "log", log), 1 / 0))
    thread = threading.Thread(target=workers._lane, args=(state, state.lanes[1], lambda: None))
    thread.start()
    thread.join(30)
    monkeypatch.setattr(workers, "log", loop_log)
    assert not thread.is_alive()
    broken = state.lanes[1].stats.broken
    assert broken is not None
    assert (broken.reason, broken.whole_process) == ("its worker thread has ended (Failed)", False)
    assert told == [1]
    assert [lane.stats.broken for lane in (state.lanes[0], state.lanes[2])] == [None, None]


def test_a_worker_that_cannot_be_started_is_a_fault(state: State, monkeypatch: pytest.MonkeyPatch) -> None:
    """No thread left in the system: the lanes that got one work, the other says so."""
    started: list[str] = []

    def start(self: threading.Thread) -> None:
        if self.name == "lane-2":
            raise RuntimeError("can't start new thread")
        started.append(self.name)

    monkeypatch.setattr(threading.Thread, "start", start)
    workers._start_all(state, lambda *_: None)(None, None)
    assert started == ["lane-0", "lane-1"]
    broken = state.lanes[2].stats.broken
    assert broken is not None
    assert "can't start new thread" in broken.reason


def test_a_lanes_threads_are_set_where_they_are_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """The configured number reaches torch; without one torch's own choice stays."""
    asked: list[int] = []
    monkeypatch.setattr("torch.set_num_threads", asked.append)
    workers.warm_up("cpu", 3)
    workers.warm_up("cpu")
    assert asked == [3]
