"""Jobs that wait at the gateway: how many of each client, and the body that says so.

Owns the counts. Both bodies add them to what ``status`` tells a client that watches no single GPU.
"""

import json


class Waiting:
    """Counts by client id; ``""`` stands for jobs of nobody, which everybody's count has."""

    def __init__(self) -> None:
        self._counts: dict[str, int] = {}

    def count_for(self, client_id: str) -> int:
        """This client's waiting jobs, and nobody's."""
        names = {client_id, ""}
        return sum(self._counts.get(name, 0) for name in names)

    def update(self, body: bytes) -> None:
        """Take ``{"waiting": {client id: count}}`` over the old counts; raises ``ValueError``, and changes nothing."""
        found = json.loads(body)
        counts = found.get("waiting") if isinstance(found, dict) else None
        if not isinstance(counts, dict):
            raise ValueError('send {"waiting": {client id: count}}')  # noqa: TRY004 (one kind for the caller)
        for count in counts.values():
            if not isinstance(count, int) or isinstance(count, bool) or count < 0:
                raise ValueError(f"{count!r:.50} is no number of jobs")
        merged = {**self._counts, **counts}
        self._counts = {name: count for name, count in merged.items() if count}
