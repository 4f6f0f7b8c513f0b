"""The ladder's steps carried out: try again, tell, rebuild, give up."""

from collections.abc import Callable

import pytest

from backend.lanes import Lane, OomLadder
from backend.overlay.oom import Attempts

OOM = MemoryError("out of memory")
FAULT = RuntimeError("CUDA error: an illegal memory access was encountered")


class Unprintable(Exception):  # noqa: N818
    def __str__(self) -> str:
        raise RuntimeError


class Worker:
    """A lane's worker whose jobs fail as planned; keeps what was done."""

    def __init__(self) -> None:
        self.did: list[str] = []
        self.lane = Lane(0, "cpu")
        self.attempts = Attempts(
            self.lane, OomLadder(), lambda: self.did.append("free"), lambda: self.did.append("rebuild"),
            lambda: self.did.append("fault"),
        )

    def job(self, prompt_id: str, *failures: Exception | None) -> bool:
        """Run a job whose tries fail so, inside nodes; true when it went through."""
        plan = list(failures)
        last: list[Exception | None] = []

        def attempt() -> None:
            error = plan.pop(0)
            last[:] = [error]
            if error is not None and not self.attempts.failed(prompt_id, error):
                self.did.append("told")

        self.attempts.run(prompt_id, attempt, lambda: last == [None])
        assert not plan
        return last == [None]


def test_one_failure_is_repaired_unheard() -> None:
    """Memory is freed, the job runs again, nobody is told, and it is counted as recovered."""
    worker = Worker()
    assert worker.job("a", OOM, None)
    assert worker.did == ["free"]
    assert worker.lane.stats.snapshot().oom_recovered == 1


def test_the_second_failure_is_told() -> None:
    """One retry, no more."""
    worker = Worker()
    assert not worker.job("a", OOM, OOM)
    assert worker.did == ["free", "told"]
    assert worker.lane.stats.snapshot().oom_failed == 1


def test_three_in_a_row_rebuild_the_executor_once() -> None:
    """After the third lost job; a job that goes through starts the count anew."""
    worker = Worker()
    for prompt_id in ("a", "b"):
        worker.job(prompt_id, OOM, OOM)
    worker.job("fine", None)
    for prompt_id in ("c", "d", "e"):
        assert "rebuild" not in worker.did
        worker.job(prompt_id, OOM, OOM)
    assert worker.did.count("rebuild") == 1


def test_mistakes_in_workflows_cost_no_cache() -> None:
    """Other errors are told at once, are not tried again and never lead to a new executor."""
    worker = Worker()
    for number in range(9):
        assert not worker.job(f"job{number}", ValueError("a mistake"))
    assert not worker.job("odd", Unprintable())
    assert worker.did == ["told"] * 10
    assert worker.lane.stats.snapshot().oom_failed == 0


def test_a_fault_is_told_and_ends_the_lane() -> None:
    """The client hears the error; then the process is given up."""
    worker = Worker()
    assert not worker.job("a", FAULT)
    assert worker.did == ["told", "fault"]


@pytest.mark.parametrize(
    ("errors", "did"), [([OOM, None], ["free"]), ([OOM, OOM], ["free"]), ([ValueError("x")], []), ([FAULT], ["fault"])]
)
def test_errors_of_the_executor_itself_take_the_same_steps(errors: list[Exception | None], did: list[str]) -> None:
    """What comes out instead of being reported is tried again too, and otherwise passed on to the worker's guard."""
    worker = Worker()
    plan = list(errors)

    def attempt() -> None:
        error = plan.pop(0)
        if error is not None:
            raise error

    run: Callable[[], None] = lambda: worker.attempts.run("a", attempt, lambda: True)  # noqa: E731
    if errors[-1] is None:
        run()
    else:
        with pytest.raises(type(errors[-1])):
            run()
    assert worker.did == did
