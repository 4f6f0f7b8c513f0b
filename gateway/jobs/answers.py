"""What clients are told about their submissions when it is not the backend that says it.

Pure. Owns the words. Must never know how a submission went its way.
"""

import json

from gateway.errors import BACKEND_BROKE, BACKEND_UNAVAILABLE, GatewayError
from gateway.fleet.ask import AskError, Reply
from gateway.jobs.record import Record
from gateway.wire.answer import Answer, error_answer, json_answer


def accepted_answer(record: Record) -> Answer:
    """What whoever submits a known job is told: what the first submission was."""
    said = dict(record.answer) if record.answer else {}
    if not said:
        said = {"prompt_id": record.id, "number": record.seq, "node_errors": {}, "gpu_id": record.gpu}
    return json_answer(200, json.dumps(said).encode())


def unanswered(error: AskError) -> GatewayError:
    """What a client is told when the backend gave no answer."""
    if error.refused:
        return GatewayError(BACKEND_UNAVAILABLE, "The backend cannot be reached.", str(error), retry_after=2)
    return GatewayError(BACKEND_BROKE, "The backend gave no answer.", str(error))


def gone() -> Answer:
    """The first submission has been refused a moment ago, so that there is nothing to repeat."""
    text = "The job that this submission repeats has just been refused."
    return error_answer(GatewayError(BACKEND_BROKE, text, "Submit it again."))


def why(reply: Reply) -> str:
    """The words of a refusal, in ComfyUI's shape or any other."""
    try:
        return str(json.loads(reply.body)["error"]["message"])
    except (ValueError, KeyError, TypeError):
        return f"The backend refused it with {reply.status}."
