"""Jobs that use a node pack which cannot share the process run one at a time, in the order they asked.

Owns the waiting line. Which pack a node belongs to is asked of the node classes. Knows nothing of lanes or devices.
"""

import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, Final

MODULE_PREFIX: Final = "custom_nodes."

_held: ContextVar[frozenset[str]] = ContextVar("packs_held", default=frozenset())


def held() -> frozenset[str]:
    """The named packs that no other job uses as long as the current one runs."""
    return _held.get()


def pack_of(node_class: object) -> str | None:
    """The folder or file in ``custom_nodes`` a node class came from; ``None`` for ComfyUI's own.

    Source: ComfyUI sets ``RELATIVE_PYTHON_MODULE`` on each class it loads.
    """
    module = getattr(node_class, "RELATIVE_PYTHON_MODULE", None)
    if not isinstance(module, str) or not module.startswith(MODULE_PREFIX):
        return None
    return module.removeprefix(MODULE_PREFIX)


def packs_used(prompt: Mapping[str, Any], classes: Mapping[str, object]) -> frozenset[str]:
    """The packs, lower-cased, whose node classes stand in a prompt (its API form)."""
    found = set()
    for node in prompt.values():
        name = node.get("class_type") if isinstance(node, Mapping) else None
        pack = pack_of(classes.get(name)) if isinstance(name, str) else None
        if pack is not None:
            found.add(pack.lower())
    return frozenset(found)


class Packs:
    """The packs that are named in the configuration, and who is using them; thread-safe.

    A job takes all it needs at once, and nobody overtakes a job that waits for the same pack: no deadlock, no
    starving. Jobs of different packs do not wait for each other.
    """

    def __init__(self, names: Iterable[str] = ()) -> None:
        self.names = frozenset(name.strip().lower().removesuffix(".py") for name in names)
        self._line: list[tuple[object, frozenset[str]]] = []
        self._changed = threading.Condition()

    def unknown(self, classes: Mapping[str, object]) -> list[str]:
        """Named packs that none of the loaded node classes comes from."""
        loaded = {pack.lower() for node in classes.values() if (pack := pack_of(node)) is not None}
        return sorted(self.names - loaded)

    def used(self, prompt: Mapping[str, Any], classes: Mapping[str, object]) -> frozenset[str]:
        """The named packs this prompt uses."""
        return packs_used(prompt, classes) & self.names if self.names else frozenset()

    @contextmanager
    def one_at_a_time(self, packs: frozenset[str], stopped: Callable[[], bool] = lambda: False) -> Iterator[None]:
        """Run the block when no earlier job uses one of ``packs``.

        A job that ``stopped`` calls stopped while it waits enters at once, without its turn: it is for the executor
        to end it, before its first node. Whoever changes what ``stopped`` says calls ``wake``.
        """
        if not packs:
            yield
            return
        ticket = object()
        with self._changed:
            self._line.append((ticket, packs))
        try:
            with self._changed:
                while not (turn := self._turn(ticket, packs)) and not stopped():
                    self._changed.wait()
            mine = _held.set(packs if turn else frozenset())
            try:
                yield
            finally:
                _held.reset(mine)
        finally:
            with self._changed:
                self._line = [entry for entry in self._line if entry[0] is not ticket]
                self._changed.notify_all()

    def wake(self) -> None:
        """Let waiting jobs look at once whether they were stopped."""
        with self._changed:
            self._changed.notify_all()

    def __len__(self) -> int:
        """Jobs that use a named pack or wait for one."""
        with self._changed:
            return len(self._line)

    def _turn(self, ticket: object, packs: frozenset[str]) -> bool:
        for other, theirs in self._line:
            if other is ticket:
                return True
            if theirs & packs:
                return False
        return True
