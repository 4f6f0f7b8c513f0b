"""Preloads on the overlay: which nodes they run, how they stand in a lane's queue, what the route answers."""

from collections.abc import AsyncIterator, Iterator
from types import SimpleNamespace
from typing import Any

import aiohttp
import pytest

from backend.contract import GPU_HEADER
from backend.overlay.ahead import Aheads, nodes_of, reason
from backend.overlay.patches.ahead import leaves, patchers
from backend.preload import BadPreload, Loaded, parse
from tests.backend.overlay.test_queues import done, item, queues, take
from tests.doubles.checkout import Client, Started

__all__ = ["queues"]


def node(*types: str, **required: Any) -> Any:
    return SimpleNamespace(RETURN_TYPES=types, INPUT_TYPES=lambda: {"required": required})


CLASSES = {
    "CheckpointLoaderSimple": node("MODEL", "CLIP", "VAE", ckpt_name=(["x"],)),
    "CLIPLoader": node("CLIP", clip_name=(["c"],), type=(["sd", "flux"],)),
    "UNETLoader": node(
        "MODEL", unet_name=("COMBO", {"options": ["u"]}), weight_dtype=("COMBO", {"options": ["d", "e"]})
    ),
    "VAELoader": node("VAE", vae_name=(["v"],), strength=("FLOAT", {"default": 0.5})),
    "LoraLoader": node("MODEL", "CLIP"),
    "CLIPTextEncode": node("CONDITIONING"),
    "Mixed": node("MODEL", "IMAGE"),
    "KSampler": node("LATENT"),
    "SaveImage": node(),
}


def nodes(body: dict[str, Any]) -> dict[str, Any]:
    return nodes_of(parse(body, 1, None), CLASSES)


def test_models_become_their_loaders():
    """The name goes where the loader takes it; its other inputs are their defaults, else their first choice."""
    kinds = [("checkpoints", "x"), ("text_encoders", "c"), ("diffusion_models", "u"), ("vae", "v")]
    found = nodes({"models": [{"type": kind, "name": name} for kind, name in kinds]})
    assert [(each["class_type"], each["inputs"]) for each in found.values()] == [
        ("CheckpointLoaderSimple", {"ckpt_name": "x"}),
        ("CLIPLoader", {"clip_name": "c", "type": "sd"}),
        ("UNETLoader", {"unet_name": "u", "weight_dtype": "d"}),
        ("VAELoader", {"vae_name": "v", "strength": 0.5}),
    ]
    chosen = nodes({"models": [{"type": "clip", "name": "c", "inputs": {"type": "flux"}}]})
    assert chosen["preload-0"]["inputs"]["type"] == "flux"


def test_a_workflow_gives_its_loaders_and_what_they_feed():
    """Nodes that make models of models run too; what needs anything else, and what it feeds, does not."""
    workflow = {
        "1": {"class_type": "CheckpointLoaderSimple", "inputs": {"ckpt_name": "x"}},
        "2": {"class_type": "LoraLoader", "inputs": {"model": ["1", 0], "clip": ["1", 1], "strength": 1.0}},
        "3": {"class_type": "CLIPTextEncode", "inputs": {"clip": ["2", 1]}},
        "4": {"class_type": "LoraLoader", "inputs": {"model": ["3", 0]}},
        "5": {"class_type": "LoraLoader", "inputs": {"model": ["4", 0]}},
        "6": {"class_type": "Mixed", "inputs": {}},
        "7": {"class_type": "SaveImage", "inputs": {"images": ["3", 0]}},
    }
    assert list(nodes({"workflow": workflow})) == ["1", "2"]


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ({"models": [{"type": "loras", "name": "x"}]}, "'loras' is no type"),
        ({"models": [{"type": "gligen", "name": "x"}]}, "no GLIGENLoader"),
        ({"workflow": {"1": {"class_type": "Gone", "inputs": {}}}}, "no node Gone"),
        ({"workflow": {"1": {"class_type": "KSampler", "inputs": {}}}}, "loads no models"),
    ],
)
def test_what_cannot_be_loaded_is_told(body: dict[str, Any], said: str):
    """Before anything is queued."""
    with pytest.raises(BadPreload, match=said):
        nodes(body)


def test_a_preload_is_no_job(queues: Any):
    """It waits and runs in the lane's queue, and no history, counter or job's outcome knows of it."""
    queue, stats = queues.lanes[1], queues.lanes[1].lane.stats
    waiting = queues.shared.ahead.accept("ahead")
    queue.put(item(0, "ahead"))
    queue.put(item(1, "job"))
    assert queue.get_tasks_remaining() == 2
    assert stats.snapshot().pending == 1
    _, number = take(queue)
    assert not waiting.done()
    queues.shared.ahead.found("ahead", 3)
    done(queue, number)
    assert waiting.result(0).models == 3
    assert waiting.result(0).gpu == 1
    assert queues.merged.get_history() == {}
    assert set(stats.snapshot().outcomes.values()) == {0}
    assert queue.lane.weights.now().preloads == 3
    assert take(queue)[0] == "job"
    assert "weights" not in queues.merged.get_history()


@pytest.mark.parametrize("how", ["failed", "interrupted", "dropped", "device"])
def test_a_preload_always_ends(queues: Any, how: str):
    """Whatever becomes of its item, who waits is told, and no model is counted."""
    queue = queues.lanes[0]
    waiting = queues.shared.ahead.accept("ahead")
    queue.put(item(0, "ahead"))
    if how == "dropped":
        queue.wipe_queue()
    else:
        _, number = take(queue)
        messages = {
            "failed": [("execution_error", {"exception_type": "OSError", "exception_message": "gone\n"})],
            "interrupted": [("execution_interrupted", {})], "device": [],
        }[how]  # fmt: skip
        queues.shared.ahead.found("ahead", 1, "OutOfMemoryError: full" if how == "device" else None)
        done(queue, number, "success" if how == "device" else "error", messages)
    found: Loaded = waiting.result(0)
    words = {"failed": "OSError: gone", "interrupted": "interrupted", "dropped": "taken out", "device": "OutOfMemory"}
    assert words[how] in str(found.error)
    assert found.models == 0
    assert queue.lane.weights.now().preloads == 0


def test_free_lets_preloaded_files_go(queues: Any):
    """They stay in host memory until the lane is told to free; another flag does not touch them."""
    queue = queues.lanes[2]
    queue.lane.weights.kept.append(object())
    queue.set_flag("free_memory", data=False)
    assert queue.lane.weights.kept
    queue.set_flag("unload_models", data=True)
    assert queue.lane.weights.kept == []


def test_an_unknown_end_is_none():
    """An id that was no preload, or has ended, counts nothing."""
    aheads = Aheads()
    assert aheads.end("x", 0, None) == 0
    assert "x" not in aheads
    assert reason(None) is None
    assert reason(SimpleNamespace(status_str="error", messages=[])) == "It failed."


def test_models_are_found_in_what_a_cache_keeps():
    """Patchers, objects that have one, ControlNets; each once, however deep, plain values left out."""
    patcher = SimpleNamespace(model_patches_models=list, load_device="cpu")
    clip, control = SimpleNamespace(patcher=patcher), SimpleNamespace(get_models=lambda: [patcher])
    kept = {"a": [[patcher], [clip]], "b": (None, {"ui": "x"}, [[control, 3]]), "c": [[patcher]]}
    found = list(leaves(kept))
    assert found == [patcher, clip, control]
    assert [list(patchers(value)) for value in found] == [[patcher], [patcher], [patcher]]
    assert list(patchers(SimpleNamespace(patcher=None))) == []


@pytest.fixture(scope="module")
def backend() -> Iterator[str]:
    started = Started("--gpus", "2", "--warmup-model", "checkpoints/two", "--warmup-model", "checkpoints/one")
    try:
        yield started.ready()["url"]
    finally:
        started.stop()


@pytest.fixture
async def session(backend: str) -> AsyncIterator[aiohttp.ClientSession]:
    async with aiohttp.ClientSession(backend) as found:
        yield found


async def preload(session: aiohttp.ClientSession, body: Any, path: str = "/preload", gpu: int | None = None) -> Any:
    headers = {} if gpu is None else {GPU_HEADER: str(gpu)}
    async with session.post(path, json=body, headers=headers) as response:
        return response.status, await response.json()


async def preloads(session: aiohttp.ClientSession) -> list[int]:
    async with session.get("/system_stats") as response:
        return [entry["preloads"] for entry in (await response.json())["weights"]]


@pytest.mark.parametrize("path", ["/preload", "/api/preload"])
async def test_the_route_loads_on_the_lanes_it_names(session: aiohttp.ClientSession, path: str):
    """All lanes, those in the body, or the request's own; the history stays empty; warm-up models were counted."""
    before = await preloads(session)
    assert min(before) >= 2, "the warm-up"
    status, found = await preload(session, {"models": [{"type": "checkpoints", "name": "one"}]}, path)
    assert status == 200
    told = [(each["gpu_id"], each["models"], each["error"]) for each in found["preloaded"]]
    assert told == [(0, 1, None), (1, 1, None)]
    workflow = {"a": {"class_type": "CheckpointLoaderSimple", "inputs": {"ckpt_name": "two", "kind": "b"}},
                "b": {"class_type": "Save", "inputs": {"folder": "x"}}}
    _, found = await preload(session, {"workflow": workflow, "gpus": [1]}, path)
    assert [each["gpu_id"] for each in found["preloaded"]] == [1]
    _, found = await preload(session, {"workflow": workflow}, path, gpu=0)
    assert [each["gpu_id"] for each in found["preloaded"]] == [0]
    assert await preloads(session) == [count + 2 for count in before]
    async with session.get("/history") as response:
        assert await response.json() == {}


@pytest.mark.parametrize(
    ("body", "gpu"),
    [
        ("no json", None),
        ({"models": [{"type": "checkpoints", "name": "absent"}]}, None),
        ({"models": [{"type": "checkpoints", "name": "one"}], "gpus": [0]}, 1),
        ({"models": [{"type": "checkpoints", "name": "one"}], "gpus": [7]}, None),
    ],
)
async def test_a_bad_request_is_refused(session: aiohttp.ClientSession, body: Any, gpu: int | None):
    """400 in ComfyUI's shape; nothing is loaded."""
    before = await preloads(session)
    status, found = await preload(session, body, gpu=gpu)
    assert status == 400
    assert set(found["error"]) == {"type", "message", "details", "extra_info"}
    assert await preloads(session) == before


@pytest.mark.parametrize(("name", "said"), [("bad", "ValueError"), ("huge", "OutOfMemoryError")])
async def test_a_model_that_does_not_load_is_told(session: aiohttp.ClientSession, name: str, said: str):
    """A broken file and a full device: 500 with the reason, and the lane works on."""
    status, found = await preload(session, {"models": [{"type": "checkpoints", "name": name}], "gpus": [0]})
    assert status == 500
    assert said in found["error"]["details"]
    async with Client(session, 0) as client:
        entry = await client.entry(await client.submit(("Noise", {"seed": 1})))
        assert entry["status"]["status_str"] == "success"
        assert entry["weights"]["preloads"] == 0
        await client.post("/history", {"clear": True})


async def test_a_preload_waits_its_turn(session: aiohttp.ClientSession):
    """Behind the job that runs, never beside it; asked not to wait, the answer comes at once."""
    async with Client(session, 1) as client:
        gate, before = "preload-gate", await preloads(session)
        job = await client.submit(("Wait", {"gate": gate}))
        await client.until(lambda: "executing" in client.heard(job))
        body = {"models": [{"type": "checkpoints", "name": "one"}], "gpus": [1], "wait": False}
        assert await preload(session, body) == (202, {"preloading": [1]})
        queue = await client.get("/queue")
        assert (len(queue["queue_running"]), len(queue["queue_pending"])) == (1, 1)
        assert await preloads(session) == before
        await client.entry(await client.submit(("Open", {"gate": gate}), gpu=0))
        last = await client.submit(("Noise", {"seed": 1}))
        await client.entry(last)
        assert await preloads(session) == [before[0], before[1] + 1]
        await client.post("/history", {"clear": True})
        async with Client(session, 0) as other:
            await other.post("/history", {"clear": True})
