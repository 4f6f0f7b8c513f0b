"""A submission's body: what the gateway reads in it, and the one thing it puts in.

Pure. Owns the reading of ``POST /prompt`` as ComfyUI reads it (``server.py: post_prompt``), and the insertion of a
``prompt_id`` that leaves every other byte as the client sent it. Must never judge a workflow: that is the backend's.
"""

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from gateway.schedule.workflow import UNKNOWN, Workflow
from gateway.schedule.workflow import read as workflow_of

_CHARSET: Final = re.compile(r"""charset\s*=\s*["']?([A-Za-z0-9._-]+)""", re.IGNORECASE)
PRIORITIES: Final = (-1000, 1000)
_LONGEST_ID: Final = 1000
"""Characters of a ``prompt_id``; a UUID has 36."""

_SECRETS: Final = frozenset({"auth_token_comfy_org", "api_key_comfy_org"})
"""Keys of ``extra_data`` that ComfyUI never shows again (``execution.py: SENSITIVE_EXTRA_DATA_KEYS``)."""


@dataclass(frozen=True)
class Prompt:
    """A submission that is a JSON object. ``body`` carries ``id``, in the client's own encoding."""

    id: str
    client_id: str
    body: bytes
    workflow: Workflow = UNKNOWN
    priority: int = 0
    number: float | None = None
    """The ``number`` that the client itself gave."""
    front: bool = False


def read(body: bytes, content_type: str, fresh_id: str) -> Prompt | None:
    """What a client submitted, with ``fresh_id`` put in if it named no ``prompt_id``.

    ``None`` when it is not a JSON object: then it is for the backend, as it stands, to say what is wrong with it.
    Raises ``ValueError`` for a ``prompt_id`` that cannot name a job, or a ``priority`` that is none.
    """
    charset = charset_of(content_type)
    try:
        text = body.decode(charset)
        found = json.loads(text)
    except (ValueError, LookupError, RecursionError):
        return None
    if not isinstance(found, dict):
        return None
    given = found.get("prompt_id")
    if given is not None:
        _check(str(given))
        return _prompt(str(given), found, body)
    if "prompt_id" in found:
        # "prompt_id": null; an id put in front of it would be overridden by it.
        found["prompt_id"] = fresh_id
        return _prompt(fresh_id, found, json.dumps(found).encode(charset))
    brace = text.index("{") + 1
    rest = text[brace:]
    comma = "" if rest.lstrip().startswith("}") else ", "
    text = f'{text[:brace]}"prompt_id": {json.dumps(fresh_id)}{comma}{rest}'
    return _prompt(fresh_id, found, text.encode(charset))


def _prompt(name: str, found: Mapping[str, Any], body: bytes) -> Prompt:
    client_id = found.get("client_id")
    priority = found.get("priority", 0)
    if not isinstance(priority, int) or isinstance(priority, bool) or not PRIORITIES[0] <= priority <= PRIORITIES[1]:
        raise ValueError(f"priority is {priority!r:.50}; it must be a whole number from -1000 to 1000")
    try:
        number = float(found["number"])
    except (KeyError, TypeError, ValueError, OverflowError):
        number = math.nan  # the backend says what is wrong with it
    return Prompt(
        name,
        "" if client_id is None else str(client_id),
        body,
        workflow_of(found.get("prompt")),
        priority,
        number if math.isfinite(number) else None,
        bool(found.get("front")),
    )


def _check(name: str) -> None:
    if not 0 < len(name) <= _LONGEST_ID:
        raise ValueError(f"it has {len(name)} characters; 1 to {_LONGEST_ID} are possible")
    if "{" in name or "}" in name:
        # ComfyUI's GET /history/{prompt_id} finds no such id: nobody could see what became of the job.
        raise ValueError("a prompt_id cannot hold { or }: leave it out, or send a UUID")
    name.encode()  # half a surrogate pair is no text; UnicodeEncodeError is a ValueError


def charset_of(content_type: str) -> str:
    """The encoding that a ``Content-Type`` names; UTF-8 unless it does (as aiohttp reads JSON)."""
    match = _CHARSET.search(content_type)
    return match[1] if match else "utf-8"


def to_utf8(body: bytes, content_type: str) -> bytes:
    """The same body in UTF-8, which is how it is kept: the header that named another encoding is not."""
    charset = charset_of(content_type)
    return body if charset.lower() in {"utf-8", "utf8"} else body.decode(charset).encode()


def again(body: bytes) -> bytes:
    """A kept body as it is submitted once more: ``front`` would put each such job before the one before it."""
    found = json.loads(body)
    if not (isinstance(found, dict) and found.get("front")):
        return body
    del found["front"]
    return json.dumps(found).encode()


def item(body: bytes, number: float) -> list[Any]:
    """The job as ComfyUI's queue and history show it: number, id, graph, extra data, output nodes (not known here)."""
    found = json.loads(body)
    extra = found.get("extra_data")
    extra = dict(extra) if isinstance(extra, Mapping) else {}
    if found.get("client_id") is not None:
        extra["client_id"] = found["client_id"]
    shown = {name: value for name, value in extra.items() if name not in _SECRETS}
    return [number, str(found.get("prompt_id")), found.get("prompt"), shown, []]
