"""The way through a job's nodes: what runs, what is kept, what is told."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

from backend.embedded.executor import Executor, shortened
from backend.embedded.files import Files
from backend.embedded.jobs import Job
from backend.embedded.node import ANY, Interrupted, NodeClass, Result, Run
from backend.embedded.store import ModelStore
from backend.lanes import Lane


class Heard:
    """Events as a test reads them."""

    def __init__(self) -> None:
        self.events: list[tuple[str, dict[str, Any]]] = []
        self.previews: list[dict[str, Any]] = []

    def send(self, job: Job, event: str, data: dict[str, Any]) -> None:
        self.events.append((event, data))

    def preview(self, job: Job, image: Callable[[], object], metadata: dict[str, Any]) -> None:
        self.previews.append(metadata)

    def kinds(self) -> list[str]:
        return [kind for kind, _ in self.events]


class Bench:
    """An executor with three kinds of nodes, and a count of what ran."""

    def __init__(self, folder: Path) -> None:
        self.ran: list[str] = []
        self.changed: Any = None
        self.files = Files(folder)
        self.lane = Lane(0, "cpu")
        models = ModelStore(self.files, torch.device("cpu"), self.lane.stats)
        self.executor = Executor(self.lane, self.registry(), self.files, models)

    def registry(self) -> Mapping[str, NodeClass]:
        def make(name: str, run: Callable[..., Result], inputs: str, **more: Any) -> NodeClass:
            def noted(run_: Run, **values: Any) -> Result:
                self.ran.append(run_.node_id)
                return run(run_, **values)

            return NodeClass(name, noted, "test", name, lambda _: {each: (ANY, {}) for each in inputs}, **more)

        def fail(run: Run, a: Any) -> Result:
            raise a if isinstance(a, BaseException) else ValueError(str(a))

        def value(run: Run, a: Any) -> Result:
            return Result((a, a * 2))

        def step(run: Run, a: Any) -> Result:
            run.progress(1, 2, lambda: None)  # type: ignore[arg-type,return-value]
            run.progress(2, 2)
            return Result((a,))

        nodes = [
            make("Value", value, "a", outputs=(ANY, ANY), changed=lambda files, inputs: self.changed),
            make("Add", lambda run, a, b: Result((a + b,)), "ab", outputs=(ANY,)),
            make("Step", step, "a", outputs=(ANY,)),
            make("Fail", fail, "a", outputs=(ANY,)),
            make("Out", lambda run, a: Result(ui={"value": [a]}), "a", output_node=True),
        ]
        return {node.name: node for node in nodes}

    def run(self, prompt: dict[str, tuple[str, dict[str, Any]]], *outputs: str, stop: bool = False, attempt: int = 0):
        nodes = {name: {"class_type": kind, "inputs": inputs} for name, (kind, inputs) in prompt.items()}
        job = Job(0, "job", nodes, {}, list(outputs), 0)
        if stop:
            job.stop.set()
        self.ran.clear()
        self.heard = Heard()
        return self.executor.run(job, self.heard, attempt, lambda nodes: None)


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path)


SUM: dict[str, tuple[str, dict[str, Any]]] = {
    "v": ("Value", {"a": 3}),
    "w": ("Value", {"a": 4}),
    "s": ("Add", {"a": ["v", 0], "b": ["w", 1]}),
    "o": ("Out", {"a": ["s", 0]}),
}


def test_values_flow_through_links(bench: Bench):
    """Slots are honoured, outputs land in the history under their node."""
    found = bench.run(SUM, "o")
    assert found.outputs == {"o": {"value": [11]}}
    assert found.meta["o"] == {"node_id": "o", "display_node": "o", "parent_node": None, "real_node_id": "o"}
    assert found.executed == bench.ran == ["v", "w", "s", "o"]
    assert found.failure is None


def test_what_no_output_needs_is_not_run(bench: Bench):
    """Nodes beside the way are left alone."""
    bench.run({**SUM, "x": ("Fail", {"a": 1}), "o2": ("Out", {"a": ["x", 0]})}, "o")
    assert "x" not in bench.ran


def test_only_what_changed_runs_again(bench: Bench):
    """A second job reuses every node whose inputs are the same, under whatever ids."""
    bench.run(SUM, "o")
    found = bench.run({**SUM, "w": ("Value", {"a": 5})}, "o")
    assert bench.ran == ["w", "s", "o"]
    assert found.kept == ["v"]
    renamed = {"p": ("Value", {"a": 3}), "q": ("Value", {"a": 5}), "r": ("Add", {"a": ["p", 0], "b": ["q", 1]})}
    found = bench.run({**renamed, "t": ("Out", {"a": ["r", 0]})}, "t")
    assert bench.ran == []
    assert found.outputs == {"t": {"value": [13]}}
    assert bench.lane.stats.snapshot().cache_hits == 1 + 4


def test_a_kept_output_is_shown_again(bench: Bench):
    """Nothing runs, but the client is told what there is, as ComfyUI does."""
    bench.run(SUM, "o")
    found = bench.run(SUM, "o")
    assert bench.ran == []
    assert bench.heard.kinds() == ["executed", "progress_state"]
    assert found.outputs == {"o": {"value": [11]}}


def test_only_the_last_jobs_outputs_are_kept(bench: Bench):
    """As in ComfyUI's classic cache, what the current job does not use is dropped: memory stays bounded."""
    bench.run(SUM, "o")
    bench.run({"v": ("Value", {"a": 9}), "o": ("Out", {"a": ["v", 0]})}, "o")
    bench.run(SUM, "o")
    assert bench.ran == ["v", "w", "s", "o"]


def test_what_changes_outside_runs_again(bench: Bench):
    """A node that says its file changed runs, and all that follows; NaN runs every time."""
    bench.changed = "1"
    bench.run(SUM, "o")
    bench.run(SUM, "o")
    assert bench.ran == []
    bench.changed = "2"
    bench.run(SUM, "o")
    assert bench.ran == ["v", "w", "s", "o"]
    bench.changed = float("nan")
    for _ in range(2):
        bench.run(SUM, "o")
        assert len(bench.ran) == 4


def test_events_have_comfyuis_order(bench: Bench):
    """progress_state, executing, progress with its states, executed, progress_state: node by node."""
    bench.run({"v": ("Value", {"a": 1}), "p": ("Step", {"a": ["v", 0]}), "o": ("Out", {"a": ["p", 0]})}, "o")
    each = ["progress_state", "executing"]
    steps = ["progress_state", "progress"] * 2
    assert bench.heard.kinds() == [
        *each, "progress_state", *each, *steps, "progress_state", *each, "executed", "progress_state"
    ]  # fmt: skip
    assert [data["node_id"] for data in bench.heard.previews] == ["p"]


def test_a_failure_names_node_and_inputs(bench: Bench):
    """The error, where it was raised, and with what; what had run before is told."""
    found = bench.run({"v": ("Value", {"a": 2}), "f": ("Fail", {"a": ["v", 1]}), "o": ("Out", {"a": ["f", 0]})}, "o")
    assert found.failure is not None
    assert (found.failure.node_id, found.failure.inputs) == ("f", {"a": [4]})
    assert isinstance(found.failure.error, ValueError)
    assert found.failure.error.__traceback__ is None
    assert any("raise a if" in line for line in found.failure.trace)
    assert found.executed == ["v"]


@pytest.mark.parametrize("error", [SystemExit(1), KeyboardInterrupt(), GeneratorExit(), MemoryError()])
def test_nothing_a_node_raises_escapes(bench: Bench, error: BaseException):
    """What would end a careless thread is a failure of the job."""
    found = bench.run({"f": ("Fail", {"a": error}), "o": ("Out", {"a": ["f", 0]})}, "o")
    assert found.failure is not None
    assert found.failure.error is error


def test_a_stopped_job_runs_no_node(bench: Bench):
    """An interrupt is seen before each node."""
    found = bench.run(SUM, "o", stop=True)
    assert found.failure is not None
    assert found.failure.interrupted
    assert isinstance(found.failure.error, Interrupted)
    assert bench.ran == []


def test_a_retry_repeats_work_but_no_output(bench: Bench):
    """Memory is given back before a retry; what an output node showed is not made a second time."""
    prompt = {**SUM, "f": ("Fail", {"a": ["s", 0]}), "o2": ("Out", {"a": ["f", 0]})}
    bench.run(prompt, "o", "o2")
    bench.executor.forget(for_retry=True)
    found = bench.run(prompt, "o", "o2", attempt=1)
    assert bench.ran == ["v", "w", "s", "f"]
    assert found.outputs == {"o": {"value": [11]}}


def test_tensors_are_named_not_printed():
    """An error message carries a tensor's shape, not its numbers, and cuts long texts."""
    assert shortened(torch.zeros(2, 3)) == "Tensor [2, 3] torch.float32 cpu"
    assert len(shortened("x" * 10_000)) == 2000
    assert shortened(None) is None
