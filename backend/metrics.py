"""The backend's metrics, all declared here: read from the lanes' counters at each scrape, none kept twice.

The one file of the backend that imports prometheus_client. Knows nothing of how either body counts.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Final

from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    SummaryMetricFamily,
)
from prometheus_client.metrics_core import Metric

from backend import devices
from backend.histogram import HistogramView
from backend.holdings import Weights
from backend.issuing import IssueView
from backend.lanes import OUTCOMES, Lane, LaneSnapshot

CONTENT_TYPE: Final = CONTENT_TYPE_LATEST

Row = tuple[str, LaneSnapshot]


class LaneCollector:
    """Turns the lanes' counters into metric families; ``memory`` says how full a device is."""

    def __init__(self, lanes: Sequence[Lane], memory: Callable[[str], devices.Memory] = devices.memory) -> None:
        self._lanes = lanes
        self._memory = memory

    def collect(self) -> Iterator[Metric]:
        rows = [(str(lane.index), lane.stats.snapshot()) for lane in self._lanes]
        yield from _jobs(rows)
        yield from _failures(rows)
        yield from _nodes(rows)
        yield from _issuing([(str(lane.index), lane.issuing.view()) for lane in self._lanes])
        yield from _weights([(str(lane.index), lane.weights.now()) for lane in self._lanes])
        yield from self._device_memory()

    def _device_memory(self) -> Iterator[Metric]:
        used = GaugeMetricFamily(
            "comfy_backend_device_memory_used_bytes",
            "Memory in use on the lane's device; on the CPU, by this process.",
            labels=["gpu"],
        )
        total = GaugeMetricFamily(
            "comfy_backend_device_memory_total_bytes", "Memory of the lane's device.", labels=["gpu"]
        )
        for lane in self._lanes:
            try:
                found = self._memory(lane.device)
            except RuntimeError:
                # A broken device cannot be asked; its lane says so in comfy_backend_lane_faulted.
                continue
            used.add_metric([str(lane.index)], found.used)
            total.add_metric([str(lane.index)], found.total)
        yield used
        yield total


def _jobs(rows: Sequence[Row]) -> Iterator[Metric]:
    pending = GaugeMetricFamily("comfy_backend_jobs_pending", "Jobs waiting in the lane's queue.", labels=["gpu"])
    running = GaugeMetricFamily("comfy_backend_jobs_running", "Jobs the lane's worker is at.", labels=["gpu"])
    ended = CounterMetricFamily("comfy_backend_jobs", "Jobs that ended, by outcome.", labels=["gpu", "outcome"])
    for gpu, now in rows:
        pending.add_metric([gpu], now.pending)
        running.add_metric([gpu], now.running)
        for outcome in OUTCOMES:
            ended.add_metric([gpu, outcome], now.outcomes[outcome])
    yield pending
    yield running
    yield ended
    yield _histogram(
        "comfy_backend_job_wait_seconds",
        "Seconds from a job's acceptance to its start.",
        ((gpu, now.wait) for gpu, now in rows),
    )
    yield _histogram(
        "comfy_backend_job_execution_seconds",
        "Seconds from a job's start to its end.",
        ((gpu, now.execution) for gpu, now in rows),
    )


def _failures(rows: Sequence[Row]) -> Iterator[Metric]:
    oom = CounterMetricFamily(
        "comfy_backend_oom", "Jobs that ran out of device memory, and whether a retry saved them.",
        labels=["gpu", "recovered"],
    )
    faulted = GaugeMetricFamily(
        "comfy_backend_lane_faulted", "1 when the lane can work no more: its device or worker broke.", labels=["gpu"]
    )
    for gpu, now in rows:
        oom.add_metric([gpu, "true"], now.oom_recovered)
        oom.add_metric([gpu, "false"], now.oom_failed)
        faulted.add_metric([gpu], float(now.fault is not None))
    yield oom
    yield faulted


def _nodes(rows: Sequence[Row]) -> Iterator[Metric]:
    seconds = SummaryMetricFamily(
        "comfy_backend_node_seconds", "Seconds nodes ran, by class.", labels=["gpu", "class"]
    )
    executions = CounterMetricFamily("comfy_backend_node_executions", "Nodes that ran.", labels=["gpu"])
    hits = CounterMetricFamily(
        "comfy_backend_cache_hits", "Nodes that did not run because their output was kept.", labels=["gpu"]
    )
    loads = CounterMetricFamily("comfy_backend_model_loads", "Models put on the lane's device.", labels=["gpu"])
    unloads = CounterMetricFamily("comfy_backend_model_unloads", "Models taken off it.", labels=["gpu"])
    for gpu, now in rows:
        for name, (count, total) in sorted(now.nodes.items()):
            seconds.add_metric([gpu, name], count_value=count, sum_value=total)
        executions.add_metric([gpu], sum(count for count, _ in now.nodes.values()))
        hits.add_metric([gpu], now.cache_hits)
        loads.add_metric([gpu], now.model_loads)
        unloads.add_metric([gpu], now.model_unloads)
    yield from (seconds, executions, hits, loads, unloads)


def _issuing(rows: Sequence[tuple[str, IssueView]]) -> Iterator[Metric]:
    calls = CounterMetricFamily("comfy_backend_model_calls", "Calls of a model, one or more a step.", labels=["gpu"])
    seconds = CounterMetricFamily(
        "comfy_backend_model_seconds",
        "Seconds of model calls: whole steps; in them the lane's thread at work, standing still, held by the issue "
        "lock.",
        labels=["gpu", "part"],
    )
    ratio = GaugeMetricFamily(
        "comfy_backend_issue_ratio", "h/T: the thread's share of a step, of late. On the CPU it is near 1 and means "
        "nothing.", labels=["gpu"],
    )
    for gpu, now in rows:
        calls.add_metric([gpu], now.calls)
        for part, value in (
            ("step", now.step_seconds), ("host", now.host_seconds), ("waited", now.waited_seconds),
            ("locked", now.locked_seconds),
        ):
            seconds.add_metric([gpu, part], value)
        if now.ratio is not None:
            ratio.add_metric([gpu], now.ratio)
    yield from (calls, seconds, ratio)

def _weights(rows: Sequence[tuple[str, Weights]]) -> Iterator[Metric]:
    held = GaugeMetricFamily(
        "comfy_backend_weights_bytes",
        "Weights the lane's models point at: host_shared (other lanes may point at the same), host_own, device.",
        labels=["gpu", "where"],
    )
    for gpu, now in rows:
        for where, size in (("host_shared", now.host_shared), ("host_own", now.host_own), ("device", now.device)):
            held.add_metric([gpu, where], size)
    yield held
    for name, text, count in _COUNTS:
        family = CounterMetricFamily(f"comfy_backend_{name}", text, labels=["gpu"])
        for gpu, now in rows:
            family.add_metric([gpu], count(now))
        yield family


_COUNTS: Final[tuple[tuple[str, str, Callable[[Weights], int]], ...]] = (
    ("weights_loads", "Weights files the lane read.", lambda now: now.loads),
    ("weights_loads_avoided", "Files it did not read: somebody had them already.", lambda now: now.loads_avoided),
    ("weights_evictions", "Files it had read that no model uses any more.", lambda now: now.evictions),
    ("weights_copies", "Shared weights that got memory of their own before a write.", lambda now: now.copies),
    ("weights_writes", "Jobs that wrote shared weights in place; put right.", lambda now: now.writes),
    ("preloads", "Models loaded ahead of any job.", lambda now: now.preloads),
)


def _histogram(name: str, text: str, views: Iterable[tuple[str, HistogramView]]) -> HistogramMetricFamily:
    family = HistogramMetricFamily(name, text, labels=["gpu"])
    for gpu, view in views:
        names = [*(str(bound) for bound in view.bounds), "+Inf"]
        buckets = [(bound, float(count)) for bound, count in zip(names, view.cumulative, strict=True)]
        family.add_metric([gpu], buckets=buckets, sum_value=view.total)
    return family


class Metrics:
    """The text that ``GET /metrics`` answers."""

    def __init__(self, lanes: Sequence[Lane], memory: Callable[[str], devices.Memory] = devices.memory) -> None:
        self._registry = CollectorRegistry()
        self._registry.register(LaneCollector(lanes, memory))

    def text(self) -> bytes:
        """One scrape, in the format ``CONTENT_TYPE`` names."""
        return generate_latest(self._registry)
