"""A job as the jobs API shows it, and which of its outputs are files.

Pure. Owns the names of the fields. Must never show a secret, a body or another client's address.
"""

import mimetypes
from collections.abc import Mapping
from typing import Any, NamedTuple
from urllib.parse import quote, urlencode

from gateway.jobs.record import Record, State


class Output(NamedTuple):
    """One file that a job has made."""

    node: str
    kind: str
    """``images``, ``gifs``, ``audio`` …: what the node calls it."""
    filename: str
    subfolder: str
    folder: str
    """``output``, ``temp`` or ``input``."""

    @property
    def media(self) -> str:
        """Its media type, by its name."""
        return mimetypes.guess_type(self.filename)[0] or "application/octet-stream"

    @property
    def target(self) -> bytes:
        """Where the backend has its bytes."""
        query = {"filename": self.filename, "subfolder": self.subfolder, "type": self.folder}
        return b"/view?" + urlencode(query, errors="surrogatepass").encode()


def outputs_of(record: Record) -> list[Output]:
    """Its files, in the order in which their nodes ran."""
    found = []
    for node, told in record.outputs.items():
        for kind, items in told.items() if isinstance(told, Mapping) else ():
            for item in items if isinstance(items, list) else ():
                if isinstance(item, Mapping) and isinstance(item.get("filename"), str):
                    where = str(item.get("subfolder") or ""), str(item.get("type") or "output")
                    found.append(Output(str(node), str(kind), item["filename"], *where))
    return found


def link(job: str) -> str:
    """Path of a job on the front door."""
    return f"/jobs/{quote(job, safe='')}"


def shown(record: Record, more: Mapping[str, Any]) -> dict[str, Any]:
    """The job; ``more`` is what only others know: ``progress``, ``position``, ``eta_seconds``."""
    own = link(record.id)
    return {
        "id": record.id,
        "state": record.state.value,
        "gpu": record.gpu,
        "port": record.port,
        "client_id": record.client_id,
        "created_at": record.times[0][1] if record.times else None,
        "started_at": record.since(State.RUNNING),
        "ended_at": record.at if record.ended else None,
        "times": [{"state": state, "at": at} for state, at in record.times],
        "attempts": record.attempts,
        "cancel_requested": record.cancel,
        "outputs": [
            {
                "node": output.node,
                "kind": output.kind,
                "filename": output.filename,
                "subfolder": output.subfolder,
                "type": output.folder,
                "media_type": output.media,
                "url": f"{own}/outputs/{number}",
            }
            for number, output in enumerate(outputs_of(record))
        ],
        "webhook": _webhook(record),
        "error": None if record.error is None else dict(record.error),
        "links": {"self": own, "events": f"{own}/events", "explain": f"{own}/explain"},
        **more,
    }


def _webhook(record: Record) -> dict[str, Any] | None:
    """How its webhook stands; where it goes is nobody else's business, for addresses hold tokens."""
    asked = record.webhook
    if "url" not in asked:
        return None
    return {
        "delivered_at": asked.get("told"),
        "tries": asked.get("tries", 0),
        "next_at": None if asked.get("over") else asked.get("next"),
        "given_up": bool(asked.get("over")) and asked.get("told") is None,
        "error": asked.get("why") or None,
    }
