"""Settings read again while the gateway runs: a bad file changes nothing, a good one what can be changed.

Owns what is said about it in the log. Must never know what the settings mean to those who go by them.
"""

import logging
from collections.abc import Callable, Sequence
from typing import Final

from gateway.config import Config
from gateway.config_load import ConfigError
from gateway.settings.live import merge

log = logging.getLogger("gateway.reload")

Read = Callable[[], tuple[Config, Sequence[object]]]
"""The configuration as it would be at a start now, and warnings about it; raises ``ConfigError`` or ``ValueError``."""

Part = Callable[[Config], None]
"""Goes by these settings from now on; raises nothing, and drops nothing that is in progress."""

_KEPT: Final = "the settings stay as they are"


def reread(running: Config, read: Read) -> Config | None:
    """What holds from now on; ``None`` when the file cannot be used. The log says what changes and what does not."""
    try:
        wanted, warnings = read()
    except (ConfigError, ValueError) as error:
        for line in str(error).splitlines():
            log.error("%s", line)  # noqa: TRY400 (the message is the whole story)
        log.error("not reloaded: %s", _KEPT)  # noqa: TRY400
        return None
    for warning in warnings:
        log.warning("%s", warning)
    outcome = merge(running, wanted)
    if outcome.waiting:
        log.warning("changed, but only read at the start: %s", ", ".join(outcome.waiting))
    log.info("reloaded: %s", ", ".join(outcome.applied) if outcome.applied else _KEPT)
    return outcome.config
