"""A client of ComfyUI's API as tests want it: submits, listens, waits for conditions with a deadline."""

import asyncio
import contextlib
import itertools
import json
import struct
import uuid
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import aiohttp
import pytest

LIMIT = 60.0
"""Seconds after which a condition is taken never to come true."""
_unlike = itertools.count(1)


def unlike() -> int:
    """A number no other job of this run has: jobs with equal inputs would be answered from the cache."""
    return next(_unlike)


def picture(prefix: str = "contract", *, size: int = 16, color: int | None = None, batch: int = 1) -> dict[str, Any]:
    """A one-coloured picture, saved."""
    inputs = {"width": size, "height": size, "batch_size": batch, "color": unlike() if color is None else color}
    return {
        "1": {"class_type": "EmptyImage", "inputs": inputs},
        "2": {"class_type": "SaveImage", "inputs": {"images": ["1", 0], "filename_prefix": prefix}},
    }


def sleeper(seconds: float, *, naps: int = 1) -> dict[str, Any]:
    """A job that takes ``seconds``, in ``naps`` nodes one after the other, and saves a picture."""
    prompt = picture("sleeper")
    last = "1"
    for index in range(naps):
        node_id = str(100 + index)
        inputs = {"value": [last, 0], "seconds": seconds / naps}
        prompt[node_id] = {"class_type": "TestSleep", "inputs": inputs}
        last = node_id
    prompt["2"]["inputs"]["images"] = [last, 0]
    return prompt


def endless() -> dict[str, Any]:
    """A job that outlasts every test, to be interrupted."""
    return sleeper(600)


def sampled(checkpoint: str, seed: int, prefix: str = "sampled", *, steps: int = 4, size: int = 64) -> dict[str, Any]:
    """A small text-to-image job."""
    return {
        "4": {"class_type": "CheckpointLoaderSimple", "inputs": {"ckpt_name": checkpoint}},
        "5": {"class_type": "EmptyLatentImage", "inputs": {"width": size, "height": size, "batch_size": 1}},
        "6": {"class_type": "CLIPTextEncode", "inputs": {"text": "a lighthouse", "clip": ["4", 1]}},
        "7": {"class_type": "CLIPTextEncode", "inputs": {"text": "", "clip": ["4", 1]}},
        "3": {
            "class_type": "KSampler",
            "inputs": {
                "model": ["4", 0], "positive": ["6", 0], "negative": ["7", 0], "latent_image": ["5", 0], "seed": seed,
                "steps": steps, "cfg": 7.0, "sampler_name": "euler_ancestral", "scheduler": "karras", "denoise": 1.0,
            },
        },
        "8": {"class_type": "VAEDecode", "inputs": {"samples": ["3", 0], "vae": ["4", 2]}},
        "9": {"class_type": "SaveImage", "inputs": {"images": ["8", 0], "filename_prefix": prefix}},
    }  # fmt: skip


@dataclass
class Listener:
    """One WebSocket and all that came on it."""

    ws: aiohttp.ClientWebSocketResponse
    events: list[tuple[str, dict[str, Any]]] = field(default_factory=list)
    frames: list[tuple[int, bytes]] = field(default_factory=list)
    """Binary messages: event number and the rest."""

    async def run(self) -> None:
        async for message in self.ws:
            if message.type is aiohttp.WSMsgType.TEXT:
                data = json.loads(message.data)
                self.events.append((data["type"], data["data"]))
            elif message.type is aiohttp.WSMsgType.BINARY:
                self.frames.append((struct.unpack(">I", message.data[:4])[0], message.data[4:]))

    def of(self, prompt_id: str) -> list[tuple[str, dict[str, Any]]]:
        """Events that name this job, in order."""
        return [(kind, data) for kind, data in self.events if data.get("prompt_id") == prompt_id]

    def jobs(self) -> set[str]:
        """Every job that an event named."""
        return {data["prompt_id"] for _, data in self.events if "prompt_id" in data}

    def remaining(self) -> list[int]:
        """The counts of all ``status`` events so far."""
        return [data["status"]["exec_info"]["queue_remaining"] for kind, data in self.events if kind == "status"]

    async def until(self, condition: Callable[[], object], what: str = "") -> None:
        try:
            await until(condition)
        except TimeoutError:
            raise AssertionError(f"never {what or condition}; heard {self.events[-12:]}") from None

    async def ended(self, prompt_id: str) -> None:
        """Wait for the job's very last event."""

        def over() -> bool:
            return any(kind == "executing" and data["node"] is None for kind, data in self.of(prompt_id))

        await self.until(over, f"end of {prompt_id}")


async def until(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(LIMIT):
        while not condition():
            await asyncio.sleep(0.01)


class Client:
    """HTTP and WebSocket to one backend; ``gpu`` becomes the header that the gateway would set.

    ``behind``: to a gateway's front door, where ``gpu`` becomes the prefix.
    """

    def __init__(self, session: aiohttp.ClientSession, url: str, *, behind: bool = False) -> None:
        self.session = session
        self.url = url
        self.behind = behind

    def directly(self, why: str) -> None:
        """Skip what only a backend itself does: a gateway in front of it does otherwise, and why."""
        if self.behind:
            pytest.skip(f"not through a gateway: {why}")

    def at(self, gpu: int | None) -> str:
        """The address of one GPU."""
        return f"{self.url}/gpu{gpu}" if self.behind and gpu is not None else self.url

    def headers(self, gpu: int | None) -> dict[str, str]:
        return {} if gpu is None or self.behind else {"X-TARGET-GPU": str(gpu)}

    async def get(self, path: str, gpu: int | None = None, **more: Any) -> Any:
        """The JSON answer of a GET that must work."""
        async with self.session.get(self.at(gpu) + path, headers=self.headers(gpu), **more) as answer:
            assert answer.status == 200, (path, answer.status, await answer.text())
            return await answer.json()

    async def post(self, path: str, body: Any, gpu: int | None = None) -> tuple[int, Any]:
        """Status and JSON (or ``None``) of a POST."""
        async with self.session.post(self.at(gpu) + path, data=json.dumps(body), headers=self.headers(gpu)) as answer:
            text = await answer.text()
            return answer.status, json.loads(text) if text else None

    async def submit(self, prompt: dict[str, Any], gpu: int | None = None, **body: Any) -> str:
        """Submit a prompt that must be taken; its id."""
        whole = {"client_id": uuid.uuid4().hex, **body, "prompt": prompt}
        whole = {key: value for key, value in whole.items() if value is not None}
        status, answer = await self.post("/prompt", whole, gpu)
        assert status == 200, answer
        found: str = answer["prompt_id"]
        return found

    async def history(self, prompt_id: str, gpu: int | None = None) -> dict[str, Any]:
        """The job's entry, as soon as it is there."""
        async with asyncio.timeout(LIMIT):
            while not (found := await self.get(f"/history/{prompt_id}", gpu)):
                await asyncio.sleep(0.02)
        entry: dict[str, Any] = found[prompt_id]
        return entry

    async def done(self, prompt_id: str) -> dict[str, Any]:
        """The entry of a job that must have succeeded."""
        entry = await self.history(prompt_id)
        assert entry["status"]["status_str"] == "success", entry["status"]
        return entry

    async def pictures(self, prompt_id: str) -> list[dict[str, str]]:
        """What the job saved."""
        entry = await self.done(prompt_id)
        return [image for output in entry["outputs"].values() for image in output.get("images", [])]

    async def view(self, picture: dict[str, str], **more: str) -> bytes:
        async with self.session.get(f"{self.url}/view", params={**picture, **more}) as answer:
            assert answer.status == 200
            return await answer.read()

    async def running(self, prompt_id: str) -> None:
        """Wait until the job has started."""
        async with asyncio.timeout(LIMIT):
            while True:
                queue = await self.get("/queue")
                if any(item[1] == prompt_id for item in queue["queue_running"]):
                    return
                await asyncio.sleep(0.02)

    async def drained(self) -> None:
        """Wait until every lane has done its work."""
        async with asyncio.timeout(LIMIT):
            while (await self.get("/prompt"))["exec_info"]["queue_remaining"]:
                await asyncio.sleep(0.02)

    async def idle(self) -> None:
        """Stop and clear everything, and wait until nothing is left."""
        await self.post("/queue", {"clear": True})
        async with asyncio.timeout(LIMIT):
            while (await self.get("/prompt"))["exec_info"]["queue_remaining"]:
                # By name: without one, the front door stops what the caller itself has running.
                for item in (await self.get("/queue"))["queue_running"]:
                    await self.post("/interrupt", {"prompt_id": item[1]})
                await asyncio.sleep(0.02)

    @asynccontextmanager
    async def listen(
        self, client_id: str | None = None, gpu: int | None = None, **flags: Any
    ) -> AsyncIterator[Listener]:
        """A WebSocket that has heard its first ``status``; ``flags``: sent as its feature flags."""
        query = f"?clientId={client_id}" if client_id else ""
        url, headers = f"{self.at(gpu)}/ws{query}", self.headers(gpu)
        async with self.session.ws_connect(url, headers=headers, max_msg_size=0) as ws:
            if flags:
                await ws.send_json({"type": "feature_flags", "data": flags})
            listener = Listener(ws)
            task = asyncio.get_running_loop().create_task(listener.run(), name=f"listen-{client_id}")
            try:
                await listener.until(lambda: listener.events, "first status")
                yield listener
            finally:
                task.cancel()
                with contextlib.suppress(asyncio.CancelledError):
                    await task
