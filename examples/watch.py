"""Submits a workflow and shows its progress: ``python examples/watch.py http://127.0.0.1:8182 examples/txt2img.json``.

What any ComfyUI client does: connect with a clientId, submit with the same one, listen until the job is over.
"""

import asyncio
import json
import sys
import uuid
from pathlib import Path

import aiohttp


async def watch(url: str, workflow: str) -> None:
    client = uuid.uuid4().hex
    body = {**json.loads(workflow), "client_id": client}
    async with aiohttp.ClientSession(url) as session, session.ws_connect(f"/ws?clientId={client}") as events:
        async with session.post("/prompt", json=body) as answer:
            job = await answer.json()
        print(job)
        async for message in events:
            if message.type is not aiohttp.WSMsgType.TEXT:
                continue  # a preview picture
            event = json.loads(message.data)
            data = event["data"]
            if event["type"] == "progress":
                print(f"\r{data['value']}/{data['max']}", end="", flush=True)
            elif event["type"] in {"execution_success", "execution_error"} and data["prompt_id"] == job["prompt_id"]:
                print(f"\n{event['type']}")
                return


if __name__ == "__main__":
    asyncio.run(watch(sys.argv[1], Path(sys.argv[2]).read_text(encoding="utf-8")))
