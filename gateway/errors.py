"""What went wrong, whose fault it is, whether it may be tried again, and how it looks on the wire and in metrics.

Pure. Every answer that the gateway makes itself is built here, in ComfyUI's own error shape.
"""

import json
from dataclasses import dataclass
from enum import Enum
from typing import Any


class Side(Enum):
    """Who caused it."""

    CLIENT = "client"
    BACKEND = "backend"
    GATEWAY = "gateway"


class Retry(Enum):
    """Whether the same request may be sent again without doing its work twice."""

    NEVER = "never"
    IF_UNSENT = "if_unsent"


@dataclass(frozen=True)
class Kind:
    """One kind of failure: ``name`` is the error's type on the wire and the label in metrics."""

    name: str
    status: int
    side: Side
    retry: Retry = Retry.NEVER


BAD_REQUEST = Kind("bad_request", 400, Side.CLIENT)
NOT_FOUND = Kind("not_found", 404, Side.CLIENT)
LOGIN = Kind("login_required", 303, Side.CLIENT)
UNAUTHORIZED = Kind("unauthorized", 401, Side.CLIENT)
FORBIDDEN = Kind("forbidden", 403, Side.CLIENT)
METHOD_NOT_ALLOWED = Kind("method_not_allowed", 405, Side.CLIENT)
NOT_ACCEPTABLE = Kind("not_acceptable", 406, Side.CLIENT)
REQUEST_TIMEOUT = Kind("request_timeout", 408, Side.CLIENT)
BODY_TOO_LARGE = Kind("body_too_large", 413, Side.CLIENT)
URI_TOO_LONG = Kind("uri_too_long", 414, Side.CLIENT)
EXPECTATION_FAILED = Kind("expectation_failed", 417, Side.CLIENT)
UNSUPPORTED_ENCODING = Kind("unsupported_encoding", 415, Side.CLIENT)
KEY_REUSED = Kind("idempotency_key_reuse", 422, Side.CLIENT)
JOB_FAILED = Kind("job_failed", 422, Side.CLIENT)
QUEUE_FULL = Kind("queue_full", 429, Side.CLIENT)
RATE_LIMITED = Kind("rate_limited", 429, Side.CLIENT)
HEAD_TOO_LARGE = Kind("head_too_large", 431, Side.CLIENT)
NOT_IMPLEMENTED = Kind("not_implemented", 501, Side.CLIENT)
VERSION_NOT_SUPPORTED = Kind("http_version_not_supported", 505, Side.CLIENT)
BACKEND_BROKE = Kind("backend_broke", 502, Side.BACKEND)
BACKEND_UNAVAILABLE = Kind("backend_unavailable", 503, Side.BACKEND, Retry.IF_UNSENT)
BACKEND_TIMEOUT = Kind("backend_timeout", 504, Side.BACKEND)
NOT_CACHED = Kind("not_cached", 504, Side.CLIENT)
GATEWAY_BUSY = Kind("gateway_busy", 503, Side.GATEWAY, Retry.IF_UNSENT)
INTERNAL = Kind("internal_error", 500, Side.GATEWAY)


class GatewayError(Exception):
    """A request ends here; carries everything the answer needs.

    ``message`` says what is wrong in one sentence, ``details`` what to do about it. ``retry_after`` is in seconds.
    ``headers`` go into the answer as they are.
    """

    def __init__(
        self,
        kind: Kind,
        message: str,
        details: str = "",
        *,
        retry_after: int | None = None,
        headers: tuple[tuple[bytes, bytes], ...] = (),
        **extra: Any,
    ) -> None:
        super().__init__(message)
        self.headers = headers
        self.kind = kind
        self.message = message
        self.details = details
        self.retry_after = retry_after
        self.extra = extra

    def body(self) -> bytes:
        """The JSON body: ComfyUI's shape of a refused prompt (``server.py: post_prompt``)."""
        error = {
            "type": self.kind.name,
            "message": self.message,
            "details": self.details,
            "extra_info": self.extra,
        }
        return json.dumps({"error": error, "node_errors": {}}).encode()
