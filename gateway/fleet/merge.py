"""Answers of several backends made into the one that a single backend with all their GPUs would give.

Pure. Owns the shapes: queues, counts, histories, devices, metrics; GPUs get the numbers that users know. What is
not of its shape is left out. Must never know where the answers come from.
"""

import json
import re
from collections.abc import Sequence
from typing import Any, Final

from gateway.fleet.ask import Reply

Told = Sequence[tuple[int, Reply]]
"""Answers in the fleet's order, each with the number of its backend's first GPU."""

_SAMPLE: Final = re.compile(rb"([a-zA-Z_:][a-zA-Z0-9_:]*)(\{[^\n]*\})?( \S+(?: -?[0-9]+)?)")
_GPU: Final = re.compile(rb'([{,])gpu="([0-9]+)"')
_VERDICTS: Final = ("unknown", "cpu", "fine", "close", "gil-bound")
_META: Final = re.compile(rb"# (?:HELP|TYPE|UNIT) ([a-zA-Z_:][a-zA-Z0-9_:]*)")


def samples(reply: Reply) -> bytes:
    """A backend's exposition, or nothing when it is not one.

    One broken line would cost Prometheus the whole scrape, so the text is taken whole or not at all.
    """
    if reply.status != 200 or not reply.content_type.startswith("text/plain"):
        return b""
    lines = [line for line in reply.body.splitlines() if line.strip() and line != b"# EOF"]
    if not lines or not all(line.startswith(b"#") or _SAMPLE.fullmatch(line) for line in lines):
        return b""
    return b"\n".join(lines) + b"\n"


def all_samples(told: Told) -> bytes:
    """The expositions as one: each family once, GPUs renumbered; what has no GPU says which backend it is of.

    The samples of a family stay together, as Prometheus wants them.
    """
    heads: dict[bytes, dict[bytes, bytes]] = {}
    found: dict[bytes, list[bytes]] = {}
    for index, (first, reply) in enumerate(told):
        family = b""
        for line in samples(reply).splitlines():
            if meta := _META.match(line):
                family = meta[1]
                heads.setdefault(family, {}).setdefault(line.split(b" ", 2)[1], line)
            elif not line.startswith(b"#"):
                name = line.partition(b"{")[0].partition(b" ")[0]
                # A family without a head of its own is its samples' name.
                family = family if family and name.startswith(family) else name
                found.setdefault(family, []).append(_renumbered(line, first, index))
    out = [
        line for family, samples_ in found.items() for line in (*heads.get(family, {}).values(), *samples_)
    ]
    return b"\n".join(out) + b"\n" if out else b""


def _renumbered(line: bytes, first: int, index: int) -> bytes:
    changed, count = _GPU.subn(lambda found: b'%bgpu="%d"' % (found[1], int(found[2]) + first), line, 1)
    if count:
        return changed
    match = _SAMPLE.fullmatch(line)
    if match is None:
        return line
    name, labels, value = match[1], match[2] or b"{}", match[3]
    inner = labels[1:-1].rstrip(b",")
    return b'%b{%bbackend="%d"}%b' % (name, inner + b"," if inner else b"", index, value)


def queues_of_all(told: Told) -> dict[str, Any] | None:
    """``/queue/all``, also where some have one plain ``/queue``; ``None`` when no answer is either."""
    every: list[dict[str, Any]] = []
    some = False
    for first, reply in told:
        queues = _queues(_object(reply))
        if queues is None:
            continue
        some = True
        every += [{**queue, "gpu_id": _number(queue) + first} for queue in queues]
    if not some:
        return None
    return {
        "queues": every,
        "total_running": sum(_size(queue, "running_count", "queue_running") for queue in every),
        "total_pending": sum(_size(queue, "pending_count", "queue_pending") for queue in every),
    }


def lanes_of_all(told: Told) -> dict[str, Any]:
    """``/debug/queues``."""
    every: list[dict[str, Any]] = []
    issuing: list[dict[str, Any]] = []
    worst: dict[str, Any] = {}
    for first, reply in told:
        found = _object(reply)
        every += _lanes(found.get("queues"), first)
        judged = found.get("issuing")
        if isinstance(judged, dict):
            issuing += _lanes(judged.get("lanes"), first)
            # Each process is judged by itself: the gravest of their verdicts stands for all.
            worst = max(worst, judged, key=_gravity)
    return {"queues": every, **({"issuing": {**worst, "lanes": issuing}} if worst else {})}


def _gravity(judged: dict[str, Any]) -> int:
    verdict = judged.get("verdict")
    return _VERDICTS.index(verdict) if verdict in _VERDICTS else -1


def _lanes(found: object, first: int) -> list[dict[str, Any]]:
    lanes = [each for each in found if isinstance(each, dict)] if isinstance(found, list) else []
    return [{**lane, "gpu_id": _number(lane) + first} for lane in lanes]


def queue_of_all(told: Told) -> dict[str, Any]:
    """``/queue``: what runs and what waits, on all."""
    both: dict[str, list[Any]] = {"queue_running": [], "queue_pending": []}
    for _, reply in told:
        found = _object(reply)
        for name in both:
            both[name] += found[name] if isinstance(found.get(name), list) else ()
    return both


def remaining_of_all(told: Told) -> dict[str, Any]:
    """``GET /prompt``: how many jobs are left, on all."""
    left = 0
    for _, reply in told:
        info = _object(reply).get("exec_info")
        count = info.get("queue_remaining") if isinstance(info, dict) else 0
        left += count if isinstance(count, int) else 0
    return {"exec_info": {"queue_remaining": left}}


def history_of_all(told: Told) -> dict[str, Any]:
    """``/history`` and ``/history/{id}``: every entry."""
    found: dict[str, Any] = {}
    for _, reply in told:
        found |= _object(reply)
    return found


def devices_of_all(told: Told) -> dict[str, Any]:
    """``/system_stats``: the first one's system, and every GPU."""
    whole: dict[str, Any] = {}
    numbered: dict[str, list[Any]] = {"devices": [], "weights": []}
    for first, reply in told:
        found = _object(reply)
        whole = whole or found
        for name, entries in numbered.items():
            listed = found.get(name)
            for at, entry in enumerate(listed if isinstance(listed, list) else []):
                if isinstance(entry, dict):
                    entries.append({**entry, "gpu_id": _number(entry, at) + first})
    return {**whole, **{name: entries for name, entries in numbered.items() if entries or name == "devices"}}


def is_queues(reply: Reply) -> bool:
    """Whether an answer is one of ``/queue/all``."""
    return reply.status == 200 and isinstance(_object(reply).get("queues"), list)


def _queues(found: dict[str, Any]) -> list[dict[str, Any]] | None:
    listed = found.get("queues")
    if isinstance(listed, list):
        return [queue for queue in listed if isinstance(queue, dict)]
    running, pending = found.get("queue_running"), found.get("queue_pending")
    if not isinstance(running, list) or not isinstance(pending, list):
        return None
    counts = {"running_count": len(running), "pending_count": len(pending)}
    return [{"gpu_id": 0, "queue_running": running, "queue_pending": pending, **counts}]


def _size(queue: dict[str, Any], count: str, items: str) -> int:
    found = queue.get(count)
    return found if isinstance(found, int) else len(queue.get(items) or ())


def _number(each: dict[str, Any], otherwise: int = 0) -> int:
    found = each.get("gpu_id")
    return found if isinstance(found, int) else otherwise


def _object(reply: Reply) -> dict[str, Any]:
    if reply.status != 200:
        return {}
    try:
        found = json.loads(reply.body)
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}
