"""Whether a submission that has to wait is one: what is wrong with it is said while its client still listens.

Owns who is asked: the backend, which judges as it would on taking it, where it can be asked without taking; else what
can be seen in the graph itself. Must never take a job.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

from gateway.errors import QUEUE_FULL, GatewayError
from gateway.fleet.ask import AskError
from gateway.jobs.incoming import Incoming, relayed
from gateway.jobs.peer import Peer, Peers
from gateway.schedule.terms import FullError
from gateway.wire.answer import Answer, json_answer

_UNKNOWN: Final = frozenset({404, 405, 501})
"""What plain ComfyUI answers to a route that it does not have."""


class Judge:
    """Remembers which backends cannot be asked."""

    def __init__(self, peers: Peers) -> None:
        self._cannot: dict[Peer, str] = dict.fromkeys(peers, "")
        """The life of each backend in which it was found unable."""

    async def judge(self, there: Sequence[Peer], body: bytes, incoming: Incoming) -> Mapping[str, Any] | Answer:
        """The ``node_errors`` of what may wait, nearly always none; or the refusal."""
        for peer in there:
            boot = peer.member.boot
            if self._cannot.get(peer) == boot:
                continue
            try:
                reply = await peer.check(incoming.plain_lines, body)
            except AskError:
                continue
            if reply.status in _UNKNOWN:
                self._cannot[peer] = boot
                continue
            if reply.status >= 500:
                continue  # this says nothing about the job
            if not 200 <= reply.status < 300:
                return relayed(reply)
            errors = _node_errors(reply.body)
            if errors is None:
                self._cannot[peer] = boot
                continue
            return errors
        error = fault_of(json.loads(body))
        return {} if error is None else _refused(*error)


def fault_of(submission: Mapping[str, Any]) -> tuple[str, str, str] | None:
    """Type, message and details of what is wrong with a submission at first sight, in ComfyUI's words."""
    if "prompt" not in submission:
        return "no_prompt", "No prompt provided", "No prompt provided"
    graph = submission["prompt"]
    if not isinstance(graph, dict) or not graph:
        return "prompt_no_outputs", "Prompt has no outputs", ""
    for name, node in graph.items():
        if not isinstance(node, dict) or not isinstance(node.get("class_type"), str):
            text = "Cannot execute because a node is missing the class_type property."
            return "invalid_prompt", text, f"Node ID '#{name}'"
        inputs = node.get("inputs", {})
        if not isinstance(inputs, dict):
            return "invalid_prompt", "A node's inputs must be an object.", f"Node ID '#{name}'"
        for value in inputs.values():
            if _is_link(value) and str(value[0]) not in graph:
                return "invalid_prompt", "A node's input comes from a node that is not there.", f"Node ID '#{name}'"
    return None


def within(check: Callable[[], None]) -> None:
    """Let the refusal of a full line be an answer."""
    try:
        check()
    except FullError as error:
        wait = max(1, min(3600, round(error.retry_after + 0.5)))
        text = "The queue is full."
        raise GatewayError(QUEUE_FULL, text, f"{error} Try again in {wait} s.", retry_after=wait) from error


def _node_errors(body: bytes) -> Mapping[str, Any] | None:
    """Those of an answer to a submission; ``None`` when it is something else."""
    try:
        errors = json.loads(body)["node_errors"]
    except (ValueError, KeyError, TypeError):
        return None
    return errors if isinstance(errors, dict) else None


def _is_link(value: object) -> bool:
    return isinstance(value, list) and len(value) == 2 and isinstance(value[0], str) and isinstance(value[1], int)


def _refused(kind: str, message: str, details: str) -> Answer:
    error = {"type": kind, "message": message, "details": details, "extra_info": {}}
    return json_answer(400, json.dumps({"error": error, "node_errors": {}}).encode())
