"""What each key has used, against what it may.

Pure: time and usage are given. Must never know how jobs are kept.
"""

from collections.abc import Callable

from gateway.auth.gate import Gate, Principal
from gateway.auth.keys import Key
from gateway.config import Rate
from gateway.errors import RATE_LIMITED, GatewayError
from gateway.ratelimit import Zone

Usage = Callable[[str], tuple[int, float]]
"""A key's name to its unfinished jobs and the seconds that its jobs have run today."""


class Quotas:
    """The quotas of all keys."""

    def __init__(self, gate: Gate) -> None:
        self._gate = gate
        self._rates: dict[tuple[str, float], Zone] = {}

    def rate(self, who: Principal, now: float) -> None:
        """Charge a submission; raises ``GatewayError`` (429) when they come too fast for this key."""
        key = who.key
        if key is not None and key.quota.requests and (wait := self._wait(key, now)):
            raise _over(f"submissions per second ({key.quota.requests:g})", wait)

    def jobs(self, owner: str, usage: Usage, now: float) -> None:
        """See whether one more job is within bounds; raises ``GatewayError`` (429) that names the quota used up."""
        key = self._gate.ring.named(owner)
        if key is None:
            return
        jobs, seconds = usage(owner)
        quota = key.quota
        if quota.jobs and jobs >= quota.jobs:
            raise _over(f"jobs at a time ({quota.jobs})", 5)
        if quota.gpu_seconds and seconds >= quota.gpu_seconds:
            raise _over(f"GPU-seconds a day ({quota.gpu_seconds:g})", int(86_400 - now % 86_400) + 1)

    def _wait(self, key: Key, now: float) -> int:
        rate = key.quota.requests
        # By rate as well: a key whose quota was changed starts afresh.
        zone = self._rates.get((key.id, rate))
        if zone is None:
            bucket = Rate(rate, max(1, round(rate)))
            zone = self._rates[key.id, rate] = Zone("quota", bucket, max_keys=1, idle=60.0, longest=0.0)
        passed, wait = zone.take(key.id, int(now * 1000))
        return 0 if passed else max(1, -(-wait // 1000))


def _over(what: str, wait: int) -> GatewayError:
    text = f"The quota of this key is used up: {what}."
    return GatewayError(RATE_LIMITED, text, f"Try again in {wait} s.", retry_after=wait, quota=what)
