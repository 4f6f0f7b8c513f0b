"""Answers of several backends made into one."""

import json
from typing import Any

from prometheus_client.parser import text_string_to_metric_families

from gateway.fleet import merge
from gateway.fleet.ask import Reply

TEXT = "text/plain; version=0.0.4; charset=utf-8"


def said(value: Any, status: int = 200) -> Reply:
    return Reply(status, "application/json", json.dumps(value).encode())


def exposition(jobs: float, extra: str = "") -> Reply:
    text = (
        "# HELP jobs_total Jobs.\n# TYPE jobs_total counter\n"
        f'jobs_total{{gpu="0",outcome="ok"}} {jobs}\njobs_total{{outcome="ok",gpu="1"}} {jobs + 1}\n'
        "# HELP wait_seconds Waits.\n# TYPE wait_seconds histogram\n"
        f'wait_seconds_bucket{{gpu="0",le="+Inf"}} {jobs}\nwait_seconds_sum{{gpu="0"}} 1.0\n'
        f'wait_seconds_count{{gpu="0"}} {jobs}\n'
        f"# HELP memory_bytes Memory.\n# TYPE memory_bytes gauge\nmemory_bytes 7.0\n{extra}"
    )
    return Reply(200, TEXT, text.encode())


def test_samples_are_grouped_by_family_and_gpus_renumbered():
    """Prometheus reads it; every family is there once, with the samples of both backends."""
    text = merge.all_samples([(0, exposition(3)), (2, exposition(5, "# HELP new_total N.\nnew_total 1.0\n"))]).decode()
    families = {family.name: family for family in text_string_to_metric_families(text)}
    assert text.count("# TYPE jobs_total counter") == 1
    found = {tuple(sorted(each.labels.items())): each.value for each in families["jobs"].samples}
    assert found == {
        (("gpu", "0"), ("outcome", "ok")): 3.0,
        (("gpu", "1"), ("outcome", "ok")): 4.0,
        (("gpu", "2"), ("outcome", "ok")): 5.0,
        (("gpu", "3"), ("outcome", "ok")): 6.0,
    }
    assert families["wait_seconds"].type == "histogram"
    assert len(families["wait_seconds"].samples) == 6
    assert {each.labels["backend"] for each in families["memory_bytes"].samples} == {"0", "1"}
    lines = [line.partition("{")[0].partition(" ")[0] for line in text.splitlines() if not line.startswith("#")]
    lines = [line.removesuffix("_bucket").removesuffix("_sum").removesuffix("_count") for line in lines]
    groups = [name for at, name in enumerate(lines) if not at or lines[at - 1] != name]
    assert len(groups) == len(set(groups))


def test_one_broken_exposition_costs_only_itself():
    """The other backend's samples stay."""
    text = merge.all_samples([(0, Reply(200, TEXT, b"jobs_total{gpu=\n")), (2, exposition(1))])
    assert b'gpu="2"' in text
    assert b'gpu="0"' not in text
    assert merge.all_samples([]) == b""


def test_queues_of_plain_and_other_backends_are_put_together():
    """One that has only /queue counts as its one GPU; one that answers nonsense is left out."""
    parallel = said({
        "queues": [
            {"gpu_id": 0, "queue_running": [[1, "a"]], "queue_pending": [], "running_count": 1, "pending_count": 0},
            {"gpu_id": 1, "queue_running": [], "queue_pending": [[2, "b"]], "running_count": 0, "pending_count": 1},
        ]
    })
    plain = said({"queue_running": [], "queue_pending": [[1, "c"], [2, "d"]]})
    whole = merge.queues_of_all([(0, parallel), (2, plain), (3, said([]))])
    assert whole is not None
    assert [each["gpu_id"] for each in whole["queues"]] == [0, 1, 2]
    assert (whole["total_running"], whole["total_pending"]) == (1, 3)
    assert merge.queues_of_all([(0, said([]))]) is None


def test_devices_keep_counting():
    """The first one's system, every GPU with the number that users know."""
    one = said({"system": {"os": "posix"}, "devices": [{"name": "cuda:0", "gpu_id": 0}, {"name": "cuda:1"}]})
    whole = merge.devices_of_all([(0, one), (2, one)])
    assert whole["system"] == {"os": "posix"}
    assert [each["gpu_id"] for each in whole["devices"]] == [0, 1, 2, 3]
    assert "weights" not in whole, "plain ComfyUI says nothing of them"
    two = said({"devices": [], "weights": [{"gpu_id": 0, "host_own": 5}]})
    whole = merge.devices_of_all([(0, one), (2, two)])
    assert whole["weights"] == [{"gpu_id": 2, "host_own": 5}]


def test_what_is_not_of_its_shape_adds_nothing():
    """Neither an error nor another type."""
    bad = [(0, said({"exec_info": []})), (1, said("x")), (2, said({}, 500)), (3, Reply(200, "", b"{"))]
    assert merge.remaining_of_all(bad) == {"exec_info": {"queue_remaining": 0}}
    assert merge.queue_of_all(bad) == {"queue_running": [], "queue_pending": []}
    assert merge.lanes_of_all(bad) == {"queues": []}
    assert merge.history_of_all([(0, said({"a": 1})), *bad[1:]]) == {"a": 1}
