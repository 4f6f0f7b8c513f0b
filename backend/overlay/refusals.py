"""What the overlay's own routes refuse with: ComfyUI's shape of errors. Knows no route."""

from aiohttp import web

from backend.contract import RETRY_AFTER
from backend.faults import Fault
from backend.lanes import Lane


def refusal(message: str, kind: str = "invalid_gpu") -> web.Response:
    """400 in the shape of ComfyUI's own errors."""
    error = {"type": kind, "message": message, "details": "", "extra_info": {}}
    return web.json_response({"error": error, "node_errors": {}}, status=400)


def unavailable(lane: Lane, fault: Fault) -> web.Response:
    """503 in the same shape: the lane takes no jobs any more."""
    message = f"GPU {lane.index} takes no jobs: {fault.reason}."
    error = {"type": "gpu_unavailable", "message": message, "details": "The backend starts again.", "extra_info": {}}
    body = {"error": error, "node_errors": {}}
    return web.json_response(body, status=503, headers={"Retry-After": str(RETRY_AFTER)})
