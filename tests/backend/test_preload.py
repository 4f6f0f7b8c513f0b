"""What ``POST /preload`` may ask, and what it is answered."""

from typing import Any

import pytest

from backend.preload import BadPreload, Loaded, Model, answer, of_words, parse

NODE = {"1": {"class_type": "CheckpointLoaderSimple", "inputs": {"ckpt_name": "x"}}}
MODELS = [{"type": "vae", "name": "sub/x.safetensors"}]


def test_models_on_some_lanes():
    """Type and name, what else the loader takes, each GPU once and in order."""
    clip = {"type": "clip", "name": "c", "inputs": {"type": "flux"}}
    found = parse({"models": [*MODELS, clip], "gpus": [2, 0, 2]}, 4, None)
    assert found.models == (Model("vae", "sub/x.safetensors"), Model("clip", "c", {"type": "flux"}))
    assert (found.workflow, found.gpus, found.wait) == (None, (0, 2), True)


@pytest.mark.parametrize(("lane", "gpus"), [(None, (0, 1, 2)), (1, (1,))])
def test_without_gpus_the_request_says_it(lane: int | None, gpus: tuple[int, ...]):
    """At the front door every lane, on a GPU's port its own."""
    assert parse({"models": MODELS}, 3, lane).gpus == gpus
    assert parse({"models": MODELS, "gpus": [1], "wait": False}, 3, lane if lane is None else 1).wait is False


@pytest.mark.parametrize("body", [{"workflow": NODE}, {"workflow": {"prompt": NODE, "client_id": "x"}}])
def test_a_workflow_in_either_form(body: dict[str, Any]):
    """The nodes themselves, or what is sent to /prompt."""
    assert parse(body, 1, None).workflow == NODE


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ([], "object"),
        ({}, "either"),
        ({"models": MODELS, "workflow": NODE}, "either"),
        ({"models": MODELS, "gpu": 1}, "'gpu' means nothing"),
        ({"models": []}, "not empty"),
        ({"models": {"vae": "x"}}, "list"),
        ({"models": ["x"]}, "type, name"),
        ({"models": [{"type": "vae"}]}, "needs a type and a name"),
        ({"models": [{"type": "vae", "name": 3}]}, "needs a type and a name"),
        ({"models": [{"type": "vae", "name": "x", "file": "y"}]}, "type, name"),
        ({"models": [{"type": "vae", "name": "x", "inputs": []}]}, "must be an object"),
        ({"models": MODELS * 65}, "too many"),
        ({"workflow": {}}, "object of nodes"),
        ({"workflow": [1]}, "object of nodes"),
        ({"workflow": {"nodes": []}}, "no class_type"),
        ({"workflow": {"1": {"class_type": "X", "inputs": 3}}}, "inputs of node '1'"),
        ({"models": MODELS, "gpus": []}, "gpus must be"),
        ({"models": MODELS, "gpus": 1}, "gpus must be"),
        ({"models": MODELS, "gpus": [4]}, "gpus names 4"),
        ({"models": MODELS, "gpus": [-1]}, "gpus names -1"),
        ({"models": MODELS, "gpus": [True]}, "gpus names True"),
        ({"models": MODELS, "gpus": ["0"]}, "gpus names '0'"),
        ({"models": MODELS, "wait": "no"}, "wait"),
    ],
)
def test_what_cannot_be_is_told(body: Any, said: str):
    """One sentence names what is wrong; the answer has ComfyUI's shape."""
    with pytest.raises(BadPreload) as refused:
        parse(body, 4, None)
    found = refused.value.answer()
    assert said in found["error"]["message"]
    assert set(found["error"]) == {"type", "message", "details", "extra_info"}
    assert found["node_errors"] == {}


def test_a_gpus_port_is_that_gpu():
    """Another GPU in the body is no way around the port."""
    with pytest.raises(BadPreload, match="the request is for GPU 1"):
        parse({"models": MODELS, "gpus": [0, 1]}, 4, 1)


def test_words_of_the_command_line():
    """Folder and name, the name with its own slashes."""
    assert of_words(["vae/sub/x"], 2).models == (Model("vae", "sub/x"),)
    assert of_words(["vae/x"], 2).gpus == (0, 1)
    for wrong in ("x", "/x", "vae/"):
        with pytest.raises(BadPreload):
            of_words([wrong], 2)


def test_the_answer_is_a_failure_when_one_lane_failed():
    """What the others loaded is told all the same."""
    held = [{"host_own": 1}, {"host_own": 2}]
    status, body = answer([Loaded(0, 2, 0.25), Loaded(1, 3, 1.0)], held)
    assert status == 200
    first = {"gpu_id": 0, "models": 2, "seconds": 0.25, "error": None, "weights": {"host_own": 1}}
    assert body["preloaded"][0] == first
    status, body = answer([Loaded(0, 2, 0.25), Loaded(1, error="MemoryError: no")], held)
    assert status == 500
    assert body["error"]["message"] == "GPU 1 could not load it."
    assert body["error"]["details"] == "MemoryError: no"
    assert [each["models"] for each in body["preloaded"]] == [2, 0]
