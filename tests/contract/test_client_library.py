"""A client that we did not write: comfy-api-simplified, which opens its WebSocket after the POST."""

import asyncio
from pathlib import Path

from comfy_api_simplified import ComfyApiWrapper, ComfyWorkflowWrapper

from tests.contract.client import Client, picture, sampled, unlike
from tests.contract.conftest import Body


def titled(prompt: dict, node_id: str) -> ComfyWorkflowWrapper:
    """With titles, by which this client finds nodes."""
    for key, node in prompt.items():
        node["_meta"] = {"title": "output" if key == node_id else key}
    return ComfyWorkflowWrapper(prompt)


async def test_it_gets_the_pictures_it_asked_for(client: Client, body: Body):
    """Four at once, on one backend: each call returns its own saved picture, not a preview or another's."""
    api = ComfyApiWrapper(body.url)

    def run(prefix: str) -> dict[str, bytes]:
        prompt, node_id = picture(prefix), "2"
        if body.checkpoint is not None:
            prompt, node_id = sampled(body.checkpoint, unlike(), prefix), "9"
        found: dict[str, bytes] = api.queue_and_wait_images(titled(prompt, node_id), "output")
        return found

    prefixes = [f"library-{unlike()}" for _ in range(4)]
    results = await asyncio.gather(*(asyncio.to_thread(run, prefix) for prefix in prefixes))
    for prefix, result in zip(prefixes, results, strict=True):
        ((name, data),) = result.items()
        assert name.startswith(prefix)
        assert data.startswith(b"\x89PNG")


async def test_its_other_calls_work(client: Client, body: Body, tmp_path: Path):
    """Upload, node and system information, queue and interrupt."""
    api = ComfyApiWrapper(body.url)
    (image,) = await client.pictures(await client.submit(picture()))
    path = tmp_path / f"library-{unlike()}.png"
    path.write_bytes(await client.view(image))

    def run() -> None:
        kept = {"name": path.name, "subfolder": "library", "type": "input"}
        assert api.upload_image(path, subfolder="library") == kept
        assert "KSampler" in api.get_object_info()
        assert api.get_system_stats()["devices"]
        assert isinstance(api.get_embeddings(), list)
        assert set(api.get_queue()) >= {"queue_running", "queue_pending"}
        api.interrupt()

    await asyncio.to_thread(run)
