"""Which running job is to be stopped: per lane, the ``prompt_id`` that an interrupt is aimed at.

Owns the flags. Knows nothing of queues: whoever aims has made sure, under the queues' lock, that the job is running.
"""

from collections.abc import Callable

from backend.context import current_job, current_lane, in_sight


class Interrupts:
    """At most one aimed-at job per lane; the test on the way of every sampling step is one look at a dict."""

    def __init__(self, on_aim: Callable[[], None] = lambda: None) -> None:
        """``on_aim`` is called after a job was told to stop: it may be waiting where nothing looks."""
        self._on_aim = on_aim
        self._aimed: dict[int, str] = {}
        self._fresh: dict[int, str] = {}

    def begin(self, lane: int, prompt_id: str) -> None:
        """``lane`` takes ``prompt_id``; what was aimed at its predecessor is void."""
        self._fresh[lane] = prompt_id
        if self._aimed.get(lane) != prompt_id:
            self._aimed.pop(lane, None)

    def end(self, lane: int) -> None:
        """The job of ``lane`` is over."""
        self._fresh.pop(lane, None)
        self._aimed.pop(lane, None)

    def again(self, lane: int) -> None:
        """The job of ``lane`` starts once more: the reset that follows is a start's."""
        prompt_id = current_job()
        if prompt_id is not None:
            self._fresh[lane] = prompt_id

    def aim(self, lane: int, prompt_id: str) -> None:
        """Stop ``prompt_id``, which runs on ``lane``."""
        self._aimed[lane] = prompt_id
        self._on_aim()

    def reset(self) -> None:
        """ComfyUI's "not interrupted": at a job's start it drops what is aimed at others, later it drops all."""
        lane = current_lane()
        if lane is None:
            return
        starting = self._fresh.pop(lane, None)
        if starting is None or self._aimed.get(lane) != starting:
            self._aimed.pop(lane, None)

    def hit(self) -> bool:
        """True when the job that asks is to stop."""
        if not self._aimed:
            return False
        lane, job = in_sight()
        aimed = None if lane is None else self._aimed.get(lane)
        return aimed is not None and aimed == job

    def take(self) -> bool:
        """``hit``, once: true for the first that asks."""
        if not self._aimed or not self.hit():
            return False
        lane, _ = in_sight()
        return lane is not None and self._aimed.pop(lane, None) is not None
