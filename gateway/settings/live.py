"""Which settings a running gateway can change to, and what a newly read configuration means for one that runs.

Pure. Owns the list; whoever makes another setting live adds it here and hands ``App.parts`` what applies it.
"""

from collections.abc import Iterator, Mapping
from dataclasses import fields, replace
from typing import Any, Final, NamedTuple

from gateway.config import Backend, Config
from gateway.settings.tables import SECTIONS

ALL: Final = frozenset({"*"})

LIVE: Final[Mapping[str, frozenset[str]]] = {
    "listen": frozenset({"max_connections"}),
    "backend": frozenset({"weight", "drain"}),
    "limits": ALL,
    "timeouts": ALL,
    "rate": ALL,
    "forwarded": ALL,
    "webhooks": ALL,
    "schedule": frozenset(
        {"depth", "patience", "ageing", "pending", "pending_client", "pending_gpu", "shares", "pins"}
    ),
    "cache": frozenset({"size", "entry", "fresh"}),
    "auth": frozenset({"loopback", "origins", "session"}),
    "log": frozenset({"level", "access"}),
}
"""Table → keys that a reload applies. All others name sockets, processes or files that were opened at the start."""


class Reload(NamedTuple):
    """What a newly read configuration comes to."""

    config: Config
    """What holds from now on: the new values of live settings, the old ones of all others."""
    applied: list[str]
    """Settings that change, as ``[table] key``."""
    waiting: list[str]
    """Settings that differ, but are only read at the start."""


def is_live(table: str, key: str) -> bool:
    """Whether a reload applies this setting."""
    keys = LIVE.get(table, frozenset())
    return keys is ALL or key in keys


def merge(running: Config, wanted: Config) -> Reload:
    """Take the live settings of ``wanted`` over into ``running``."""
    applied, waiting = [], []
    sections: dict[str, Any] = {}
    for table, key, value in _differences(running, wanted):
        name = f"[{table}] {key}"
        if is_live(table, key):
            applied.append(name)
            sections[table] = replace(sections.get(table, getattr(running, table)), **{key: value})
        else:
            waiting.append(name)
    further, of_further, others = _further(running.further, wanted.further)
    sections["further"] = further
    return Reload(replace(running, **sections), applied + of_further, waiting + others)


def _further(
    running: tuple[Backend, ...], wanted: tuple[Backend, ...]
) -> tuple[tuple[Backend, ...], list[str], list[str]]:
    """The same for ``[[backend]]`` tables after the first; of another number of them nothing is taken over."""
    if len(running) != len(wanted):
        return running, [], ["[[backend]] their number"]
    merged: list[Backend] = []
    applied, waiting = [], []
    for number, (old, new) in enumerate(zip(running, wanted, strict=True), 2):
        taken: dict[str, Any] = {}
        for field in fields(new):
            value = getattr(new, field.name)
            if value == getattr(old, field.name):
                continue
            name = f"[[backend]] {number} {field.name}"
            if is_live("backend", field.name):
                applied.append(name)
                taken[field.name] = value
            else:
                waiting.append(name)
        merged.append(replace(old, **taken))
    return tuple(merged), applied, waiting


def _differences(running: Config, wanted: Config) -> Iterator[tuple[str, str, Any]]:
    """Table, key and new value of every setting that is another one."""
    for section in SECTIONS:
        old, new = getattr(running, section), getattr(wanted, section)
        for field in fields(new):
            value = getattr(new, field.name)
            if value != getattr(old, field.name):
                yield section, field.name, value
