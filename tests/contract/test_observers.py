"""``/debug/events``: one socket that hears every lane."""

import asyncio
import json
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import aiohttp

from tests.contract.client import Client, sleeper, until


class Heard:
    """Everything one observer was told."""

    def __init__(self) -> None:
        self.events: list[dict[str, Any]] = []

    def of(self, prompt_id: str) -> list[dict[str, Any]]:
        """Events that name this job, in order."""
        return [each for each in self.events if (each["data"] or {}).get("prompt_id") == prompt_id]

    def ended(self, prompt_id: str) -> bool:
        return any(each["type"] == "execution_success" for each in self.of(prompt_id))


@asynccontextmanager
async def observing(client: Client) -> AsyncIterator[Heard]:
    """Connect without any client id, and collect."""
    heard = Heard()

    async def collect(ws: aiohttp.ClientWebSocketResponse) -> None:
        async for message in ws:
            if message.type is aiohttp.WSMsgType.TEXT:
                heard.events.append(json.loads(message.data))

    async with client.session.ws_connect(f"{client.url}/debug/events") as ws, asyncio.TaskGroup() as tasks:
        task = tasks.create_task(collect(ws), name="observer")
        await until(lambda: heard.events)
        yield heard
        task.cancel()


async def test_an_observer_hears_every_lane(client: Client):
    """Jobs of two clients on two lanes: all their events in order, each with its GPU, and the lanes' status."""
    client.directly("the gateway is the observer")
    async with observing(client) as heard:
        assert heard.events[0] == {"type": "hello", "data": {"gpus": 4}, "gpu_id": None}
        jobs = {await client.submit(sleeper(0.2), gpu, client_id=uuid.uuid4().hex): gpu for gpu in (1, 3)}
        await until(lambda: all(heard.ended(job) for job in jobs))
        for job, gpu in jobs.items():
            kinds = [each["type"] for each in heard.of(job)]
            assert {each["gpu_id"] for each in heard.of(job)} == {gpu}
            assert kinds[0] == "execution_start"
            assert {"execution_cached", "executing", "progress_state", "executed"} <= set(kinds)
            assert kinds.index("executing") < kinds.index("executed") < kinds.index("execution_success")
        await until(lambda: {1, 3} <= {each["gpu_id"] for each in heard.events if each["type"] == "status"})


async def test_observers_come_and_go_without_a_job_noticing(client: Client):
    """One that leaves in the middle, and one that never reads."""
    client.directly("the gateway is the observer")
    async with client.session.ws_connect(f"{client.url}/debug/events"):
        async with observing(client) as heard:
            job = await client.submit(sleeper(0.3), 0)
            await until(lambda: any(each["type"] == "status" for each in heard.events))
        await client.done(job)
