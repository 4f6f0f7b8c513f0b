"""Which paths there are: handlers with what ``/openapi.json`` says of them.

Pure. Owns the lists. Must never answer anything.
"""

from collections.abc import Mapping
from typing import Any, Final

from gateway.api.comfy import ComfyJobRoutes
from gateway.api.events import EventRoutes
from gateway.api.generate import GenerateRoutes
from gateway.api.jobs import MOST_LISTED, JobRoutes
from gateway.api.orders import LONGEST_WAIT
from gateway.api.route import Handler, Route
from gateway.api.schemas import COMFY_QUERY, GPU, NAME, TEXT
from gateway.request import Kind

_WAIT: Final[Mapping[str, Any]] = {"wait": {"type": "integer", "minimum": 0, "maximum": LONGEST_WAIT}}
_AWAY: Final[Mapping[int, str]] = {502: "Error", 503: "Error", 504: "Error"}
_SUBMITS: Final[Mapping[int, str]] = {400: "Error", 415: "Error", 422: "Error", **_AWAY}


def job_routes(its: JobRoutes, events: EventRoutes) -> list[Route]:
    """``/jobs`` and what is below it."""
    one = {404: "Error"}
    return [
        Route(
            "POST", "/jobs", its.submit, "Submit a workflow, or a batch of them; wait for the end, or for the picture.",
            {**_SUBMITS, 200: "Submitted", 202: "Submitted", 406: "Error"},
            body="Submission", query=_WAIT, kind=Kind.SUBMIT,
            headers={"Idempotency-Key": NAME, "Prefer": TEXT},
        ),
        Route("GET", "/jobs", its.all, "List jobs, the youngest first.", {200: "JobList", 400: "Error"}, query={
            "state": {"type": "string", "description": "States, with commas between them."},
            "client": {"type": "string", "description": "A client_id, or a client's address."},
            "gpu": GPU,
            "limit": {"type": "integer", "minimum": 1, "maximum": MOST_LISTED, "default": 100},
            "cursor": {"type": "integer", "minimum": 0, "description": "The field next of the page before."},
        }),
        Route("GET", "/jobs/{id}", its.one, "One job.", {200: "Job", 400: "Error", **one}, query=_WAIT),
        Route(
            "GET", "/jobs/{id}/events", events.events, "A job's states and progress as they come.",
            {200: "text/event-stream", 204: "", **one}, headers={"Last-Event-ID": TEXT},
        ),
        Route("GET", "/jobs/{id}/explain", its.explain, "Why the job is where it is.", {200: "Explanation", **one}),
        Route("GET", "/jobs/{id}/preview", its.preview, "The newest preview of a running job.", {
            200: "image/jpeg", **one
        }),
        Route("GET", "/jobs/{id}/outputs/{n}", its.output, "The bytes of one output.", {
            200: "*/*", 206: "*/*", 304: "", 416: "*/*", **one, **_AWAY
        }),
        Route("DELETE", "/jobs/{id}", its.cancel, "Cancel a job, wherever it is.", {
            200: "Job", 202: "Job", **one, **_AWAY
        }, kind=Kind.CONTROL),
    ]  # fmt: skip


def generate_routes(its: GenerateRoutes) -> list[Route]:
    """The scheduler's."""
    submits = {**_SUBMITS, 200: "Generated", 503: "Unhealthy"}
    key = {"Idempotency-Key": NAME}
    return [
        Route("POST", "/generate", its.generate, "Submit to the best GPU.", submits, body="Generate", headers=key,
              kind=Kind.SUBMIT),
        Route("POST", "/test/workflow", its.test_workflow, "Submit a small text-to-image workflow.", submits,
              body="TestWorkflow", may_be_empty=True, headers=key, kind=Kind.SUBMIT),
        Route("GET", "/status", its.status, "How full each GPU is.", {200: "Status", 502: "Error"}),
        Route("GET", "/instances", its.instances, "The GPUs and their addresses.", {200: "Instances"}),
        Route("GET", "/queue/{instance*}", its.queue, "One GPU's queue.", {200: "Queue", 404: "Error", 502: "Error"}),
        Route("GET", "/debug/queues", its.debug_queues, "Jobs per GPU.", {200: "QueueCounts", **_AWAY}),
    ]  # fmt: skip


def comfy_routes(its: ComfyJobRoutes) -> list[Route]:
    """ComfyUI's newer ones, on every port."""
    return [
        Route("GET", "/api/jobs", its.all, "List jobs as newer ComfyUI does.", {
            200: "ComfyJobList", 400: "ComfyError", **_AWAY
        }, query=COMFY_QUERY, everywhere=True),
        Route("GET", "/api/jobs/{id}", its.one, "One job as newer ComfyUI shows it.", {
            200: "ComfyJob", 404: "ComfyError", **_AWAY
        }, everywhere=True),
        Route("POST", "/api/jobs/{id}/cancel", its.cancel, "Cancel a job as newer ComfyUI does.", {
            200: "ComfyCancelled", **_AWAY
        }, kind=Kind.CONTROL, everywhere=True),
        Route("POST", "/api/jobs/cancel", its.cancel_many, "Cancel jobs as newer ComfyUI does.", {
            200: "ComfyCancelled", 400: "ComfyError", **_AWAY
        }, body="ComfyCancel", kind=Kind.CONTROL, everywhere=True),
    ]  # fmt: skip


def document_routes(document: Handler) -> list[Route]:
    """What describes them all."""
    return [Route("GET", "/openapi.json", document, "This document.", {200: "OpenApi"})]


def _own(path: str, summary: str, answers: Mapping[int, str]) -> Route:
    return Route("GET", path, _nobody, summary, answers)


def _nobody(*_: object) -> Any:
    """Routes that are documented here and answered elsewhere."""
    raise NotImplementedError


OWN_ROUTES: Final = (
    _own("/metrics", "Metrics of the gateway and of every backend, for Prometheus.", {200: "text/plain"}),
    _own("/health", "Whether jobs are taken.", {200: "Health", 503: "Health"}),
    _own("/live", "Whether the gateway itself answers.", {200: "Life"}),
    _own("/ready", "Whether clients should be sent here.", {200: "Life", 503: "Life"}),
    _own("/queue/all", "Every GPU's queue.", {200: "Queues", 503: "Error"}),
)
"""What the front door answers besides, in the same form."""

ELSEWHERE: Final = (
    Route("GET", "/gateway/login", _nobody, "The page on which a browser gives its key.", {200: "text/html"},
          query={"next": {"type": "string", "description": "The path that it leads to."}}),
    Route("POST", "/gateway/login", _nobody, "Give a key and get a cookie for it.", {200: "Done"},
          headers={"X-API-Key": TEXT}),
    Route("POST", "/gateway/logout", _nobody, "Give the cookie back.", {200: "Done"}),
    Route("POST", "/preload", _nobody, "Load models on GPUs ahead of any job.", {
        200: "Preloaded", 202: "Preloading", 400: "Error", 404: "", 405: "", 500: "Error", **_AWAY
    }, body="Preload"),
    Route("GET", "/debug/events", _nobody, "A WebSocket with every event of every GPU.", {
        101: "", 400: "text/plain", 404: "", **_AWAY
    }),
)  # fmt: skip
"""What the gate and the backend add to ComfyUI's own on every port; plain ComfyUI has neither of the last two."""
