"""The backend's metrics: every one moves, and Prometheus's own checker has nothing to say."""

import shutil
import subprocess

import pytest
from prometheus_client.parser import text_string_to_metric_families

from backend.devices import Memory
from backend.faults import device_broken
from backend.holdings import Weights
from backend.issuing import ENOUGH, Call
from backend.lanes import Lane
from backend.metrics import Metrics


def busy() -> list[Lane]:
    """Two lanes; on the first, everything has happened once."""
    lanes = [Lane(0, "cpu"), Lane(1, "cpu")]
    stats = lanes[0].stats
    for outcome in ("success", "error", "interrupted"):
        stats.accepted(outcome, 0.0)
        stats.started(outcome, 0.2)
        stats.finished(outcome, outcome, 3.0)
    stats.accepted("gone", 0.0)
    stats.finished("gone", "deleted", 1.0)
    stats.accepted("waits", 0.0)
    stats.accepted("runs", 0.0)
    stats.started("runs", 0.0)
    stats.oom(recovered=True)
    stats.oom(recovered=False)
    stats.node_executed('we"ird\nclass', 0.5)
    stats.cache_hit(3)
    stats.model_loaded()
    stats.model_unloaded()
    stats.fault(device_broken("cuda:0"))
    for step in range(ENOUGH + 1):
        lanes[0].issuing.called(Call("run", began=float(step), wall=0.5, host=0.25, locked=0.05))
    lanes[0].weights.read = lambda: Weights(100, 20, 3, loads=2, loads_avoided=7, evictions=1, copies=4, writes=1)
    lanes[0].weights.preloaded(2)
    return lanes


def scrape(lanes: list[Lane]) -> str:
    return Metrics(lanes, lambda device: Memory(5, 6, 11)).text().decode()


def test_every_metric_moves():
    """After one of everything no metric of the busy lane is zero."""
    still = []
    for family in text_string_to_metric_families(scrape(busy())):
        assert family.samples, family.name
        mine = [sample for sample in family.samples if sample.labels["gpu"] == "0"]
        totals = [sample for sample in mine if not sample.name.endswith("_bucket")]
        still += [sample.name for sample in totals if sample.value == 0]
    assert still == []


def test_values_are_the_counters():
    """A few samples, by their full names as dashboards use them."""
    text = scrape(busy())
    for line in (
        'comfy_backend_jobs_pending{gpu="0"} 1.0',
        'comfy_backend_jobs_running{gpu="0"} 1.0',
        'comfy_backend_jobs_total{gpu="0",outcome="interrupted"} 1.0',
        'comfy_backend_job_wait_seconds_count{gpu="0"} 4.0',
        'comfy_backend_job_execution_seconds_bucket{gpu="0",le="+Inf"} 3.0',
        'comfy_backend_oom_total{gpu="0",recovered="true"} 1.0',
        'comfy_backend_device_memory_used_bytes{gpu="1"} 5.0',
        'comfy_backend_device_memory_total_bytes{gpu="1"} 11.0',
        'comfy_backend_lane_faulted{gpu="0"} 1.0',
        'comfy_backend_cache_hits_total{gpu="0"} 3.0',
        'comfy_backend_model_calls_total{gpu="0"} 11.0',
        'comfy_backend_model_seconds_total{gpu="0",part="step"} 10.0',
        'comfy_backend_model_seconds_total{gpu="0",part="host"} 2.75',
        'comfy_backend_weights_bytes{gpu="0",where="host_shared"} 100.0',
        'comfy_backend_weights_loads_avoided_total{gpu="0"} 7.0',
        'comfy_backend_weights_writes_total{gpu="0"} 1.0',
        'comfy_backend_preloads_total{gpu="0"} 2.0',
    ):
        assert line in text.splitlines()


def test_a_broken_device_does_not_stop_the_scrape():
    """Its memory is left out, the rest is told."""

    def memory(device: str) -> Memory:
        raise RuntimeError("CUDA error")

    text = Metrics(busy(), memory).text().decode()
    assert 'comfy_backend_device_memory_used_bytes{' not in text
    assert 'comfy_backend_lane_faulted{gpu="0"} 1.0' in text


def test_promtool_is_content():
    """`promtool check metrics` finds nothing."""
    promtool = shutil.which("promtool")
    if promtool is None:
        pytest.skip("promtool is not installed (Debian package prometheus)")
    command = [promtool, "check", "metrics"]
    found = subprocess.run(command, input=scrape(busy()), text=True, capture_output=True, check=False)
    assert (found.returncode, found.stderr, found.stdout) == (0, "", "")
