"""Every metric of the gateway: its name, its labels, and the numbers behind it.

Owns the counts, as plain integers that the way of a request adds to in about a microsecond; the exposition format is
made only when somebody scrapes. Must never know requests, sockets or processes: it is told numbers and labels.
Labels are few and known beforehand (GPU, kind, status, phase, direction, reason); never a path, address or job.
"""

from bisect import bisect_left
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import accumulate
from typing import Final

from prometheus_client import CollectorRegistry, ProcessCollector
from prometheus_client.core import HistogramMetricFamily, Metric
from prometheus_client.exposition import generate_latest
from prometheus_client.registry import Collector

from gateway.observe.families import PREFIX, by_gpu, counter, gauge
from gateway.observe.views import CacheView, FleetView, JobsView, PoolView, cache_families, job_families
from gateway.request import Kind

CONTENT_TYPE: Final = b"text/plain; version=0.0.4; charset=utf-8"
FRONT: Final = "front"
"""The ``gpu`` label of what the front door answers or sends on without choosing a GPU."""

BOUNDS: Final[tuple[float, ...]] = (
    0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0, 600.0
)
"""Upper bounds of the duration buckets in seconds: from one small GET to the read time-out."""

TO_BACKEND: Final = "to_backend"
TO_CLIENT: Final = "to_client"


class _Durations:
    """One histogram: a count per bucket (the last is +Inf) and the sum in seconds."""

    __slots__ = ("counts", "sum")

    def __init__(self) -> None:
        self.counts = [0] * (len(BOUNDS) + 1)
        self.sum = 0.0

    def buckets(self) -> list[tuple[str, float]]:
        names = [*map(str, BOUNDS), "+Inf"]
        return list(zip(names, accumulate(self.counts), strict=True))


class Metrics:
    """The numbers of one gateway. Everything is called from the event loop's thread."""

    def __init__(self, gpus: int, version: str) -> None:
        labels = [*map(str, range(gpus)), FRONT]
        self.in_flight = 0
        """Requests whose head has been read and that are not finished; the data path adds and takes away."""
        self.backend_restarts = 0
        self.backend_scrape_ok = False
        """Whether the backend's own metrics were part of the newest scrape."""
        self.certificate_ends: Callable[[], float | None] = lambda: None
        """When the certificate ends; ``None`` without TLS."""
        self._version = version
        self._requests: dict[tuple[str, Kind, int], int] = {}
        self._total = _Durations()
        self._backend = _Durations()
        self._received = dict.fromkeys(labels, 0)
        self._sent = dict.fromkeys(labels, 0)
        self._denied: dict[tuple[str, str], int] = {}
        self._retried: dict[str, int] = {}
        self._bridges_open = dict.fromkeys(labels, 0)
        self._bridges = dict.fromkeys(labels, 0)
        both = [(gpu, direction) for gpu in labels for direction in (TO_BACKEND, TO_CLIENT)]
        self._bridge_bytes = dict.fromkeys(both, 0)
        self._bridge_messages = dict.fromkeys(both, 0)
        self._pools: Sequence[PoolView] = ()
        self._fleet: FleetView | None = None
        self._limiter_keys: Callable[[], int] | None = None
        self._webhooks: Callable[[], Mapping[str, int]] | None = None
        self._jobs: JobsView | None = None
        self._cache: CacheView | None = None
        self._registry = CollectorRegistry()
        self._registry.register(_Exposition(self))
        ProcessCollector(namespace="comfy_gateway", registry=self._registry)

    def request(
        self, gpu: str, kind: Kind, status: int, seconds: float, backend_seconds: float, received: int, sent: int
    ) -> None:
        """One finished request: its answer's status, seconds in all and at the backend, body bytes each way.

        ``backend_seconds`` is 0 when the backend was not asked; such a request is not in the backend's histogram.
        """
        key = (gpu, kind, status)
        requests = self._requests
        requests[key] = requests.get(key, 0) + 1
        total = self._total
        total.counts[bisect_left(BOUNDS, seconds)] += 1
        total.sum += seconds
        if backend_seconds:
            backend = self._backend
            backend.counts[bisect_left(BOUNDS, backend_seconds)] += 1
            backend.sum += backend_seconds
        self._received[gpu] = self._received.get(gpu, 0) + received
        self._sent[gpu] = self._sent.get(gpu, 0) + sent

    def denied(self, gpu: str, reason: str) -> None:
        """One request refused by a limit; ``reason`` is the name of that limit."""
        self._denied[gpu, reason] = self._denied.get((gpu, reason), 0) + 1

    def denied_on(self, gpu: str) -> int:
        """Requests refused by limits on a GPU, or on ``FRONT``."""
        return sum(count for (label, _), count in self._denied.items() if label == gpu)

    def retried(self, reason: str) -> None:
        """One request sent to the backend again because nothing of it can have arrived the first time."""
        self._retried[reason] = self._retried.get(reason, 0) + 1

    def bridge_opened(self, gpu: str) -> None:
        """The backend's 101 has been passed on: two streams are joined."""
        self._bridges_open[gpu] = self._bridges_open.get(gpu, 0) + 1
        self._bridges[gpu] = self._bridges.get(gpu, 0) + 1

    def bridge_closed(self, gpu: str) -> None:
        """Both streams of a bridge are closed."""
        self._bridges_open[gpu] -= 1

    def bridge_bytes(self, gpu: str, direction: str, count: int) -> None:
        """Bytes passed over a bridge, ``TO_BACKEND`` or ``TO_CLIENT``."""
        self._bridge_bytes[gpu, direction] = self._bridge_bytes.get((gpu, direction), 0) + count

    def bridge_messages(self, gpu: str, direction: str, count: int) -> None:
        """Data messages passed over a bridge, by the end of their last frame."""
        self._bridge_messages[gpu, direction] = self._bridge_messages.get((gpu, direction), 0) + count

    @property
    def bridges_open(self) -> int:
        """Bridges open now, on all GPUs."""
        return sum(self._bridges_open.values())

    def watch_pools(self, pools: Sequence[PoolView]) -> None:
        """Read the pools' own counts at each scrape."""
        self._pools = pools

    def watch_fleet(self, fleet: FleetView) -> None:
        """Read the fleet's own state at each scrape."""
        self._fleet = fleet

    def watch_limiter(self, keys: Callable[[], int]) -> None:
        """Ask for the number of buckets in the limiter's table at each scrape."""
        self._limiter_keys = keys

    def watch_jobs(self, jobs: JobsView) -> None:
        """Read what was promised at each scrape."""
        self._jobs = jobs

    def watch_webhooks(self, counts: Callable[[], Mapping[str, int]]) -> None:
        """Ask for attempts by how they went at each scrape."""
        self._webhooks = counts

    def watch_cache(self, cache: CacheView | None) -> None:
        """Read what is kept, and how often it served, at each scrape."""
        self._cache = cache

    def text(self) -> bytes:
        """The exposition in Prometheus' text format 0.0.4."""
        return generate_latest(self._registry)

    def families(self) -> Iterator[Metric]:
        """Every metric with its present value, in the order in which they are exposed."""
        yield gauge("build_info", "Version of the gateway; the value is always 1.", {(self._version,): 1}, "version")
        yield from self._request_families()
        yield from self._bridge_families()
        yield from self._watched_families()
        if self._jobs is not None:
            yield from job_families(self._jobs)
        if (webhooks := self._webhooks) is not None:
            attempts = {(result,): count for result, count in webhooks().items()}
            yield counter("webhooks", "Webhooks, by how an attempt went or that it was the last.", attempts, "result")

    def _request_families(self) -> Iterator[Metric]:
        requests: dict[tuple[str, ...], float] = {}
        for (gpu, kind, status), count in self._requests.items():
            key = (gpu, kind.value, status_label(status))
            requests[key] = requests.get(key, 0) + count
        yield counter("requests", "Requests answered, by what they ask for.", requests, "gpu", "kind", "status")
        durations = HistogramMetricFamily(
            PREFIX + "request_duration_seconds",
            "Seconds per request: in all (total), and from asking the backend to the end of its answer (backend).",
            labels=["phase"],
        )
        for phase, histogram in (("total", self._total), ("backend", self._backend)):
            durations.add_metric([phase], histogram.buckets(), histogram.sum)
        yield durations
        yield gauge("in_flight_requests", "Requests begun and not finished.", {(): self.in_flight})
        yield counter("received_bytes", "Bytes of request bodies from clients.", by_gpu(self._received), "gpu")
        yield counter("sent_bytes", "Bytes of answer bodies to clients.", by_gpu(self._sent), "gpu")
        yield counter("denied", "Requests refused by a limit.", self._denied, "gpu", "reason")
        retried = {(reason,): count for reason, count in self._retried.items()}
        yield counter("backend_retries", "Requests sent to the backend a second time.", retried, "reason")

    def _bridge_families(self) -> Iterator[Metric]:
        yield gauge("bridges_open", "WebSocket bridges open now.", by_gpu(self._bridges_open), "gpu")
        yield counter("bridges", "WebSocket bridges ever opened.", by_gpu(self._bridges), "gpu")
        sides = ("gpu", "direction")
        yield counter("bridge_bytes", "Bytes passed over WebSocket bridges.", self._bridge_bytes, *sides)
        yield counter("bridge_messages", "Data messages passed over WebSocket bridges.", self._bridge_messages, *sides)

    def _watched_families(self) -> Iterator[Metric]:
        if pools := self._pools:
            states = {(name,): sum(getattr(pool, name) for pool in pools) for name in ("busy", "idle", "waiting")}
            yield gauge(
                "pool_connections", "Connections to the backend, and requests waiting for one.", states, "state"
            )
            opened = sum(pool.opened_total for pool in pools)
            yield counter("pool_opened", "Connections to the backend ever opened.", {(): opened})
        if (cache := self._cache) is not None:
            yield from cache_families(cache)
        if (keys := self._limiter_keys) is not None:
            yield gauge("limiter_keys", "Buckets in the rate limiter's table.", {(): keys()})
        if (fleet := self._fleet) is not None:
            yield gauge("backend_up", "Whether the backend takes requests.", {(): int(fleet.up)})
            loads = {(str(gpu),): fleet.load(gpu) for gpu in range(fleet.gpus)}
            yield gauge("lane_load", "Jobs on each GPU as the front door counts them.", loads, "gpu")
        if (not_after := self.certificate_ends()) is not None:
            text = "When the TLS certificate ends, in seconds since 1970."
            yield gauge("certificate_not_after_seconds", text, {(): not_after})
        yield counter("backend_restarts", "Starts of the backend after the first.", {(): self.backend_restarts})
        yield gauge(
            "backend_scrape_ok",
            "Whether the backend's own metrics are part of this scrape.",
            {(): int(self.backend_scrape_ok)},
        )


class _Exposition(Collector):
    """The one collector; asks for the families only when scraped, never when registered."""

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics

    def describe(self) -> list[Metric]:
        return []

    def collect(self) -> Iterator[Metric]:
        return self._metrics.families()


def status_label(status: int) -> str:
    """The status itself where it is one in use, else its class, so that a backend cannot make labels up."""
    if 100 <= status < 600:
        return str(status)
    return "other"
