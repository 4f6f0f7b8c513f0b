"""An interrupt stops the job it is aimed at and nothing else."""

import pytest

from tests.comfyui import scenarios_interrupts as scenarios
from tests.comfyui.conftest import Site
from tests.comfyui.test_pictures import accept

pytestmark = [pytest.mark.comfyui, pytest.mark.timeout(600)]


def test_fifty_targeted(ports: Site) -> None:
    """50 targeted interrupts, of samplers, nodes and coroutines, while the other lanes start and end jobs."""
    verdict = scenarios.interrupts(ports.lanes, 50)
    accept("targeted interrupts", verdict)
    assert verdict.counts["interrupts"] == 50


def test_aimed_from_another_port(ports: Site) -> None:
    """A job's name finds it from any port: an interrupt sent elsewhere stops it all the same."""
    verdict = scenarios.interrupts_from_elsewhere(ports.lanes, 8)
    accept("interrupts from another port", verdict)


def test_too_late(ports: Site) -> None:
    """An interrupt aimed at a job that has just ended stops nobody."""
    accept("late interrupts", scenarios.late_interrupts(ports.lanes, 20))


def test_without_a_name(ports: Site) -> None:
    """An interrupt without a job's name stops what runs on its own GPU only."""
    accept("nameless interrupts", scenarios.nameless_interrupts(ports.lanes, 8))
