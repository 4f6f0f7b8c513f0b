"""This process as the system sees it: its output, its event loop, how many files it may open.

Owns nothing afterwards. Must never know what the gateway does.
"""

import asyncio
import logging
import sys
from collections.abc import Callable
from typing import Final

from gateway.config import Config
from gateway.observe.lines import JSON, JsonLines, TextLines, backend_json, backend_text

log = logging.getLogger("gateway.app")

SPARE_FILES: Final = 64
"""Descriptors for everything that is not a connection."""


def say(line: str) -> None:
    """Print a line for the user."""
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


def backend_line(form: str) -> Callable[[str], None]:
    """What passes a line of a backend on to the log, in this form."""
    shown = backend_json if form == JSON else backend_text
    return lambda line: _write(shown(line))


def _write(line: str) -> None:
    sys.stderr.write(line + "\n")


def log_to_stderr(level: str, form: str) -> None:
    """Write the gateway's log from this level on, in this form."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonLines() if form == JSON else TextLines())
    logging.basicConfig(level=level.upper(), handlers=[handler])


def loop_factory() -> Callable[[], asyncio.AbstractEventLoop] | None:
    """What makes event loops: uvloop where there is one."""
    try:
        import uvloop  # noqa: PLC0415 (not there on every platform)
    except ImportError:
        return None
    factory: Callable[[], asyncio.AbstractEventLoop] = uvloop.new_event_loop
    return factory


def raise_file_limit(wanted: int) -> None:
    """Take as many descriptors as the connections may need, or as the system gives."""
    try:
        import resource  # noqa: PLC0415 (not there on every platform)
    except ImportError:
        return
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft >= wanted:
        return
    target = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
    resource.setrlimit(resource.RLIMIT_NOFILE, (target, hard))
    if target < wanted:
        log.warning("only %d open files are allowed: fewer connections than configured will fit (ulimit -n)", target)


def apply_to_process(config: Config) -> None:
    """What the whole process goes by: the level of its log, and how many files it may open."""
    logging.getLogger().setLevel(config.log.level.upper())
    raise_file_limit(config.listen.max_connections + config.limits.pool_connections + SPARE_FILES)
