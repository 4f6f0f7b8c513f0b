"""Pictures of work under way are encoded only when somebody is there to see them, and not when events wait already.

Owns that choice. ComfyUI encodes on the event loop, in the order of events, whether the client is connected or not.
Doing it in a thread of its own was measured (``bench.overheads``) and brings nothing: Pillow's JPEG encoder holds the
interpreter, so the event loop stands still all the same.
"""

import functools
from collections.abc import Callable, Coroutine
from typing import Any, Final

from backend.overlay.patch import Patch, params

BEHIND: Final = 256
"""Events that may wait before previews are left out; a later one shows more anyway."""


def patches() -> list[Patch]:
    """The two ways in which ComfyUI sends a preview that is not encoded yet."""
    why = "a preview that nobody sees is not encoded, and none is while events wait: it holds up those of every GPU"
    return [
        Patch(f"server:PromptServer.{name}", change, why, shape=params("self", *names), required=False)
        for name, change, names in (
            ("send_image", _image, ("image_data", "sid")),
            ("send_image_with_metadata", _described, ("image_data", "metadata", "sid")),
        )
    ]


def _image(original: Callable[..., Coroutine[Any, Any, None]]) -> Any:
    @functools.wraps(original)
    async def send_image(self: Any, image_data: Any, sid: Any = None) -> None:
        if wanted(self, sid):
            await original(self, image_data, sid=sid)

    return send_image


def _described(original: Callable[..., Coroutine[Any, Any, None]]) -> Any:
    @functools.wraps(original)
    async def send_image_with_metadata(self: Any, image_data: Any, metadata: Any = None, sid: Any = None) -> None:
        if wanted(self, sid):
            await original(self, image_data, metadata, sid=sid)

    return send_image_with_metadata


def wanted(server: Any, sid: Any) -> bool:
    """Whether a preview for ``sid`` (``None``: for everybody) would reach anybody, in time to matter."""
    seen = len(server.sockets) > 0 if sid is None else sid in server.sockets
    return seen and server.messages.qsize() <= BEHIND
