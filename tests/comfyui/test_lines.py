"""What a real ComfyUI prints and logs for a job says which job it is, also with lanes at work at once."""

import re

import pytest

from tests.comfyui import workflows
from tests.comfyui.conftest import Site
from tests.comfyui.wire import outcome

pytestmark = [pytest.mark.comfyui, pytest.mark.timeout(600)]

MARK = re.compile(r"\[lane (\d+) job ([^\s\]]+)\] (.*)")


def test_bars_and_errors_carry_the_job_and_its_lane(ports: Site) -> None:
    """Progress bars of two samplers at once, and the trace of a node that fails on a third lane."""
    prompts = [workflows.sampled(seed, steps=20, prefix="lines") for seed in (1, 2)]
    prompts.append({"1": workflows.node("ProofRaise", kind="error")})
    jobs = [lane.submit(prompt) for lane, prompt in zip(ports.lanes, prompts, strict=False)]
    ends = [outcome(lane.finished(job)) for lane, job in zip(ports.lanes, jobs, strict=False)]
    assert ends == ["success", "success", "error"]
    log = ports.processes[-1].log.read_text(encoding="utf-8", errors="replace")
    marked = [found.groups() for line in log.splitlines() if (found := MARK.match(line)) is not None]
    for lane, job in enumerate(jobs):
        said = "\n".join(text for _, whose, text in marked if whose == job)
        assert {int(where) for where, whose, _ in marked if whose == job} == {lane}
        assert ("Traceback" if lane == 2 else "20/20") in said, said
    bars = [line for line in log.splitlines() if re.search(r"\d+/20 \[", line)]
    assert bars
    assert all(MARK.match(line) for line in bars)
