"""Keys by name: what each may do, how much of it, and how it is recognised without being kept.

Owns the form of a key, its hash and the file of keys. Everything but ``KeyFile`` is pure. A key's secret leaves this
module once, when the key is made; the file holds SHA-256 only, which suffices for 256 random bits.
"""

import hashlib
import hmac
import json
import os
import re
import secrets
import tempfile
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, replace
from enum import Enum
from pathlib import Path
from typing import Any, Final

MARK: Final = "cgw"
"""What every key begins with, so that scanners for leaked secrets can find one."""

NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_TOKEN: Final = re.compile(rf"{MARK}_([0-9a-f]{{8}})_([A-Za-z0-9_-]{{43}})")
_LARGEST: Final = 4 << 20


class Scope(Enum):
    """What a key may do; each includes those before it."""

    READ = "read"
    """Look: pages, queues, history, pictures, events, metrics."""
    SUBMIT = "submit"
    """Run jobs, upload, cancel, save workflows."""
    ADMIN = "admin"
    """Free memory, drain, preload, install: what concerns everybody."""

    @property
    def rank(self) -> int:
        """Its place, the least first."""
        return list(Scope).index(self)


@dataclass(frozen=True)
class Quota:
    """How much a key may use; 0 is no bound."""

    requests: float = 0.0
    """Submissions per second, refilled continuously; twice as many may come at once."""
    jobs: int = 0
    """Jobs that have not ended."""
    gpu_seconds: float = 0.0
    """Seconds that its jobs ran, per day (UTC)."""


@dataclass(frozen=True)
class Key:
    """One key as it is kept."""

    name: str
    id: str
    """What the key says of itself in clear; finds it in the file."""
    digest: str
    """SHA-256 of the whole key, in hex."""
    scope: Scope = Scope.SUBMIT
    quota: Quota = field(default_factory=Quota)
    created: float = 0.0
    """Seconds since 1970."""
    revoked: float = 0.0
    """When it was revoked; 0: it is good."""

    def allows(self, scope: Scope) -> bool:
        """Whether it may do what needs ``scope``."""
        return self.scope.rank >= scope.rank


class KeyFileError(Exception):
    """The file of keys cannot be used; ``str()`` is one line for the user."""


def make(name: str, scope: Scope, quota: Quota, now: float) -> tuple[Key, str]:
    """A new key and its secret text, which is shown once; raises ``ValueError`` for a name that is none."""
    if not NAME.fullmatch(name):
        raise ValueError(f"{name!r} cannot name a key: letters, digits, dot, dash and underscore, at most 64")
    key_id = secrets.token_hex(4)
    token = f"{MARK}_{key_id}_{secrets.token_urlsafe(32)}"
    return Key(name, key_id, _digest(token), scope, quota, now), token


class Ring:
    """The keys that are good, found by what a client shows."""

    def __init__(self, keys: Iterable[Key] = ()) -> None:
        self.all = tuple(keys)
        self._by_id = {key.id: key for key in self.all if not key.revoked}

    def __bool__(self) -> bool:
        """Whether any key is good."""
        return bool(self._by_id)

    def find(self, token: str) -> Key | None:
        """The key whose secret this is. Takes the same time whether the id is unknown or the secret is wrong."""
        match = _TOKEN.fullmatch(token)
        key = self._by_id.get(match[1]) if match else None
        expected = key.digest if key is not None else _NOBODY
        right = hmac.compare_digest(_digest(token), expected)
        return key if right else None

    def named(self, name: str) -> Key | None:
        """The good key of that name."""
        return next((key for key in self._by_id.values() if key.name == name), None)

    def by_id(self, key_id: str) -> Key | None:
        """The good key of that id."""
        return self._by_id.get(key_id)


class KeyFile:
    """``keys.json``: readable by its owner only, replaced as a whole."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "keys.json"

    def load(self) -> Ring:
        """All keys; no file is no keys. Raises ``KeyFileError``."""
        try:
            with self.path.open("rb") as file:
                data = file.read(_LARGEST + 1)
        except FileNotFoundError:
            return Ring()
        except OSError as error:
            raise KeyFileError(f"{self.path} cannot be read: {error.strerror or error}") from error
        try:
            found = json.loads(data[:_LARGEST])
            return Ring(_read(each) for each in found["keys"])
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise KeyFileError(f"{self.path} is no file of keys ({error}); restore it or make the keys anew") from error

    def stamp(self) -> tuple[int, int, int]:
        """Changes whenever the file does; zeros without one."""
        try:
            seen = self.path.stat()
        except OSError:
            return 0, 0, 0
        return seen.st_mtime_ns, seen.st_size, seen.st_ino

    def save(self, keys: Iterable[Key]) -> None:
        """Replace the file; whoever reads meanwhile sees the old one or the new one. Raises ``KeyFileError``."""
        text = json.dumps({"keys": [_written(key) for key in keys]}, indent=1) + "\n"
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            handle, temporary = tempfile.mkstemp(dir=self.path.parent, prefix=".keys")
            with os.fdopen(handle, "w", encoding="utf-8") as file:
                file.write(text)
                file.flush()
                os.fsync(file.fileno())
            Path(temporary).replace(self.path)
        except OSError as error:
            raise KeyFileError(f"{self.path} cannot be written: {error.strerror or error}") from error


def added(ring: Ring, key: Key) -> tuple[Key, ...]:
    """All keys and one more; raises ``ValueError`` when a good one has its name."""
    if any(each.name == key.name and not each.revoked for each in ring.all):
        raise ValueError(f"there is a key named {key.name} already; revoke it first or take another name")
    return (*ring.all, key)


def without(ring: Ring, name: str, now: float) -> tuple[Key, ...]:
    """All keys, those of that name revoked; raises ``ValueError`` when none is good."""
    if not any(each.name == name and not each.revoked for each in ring.all):
        raise ValueError(f"no key named {name}")
    return tuple(
        replace(each, revoked=now) if each.name == name and not each.revoked else each for each in ring.all
    )


def _digest(token: str) -> str:
    return hashlib.sha256(token.encode()).hexdigest()


_NOBODY: Final = _digest("")


def _written(key: Key) -> dict[str, Any]:
    return {**asdict(key), "scope": key.scope.value}


def _read(found: Mapping[str, Any]) -> Key:
    quota = Quota(**found.get("quota", {}))
    key = Key(**{**found, "scope": Scope(found["scope"]), "quota": quota})
    if not (NAME.fullmatch(key.name) and re.fullmatch("[0-9a-f]{64}", key.digest)):
        raise ValueError(f"the entry of {key.name!r} is damaged")
    return key
