"""The one history of all lanes: what became of each job, and which lane it came from.

Owns what may stand in it. Knows nothing of queues; whoever changes it holds their lock.
"""

import json
from typing import Any

from backend.context import current_lane
from backend.lanes import Outcome


class History(dict[str, Any]):
    """``prompt_id`` → entry, in order of completion, and the lane each entry came from."""

    def __init__(self) -> None:
        super().__init__()
        self.lanes: dict[str, int | None] = {}

    def __setitem__(self, prompt_id: str, entry: Any) -> None:
        super().__setitem__(prompt_id, entry)
        self.lanes[prompt_id] = current_lane()

    def pop(self, prompt_id: str, *default: Any) -> Any:
        self.lanes.pop(prompt_id, None)
        return super().pop(prompt_id, *default)

    def of(self, lane: int) -> list[str]:
        """The ids of the entries of ``lane``."""
        return [prompt_id for prompt_id, owner in self.lanes.items() if owner == lane]


def outcome_of(status: Any) -> Outcome:
    """How a job ended, as its ``ExecutionStatus`` says."""
    if status is None or status.status_str == "success":
        return "success"
    interrupted = any(message[0] == "execution_interrupted" for message in status.messages)
    return "interrupted" if interrupted else "error"


def showable(result: Any) -> Any:
    """``result``, with what JSON cannot hold as text: one such value would make the whole history unreadable."""
    try:
        json.dumps(result)
    except (TypeError, ValueError, RecursionError):
        return json.loads(json.dumps(result, default=repr, skipkeys=True)) if isinstance(result, dict) else {}
    return result
