"""The gateway's own metrics: what is counted, under which names, and at what cost."""

import re
import shutil
import subprocess
import timeit
from types import SimpleNamespace

import pytest
from prometheus_client.parser import text_string_to_metric_families

from gateway.fleet.lanes import Fleet
from gateway.observe.metrics import FRONT, PREFIX, TO_BACKEND, TO_CLIENT, Metrics, status_label
from gateway.request import Kind


def used() -> Metrics:
    """Metrics in which every one has moved."""
    metrics = Metrics(gpus=2, version="9.9.9")
    fleet = Fleet(2)
    fleet.members[0].backend_up("embedded", ["cpu", "cpu"])
    fleet.reserve(1)
    metrics.watch_fleet(fleet)
    metrics.watch_pools([SimpleNamespace(busy=1, idle=2, waiting=3, opened_total=4)])
    metrics.watch_limiter(lambda: 17)
    jobs = SimpleNamespace(
        job_counts=lambda: {"queued": 3},
        job_moves=lambda: {"failed": 2},
        recovered=8,
        written=(40, 9, 0.5, 3),
        line=(4, 2, 1.5),
    )
    metrics.watch_jobs(jobs)
    metrics.watch_webhooks(lambda: {"delivered": 12})
    metrics.certificate_ends = lambda: 1.9e9
    metrics.in_flight = 5
    metrics.backend_restarts = 6
    metrics.backend_scrape_ok = True
    metrics.request("0", Kind.SUBMIT, 200, 0.02, 0.01, 100, 2000)
    metrics.request(FRONT, Kind.READ, 404, 0.0001, 0.0, 7, 8)
    metrics.denied("1", "submit")
    metrics.retried("stale_connection")
    metrics.bridge_opened("0")
    metrics.bridge_opened("1")
    metrics.bridge_closed("1")
    metrics.bridge_bytes("0", TO_CLIENT, 300)
    metrics.bridge_messages("0", TO_BACKEND, 2)
    return metrics


def samples(metrics: Metrics) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    families = text_string_to_metric_families(metrics.text().decode())
    return {
        (sample.name.removeprefix(PREFIX), tuple(sorted(sample.labels.items()))): sample.value
        for family in families
        for sample in family.samples
    }


def test_each_number_told_is_found_under_its_name():
    """What the data path reports is what a scrape shows, label by label."""
    found = samples(used())
    gpu0, gpu1 = ("gpu", "0"), ("gpu", "1")
    assert found["webhooks_total", (("result", "delivered"),)] == 12
    assert found["build_info", (("version", "9.9.9"),)] == 1
    assert found["requests_total", (gpu0, ("kind", "submit"), ("status", "200"))] == 1
    assert found["requests_total", (("gpu", "front"), ("kind", "read"), ("status", "404"))] == 1
    assert found["in_flight_requests", ()] == 5
    assert found["received_bytes_total", (gpu0,)] == 100
    assert found["sent_bytes_total", (gpu0,)] == 2000
    assert found["denied_total", (gpu1, ("reason", "submit"))] == 1
    assert found["backend_retries_total", (("reason", "stale_connection"),)] == 1
    assert (found["bridges_open", (gpu0,)], found["bridges_open", (gpu1,)]) == (1, 0)
    assert found["bridges_total", (gpu1,)] == 1
    assert found["bridge_bytes_total", (("direction", "to_client"), gpu0)] == 300
    assert found["bridge_messages_total", (("direction", "to_backend"), gpu0)] == 2
    states = [found["pool_connections", (("state", state),)] for state in ("busy", "idle", "waiting")]
    assert states == [1, 2, 3]
    assert found["pool_opened_total", ()] == 4
    assert found["limiter_keys", ()] == 17
    assert found["backend_up", ()] == 1
    assert (found["lane_load", (gpu0,)], found["lane_load", (gpu1,)]) == (0, 1)
    assert found["backend_restarts_total", ()] == 6
    assert found["backend_scrape_ok", ()] == 1
    assert found["jobs", (("state", "queued"),)] == 3
    assert found["job_moves_total", (("state", "failed"),)] == 2
    assert found["jobs_recovered_total", ()] == 8
    assert [found[name, ()] for name in ("line_jobs", "eta_foretold_total", "eta_error_seconds_total")] == [4, 2, 1.5]
    assert found["journal_writes_total", ()] == 40
    assert found["journal_commits_total", ()] == 9
    assert found["journal_commit_seconds_total", ()] == 0.5


def test_durations_fall_into_cumulative_buckets_by_phase():
    """A duration counts in its bucket and all above; one that never reached the backend is not in that phase."""
    found = samples(used())

    def bucket(phase: str, bound: str) -> float:
        return found["request_duration_seconds_bucket", (("le", bound), ("phase", phase))]

    assert [bucket("total", bound) for bound in ("0.001", "0.01", "0.025", "+Inf")] == [1, 1, 2, 2]
    assert [bucket("backend", bound) for bound in ("0.005", "0.01", "+Inf")] == [0, 1, 1]
    assert found["request_duration_seconds_count", (("phase", "backend"),)] == 1
    assert found["request_duration_seconds_sum", (("phase", "total"),)] == pytest.approx(0.0201)


def test_every_name_carries_the_prefix_and_the_process_is_told_apart():
    """Beside a backend's own process metrics, in one scrape, no name appears twice."""
    names = re.findall(r"^# TYPE (\S+)", used().text().decode(), re.MULTILINE)
    assert names
    assert all(name.startswith(PREFIX) for name in names)
    assert len(names) == len(set(names))


def test_a_backend_cannot_make_labels_up():
    """Any status outside HTTP's range is one label, so the number of series is bounded."""
    assert {status_label(status) for status in (0, 99, 600, 999, 31337)} == {"other"}
    assert status_label(499) == "499"


@pytest.mark.skipif(shutil.which("promtool") is None, reason="promtool is not installed (Debian: prometheus)")
def test_promtool_finds_nothing_to_complain_about():
    """Names, units, help texts and types pass Prometheus' own lint."""
    done = subprocess.run(["promtool", "check", "metrics"], input=used().text(), capture_output=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")


def test_counting_a_request_costs_little_beside_serving_it():
    """Counting costs less than fifty times a dict update on the same machine (measured: about eight)."""
    metrics = Metrics(gpus=4, version="0")
    table = {"a": 0}

    def update() -> None:
        table["a"] += 1

    def count() -> None:
        metrics.request("0", Kind.READ, 200, 0.003, 0.002, 0, 1000)

    cheap, real = (min(timeit.repeat(work, number=5000, repeat=5)) for work in (update, count))
    print(f"request() {real / 5000 * 1e6:.2f} µs, {real / cheap:.1f} dict updates")
    assert real < 50 * cheap
