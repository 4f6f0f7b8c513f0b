"""The form in which one ComfyUI version's peculiarities are written down.

Owns the shape and its defaults, which are those of the oldest supported version. Knows no version number.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Version:
    """What is peculiar to one ComfyUI version."""

    number: str
    adds: tuple[tuple[str, str], ...] = ()
    """Arguments the overlay starts it with, and why."""
    off: tuple[tuple[str, str], ...] = ()
    """Arguments that switch on what is off by itself and untried with several lanes, and what that is."""
    gives_way: tuple[str, ...] = ()
    """User arguments that forbid one of ``adds`` (they exclude each other in ComfyUI's own parser)."""
    send_sync: tuple[str, ...] = ("self", "event", "data", "sid")
    server_init: tuple[str, ...] = ("self", "loop")
    prompt_worker: tuple[str, ...] = ("q", "server_instance")
    put: tuple[str, ...] = ("self", "item")
    task_done: tuple[str, ...] = ("self", "item_id", "history_result", "status")
    executor: tuple[str, ...] = ("self", "server", "cache_type", "cache_size")
    execute_node: tuple[str, ...] = (
        "server", "dynprompt", "caches", "current_item", "extra_data", "executed", "prompt_id", "execution_list",
        "pending_subgraph_results", "pending_async_nodes",
    )
    marks: tuple[str, ...] = ()
    """Names (``module:name``) of which no older version has any: code with one of them is at least this version's."""
    expects: tuple[str, ...] = ()
    """Names (``module:path``) that only this version has and the overlay relies on."""
    public: Callable[[tuple[Any, ...]], Any] = list
    """A queue item as clients may see it."""
    item_rest: Callable[[], tuple[Any, ...]] = tuple
    """What a queue item has behind its first five fields."""
    done_extra: Callable[[], dict[str, Any]] = dict
    """What ``task_done`` is given beyond the status."""
    close: Callable[[Any], None] = lambda main: None
    """What the version's own main block does at the end, besides deleting temporary files."""

    def notes(self, given: Sequence[str]) -> list[tuple[bool, str]]:
        """What else to say about the arguments: whether it is a warning, and the words."""
        names = {word.partition("=")[0] for word in given}
        return [
            (True, f"{word} was given: {what} was not tried with several lanes")
            if word in names
            else (False, f"{what} is off in this version unless {word} is given: there is nothing to pass for it")
            for word, what in self.off
        ]

    def arguments(self, given: Sequence[str]) -> list[tuple[str, str]]:
        """The arguments to add to those the user gave, with the reason of each."""
        names = {word.partition("=")[0] for word in given}
        return [
            (word, why)
            for word, why in self.adds
            if word not in names and not (word.startswith("--cache") and names & set(self.gives_way))
        ]
