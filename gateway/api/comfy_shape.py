"""A job as ComfyUI's own ``/api/jobs`` shows it (0.33: ``comfy_execution/jobs.py``), out of a record and its entry.

Pure. Owns the names and the sorting of those routes. Times are milliseconds since 1970 there.
"""

from collections.abc import Iterable, Mapping
from typing import Any, Final

from gateway.jobs.record import Record, State

STATUS: Final[Mapping[State, str]] = {
    State.QUEUED: "pending",
    State.RUNNING: "in_progress",
    State.SUCCEEDED: "completed",
    State.FAILED: "failed",
    State.CANCELED: "cancelled",
    # A client that knows no such state must not take it for one that may still end well.
    State.LOST: "failed",
}
SORTS: Final = ("created_at", "execution_duration")

_SHOWABLE: Final = frozenset({"images", "video", "audio", "3d", "text"})
_SOLID: Final = (".obj", ".fbx", ".gltf", ".glb", ".usdz")
_TEXTUAL: Final = (".txt", ".md", ".json")
_LONGEST_TEXT: Final = 1024

Entry = Mapping[str, Any]


def listed(record: Record, entry: Entry | None) -> dict[str, Any]:
    """A job in a list; without its entry it says no workflow and no traceback."""
    count, showable, preview = outputs_of(record.outputs)
    started = record.since(State.RUNNING)
    told: dict[str, Any] = {
        "id": record.id,
        "status": STATUS[record.state],
        "priority": record.place,
        "create_time": _milliseconds(record.times[0][1] if record.times else None),
        "execution_start_time": _milliseconds(started) if record.ended else None,
        "execution_end_time": _milliseconds(record.at) if record.ended else None,
        "execution_error": _error(record, entry),
        "outputs_count": count,
        "previewable_outputs_count": showable,
        "preview_output": preview,
        "workflow_id": workflow_of(entry),
    }
    return {name: value for name, value in told.items() if value is not None}


def whole(record: Record, entry: Entry | None) -> dict[str, Any]:
    """A job by itself: once it has ended, with everything that is known."""
    told = listed(record, entry)
    if not record.ended or entry is None:
        return told
    prompt = entry.get("prompt")
    item = prompt if isinstance(prompt, list) and len(prompt) > 3 else [0, record.id, {}, {}]
    told["outputs"] = dict(record.outputs)
    told["execution_status"] = entry.get("status") or {}
    told["workflow"] = {"prompt": item[2], "extra_data": item[3]}
    return told


def in_order(records: Iterable[Record], by: str, *, falling: bool) -> list[Record]:
    """By when they came, or by how long they ran."""

    def duration(record: Record) -> float:
        started = record.since(State.RUNNING)
        return record.at - started if record.ended and started is not None else 0.0

    def created(record: Record) -> tuple[float, int]:
        return record.times[0][1] if record.times else 0.0, record.seq

    if by == "execution_duration":
        return sorted(records, key=duration, reverse=falling)
    return sorted(records, key=created, reverse=falling)


def workflow_of(entry: Entry | None) -> str | None:
    """``id`` of the workflow that the web page sent along."""
    found: Any = (entry or {}).get("prompt")
    found = found[3] if isinstance(found, list) and len(found) > 3 else None
    for name in ("extra_pnginfo", "workflow", "id"):
        found = found.get(name) if isinstance(found, Mapping) else None
    return found if isinstance(found, str) else None


def outputs_of(outputs: Mapping[str, Any]) -> tuple[int, int, dict[str, Any] | None]:
    """How many there are, how many can be shown, and the one to show: saved pictures first, text last."""
    count = showable = 0
    best: tuple[int, dict[str, Any]] | None = None
    for node, told in outputs.items():
        for kind, items in told.items() if isinstance(told, Mapping) else ():
            for item in items if isinstance(items, list) and kind != "animated" else ():
                found, counts = _item(node, kind, item)
                count += counts
                if found is None:
                    continue
                showable += counts
                rank = _rank(found, counts)
                if best is None or rank < best[0]:
                    best = rank, found
    return count, showable, None if best is None else best[1]


def _item(node: str, kind: str, item: object) -> tuple[dict[str, Any] | None, bool]:
    """An output as it is shown, ``None`` if it cannot be, and whether it counts as one: bare text does not."""
    if isinstance(item, str) and item.lower().endswith(_SOLID):
        item = {"filename": item, "type": "output", "subfolder": "", "mediaType": "3d"}
    if isinstance(item, str) and kind == "text":
        cut = {"truncated": True} if len(item) > _LONGEST_TEXT else {}
        return {"content": item[:_LONGEST_TEXT], **cut, "nodeId": node, "mediaType": kind}, False
    if not isinstance(item, Mapping):
        return None, False
    name, shape = str(item.get("filename") or "").lower(), str(item.get("format") or "")
    if kind in _SHOWABLE or shape.startswith(("video/", "audio/")) or name.endswith((*_SOLID, *_TEXTUAL)):
        return {"mediaType": kind, **item, "nodeId": node}, True
    return None, True


def _rank(found: Mapping[str, Any], counts: bool) -> int:
    if not counts:
        return 3
    if found.get("mediaType") == "text" or str(found.get("filename") or "").lower().endswith(_TEXTUAL):
        return 2
    return 0 if found.get("type") == "output" else 1


def _error(record: Record, entry: Entry | None) -> Mapping[str, Any] | None:
    if record.error is None:
        return None
    status = (entry or {}).get("status")
    messages = status.get("messages") if isinstance(status, Mapping) else None
    for message in messages if isinstance(messages, list) else ():
        if isinstance(message, list) and len(message) == 2 and message[0] == "execution_error":
            return message[1] if isinstance(message[1], Mapping) else None
    return {"prompt_id": record.id, "exception_type": record.error.get("type"),
            "exception_message": record.error.get("message")}  # fmt: skip


def _milliseconds(seconds: float | None) -> int | None:
    return None if seconds is None else int(seconds * 1000)
