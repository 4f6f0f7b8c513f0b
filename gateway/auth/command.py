"""``comfy-gateway keys``: keys made, listed and revoked.

Owns what the command says. A running gateway notices the changed file by itself.
"""

import time
from datetime import UTC, datetime
from pathlib import Path

from gateway.auth.keys import Key, KeyFile, Quota, Scope, added, make, without


def add(folder: Path, name: str, scope: Scope, quota: Quota) -> list[str]:
    """Make a key; the lines to print, the key itself among them. Raises ``ValueError`` and ``KeyFileError``."""
    file = KeyFile(folder)
    key, token = make(name, scope, quota, time.time())
    file.save(added(file.load(), key))
    return [token, f"This is the key of {name} ({scope.value}). It is shown once; {file.path} holds only its hash."]


def revoke(folder: Path, name: str) -> list[str]:
    """Revoke a key; raises ``ValueError`` and ``KeyFileError``."""
    file = KeyFile(folder)
    file.save(without(file.load(), name, time.time()))
    return [f"The key of {name} is revoked; a running gateway refuses it within a second or two."]


def show(folder: Path) -> list[str]:
    """One line per key, the oldest first; raises ``KeyFileError``."""
    file = KeyFile(folder)
    keys = sorted(file.load().all, key=lambda key: key.created)
    if not keys:
        return [f"There are no keys in {file.path}: nobody needs one. Make the first: comfy-gateway keys add NAME"]
    rows = [("NAME", "SCOPE", "MADE", "STATE", "QUOTA"), *map(_row, keys)]
    widths = [max(len(row[column]) for row in rows) for column in range(4)]
    return ["  ".join([*(cell.ljust(width) for cell, width in zip(row, widths, strict=False)), row[4]]) for row in rows]


def _row(key: Key) -> tuple[str, str, str, str, str]:
    quota = key.quota
    bounds = [
        f"{quota.requests:g}/s" * bool(quota.requests),
        f"{quota.jobs} jobs" * bool(quota.jobs),
        f"{quota.gpu_seconds:g} GPU-s/day" * bool(quota.gpu_seconds),
    ]
    made = datetime.fromtimestamp(key.created, UTC).strftime("%Y-%m-%d")
    return key.name, key.scope.value, made, "revoked" if key.revoked else "good", ", ".join(filter(None, bounds)) or "-"
