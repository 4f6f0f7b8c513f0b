"""``POST /preload`` where there is more than one backend: each gets its own GPUs by its own numbers.

Pure. Owns how the body is divided and how the answers become one. What is wrong with a body is for a backend to say.
"""

import json
from collections.abc import Sequence
from typing import Any

from gateway.fleet.member import Member
from gateway.fleet.merge import Told


def shares(body: bytes, gpu: int | None, members: Sequence[Member]) -> list[tuple[Member, bytes]]:
    """The backends that are concerned and what each is sent; without GPUs to divide, the first gets it as it is.

    Raises ``ValueError`` with a line for the client when a GPU's port is asked for another GPU.
    """
    asked = _object(body)
    gpus = asked.get("gpus")
    if gpus is None:
        gpus = [gpu] if gpu is not None else [each.first + at for each in members for at in range(each.gpus)]
    if not isinstance(gpus, list) or any(type(number) is not int for number in gpus) or not asked:
        return [(members[0], body)]
    if gpu is not None and gpus != [gpu]:
        raise ValueError(f"gpus names {gpus}, but the request is for GPU {gpu}")
    own = {each.index: [number - each.first for number in gpus if each.has(number)] for each in members}
    if sum(map(len, own.values())) != len(gpus) or not gpus:
        return [(members[0], body)]
    return [(each, json.dumps({**asked, "gpus": own[each.index]}).encode()) for each in members if own[each.index]]


def together(told: Told) -> tuple[int, dict[str, Any]]:
    """Status and body for all: what each GPU loaded, and the first refusal if there is one."""
    loaded: list[Any] = []
    queued: list[Any] = []
    refused: tuple[int, dict[str, Any]] | None = None
    status = 200
    for first, reply in told:
        found = _object(reply.body)
        if reply.status not in {200, 202} and refused is None:
            refused = (reply.status, {key: found[key] for key in ("error", "node_errors") if key in found})
        status = reply.status if reply.status == 202 else status
        loaded += [{**each, "gpu_id": each["gpu_id"] + first} for each in found.get("preloaded", ())]
        queued += [number + first for number in found.get("preloading", ())]
    body = {**({"preloaded": loaded} if loaded else {}), **({"preloading": queued} if queued else {})}
    return (refused[0], {**refused[1], **body}) if refused else (status, body)


def _object(body: bytes) -> dict[str, Any]:
    try:
        found = json.loads(body)
    except (ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}
