"""What happens when a job runs out of device memory or breaks the device: try once more, rebuild, or give up.

Owns the steps; ``backend.lanes.OomLadder`` decides which one is next. Knows the executor only through functions that
it is given.
"""

import logging
from collections.abc import Callable
from typing import Final

from backend.lanes import Failure, Lane, OomLadder, Step, classify

log = logging.getLogger("backend.overlay.oom")

QUIET: Final = frozenset({Step.RETRY})
"""Steps after which neither client nor history hears of the failure."""


class Attempts:
    """One lane's job, tried as often as the ladder allows; used by that lane's worker alone."""

    def __init__(
        self, lane: Lane, ladder: OomLadder, free: Callable[[], None], rebuild: Callable[[], None],
        fault: Callable[[], None],
    ) -> None:
        self.lane = lane
        self.ladder = ladder
        self._free = free
        self._rebuild = rebuild
        self._fault = fault
        self._step: Step | None = None
        self._ran_out = False

    def failed(self, prompt_id: str, error: BaseException) -> bool:
        """A node of the job failed; true when nobody is to hear of it because the job is tried again."""
        kind = _kind(error)
        if kind is Failure.OTHER:
            # A mistake in a workflow says nothing about the device, and must not cost its owner's lane its cache.
            self.ladder.interrupted()
            return False
        self._ran_out = self._ran_out or kind is Failure.OOM
        self._step = self.ladder.failed(prompt_id, kind)
        log.warning("[GPU %d] job %s: %s, next: %s", self.lane.index, prompt_id, kind.value, self._step.value)
        return self._step in QUIET

    def run(self, prompt_id: str, attempt: Callable[[], None], succeeded: Callable[[], bool]) -> None:
        """Run ``attempt`` until it went through or its failure stands; then do what the last step asks for."""
        self._ran_out = False
        while self._again(prompt_id, attempt):
            self._free()
        self._settle(prompt_id, went_through=succeeded())

    def _again(self, prompt_id: str, attempt: Callable[[], None]) -> bool:
        self._step = None
        try:
            attempt()
        except Exception as error:
            # A failure inside a node has come through ``failed`` already; this one is of the executor itself.
            if not self.failed(prompt_id, error):
                self._settle(prompt_id, went_through=False)
                raise
        return self._step is Step.RETRY

    def _settle(self, prompt_id: str, went_through: bool) -> None:
        if went_through:
            self.ladder.succeeded(prompt_id)
        if self._ran_out:
            self.lane.stats.oom(recovered=went_through)
        if self._step is Step.REBUILD:
            log.warning("[GPU %d] out of memory three times in a row: its executor is rebuilt", self.lane.index)
            self._rebuild()
        elif self._step is Step.FAULT:
            log.error("[GPU %d] its device is broken: this process has to be replaced", self.lane.index)
            self._fault()


def _kind(error: BaseException) -> Failure:
    try:
        return classify(error)
    except Exception:  # noqa: BLE001 (an exception of a node may fail at telling what it is)
        return Failure.OTHER
