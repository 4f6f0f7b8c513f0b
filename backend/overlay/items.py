"""A queue item as ComfyUI makes it: number, ``prompt_id``, prompt, extra data, outputs, and what newer versions add.

Pure. Owns where what stands in it.
"""

from typing import Any, Final

Item = tuple[Any, ...]
ID: Final = 1
"""Where a queue item holds its ``prompt_id``."""


def readable(item: Item) -> Item:
    """``item`` with extra data in which readers can look for a key, whatever was submitted in its place."""
    return item if isinstance(item[3], dict) else (*item[:3], {}, *item[4:])


def client_of(item: Item) -> str | None:
    """The client that submitted a queue item."""
    found = item[3].get("client_id") if isinstance(item[3], dict) else None
    return None if found is None else str(found)
