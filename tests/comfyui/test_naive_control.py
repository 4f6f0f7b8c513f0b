"""The control: every scenario of the proofs finds its fault in the naive approach, or it would prove nothing."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.comfyui import scenarios, scenarios_events, scenarios_interrupts, workflows
from tests.comfyui.conftest import Site, start_naive_site, stop_site
from tests.comfyui.scenarios import Verdict
from tests.comfyui.stack import Comfy
from tests.comfyui.test_pictures import NOISE
from tests.comfyui.wire import Lane

pytestmark = [pytest.mark.comfyui, pytest.mark.timeout(1200)]

PATIENCE = 8.0
"""Seconds for jobs that take less than one where things work: dead workers are not waited for longer."""

TRIES = 3


@pytest.fixture
def naive(comfy: Comfy, tiny_models: Path, tmp_path: Path) -> Iterator[Site]:
    """A fresh one for every scenario: the one before may have lost its workers."""
    if comfy.version != "0.3.64":
        pytest.skip("the naive approach is written down for 0.3.64, where it was measured")
    site = start_naive_site(comfy, tiny_models, tmp_path)
    yield site
    stop_site(site)


ALONE: dict[str, Callable[[list[Lane]], Verdict]] = {
    "isolation": lambda lanes: scenarios_events.isolation(lanes, seconds=PATIENCE),
    "helper threads": lambda lanes: scenarios_events.helper_threads(lanes, pool=False, seconds=PATIENCE),
    "same clientId": lambda lanes: scenarios_events.same_client(lanes[0], lanes[1], seconds=PATIENCE),
    "broadcasts": lambda lanes: scenarios_events.broadcasts(lanes, seconds=PATIENCE),
    "targeted interrupts": lambda lanes: scenarios_interrupts.interrupts(lanes, 50, seconds=PATIENCE),
    "late interrupts": lambda lanes: scenarios_interrupts.late_interrupts(lanes, 40, seconds=PATIENCE),
    "nameless interrupts": lambda lanes: scenarios_interrupts.nameless_interrupts(lanes, 4, seconds=PATIENCE),
    "files": lambda lanes: scenarios.files(lanes, jobs=40, batch=4, saver="SaveImage", seconds=PATIENCE),
    "files of a counting saver": lambda lanes: scenarios.files(
        lanes, jobs=40, batch=4, saver="CountingSaver", seconds=PATIENCE),
}


def found_out(name: str, scenario: Callable[[], Verdict]) -> None:
    """The scenario finds a problem, if not at once then in a later try: what goes wrong are races, won at times."""
    for turn in range(1, TRIES + 1):
        verdict = scenario()
        print(f"\nnaive, {name}, try {turn}: {verdict}; e.g. {verdict.problems[:1]}")
        if verdict.problems:
            return
    pytest.fail(f"{name}: no problem in {TRIES} tries: this scenario proves nothing")


@pytest.mark.parametrize("name", ALONE)
def test_scenario_fails(naive: Site, name: str) -> None:
    """The scenario reports problems on the naive approach."""
    found_out(name, lambda: ALONE[name](naive.lanes))


TWINS = {
    "seeds": [workflows.noise(seed, NOISE[seed % len(NOISE)]) for seed in range(90)]
    + [workflows.added_noise(seed) for seed in range(12)],
    "expansion": [workflows.expanding(seed) for seed in range(160)],
}


@pytest.mark.parametrize("name", TWINS)
def test_pictures_differ(naive: Site, plain: Site, name: str) -> None:
    """Pictures differ from their twins, or jobs are lost, on the naive approach."""
    found_out(name, lambda: scenarios.same_pictures(naive.lanes, plain.lanes[0], TWINS[name], seconds=3 * PATIENCE))


def test_mixed_prompts_are_lost(naive: Site, plain: Site) -> None:
    """A hundred mixed prompts over three checkpoints with ``/free`` in between do not all come back right."""
    prompts = [workflows.sampled(seed, model=("fp16", "fp32", "mid")[seed % 3], lora=0.8 * (seed % 2),
                                 sampler=workflows.SAMPLERS[seed % 5], prefix="naive") for seed in range(100)]

    def free(index: int) -> None:
        if index % 9 == 4:
            naive.lanes[0].post("/free", {"unload_models": True, "free_memory": True})

    twin = plain.lanes[0]
    found_out("mixed", lambda: scenarios.same_pictures(naive.lanes, twin, prompts, seconds=60, meanwhile=free))
