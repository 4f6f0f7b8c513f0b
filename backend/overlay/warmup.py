"""Runs one workflow on every lane before the backend calls itself ready, through its own front door.

Owns that wait. Knows the contract's routes and nothing of what is behind them.
"""

import asyncio
import json
import logging
import uuid
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import aiohttp

from backend.contract import GPU_HEADER
from backend.preload import BadPreload, of_words

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


async def load(url: str, models: Sequence[str], gpus: int) -> None:
    """Load these on every lane, through the front door as well; a failure is logged, not fatal."""
    try:
        wanted = of_words(models, gpus)
    except BadPreload as error:
        log.error("the models to warm up with: %s %s", error, error.hint)  # noqa: TRY400 (the line says it all)
        return
    body = {"models": [{"type": model.folder, "name": model.name} for model in wanted.models]}
    try:
        async with (
            aiohttp.ClientSession(url, timeout=aiohttp.ClientTimeout(total=LIMIT)) as session,
            session.post("/preload", json=body) as response,
        ):
            said = await response.text()
    except (aiohttp.ClientError, OSError, TimeoutError) as error:
        log.warning("the models to warm up with were not loaded: %s", error or type(error).__name__)
        return
    if response.status == 200:
        log.info("warm-up: %s on %d lanes", ", ".join(models), gpus)
    else:
        log.warning("the models to warm up with are refused: %s", said)


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
