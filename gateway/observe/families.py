"""Numbers by label as metric families under the gateway's prefix.

Pure. Owns the prefix. Must never know what is counted.
"""

from collections.abc import Mapping
from typing import Any, Final

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

PREFIX: Final = "comfy_gateway_"


def by_gpu(counts: Mapping[str, int]) -> dict[tuple[str, ...], float]:
    """One value for each ``gpu`` label."""
    return {(gpu,): count for gpu, count in counts.items()}


def counter(name: str, text: str, values: Mapping[Any, float], *labels: str) -> Metric:
    """A family of counters; ``values`` by label values."""
    family = CounterMetricFamily(PREFIX + name, text, labels=labels)
    for key, value in values.items():
        family.add_metric(list(key), value)
    return family


def gauge(name: str, text: str, values: Mapping[Any, float], *labels: str) -> Metric:
    """A family of gauges; ``values`` by label values."""
    family = GaugeMetricFamily(PREFIX + name, text, labels=labels)
    for key, value in values.items():
        family.add_metric(list(key), value)
    return family
