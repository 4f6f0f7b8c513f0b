"""The route ``POST /preload`` of the overlay: from a request to items in lanes' queues, and the answer.

Owns the route. What the items do when their turn comes is in ``patches/ahead``.
"""

import asyncio
import importlib
import json
import time
import uuid
from typing import Any

from aiohttp import web

from backend.context import current_lane
from backend.overlay import ahead
from backend.overlay.refusals import unavailable
from backend.overlay.state import State
from backend.preload import BadPreload, Outcome, answer, parse


async def handle(state: State, request: web.Request) -> web.Response:
    """Answers when every lane has loaded, or at once with 202 when the body says ``"wait": false``."""
    try:
        wanted = parse(_json(await request.text()), len(state.lanes), current_lane())
        prompt = ahead.nodes_of(wanted, importlib.import_module("nodes").NODE_CLASS_MAPPINGS)
        await _validate(prompt)
    except BadPreload as error:
        return web.json_response(error.answer(), status=400)
    for gpu in wanted.gpus:
        if (fault := state.lanes[gpu].stats.broken) is not None:
            return unavailable(state.lanes[gpu], fault)
    waiting = [_queue(state, gpu, prompt) for gpu in wanted.gpus]
    if not wanted.wait:
        return web.json_response({"preloading": list(wanted.gpus)}, status=202)
    done = await asyncio.gather(*(asyncio.wrap_future(each) for each in waiting))
    status, body = answer(done, [state.lanes[each.gpu].weights.now().shown() for each in done])
    return web.json_response(body, status=status)


def _json(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise BadPreload("The body is not JSON.", str(error)) from error


async def _validate(prompt: ahead.Prompt) -> None:
    """As ComfyUI judges a submission, without its demand for an output node."""
    execution = importlib.import_module("execution")
    validated: dict[str, Any] = {}
    errors: dict[str, Any] = {}
    for node_id, node in prompt.items():
        valid, problems, _ = await execution.validate_inputs("preload", prompt, node_id, validated)
        if not valid:
            errors[node_id] = {"errors": problems, "dependent_outputs": [node_id], "class_type": node["class_type"]}
    if errors:
        first: dict[str, Any] = next((each["errors"][0] for each in errors.values() if each["errors"]), {})
        raise BadPreload(str(first.get("message", "The nodes cannot run.")), str(first.get("details", "")), errors)


def _queue(state: State, gpu: int, prompt: ahead.Prompt) -> Outcome:
    prompt_id = str(uuid.uuid4())
    waiting = state.queues.shared.ahead.accept(prompt_id)
    # In its turn among the lane's jobs. Copied: the executor may change what it is given.
    number, state.server.number = state.server.number, state.server.number + 1
    own = json.loads(json.dumps(prompt))
    extra = {"create_time": int(time.time() * 1000)}
    state.queues.lanes[gpu].put((number, prompt_id, own, extra, list(own), *state.version.item_rest()))
    return waiting
