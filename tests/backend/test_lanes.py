"""Counters and the memory ladder, under a clock that obeys."""

import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st

from backend.histogram import Histogram
from backend.lanes import (
    MAX_NODE_CLASSES,
    OTHER_CLASS,
    Failure,
    Lane,
    LaneStats,
    OomLadder,
    Step,
    classify,
    classify_text,
)


def test_a_jobs_way_is_counted():
    """Pending, then running, then its outcome; wait is acceptance to start, execution start to end."""
    stats = LaneStats()
    stats.accepted("a", 10.0)
    assert (stats.snapshot().pending, stats.snapshot().running) == (1, 0)
    stats.started("a", 12.0)
    assert (stats.snapshot().pending, stats.snapshot().running) == (0, 1)
    stats.finished("a", "success", 15.0)
    now = stats.snapshot()
    assert (now.pending, now.running, now.outcomes["success"]) == (0, 0, 1)
    assert (now.wait.total, now.wait.count) == (2.0, 1)
    assert (now.execution.total, now.execution.count) == (3.0, 1)


def test_a_deleted_job_was_neither_waited_for_nor_run():
    """Taking a job out of the queue counts as deleted and moves no histogram."""
    stats = LaneStats()
    stats.accepted("a", 1.0)
    stats.finished("a", "deleted", 2.0)
    now = stats.snapshot()
    assert (now.pending, now.outcomes["deleted"], now.wait.count, now.execution.count) == (0, 1, 0, 0)


def test_the_same_id_twice_is_two_jobs():
    """Each acceptance is waited for and run on its own."""
    stats = LaneStats()
    stats.accepted("a", 0.0)
    stats.accepted("a", 1.0)
    stats.started("a", 5.0)
    assert (stats.snapshot().pending, stats.snapshot().running) == (1, 1)
    stats.started("a", 6.0)
    stats.finished("a", "error", 7.0)
    stats.finished("a", "success", 8.0)
    now = stats.snapshot()
    assert (now.pending, now.running, now.wait.total, now.execution.count) == (0, 0, 10.0, 2)


@given(st.lists(st.floats(0, 4000), max_size=50))
def test_a_histogram_counts_every_value_once(values: list[float]):
    """Buckets rise, the last holds all, and each bound has the values at or below it."""
    histogram = Histogram((0.5, 10.0, 600.0))
    for value in values:
        histogram.observe(value)
    view = histogram.view()
    assert view.count == len(values)
    expected = tuple(sum(value <= bound for value in values) for bound in (0.5, 10.0, 600.0))
    assert view.cumulative == (*expected, len(values))


def test_counters_survive_many_threads():
    """Nothing is lost when jobs are accepted and counted from many threads."""
    stats = LaneStats()

    def work(name: str) -> None:
        for index in range(200):
            job = f"{name}-{index}"
            stats.accepted(job, 0.0)
            stats.started(job, 0.0)
            stats.node_executed("N", 0.0)
            stats.finished(job, "success", 0.0)

    threads = [threading.Thread(target=work, args=(str(index),)) for index in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    now = stats.snapshot()
    assert (now.pending, now.running, now.outcomes["success"], now.nodes["N"][0]) == (0, 0, 1600, 1600)


def test_node_classes_are_bounded():
    """A client that invents class names cannot grow the metrics without end."""
    stats = LaneStats()
    for index in range(MAX_NODE_CLASSES + 50):
        stats.node_executed(f"node-{index}", 1.0)
    nodes = stats.snapshot().nodes
    assert len(nodes) == MAX_NODE_CLASSES + 1
    assert nodes[OTHER_CLASS] == (50, 50.0)


def test_the_log_line_comes_every_ten_jobs_or_minute():
    """Ten ended jobs, or one and a minute, are worth a line; nothing ended is not."""
    lane = Lane(2, "cpu")
    assert not lane.stats.report_due(0.0)
    assert not lane.stats.report_due(59.0)
    for index in range(10):
        lane.stats.accepted(str(index), 0.0)
        lane.stats.started(str(index), 0.012)
        lane.stats.finished(str(index), "success", 2.012)
        assert lane.stats.report_due(59.0) == (index == 9)
    assert lane.line() == "[GPU 2] tasks=10, success=100.0%, queue=0, wait=12ms, exec=2000ms, oom=0"
    lane.stats.finished("x", "error", 0.0)
    assert not lane.stats.report_due(118.0)
    assert lane.stats.report_due(119.0)
    assert not lane.stats.report_due(500.0)


class OutOfMemoryError(RuntimeError):
    """As torch names its own."""


class SpecialOutOfMemoryError(OutOfMemoryError):
    """A subclass of it."""


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (OutOfMemoryError("x"), Failure.OOM),
        (SpecialOutOfMemoryError("x"), Failure.OOM),
        (MemoryError(), Failure.OOM),
        (RuntimeError("CUDA out of memory. Tried to allocate 2 GiB"), Failure.OOM),
        (RuntimeError("CUDA error: out of memory"), Failure.OOM),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried"), Failure.OOM),
        (RuntimeError("CUDA error: an illegal memory access was encountered"), Failure.FAULT),
        (RuntimeError("CUDA error: device-side assert triggered"), Failure.FAULT),
        (RuntimeError("CUDA error: unspecified launch failure"), Failure.FAULT),
        (RuntimeError("CUDA error: uncorrectable ECC error encountered"), Failure.FAULT),
        (RuntimeError("CUDA error: no kernel image is available for execution on the device"), Failure.OTHER),
        (RuntimeError("illegal instruction in my prompt"), Failure.OTHER),
        (ValueError("nothing special"), Failure.OTHER),
    ],
)
def test_failures_are_told_apart(error: BaseException, expected: Failure):
    """Memory, a broken device, anything else: by type name and text."""
    assert classify(error) is expected


def test_failures_are_told_apart_by_text_alone():
    """ComfyUI's error messages carry the type's full name."""
    assert classify_text("torch.OutOfMemoryError", "Allocation on device") is Failure.OOM
    assert classify_text("torch.AcceleratorError", "an illegal memory access was encountered") is Failure.FAULT


def test_memory_is_freed_and_the_job_tried_once_more():
    """The first out-of-memory error of a job is retried, the second ends it."""
    ladder = OomLadder()
    assert ladder.failed("a", Failure.OOM) is Step.RETRY
    assert ladder.failed("a", Failure.OOM) is Step.FAIL
    assert ladder.failed("b", Failure.OOM) is Step.RETRY
    assert ladder.succeeded("b") is True
    assert ladder.succeeded("c") is False


def test_the_same_id_submitted_again_has_its_retry():
    """A job's retry belongs to that submission, not to its id."""
    ladder = OomLadder()
    for _ in range(2):
        assert ladder.failed("a", Failure.OOM) is Step.RETRY
        ladder.succeeded("a")
    assert ladder.failed("a", Failure.OOM) is Step.RETRY
    ladder.interrupted()
    assert ladder.failed("a", Failure.OOM) is Step.RETRY


def test_three_failures_in_a_row_rebuild_the_executor():
    """Only in a row: a success between them starts the count again."""
    ladder = OomLadder()
    assert [ladder.failed(name, Failure.OTHER) for name in "ab"] == [Step.FAIL, Step.FAIL]
    ladder.succeeded("c")
    steps = [ladder.failed(name, Failure.OTHER) for name in "defg"]
    assert steps == [Step.FAIL, Step.FAIL, Step.REBUILD, Step.FAIL]


def test_a_fault_is_final():
    """A broken device is no matter of memory."""
    assert OomLadder().failed("a", Failure.FAULT) is Step.FAULT
