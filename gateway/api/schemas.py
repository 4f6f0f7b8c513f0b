"""What requests and answers of the gateway's own routes look like, as JSON Schema (2020-12, as OpenAPI 3.1 has it).

Pure. Names are those of the table of routes. Bounds are those that the readers have.
"""

from collections.abc import Mapping
from typing import Any, Final

from gateway.api.comfy_shape import SORTS, STATUS
from gateway.api.orders import LONGEST_WAIT, MOST_JOBS, PRIORITIES
from gateway.jobs.record import State

Schema = dict[str, Any]

TEXT: Final[Schema] = {"type": "string"}
WHOLE: Final[Schema] = {"type": "integer"}
NUMBER: Final[Schema] = {"type": "number"}
FLAG: Final[Schema] = {"type": "boolean"}
ANYTHING: Final[Schema] = {"type": "object"}
NAME: Final[Schema] = {"type": "string", "minLength": 1, "maxLength": 1000}
GPU: Final[Schema] = {"type": "integer", "minimum": 0}


def ref(name: str) -> Schema:
    """A reference to the schema of that name."""
    return {"$ref": f"#/components/schemas/{name}"}


def maybe(schema: Schema) -> Schema:
    """That, or null."""
    return {"anyOf": [schema, {"type": "null"}]}


def many(schema: Schema) -> Schema:
    """A list of that."""
    return {"type": "array", "items": schema}


def whole(
    required: Mapping[str, Schema], optional: Mapping[str, Schema] | None = None, *, closed: bool = False
) -> Schema:
    """An object that has these members, and may have those; ``closed``: no others."""
    found: Schema = {"type": "object", "properties": {**required, **(optional or {})}, "required": list(required)}
    return {**found, "additionalProperties": False} if closed else found


_STATES: Final[Schema] = {"type": "string", "enum": [state.value for state in State]}
_WORKFLOW: Final[Schema] = {
    "type": "object",
    "minProperties": 1,
    "description": "A workflow in API format: node id to class_type and inputs.",
    "additionalProperties": {"type": "object"},
    "propertyNames": {"not": {"const": "nodes"}},
}
_WEBHOOK: Final[Schema] = {
    "anyOf": [
        {"type": "string", "format": "uri", "maxLength": 2000},
        whole({"url": {"type": "string", "format": "uri", "maxLength": 2000}}, {"secret": maybe(NAME)}, closed=True),
        {"type": "null"},
    ]
}
_PRIORITY: Final[Schema] = {"type": "integer", "minimum": PRIORITIES[0], "maximum": PRIORITIES[1]}
_JOB_FIELDS: Final[Mapping[str, Schema]] = {
    "prompt_id": maybe(NAME),
    "client_id": maybe(NAME),
    "gpu": maybe(GPU),
    "priority": maybe(_PRIORITY),
    "extra_data": maybe(ANYTHING),
    "partial_execution_targets": maybe({**many(TEXT), "minItems": 1}),
    "webhook": _WEBHOOK,
    "idempotency_key": maybe(NAME),
}
_ORDER: Final[Schema] = {
    "anyOf": [
        whole({"workflow": _WORKFLOW}, _JOB_FIELDS, closed=True),
        whole({"prompt": _WORKFLOW}, _JOB_FIELDS, closed=True),
    ]
}
_FILE: Final = ("node", "kind", "filename", "subfolder", "type", "media_type", "url")
_OUTPUT: Final[Schema] = whole(dict.fromkeys(_FILE, TEXT))
_PROGRESS: Final[Schema] = whole({
    "node": maybe(TEXT),
    "value": maybe(NUMBER),
    "max": maybe(NUMBER),
    "nodes_done": WHOLE,
    "nodes_total": maybe(WHOLE),
    "started_at": NUMBER,
    "has_preview": FLAG,
})
_COUNTS: Final[Mapping[str, Schema]] = dict.fromkeys(("running", "pending", "total"), WHOLE)
_SUMS: Final = (
    "total_instances", "healthy_instances", "total_running", "total_pending", "total_load", "waiting_in_line",
)  # fmt: skip

SCHEMAS: Final[Mapping[str, Schema]] = {
    "Error": whole({
        "error": whole({"type": TEXT, "message": TEXT}, {"details": TEXT, "extra_info": ANYTHING}),
    }, {"node_errors": {"type": ["object", "array"]}}),
    "Order": _ORDER,
    "Submission": {
        "anyOf": [
            _ORDER,
            whole(
                {"jobs": {**many(ref("Order")), "minItems": 1, "maxItems": MOST_JOBS}},
                {"client_id": maybe(NAME)},
                closed=True,
            ),
        ]
    },
    "Submitted": {"anyOf": [ref("Job"), ref("Batch")]},
    "Batch": whole({
        "jobs": many({"anyOf": [ref("Job"), whole({"status": WHOLE}, {"error": {}})]}),
        "taken": WHOLE,
        "refused": WHOLE,
    }),
    "Job": whole({
        "id": TEXT,
        "state": _STATES,
        "gpu": maybe(WHOLE),
        "port": TEXT,
        "client_id": TEXT,
        "created_at": maybe(NUMBER),
        "started_at": maybe(NUMBER),
        "ended_at": maybe(NUMBER),
        "times": many(whole({"state": _STATES, "at": NUMBER})),
        "attempts": WHOLE,
        "cancel_requested": FLAG,
        "outputs": many(_OUTPUT),
        "webhook": maybe(whole({
            "delivered_at": maybe(NUMBER),
            "tries": WHOLE,
            "next_at": maybe(NUMBER),
            "given_up": FLAG,
            "error": maybe(TEXT),
        })),
        "error": maybe(ANYTHING),
        "links": {"type": "object", "additionalProperties": TEXT},
        "progress": maybe(_PROGRESS),
        "position": maybe(WHOLE),
        "eta_seconds": maybe(NUMBER),
    }),
    "JobList": whole({"jobs": many(ref("Job")), "next": maybe(TEXT)}),
    "Generate": whole(
        {"workflow": _WORKFLOW},
        {
            "client_id": maybe(NAME),
            "wait_for_completion": maybe(FLAG),
            "timeout": maybe({"type": "number", "minimum": 0, "maximum": LONGEST_WAIT}),
            "gpu": maybe(GPU),
            "priority": maybe(_PRIORITY),
            "webhook": _WEBHOOK,
        },
    ),
    "TestWorkflow": whole(
        {},
        {
            "checkpoint": maybe(NAME),
            "client_id": maybe(NAME),
            "wait_for_completion": maybe(FLAG),
            "timeout": maybe({"type": "number", "minimum": 0, "maximum": LONGEST_WAIT}),
        },
    ),
    "Generated": whole({
        "prompt_id": TEXT,
        "assigned_gpu": maybe(WHOLE),
        "assigned_instance": maybe(TEXT),
        "message": TEXT,
        "error": maybe(TEXT),
    }),
    "Unhealthy": {
        "allOf": [ref("Error")],
        "properties": {"detail": whole({"error": TEXT, "message": TEXT})},
    },
    "Status": whole({
        "success": FLAG,
        "data": whole({
            "instances": {
                "type": "object",
                "additionalProperties": whole({
                    "gpu_id": WHOLE,
                    **_COUNTS,
                    "healthy": FLAG,
                    "last_error": maybe(TEXT),
                    "last_update": maybe(NUMBER),
                    "draining": FLAG,
                }),
            },
            "summary": whole({**dict.fromkeys(_SUMS, WHOLE), "line_paused": FLAG}),
        }),
    }),
    "Instances": whole({"instances": many(whole({"url": TEXT, "gpu_id": WHOLE, "weight": NUMBER}))}),
    "Queue": whole({"gpu_id": WHOLE, "queue_running": many({}), "queue_pending": many({})}),
    "Queues": whole({"queues": many(whole({"gpu_id": WHOLE})), "total_running": WHOLE, "total_pending": WHOLE}),
    "QueueCounts": whole({}, {
        "queues": many(whole({"gpu_id": WHOLE, "queued": WHOLE, "running": WHOLE})), "mode": TEXT
    }),
    "Health": whole({"status": TEXT, "healthy_instances": WHOLE, "total_instances": WHOLE}),
    "Life": whole({"status": TEXT}, {"reason": TEXT}),
    "Explanation": whole({"id": TEXT, "state": _STATES, "gpu": maybe(WHOLE), "port": TEXT}),
    "GpuState": whole({
        "gpu": WHOLE, "state": {"type": "string", "enum": ["ready", "busy", "draining", "faulted", "down", "absent"]},
        "reason": TEXT, "jobs": WHOLE,
    }),
    "LineState": whole({"paused": FLAG, "waiting": WHOLE}),
    "LogLines": whole({
        "backend": WHOLE, "newest": WHOLE, "lines": many(whole({"number": WHOLE, "text": TEXT})),
    }),
    "Done": whole({"ok": FLAG}),
    "Preload": {"anyOf": [
        whole({"workflow": _WORKFLOW}, {"gpus": {**many(GPU), "minItems": 1}, "wait": FLAG}, closed=True),
        whole({
            "models": {
                **many(whole({"type": NAME, "name": NAME}, {"inputs": ANYTHING}, closed=True)),
                "minItems": 1, "maxItems": 64,
            },
        }, {"gpus": {**many(GPU), "minItems": 1}, "wait": FLAG}, closed=True),
    ]},
    "Preloaded": whole({"preloaded": many(whole({"gpu_id": WHOLE, "models": WHOLE, "seconds": NUMBER}))}),
    "Preloading": whole({"preloading": many(WHOLE)}),
    "Reload": whole({"applied": many(TEXT), "waiting": many(TEXT), "warnings": many(TEXT)}),
    "OpenApi": whole({"openapi": TEXT, "paths": ANYTHING}),
    "ComfyError": whole({"error": {}}),
    "ComfyJob": whole({"id": TEXT, "status": {"type": "string", "enum": sorted(set(STATUS.values()))}}),
    "ComfyJobList": whole({
        "jobs": many(ref("ComfyJob")),
        "pagination": whole({"offset": WHOLE, "limit": maybe(WHOLE), "total": WHOLE, "has_more": FLAG}),
    }),
    "ComfyCancel": whole({"job_ids": many(NAME)}),
    "ComfyCancelled": whole({"cancelled": FLAG}),
}  # fmt: skip
"""By name."""

COMFY_QUERY: Final[Mapping[str, Schema]] = {
    "status": {"type": "string", "enum": sorted(set(STATUS.values()))},
    "workflow_id": TEXT,
    "sort_by": {"type": "string", "enum": list(SORTS)},
    "sort_order": {"type": "string", "enum": ["asc", "desc"]},
    "limit": {"type": "integer", "minimum": 1, "maximum": 1_000_000},
    "offset": {"type": "integer", "minimum": 0, "maximum": 1_000_000},
}

_GREY: Final[Schema] = {
    "1": {"class_type": "EmptyImage", "inputs": {"width": 16, "height": 16, "batch_size": 1, "color": 8421504}},
    "2": {"class_type": "PreviewImage", "inputs": {"images": ["1", 0]}},
}
EXAMPLES: Final[Mapping[str, Mapping[str, Any]]] = {
    "Submission": {"one": {"workflow": _GREY}, "many": {"jobs": [{"workflow": _GREY}, {"workflow": _GREY, "gpu": 0}]}},
    "Generate": {"one": {"workflow": _GREY, "wait_for_completion": True, "timeout": 60}},
}
"""Bodies that any backend takes, by the name of their schema."""
