"""Runs one workflow on every lane before the backend calls itself ready, through its own front door.

Owns that wait. Knows the contract's routes and nothing of what is behind them.
"""

import asyncio
import json
import logging
import uuid
from pathlib import Path
from typing import Any, Final

import aiohttp

from backend.contract import GPU_HEADER

log = logging.getLogger("backend.overlay.warmup")

LIMIT: Final = 900.0
"""Seconds for one warm-up; a workflow that never ends must not keep the backend from its work."""
LOOK_EVERY: Final = 0.2
"""Seconds between two looks at the history."""


async def run(url: str, file: Path, gpus: int) -> None:
    """Run the API-format workflow in ``file`` once per lane; a failure is logged, not fatal."""
    try:
        workflow = json.loads(file.read_text(encoding="utf-8"))  # noqa: ASYNC240 (a small file, before anybody is served)
    except (OSError, ValueError) as error:
        log.error("the warm-up workflow %s cannot be read: %s", file, error)  # noqa: TRY400 (the line says it all)
        return
    async with aiohttp.ClientSession(url) as session:
        await asyncio.gather(*(_one(session, workflow, gpu) for gpu in range(gpus)))


async def _one(session: aiohttp.ClientSession, workflow: Any, gpu: int) -> None:
    prompt_id = str(uuid.uuid4())
    body = {"prompt": workflow, "prompt_id": prompt_id}
    try:
        async with session.post("/prompt", json=body, headers={GPU_HEADER: str(gpu)}) as response:
            if response.status != 200:
                log.warning("[GPU %d] the warm-up workflow is refused: %s", gpu, await response.text())
                return
        async with asyncio.timeout(LIMIT):
            log.info("[GPU %d] warm-up: %s", gpu, await _outcome(session, prompt_id))
        # Nobody asked for it, so it is in nobody's history.
        await session.post("/history", json={"delete": [prompt_id]}, headers={GPU_HEADER: str(gpu)})
    except TimeoutError:
        log.warning("[GPU %d] the warm-up workflow did not end in %g s", gpu, LIMIT)
    except (aiohttp.ClientError, OSError) as error:
        log.warning("[GPU %d] the warm-up workflow failed: %s", gpu, error)


async def _outcome(session: aiohttp.ClientSession, prompt_id: str) -> str:
    while True:
        async with session.get(f"/history/{prompt_id}") as response:
            entry = (await response.json()).get(prompt_id)
        if entry is not None:
            return str(entry["status"]["status_str"])
        await asyncio.sleep(LOOK_EVERY)
