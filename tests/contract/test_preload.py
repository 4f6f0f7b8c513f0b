"""``POST /preload``: models on lanes ahead of any job, or a clear no."""

from typing import Any

import pytest

from tests.contract.client import Client, endless, picture
from tests.contract.conftest import GPUS, Body


async def held(client: Client) -> list[dict[str, int]]:
    found: list[dict[str, int]] = (await client.get("/system_stats"))["weights"]
    return found


async def test_models_are_loaded_where_the_body_says(client: Client, body: Body):
    """By type and name: the lanes that were named hold it, the answer says what, and no history knows of it."""
    if body.checkpoint is None:
        pytest.skip("this body has no checkpoint at hand")
    await client.post("/history", {"clear": True})
    before = await held(client)
    asked = {"models": [{"type": "checkpoints", "name": body.checkpoint}], "gpus": [1, 3]}
    for prefix in ("", "/api"):
        status, answer = await client.post(f"{prefix}/preload", asked)
        assert status == 200
        assert [(each["gpu_id"], each["error"]) for each in answer["preloaded"]] == [(1, None), (3, None)]
        assert all(each["models"] >= 1 and each["seconds"] >= 0 for each in answer["preloaded"])
    after = await held(client)
    assert [now["preloads"] > then["preloads"] for now, then in zip(after, before, strict=True)] == [
        False, True, False, True,
    ]  # fmt: skip
    assert all(after[gpu]["host_shared"] + after[gpu]["host_own"] + after[gpu]["device"] > 0 for gpu in (1, 3))
    assert await client.get("/history") == {}
    lanes = (await client.get("/debug/queues"))["queues"]
    assert all(body.checkpoint in lanes[gpu]["models"] for gpu in (1, 3)), lanes


async def test_a_gpus_port_preloads_on_that_gpu(client: Client, body: Body):
    """The header says the lane; another one in the body is refused."""
    if body.checkpoint is None:
        pytest.skip("this body has no checkpoint at hand")
    workflow = {"1": {"class_type": "CheckpointLoaderSimple", "inputs": {"ckpt_name": body.checkpoint}}, **{
        f"x{key}": node for key, node in picture().items() if node["class_type"] == "EmptyImage"}}
    status, answer = await client.post("/preload", {"workflow": workflow}, 2)
    assert (status, [each["gpu_id"] for each in answer["preloaded"]]) == (200, [2])
    status, answer = await client.post("/preload", {"workflow": workflow, "gpus": [0]}, 2)
    assert status == 400
    assert answer["error"]["type"] in {"invalid_preload", "bad_request"}


@pytest.mark.parametrize(
    "asked",
    [
        {},
        [],
        {"models": []},
        {"models": [{"type": "checkpoints", "name": "there is none.safetensors"}]},
        {"models": [{"type": "socks", "name": "x"}]},
        {"models": [{"type": "checkpoints", "name": "../../etc/passwd"}]},
        {"workflow": picture()},
        {"workflow": {"1": {"class_type": "No such node", "inputs": {}}}},
        {"workflow": {"1": {"class_type": "CheckpointLoaderSimple", "inputs": {"ckpt_name": "none"}}}},
        {"models": [{"type": "checkpoints", "name": "x"}], "gpus": [GPUS]},
        {"models": [{"type": "checkpoints", "name": "x"}], "gpu": 1},
    ],
)
async def test_what_cannot_be_loaded_is_refused(client: Client, asked: Any):
    """400 in ComfyUI's shape, with a sentence; nothing is queued."""
    status, answer = await client.post("/preload", asked)
    assert status == 400
    assert set(answer["error"]) == {"type", "message", "details", "extra_info"}
    assert answer["error"]["message"]
    found = await client.get("/queue/all")
    assert (found["total_running"], found["total_pending"]) == (0, 0)


async def test_a_preload_does_not_wait_for_other_lanes_jobs(client: Client, body: Body):
    """A lane that works keeps its own preload waiting, and nobody else's."""
    if body.checkpoint is None:
        pytest.skip("this body has no checkpoint at hand")
    await client.running(await client.submit(endless(), 0))
    asked = {"models": [{"type": "checkpoints", "name": body.checkpoint}], "gpus": [1]}
    assert (await client.post("/preload", asked))[0] == 200
    status, answer = await client.post("/preload", {**asked, "gpus": [0], "wait": False})
    assert (status, answer) == (202, {"preloading": [0]})
