"""What ComfyUI tells its clients, as observers get it: its events as they are, its previews as JPEGs.

Owns the reading of ComfyUI's three kinds of preview (``server.py: send``). Must never raise: a lane is calling.
"""

import logging
from collections.abc import Mapping
from io import BytesIO
from typing import Any, Final

from backend.context import current_lane
from backend.overlay.state import State

log = logging.getLogger("backend.overlay")

_SIDE: Final = 512
"""Pixels of a preview's longer side."""


def observe(state: State, event: Any, data: Any) -> None:
    """Tell whoever watches about one call of ``send_sync``."""
    lane = current_lane()
    if isinstance(event, str):
        state.observers.tell(lane, event, data)
        return
    found = _picture_in(data)
    if found is None or not state.observers.wants_preview(lane):
        return
    picture, metadata = found
    try:
        shown = picture.copy()
        shown.thumbnail((_SIDE, _SIDE))
        jpeg = BytesIO()
        shown.convert("RGB").save(jpeg, format="JPEG", quality=80)
    except Exception as error:  # noqa: BLE001 (whatever a custom node's picture does, its job goes on)
        log.debug("a preview cannot be shown to observers: %s", error)
        return
    prompt_id = state.last_prompt_id.get()
    state.observers.preview(lane, jpeg.getvalue(), {"prompt_id": prompt_id, **metadata})


def _picture_in(data: Any) -> tuple[Any, Mapping[str, Any]] | None:
    """The PIL image in ``(format, image, size)`` or ``((format, image, size), metadata)``."""
    metadata: Mapping[str, Any] = {}
    if isinstance(data, tuple) and len(data) == 2 and isinstance(data[1], Mapping):
        data, metadata = data
    if isinstance(data, tuple) and len(data) == 3 and hasattr(data[1], "thumbnail"):
        return data[1], metadata
    return None
