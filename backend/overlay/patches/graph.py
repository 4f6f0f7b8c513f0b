"""``GraphBuilder``'s prefixes of node ids: per running code instead of one in the class.

Owns the three parts of the prefix. They follow the context, as the node they belong to does, so that two lanes, and
two asynchronous nodes of one lane, cannot name their nodes alike.
"""

from contextvars import ContextVar
from typing import Any

from backend.overlay.patch import Patch, params, params_start
from backend.overlay.state import State

BUILDER = "comfy_execution.graph_utils:GraphBuilder"


class _Prefix:
    """One node call's prefix; the graph index counts on within the call."""

    def __init__(self, root: str = "", call_index: int = 0, graph_index: int = 0) -> None:
        self.root = root
        self.call_index = call_index
        self.graph_index = graph_index


def patches(state: State) -> list[Patch]:
    """Both class methods; the class itself stays, since everybody shares it."""
    current: ContextVar[_Prefix | None] = ContextVar("graph_prefix", default=None)

    def set_default_prefix(cls: Any, prefix_root: str, call_index: int, graph_index: int = 0) -> None:
        current.set(_Prefix(prefix_root, call_index, graph_index))

    def alloc_prefix(
        cls: Any, root: str | None = None, call_index: int | None = None, graph_index: int | None = None
    ) -> str:
        prefix = current.get()
        if prefix is None:
            prefix = _Prefix()
            current.set(prefix)
        parts = (
            prefix.root if root is None else root,
            prefix.call_index if call_index is None else call_index,
            prefix.graph_index if graph_index is None else graph_index,
        )
        prefix.graph_index += 1
        return "".join(f"{part}." for part in parts)

    return [
        Patch(
            f"{BUILDER}.set_default_prefix",
            lambda _: classmethod(set_default_prefix),
            "two lanes that expand nodes at once would get each other's node ids",
            shape=params("cls", "prefix_root", "call_index", "graph_index"),
        ),
        Patch(
            f"{BUILDER}.alloc_prefix",
            lambda _: classmethod(alloc_prefix),
            "two lanes that expand nodes at once would get each other's node ids",
            shape=params_start("cls", "root", "call_index", "graph_index"),
        ),
    ]
