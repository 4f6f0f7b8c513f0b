"""Settings read again while the gateway runs: a bad file changes nothing, a good one what can be changed.

Owns what is said about it, in the log and to who asked for it. Must never know what the settings mean to those who go
by them.
"""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final

from gateway.config import Config
from gateway.config_load import ConfigError
from gateway.settings.live import merge

log = logging.getLogger("gateway.reload")

Read = Callable[[], tuple[Config, Sequence[object]]]
"""The configuration as it would be at a start now, and warnings about it; raises ``ConfigError`` or ``ValueError``."""

Part = Callable[[Config], None]
"""Goes by these settings from now on; raises nothing, and drops nothing that is in progress."""

_KEPT: Final = "the settings stay as they are"


@dataclass(frozen=True)
class Outcome:
    """What a reload has come to."""

    config: Config | None = None
    """What holds from now on; ``None``: what held before, because the file cannot be used."""
    applied: Sequence[str] = ()
    """Settings that have changed, as ``[table] key``."""
    waiting: Sequence[str] = ()
    """Settings that differ, but are only read at the start."""
    warnings: Sequence[str] = ()
    errors: Sequence[str] = ()
    """What is wrong with the file, a mistake a line."""

    def shown(self) -> dict[str, Any]:
        """For who asked."""
        lists = {"applied": self.applied, "waiting": self.waiting, "warnings": self.warnings, "errors": self.errors}
        return {name: list(lines) for name, lines in lists.items()}


NOTHING: Final = Outcome()


def reread(running: Config, read: Read) -> Outcome:
    """Read the settings again. The log says what changes and what does not."""
    try:
        wanted, warnings = read()
    except (ConfigError, ValueError) as error:
        errors = str(error).splitlines()
        for line in errors:
            log.error("%s", line)  # noqa: TRY400 (the message is the whole story)
        log.error("not reloaded: %s", _KEPT)  # noqa: TRY400
        return Outcome(errors=errors)
    for warning in warnings:
        log.warning("%s", warning)
    outcome = merge(running, wanted)
    if outcome.waiting:
        log.warning("changed, but only read at the start: %s", ", ".join(outcome.waiting))
    log.info("reloaded: %s", ", ".join(outcome.applied) if outcome.applied else _KEPT)
    return Outcome(outcome.config, outcome.applied, outcome.waiting, [str(warning) for warning in warnings])
