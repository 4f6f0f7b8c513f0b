"""What ``GET /object_info`` depends on, as a name of it: the same name, the same answer, without making it.

Owns that name. It is made of what every node says of itself at that moment, files in model and input folders included,
for nodes put those into their inputs; nothing is remembered and no folder is watched, so that whatever a custom node
looks at counts. Saying it is a fraction of the work of the whole answer, which says it twice and writes it as JSON.
"""

import contextlib
import importlib
import sys
from collections.abc import Mapping
from hashlib import blake2b
from typing import Any, Final
from uuid import uuid4

from aiohttp import web

_BOOT: Final = uuid4().hex
"""Another process may have other code behind the same inputs."""

_ATTRIBUTES: Final = ("RETURN_TYPES", "RETURN_NAMES", "OUTPUT_IS_LIST", "OUTPUT_NODE", "CATEGORY", "DESCRIPTION")
"""Of a node's class, beside its inputs."""

_ROOTS: Final = ("models", "input", "output")


def name_of(nodes: Mapping[str, Any], shown: Mapping[str, Any]) -> str:
    """A name of what these nodes, and the titles they are shown under, say of themselves now."""
    hashed = blake2b(_BOOT.encode(), digest_size=16)
    for name, node in nodes.items():
        hashed.update(f"{name}\0{id(node)}\0{shown.get(name)!r}\0{_said_by(node)}\0".encode(errors="backslashreplace"))
    return hashed.hexdigest()


def _said_by(node: Any) -> str:
    try:
        if hasattr(node, "FINALIZE_SCHEMA"):
            return repr(node.FINALIZE_SCHEMA().get_v1_info(node))
        return repr((node.INPUT_TYPES(), [getattr(node, name, None) for name in _ATTRIBUTES]))
    except Exception as error:  # noqa: BLE001 - such a node is not in the answer, and may be at the next time
        return f"raises {type(error).__name__}"


def current() -> str:
    """The name of the answer that ComfyUI would give now, as an ``ETag``."""
    nodes = importlib.import_module("nodes")
    helper = getattr(importlib.import_module("folder_paths"), "cache_helper", None)
    with helper if helper is not None else contextlib.nullcontext():
        return f'"{name_of(nodes.NODE_CLASS_MAPPINGS, nodes.NODE_DISPLAY_NAME_MAPPINGS)}"'


def known(request: web.Request, etag: str) -> bool:
    """Whether the client has the answer of this name."""
    return any(f'"{found.value}"' == etag for found in request.if_none_match or ())


def unchanged(etag: str) -> web.Response:
    """304; what ComfyUI does beside answering is done."""
    # Later versions take a request for this as the moment to look through the folders for assets.
    seeder = getattr(sys.modules.get("server"), "asset_seeder", None)
    if seeder is not None:
        seeder.start(roots=_ROOTS)
    return web.Response(status=304, headers={"ETag": etag, "Cache-Control": "no-cache"})


def named(response: web.StreamResponse, etag: str) -> web.StreamResponse:
    """The whole answer with its name, for the next time."""
    if response.status == 200 and not response.prepared:
        response.headers.setdefault("ETag", etag)
        response.headers.setdefault("Cache-Control", "no-cache")
    return response
