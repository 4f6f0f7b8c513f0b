"""What the log says of jobs: one line for each state that one enters, with how long it took to get there.

Pure but for the log. Told by the journal.
"""

import logging

from gateway.jobs.record import Record, State
from gateway.observe.lines import Line

log = logging.getLogger("gateway.jobs.log")


def tell(record: Record) -> None:
    """Say that a job has entered a state."""
    if not log.isEnabledFor(logging.INFO):
        return
    queued, began = record.since(State.QUEUED), record.since(State.RUNNING)
    waited = (began if began is not None else record.at) - queued if queued is not None else 0.0
    ran = record.at - began if began is not None and record.ended else None
    where = "" if record.gpu is None else f" gpu={record.gpu}"
    words = f"job {record.id} {record.state.value}{where}"
    if record.state is not State.QUEUED:
        words += f" waited={waited:.2f}"
    if ran is not None:
        words += f" ran={ran:.2f}"
    if record.error:
        words += f" error={record.error.get('type')}"
    fields = {
        "prompt_id": record.id,
        "request_id": record.request_id,
        "state": record.state.value,
        "gpu": record.gpu,
        "port": record.port,
        "client": record.client,
        "client_id": record.client_id,
        "owner": record.owner,
        "attempts": record.attempts,
        "waited_seconds": round(waited, 3),
        "ran_seconds": None if ran is None else round(ran, 3),
        "error": None if not record.error else record.error.get("type"),
    }
    log.log(logging.WARNING if record.state in {State.FAILED, State.LOST} else logging.INFO, Line(words, **fields))
