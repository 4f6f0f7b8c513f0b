"""Preloads over several backends: who is sent what, and one answer."""

import json
from typing import Any

import pytest

from gateway.fleet.ahead import shares, together
from gateway.fleet.ask import Reply
from gateway.fleet.member import Member

MEMBERS = [Member(2, index=0, first=0), Member(3, index=1, first=2)]
MODELS = [{"type": "vae", "name": "x"}]


def sent(body: Any, gpu: int | None = None) -> dict[int, Any]:
    raw = body if isinstance(body, bytes) else json.dumps(body).encode()
    return {member.index: found.get("gpus") if isinstance(found := json.loads(part), dict) else found
            for member, part in shares(raw, gpu, MEMBERS)}


def test_each_backend_gets_its_own_gpus_by_its_own_numbers():
    """Named, all of them at the front door, or the port's own; the rest of the body stays."""
    assert sent({"models": MODELS, "gpus": [0, 2, 4]}) == {0: [0], 1: [0, 2]}
    assert sent({"models": MODELS, "gpus": [3]}) == {1: [1]}
    assert sent({"models": MODELS}) == {0: [0, 1], 1: [0, 1, 2]}
    assert sent({"models": MODELS}, 4) == {1: [2]}
    assert sent({"models": MODELS, "gpus": [4]}, 4) == {1: [2]}
    ((_, part),) = shares(json.dumps({"models": MODELS, "gpus": [1], "wait": False}).encode(), None, MEMBERS)
    assert json.loads(part) == {"models": MODELS, "gpus": [1], "wait": False}


@pytest.mark.parametrize("body", [b"[1]", {"models": MODELS, "gpus": "all"}, {"models": MODELS, "gpus": [9]},
                                  {"models": MODELS, "gpus": [True]}, {"models": MODELS, "gpus": []}])
def test_what_cannot_be_divided_goes_to_a_backend_to_be_refused(body: Any):
    """As it came: the words of a refusal are the backend's."""
    raw = body if isinstance(body, bytes) else json.dumps(body).encode()
    assert shares(raw, None, MEMBERS) == [(MEMBERS[0], raw)]


def test_a_gpus_port_is_that_gpu():
    """Another one in the body is refused, not loaded elsewhere."""
    with pytest.raises(ValueError, match="for GPU 3"):
        sent({"models": MODELS, "gpus": [0]}, 3)


def reply(status: int, body: Any) -> Reply:
    return Reply(status, "application/json", json.dumps(body).encode())


def test_answers_become_one():
    """GPUs get the users' numbers; a refusal anywhere is the answer, with what was loaded elsewhere."""
    good = [(0, reply(200, {"preloaded": [{"gpu_id": 1}]})), (2, reply(200, {"preloaded": [{"gpu_id": 0}]}))]
    assert together(good) == (200, {"preloaded": [{"gpu_id": 1}, {"gpu_id": 2}]})
    queued = [(0, reply(202, {"preloading": [0]})), (2, reply(202, {"preloading": [1]}))]
    assert together(queued) == (202, {"preloading": [0, 3]})
    bad = [good[0], (2, reply(500, {"error": {"type": "preload_failed"}, "preloaded": [{"gpu_id": 0, "error": "x"}]}))]
    status, body = together(bad)
    assert status == 500
    assert body["error"] == {"type": "preload_failed"}
    assert [each["gpu_id"] for each in body["preloaded"]] == [1, 2]
    assert together([(0, reply(400, {"error": {"type": "invalid_preload"}, "node_errors": {}}))])[0] == 400
    assert together([(0, Reply(404, "text/html", b"<html>"))]) == (404, {})
