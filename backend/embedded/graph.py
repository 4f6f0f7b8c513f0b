"""A prompt as a graph: which nodes an output needs, in which order, and a key for what each computes.

Pure. Works on declared inputs only: what a client adds beyond them is neither run nor part of a key.
"""

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from backend.embedded.node import Prompt, is_link

Declared = Callable[[str], Iterable[str]]
"""Node id → names of the inputs its class declares."""


class CycleError(ValueError):
    """Nodes that need each other."""

    def __init__(self, node_id: str) -> None:
        super().__init__("Dependency cycle detected")
        self.node_id = node_id


def sources(prompt: Prompt, node_id: str, declared: Declared) -> dict[str, tuple[str, int]]:
    """Input name → (node, slot) it is linked to, in declared order."""
    inputs = prompt[node_id].get("inputs")
    if not isinstance(inputs, Mapping):
        return {}
    return {
        name: (inputs[name][0], inputs[name][1])
        for name in declared(node_id)
        if name in inputs and is_link(inputs[name])
    }


def order(prompt: Prompt, wanted: Iterable[str], declared: Declared) -> list[str]:
    """Every node that ``wanted`` need and those themselves, sources first, each once.

    Links to nodes that are not there are left out. Raises ``CycleError``. Depth first, so that one output is
    complete before work for the next begins; iterative, so that a long chain cannot exhaust the stack.
    """
    done: dict[str, bool] = {}  # False: on the way down
    result: list[str] = []
    for root in wanted:
        stack = [(root, iter(_next(prompt, root, declared)))] if root not in done else []
        done.setdefault(root, False)
        while stack:
            node_id, rest = stack[-1]
            source = next(rest, None)
            if source is None:
                stack.pop()
                done[node_id] = True
                result.append(node_id)
            elif source not in done:
                done[source] = False
                stack.append((source, iter(_next(prompt, source, declared))))
            elif not done[source]:
                raise CycleError(source)
    return result


def _next(prompt: Prompt, node_id: str, declared: Declared) -> list[str]:
    return [source for source, _ in sources(prompt, node_id, declared).values() if source in prompt]


def keys(
    prompt: Prompt, ordered: Sequence[str], declared: Declared, changed: Callable[[str], Any]
) -> dict[str, str]:
    """Per node a digest of its class, its values, its sources' keys and what else it depends on.

    Equal keys mean equal outputs; ``changed`` giving NaN makes a key that equals no other run's.
    """
    found: dict[str, str] = {}
    for node_id in ordered:
        inputs = prompt[node_id]["inputs"]
        linked = sources(prompt, node_id, declared)
        parts: list[Any] = [prompt[node_id]["class_type"], _stable(changed(node_id), node_id)]
        for name in sorted(set(declared(node_id)) & set(inputs)):
            if name in linked:
                source, slot = linked[name]
                parts.append([name, "link", found[source], slot])
            else:
                parts.append([name, "value", inputs[name]])
        text = json.dumps(parts, sort_keys=True, default=repr)
        found[node_id] = hashlib.sha256(text.encode()).hexdigest()
    return found


_runs = iter(range(1, 1 << 62))


def _stable(value: Any, node_id: str) -> Any:
    if isinstance(value, float) and value != value:  # noqa: PLR0124 (NaN is what differs from itself)
        return ["never", node_id, next(_runs)]
    return value
