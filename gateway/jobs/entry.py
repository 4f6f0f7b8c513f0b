"""ComfyUI's history entries: what one says about a job's end, and one made where the backend can say nothing any more.

Pure. Owns the shape that ``GET /history`` shows (``execution.py: PromptQueue.task_done``). Must never know who asks.
"""

import json
from collections.abc import Mapping
from typing import Any, NamedTuple

from gateway.jobs.prompt import item
from gateway.jobs.record import Record, State


class Ending(NamedTuple):
    """How a job ended, as its entry tells."""

    state: State
    at: float
    """Seconds since 1970."""
    started: float | None
    outputs: dict[str, Any]
    error: dict[str, Any] | None


def ending(entry: Mapping[str, Any], now: float) -> Ending:
    """Read an entry; one that does not say "success" is not taken for one."""
    status = entry.get("status")
    status = status if isinstance(status, dict) else {}
    messages = _messages(status.get("messages"))
    outputs = entry.get("outputs")
    outputs = outputs if isinstance(outputs, dict) else {}
    started = _time(messages.get("execution_start"))
    last = [at for data in messages.values() if (at := _time(data)) is not None]
    at = max(last) if last else now
    if "execution_interrupted" in messages:
        return Ending(State.CANCELED, at, started, outputs, None)
    if status.get("status_str") == "success":
        return Ending(State.SUCCEEDED, at, started, outputs, None)
    told = messages.get("execution_error", {})
    error = {
        "type": str(told.get("exception_type", "unknown")),
        "message": str(told.get("exception_message", "The backend does not say why.")).strip(),
        "node_id": told.get("node_id"),
        "node_type": told.get("node_type"),
    }
    return Ending(State.FAILED, at, started, outputs, error)


def farewells(record: Record, entry: bytes | None) -> list[bytes]:
    """The events, as JSON, from which a client that missed them learns how its job ended; in ComfyUI's order."""
    found = json.loads(entry) if entry else {}
    status = found.get("status")
    messages = status.get("messages") if isinstance(status, dict) else None
    last = messages[-1] if isinstance(messages, list) and messages else None
    event, data = last if isinstance(last, list) and len(last) == 2 else _last(record)
    events: list[tuple[str, Any]] = [
        ("executed", {"node": node, "display_node": node, "output": output, "prompt_id": record.id})
        for node, output in record.outputs.items()
    ]
    events += [(str(event), data), ("executing", {"node": None, "prompt_id": record.id})]
    return [json.dumps({"type": name, "data": told}).encode() for name, told in events]


def _last(record: Record) -> tuple[str, dict[str, Any]]:
    event = {State.SUCCEEDED: "execution_success", State.CANCELED: "execution_interrupted"}.get(
        record.state, "execution_error"
    )
    return event, {"prompt_id": record.id, "timestamp": int(record.at * 1000)}


def made(record: Record, body: bytes | None, event: str, error: Mapping[str, Any], at: float) -> bytes:
    """An entry for a job that ended without the backend: ``event`` is the last it would have sent.

    ``execution_error`` or ``execution_interrupted``; ``error`` has ``type`` and ``message``.
    """
    data: dict[str, Any] = {
        "prompt_id": record.id,
        "node_id": None,
        "node_type": None,
        "executed": [],
    }
    if event == "execution_error":
        data |= {
            "exception_message": f"{error.get('message', '')}\n",
            "exception_type": error.get("type", "unknown"),
            "traceback": [],
            "current_inputs": {},
            "current_outputs": [],
        }
    data["timestamp"] = int(at * 1000)
    entry = {
        "prompt": _item(record, body),
        "outputs": {},
        "status": {"status_str": "error", "completed": False, "messages": [[event, data]]},
        "meta": {},
    }
    return json.dumps(entry).encode()


def _item(record: Record, body: bytes | None) -> list[Any]:
    try:
        return item(body or b"{}", record.place)
    except ValueError:
        return [record.place, record.id, {}, {}, []]


def _messages(found: object) -> dict[str, dict[str, Any]]:
    """``[[event, data], …]`` by event; the last of each stands."""
    if not isinstance(found, list):
        return {}
    pairs = [each for each in found if isinstance(each, list) and len(each) == 2]
    return {str(name): data if isinstance(data, dict) else {} for name, data in pairs}


def _time(data: Mapping[str, Any] | None) -> float | None:
    at = (data or {}).get("timestamp")
    return at / 1000 if isinstance(at, int | float) else None
