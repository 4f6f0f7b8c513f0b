"""The table of routes: which request means which handler, and what is documented of it.

Pure. Owns how a path is matched: raw segments are compared and only then decoded, so that an id may hold a slash as
``%2F``. Must never know what a handler does.
"""

from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import parse_qsl, unquote

from gateway.errors import METHOD_NOT_ALLOWED, GatewayError
from gateway.jobs.incoming import Incoming
from gateway.request import Kind
from gateway.wire.answer import Made

JSON = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Call:
    """One request to a route."""

    incoming: Incoming
    given: Mapping[str, str]
    """Parameters in the path, decoded."""

    @property
    def query(self) -> dict[str, str]:
        """Parameters behind the question mark; of one that is there twice, the last."""
        text = self.incoming.request.target.partition(b"?")[2].decode("latin-1")
        return dict(parse_qsl(text, keep_blank_values=True))

    def field(self, name: bytes) -> str:
        """The value of a header field that is there once; ``name`` in lower case."""
        return self.incoming.field(name)


Handler = Callable[[Call], Awaitable[Made]]


@dataclass(frozen=True, slots=True)
class Route:
    """One method of one path. ``{name}`` in the path is one segment, ``{name*}`` all that is left."""

    method: str
    path: str
    handler: Handler
    summary: str
    answers: Mapping[int, str]
    """Status to the name of a schema, a media type, or nothing when there is no body."""
    body: str = ""
    """Name of the body's schema; empty: it has none."""
    query: Mapping[str, JSON] = field(default_factory=dict)
    headers: Mapping[str, JSON] = field(default_factory=dict)
    may_be_empty: bool = False
    """Whether the body may be left out."""
    kind: Kind = Kind.READ
    everywhere: bool = False
    """Whether GPU ports have it too; then other methods of its path are the backend's."""


Found = tuple[Kind, Callable[[Incoming], Awaitable[Made]]]


class Table:
    """All routes, looked up by method and raw target."""

    def __init__(self, routes: Iterable[Route]) -> None:
        self.routes: list[Route] = []
        self._by_first: dict[bytes, list[tuple[list[str], Route]]] = {}
        self.add(routes)

    def add(self, routes: Iterable[Route]) -> None:
        """Look these up, too, after those that are there."""
        for route in routes:
            self.routes.append(route)
            segments = route.path[1:].split("/")
            self._by_first.setdefault(segments[0].encode(), []).append((segments, route))

    def find(self, method: bytes, target: bytes, *, front: bool) -> Found | None:
        """The handler of a request to the front door, or to a GPU's port; ``None``: it is for somebody else.

        Raises ``GatewayError`` (405) for a path that has only other methods.
        """
        path = target.partition(b"?")[0]
        first = path[1:].partition(b"/")[0]
        if first not in self._by_first:
            return None
        raw = path[1:].decode("latin-1").split("/")
        allowed: list[str] = []
        for segments, route in self._by_first[first]:
            if not (front or route.everywhere) or (given := _match(segments, raw)) is None:
                continue
            if method == b"HEAD" and route.method == "GET":
                return route.kind, _bound(route, given)
            if method == route.method.encode():
                return route.kind, _bound(route, given)
            if not route.everywhere:
                allowed += [route.method, "HEAD"] if route.method == "GET" else [route.method]
        if allowed:
            names = ", ".join(dict.fromkeys(allowed))
            text = "This route does not have this method."
            raise GatewayError(METHOD_NOT_ALLOWED, text, f"It has {names}.", headers=((b"Allow", names.encode()),))
        return None


def _bound(route: Route, given: Mapping[str, str]) -> Callable[[Incoming], Awaitable[Made]]:
    return lambda incoming: route.handler(Call(incoming, given))


def _match(segments: list[str], raw: list[str]) -> dict[str, str] | None:
    given: dict[str, str] = {}
    for place, segment in enumerate(segments):
        if segment.endswith("*}"):
            rest = "/".join(raw[place:])
            return {**given, segment[1:-2]: _decoded(rest)} if rest else None
        if place >= len(raw):
            return None
        if segment.startswith("{"):
            if not raw[place]:
                return None
            given[segment[1:-1]] = _decoded(raw[place])
        elif segment != raw[place]:
            return None
    return given if len(segments) == len(raw) else None


def _decoded(text: str) -> str:
    return unquote(text.encode("latin-1").decode("utf-8", "replace"))
