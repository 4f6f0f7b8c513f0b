"""The per-request record, its kind, and the GPU that a path prefix names.

Pure. A kind is what a request costs; it is read off the decoded, normalised path, while the raw one is forwarded.
This module never sees a header or a body, and never changes a byte of the target.
"""

from dataclasses import dataclass
from enum import Enum
from functools import lru_cache
from typing import NamedTuple
from urllib.parse import unquote_plus, unquote_to_bytes


class Kind(Enum):
    """What a request asks for; also the metric label and the name of its bucket."""

    SUBMIT = "submit"
    UPLOAD = "upload"
    CONTROL = "control"
    READ = "read"
    EVENTS = "events"
    UI = "ui"

    # Members are singletons; Enum's own hash is Python code, and several tables are asked per request.
    __hash__ = object.__hash__


@dataclass(slots=True)
class Request:
    """One HTTP exchange as the decisions see it. Paths and header values are raw bytes, as they came."""

    method: bytes
    target: bytes
    """Path and query as sent."""
    headers: list[tuple[bytes, bytes]]
    client: str
    """Client address, without port; what limits are keyed by."""
    gpu: int | None
    """The port's GPU; ``None`` on the front door until one is chosen."""
    kind: Kind
    request_id: str
    owner: str = ""
    """The name of the key it came with; empty: it needed none."""
    confined: bool = False
    """Whether it may meet its owner's jobs only."""
    scope: str = "admin"
    """What it may do: ``read``, ``submit`` or ``admin``, each with what stands before it."""

    def may_see(self, owner: str) -> bool:
        """Whether a job of ``owner`` is for this request."""
        return not self.confined or owner == self.owner


class Prefix(NamedTuple):
    """A ``/gpuN`` prefix: the GPU, and the target without it (always starts with ``/``).

    ``redirect`` says that the slash was missing: answer 308 with ``/gpuN`` followed by ``rest`` as the location.
    """

    gpu: int
    rest: bytes
    redirect: bool


_SAFE_METHODS = frozenset({b"GET", b"HEAD", b"OPTIONS"})

# Folders of the frontend and of custom nodes' web files (ComfyUI server.py: web.static).
_UI_FOLDERS = (
    b"/assets/",
    b"/extensions/",
    b"/templates/",
    b"/docs/",
    b"/scripts/",
    b"/fonts/",
    b"/cursor/",
)
_UI_SUFFIXES = frozenset(
    b"js mjs cjs css map json wasm woff woff2 ttf otf eot png jpg jpeg gif webp avif svg ico html txt".split()
)

_CACHED_PATH = 256
"""Bytes; longer paths are classified afresh, so that the cache stays small whatever clients send."""


def classify(method: bytes, target: bytes, *, upgrade: bool) -> Kind:
    """Say what a request costs, from its method and raw target (origin form, any ``/gpuN`` prefix already off).

    ``upgrade`` is whether it asks for a WebSocket. What differs only in ``/api``, doubled slashes, percent-encoding,
    dot segments or letter case is one thing when it costs, and never static: ComfyUI answers some of these
    spellings with 404, so the dearer kind does no harm and no spelling is a way around a limit.
    """
    path, _, _ = target.partition(b"?")
    if len(path) <= _CACHED_PATH:
        return _classify_cached(method, path, upgrade)
    return _classify_path(method, path, upgrade)


def resolved(path: bytes) -> bytes:
    """A raw path as the most lenient reader takes it: decoded once, slashes merged, dots resolved."""
    return _normalise_cached(path)[0] if len(path) <= _CACHED_PATH else _normalise(path)[0]


def decoded(path: bytes) -> bytes:
    """A path without percent-encoding."""
    return unquote_to_bytes(path) if b"%" in path else path


def client_id_of(target: bytes) -> str:
    """``clientId`` of a request for events (ComfyUI server.py: websocket_handler); empty when there is none."""
    _, _, query = target.partition(b"?")
    for part in query.split(b"&"):
        name, _, value = part.partition(b"=")
        if unquote_plus(name.decode("latin-1")) == "clientId":
            return unquote_plus(value.decode("latin-1"))
    return ""


def split_prefix(target: bytes, gpus: int) -> Prefix | None:
    """Take ``/gpu0/`` … ``/gpuN-1/`` off a raw target; ``None`` when it does not start with exactly that.

    Nothing is decoded: ``/gpu0/userdata/workflows%2Fa.json`` keeps its ``%2F`` (nginx's ``rewrite`` loses it), and
    ``/%67pu0/`` is no prefix. Decimal without leading zeros, below ``gpus``; matched case-sensitively.
    """
    if not target.startswith(b"/gpu"):
        return None
    end = 4
    while target[end : end + 1].isdigit() and end < 8:
        end += 1
    digits = target[4:end]
    if not digits or (digits[:1] == b"0" and len(digits) > 1) or int(digits) >= gpus:
        return None
    rest = target[end:]
    if rest.startswith(b"/"):
        return Prefix(int(digits), rest, redirect=False)
    if not rest or rest.startswith(b"?"):
        return Prefix(int(digits), b"/" + rest, redirect=True)
    return None


def _classify_path(method: bytes, path: bytes, upgrade: bool) -> Kind:
    resolved, exact = _normalise(path)
    lower = resolved.lower()
    route = lower.removeprefix(b"/api") if lower.startswith(b"/api/") else lower
    if method == b"POST":
        if route == b"/prompt":
            return Kind.SUBMIT
        # /assets is how later ComfyUI versions take files in (app/assets/api).
        return Kind.UPLOAD if route == b"/assets" or route.startswith(b"/upload/") else Kind.CONTROL
    if method not in _SAFE_METHODS:
        return Kind.CONTROL
    if upgrade and route == b"/ws":
        return Kind.EVENTS
    return Kind.UI if exact and _is_static(resolved) else Kind.READ


_classify_cached = lru_cache(maxsize=4096)(_classify_path)


def _normalise(path: bytes) -> tuple[bytes, bool]:
    """Decode once, merge slashes, resolve dots, drop a closing slash; also whether only letters had to be decoded.

    A path whose segments move when it is decoded means different things to different readers: it is not "exact".
    """
    plain = decoded(path)
    if plain == b"/":
        return plain, True
    segments: list[bytes] = []
    exact = plain.count(b"/") == path.count(b"/")
    for segment in plain.split(b"/")[1:]:
        if segment in {b"", b"."}:
            exact = False
        elif segment == b"..":
            exact = False
            if segments:
                segments.pop()
        else:
            segments.append(segment)
    return b"/" + b"/".join(segments), exact


_normalise_cached = lru_cache(maxsize=4096)(_normalise)


def _is_static(path: bytes) -> bool:
    """Whether ComfyUI answers this path from a folder of web files; never true of an API route.

    Files at the root (``/user.css``) are static by their suffix; routes such as ``/view`` have none.
    """
    if path == b"/" or path.startswith(_UI_FOLDERS):
        return True
    if path.count(b"/") != 1:
        return False
    _, dot, suffix = path.rpartition(b".")
    return bool(dot) and suffix in _UI_SUFFIXES
