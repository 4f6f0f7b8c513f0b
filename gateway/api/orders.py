"""What a client orders: one workflow and how it is to be run, read from a request.

Pure. Owns the fields of a submission to ``/jobs`` and ``/generate``, and the body that ``POST /prompt`` gets for it.
Must never know what becomes of it.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final
from urllib.parse import urlsplit

from gateway.api.reading import Fields, mapping, refused

MOST_JOBS: Final = 200
"""Workflows in one request."""
PRIORITIES: Final = (-1000, 1000)
LONGEST_WAIT: Final = 600
"""Seconds that a client may ask to be kept waiting."""

_JOB: Final = (
    "workflow",
    "prompt",
    "prompt_id",
    "client_id",
    "gpu",
    "priority",
    "extra_data",
    "partial_execution_targets",
    "webhook",
    "idempotency_key",
)


@dataclass(frozen=True)
class Order:
    """One job as it was asked for."""

    workflow: Mapping[str, Any]
    client_id: str = ""
    gpu: int | None = None
    """The GPU it must run on; ``None``: whichever is best."""
    key: str = ""
    priority: int | None = None
    prompt_id: str = ""
    extra_data: Mapping[str, Any] | None = None
    targets: list[Any] | None = None
    webhook: Mapping[str, str] = field(default_factory=dict)
    """``url`` and, if one was given, ``secret``."""

    def body(self) -> bytes:
        """What ``POST /prompt`` gets; always the same bytes for the same order."""
        told: dict[str, Any] = {"prompt": self.workflow}
        given = {
            "client_id": self.client_id,
            "prompt_id": self.prompt_id,
            "priority": self.priority,
            "extra_data": self.extra_data,
            "partial_execution_targets": self.targets,
        }
        told |= {name: value for name, value in given.items() if value not in (None, "")}
        return json.dumps(told).encode()


def orders_in(found: Fields, gpus: int, pinned: int | None, key: str, client_id: str) -> tuple[list[Order], bool]:
    """The orders in a body of ``POST /jobs``, and whether they are a batch.

    ``pinned`` is the GPU of a ``/gpuN`` prefix, ``key`` the ``Idempotency-Key``, ``client_id`` the one of a job that
    names none. Raises ``GatewayError``, and then nothing of it has been done.
    """
    if "jobs" not in found:
        return [_order(found, gpus, pinned, key, client_id)], False
    found.only(("jobs", "client_id"))
    shared = found.text("client_id", client_id)
    orders = []
    for place, each in enumerate(found.several("jobs", MOST_JOBS)):
        fields = Fields(mapping(each, f"jobs[{place}]"), f"jobs[{place}].")
        orders.append(_order(fields, gpus, pinned, f"{key}#{place}" if key else "", shared))
    return orders, True


def _order(found: Fields, gpus: int, pinned: int | None, key: str, client_id: str) -> Order:
    found.only(_JOB)
    gpu = found.whole("gpu", 0, gpus - 1, pinned)
    if pinned is not None and gpu != pinned:
        raise refused(f"The path says GPU {pinned} and the field gpu says {gpu}.", "Leave one of them out.")
    targets = found.several("partial_execution_targets", 10_000) if "partial_execution_targets" in found else None
    return Order(
        workflow_of(found),
        found.text("client_id", client_id),
        gpu,
        found.text("idempotency_key", key),
        found.whole("priority", *PRIORITIES),
        found.text("prompt_id"),
        found.members("extra_data"),
        targets,
        webhook_of(found.raw("webhook")),
    )


def workflow_of(found: Fields) -> Mapping[str, Any]:
    """The graph: ``workflow``, or ``prompt`` as ``POST /prompt`` calls it."""
    if "workflow" in found and "prompt" in found:
        raise refused("Both workflow and prompt are there.", "They mean the same; send one.")
    graph = found.members("workflow") or found.members("prompt")
    if not graph:
        raise refused("There is no workflow.", 'Send {"workflow": {"1": {"class_type": …, "inputs": …}, …}}.')
    if isinstance(graph.get("nodes"), list):
        text = "This workflow is in the format of the web page's files."
        raise refused(text, "Export it in API format (File, Export (API)).")
    return graph


def webhook_of(value: object) -> Mapping[str, str]:
    """``"https://…"`` or ``{"url": …, "secret": …}``; nothing when there is none."""
    if value is None:
        return {}
    found = Fields({"url": value} if isinstance(value, str) else mapping(value, "webhook"), "webhook.")
    found.only(("url", "secret"))
    url = found.text("url", most=2000)
    try:
        parts = urlsplit(url)
        usable = parts.scheme in {"http", "https"} and bool(parts.hostname) and parts.port != 0
        usable = usable and parts.username is None
    except ValueError:
        usable = False
    if not usable or not url.isascii() or not url.isprintable() or " " in url:
        raise refused("webhook.url must be an http:// or https:// address.", f"It is {url[:100]!r}.")
    secret = found.text("secret")
    return {"url": url, "secret": secret} if secret else {"url": url}
