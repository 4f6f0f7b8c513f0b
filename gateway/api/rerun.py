"""``POST /jobs/{id}/rerun``: the same workflow once more, as a new job.

Owns where the workflow is found: with what was promised while the job has not ended, in its entry of the history after.
Must never change the old job.
"""

import json
from collections.abc import Callable, Mapping
from typing import Any, Final

from gateway.api.hand_in import Desks, told
from gateway.api.orders import Order
from gateway.api.route import Call
from gateway.api.shape import link
from gateway.errors import NOT_FOUND, GatewayError
from gateway.jobs.journal import Journal
from gateway.jobs.record import Record
from gateway.wire.answer import Answer, Made, json_answer

# What belongs to one submission alone: whose it was, when it came, and credentials that were sent with it.
_ITS_OWN: Final = frozenset({"client_id", "create_time", "auth_token_comfy_org", "api_key_comfy_org"})


class RerunRoute:
    """The handler. ``known`` finds the job that a path names, ``show`` is a job as other routes show it."""

    def __init__(
        self,
        journal: Journal,
        desks: Desks,
        known: Callable[[Call], Record],
        show: Callable[[Record], dict[str, Any]],
    ) -> None:
        self._journal = journal
        self._desks = desks
        self._known = known
        self._show = show

    async def rerun(self, call: Call) -> Made:
        """``POST /jobs/{id}/rerun``: 202 with the new job, as ``POST /jobs``."""
        record = self._known(call)
        graph, extra = await self._workflow(record)
        gpu = call.incoming.request.gpu
        made = await self._desks.submit(call, Order(graph, record.client_id, gpu, extra_data=extra or None))
        if isinstance(made, Answer):
            return made
        where = ((b"Location", link(made.id).encode()), (b"Cache-Control", b"no-store"))
        return json_answer(202, told(self._show(made)), where)

    async def _workflow(self, record: Record) -> tuple[Mapping[str, Any], dict[str, Any]]:
        store = self._journal.store
        try:
            if record.ended:
                prompt = json.loads((await store.entries([record.id])).get(record.id) or b"")["prompt"]
                graph, extra = prompt[2], prompt[3]
            else:
                body = json.loads(await store.body(record.id) or b"")
                graph, extra = body["prompt"], body.get("extra_data")
        except (ValueError, KeyError, TypeError, IndexError):
            graph, extra = None, None
        if not isinstance(graph, dict) or not graph:
            raise GatewayError(NOT_FOUND, "The workflow of this job is no longer known.", "Submit it again.")
        kept = {name: value for name, value in extra.items() if name not in _ITS_OWN} if isinstance(extra, dict) else {}
        return graph, kept
