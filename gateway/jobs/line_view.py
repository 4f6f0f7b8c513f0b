"""``GET /queue`` and ``GET /prompt`` on the front door while jobs wait there: they are pending like all others.

Owns that union, in ComfyUI's shape. Must never change the line.
"""

import json
from typing import Any, Final

from gateway.errors import GatewayError
from gateway.fleet import merge
from gateway.jobs.everywhere import told
from gateway.jobs.incoming import Incoming
from gateway.jobs.journal import Journal
from gateway.jobs.peer import Peers
from gateway.jobs.prompt import item
from gateway.jobs.schedule import Schedule
from gateway.wire.answer import Answer, json_answer

LINE: Final = frozenset({b"/queue", b"/prompt"})


class LineView:
    """The two routes."""

    def __init__(self, journal: Journal, peers: Peers, schedule: Schedule) -> None:
        self._journal = journal
        self._peers = peers
        self._schedule = schedule

    async def __call__(self, incoming: Incoming) -> Answer:
        """What the backends have, and behind it what waits here, the next one first."""
        whole_queue = b"/queue" in incoming.request.target.partition(b"?")[0]
        try:
            answers = await told(self._peers, incoming)
        except GatewayError:
            answers = []  # what waits here waits all the same
        if not whole_queue:
            left = merge.remaining_of_all(answers)
            left["exec_info"]["queue_remaining"] += self._schedule.waiting_count
            return json_answer(200, json.dumps(left).encode())
        queue = merge.queue_of_all(answers)
        there = {str(each[1]) for name in queue for each in queue[name] if isinstance(each, list) and len(each) > 1}
        queue["queue_pending"] += [each for each in await self._items() if each[1] not in there]
        return json_answer(200, json.dumps(queue).encode())

    async def _items(self) -> list[list[Any]]:
        items = []
        for job in self._schedule.line():
            record = self._journal.get(job)
            body = await self._journal.store.body(job) if record is not None else None
            if record is not None and body is not None:
                items.append(item(body, record.seq if record.number is None else record.number))
        return items
