"""New jobs as they enter the journal: what their records hold, and who may have one at all.

Owns the first version of a record. Must never know what becomes of it.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import Final

from gateway.errors import BACKEND_UNAVAILABLE, BAD_REQUEST, GatewayError
from gateway.jobs.incoming import Incoming
from gateway.jobs.journal import Journal
from gateway.jobs.prompt import Prompt
from gateway.jobs.record import Record
from gateway.jobs.store import StoreError

_LONGEST_KEY: Final = 1000


class Ledger:
    """Writes new jobs down."""

    def __init__(self, journal: Journal) -> None:
        self.admit: Callable[[str], None] = _anybody
        """Asked with a job's owner before it is taken; raises ``GatewayError`` when its quota is used up."""
        self._journal = journal

    def draft(self, prompt: Prompt, incoming: Incoming, key: str, digest: str) -> Record:
        """The record of a new job, not kept yet."""
        request = incoming.request
        record = self._journal.draft(
            prompt.id,
            gpu=request.gpu,
            port=incoming.port,
            client=request.client,
            client_id=prompt.client_id,
            owner=request.owner,
            key=key,
            digest=digest,
            kind=prompt.workflow.kind,
            models=tuple(sorted(prompt.workflow.models)),
            priority=prompt.priority,
            number=prompt.number,
            request_id=request.request_id,
            trace=incoming.trace,
            **incoming.known,
        )
        # As ComfyUI's own count, turned round.
        return replace(record, number=-float(record.seq)) if prompt.front and record.number is None else record

    async def write(self, record: Record, body: bytes) -> None:
        """Keep a job for good; raises ``TakenError`` when its key is another's, or ``GatewayError``."""
        self.admit(record.owner)
        # At once, so that of a burst none slips past its quota.
        self._journal.usage.note(record)
        try:
            await self._journal.add(record, body)
        except BaseException as error:
            self._journal.usage.drop(record)
            if isinstance(error, StoreError):
                text = "The job could not be written down, so it has not been taken."
                raise GatewayError(BACKEND_UNAVAILABLE, text, str(error), retry_after=5) from error
            raise


def key_of(incoming: Incoming) -> str:
    """The ``Idempotency-Key``, apart from those of other clients; raises ``GatewayError``."""
    key = incoming.field(b"idempotency-key").strip()
    if len(key) > _LONGEST_KEY:
        raise GatewayError(BAD_REQUEST, "The Idempotency-Key is too long.", f"At most {_LONGEST_KEY} characters.")
    # Two clients that count 1, 2, 3 must not meet.
    request = incoming.request
    return f"{request.owner or request.client} {key}" if key else ""


def _anybody(_owner: str) -> None:
    """No quotas."""
