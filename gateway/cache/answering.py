"""A request that may be answered with what others get, too.

Owns how a kept answer goes to one client: which form, or "not modified", and no faster than the client takes it. What
is kept is never copied for a slow client: a piece at a time is written, and the rest stays where it is.
"""

from typing import Final

from gateway.cache.asking import Asking, Group, group_of, read
from gateway.cache.cache import Cache
from gateway.cache.entry import Entry
from gateway.cache.line import HIT, Line
from gateway.request import Kind
from gateway.wire.backend import BackendConnection
from gateway.wire.own import OwnAnswer
from gateway.wire.pool import Pool
from gateway.wire.roles import AnswerReader

_AT_ONCE: Final = 16 * 1024
_PIECE: Final = 64 * 1024


class SharedAnswer(OwnAnswer):
    """An exchange that may also be answered from the cache."""

    asking: Asking
    _cache: Cache
    _note = ""
    _line: Line | None = None
    _rest: memoryview | None = None
    """What is still to be sent of a kept body."""
    _asked_of: tuple[bytes, bytes] = (b"", b"")
    """Request line, and the lines that the gateway adds."""

    def group(self, kind: Kind, target: bytes) -> Group | None:
        """Whether the answer may be shared, as far as the target tells."""
        head = self.head
        return None if head.has_body or head.method not in {b"GET", b"HEAD"} else group_of(kind, target)

    def share(self, cache: Cache, pool: Pool, boot: str, group: Group, target: bytes, added: bytes) -> bool:
        """Take the answer that others get, now or soon; false when there can be none. ``added``: our own lines."""
        head = self.head
        asking = read(head.fields.rewritten or b"")
        if asking is None:
            return False
        self.asking, self._cache = asking, cache
        self._asked_of = (b"GET %b HTTP/1.1\r\n" % target, added)
        listing = group is Group.LISTING
        line = cache.take(pool, boot, target, self, listing=listing, head=head.method == b"HEAD")
        if line is not None and not self.ended and not self.answered:
            self._line = line
        return True

    # As ``Waiter``

    def asks(self, conditions: bytes) -> bytes:
        """The head with which the backend is asked in this request's name."""
        line, added = self._asked_of
        return b"%b%b%b%b\r\n" % (line, self.asking.lines, conditions, added)

    def stored(self, entry: Entry, how: str) -> None:
        """Send a kept answer, or say that the client has it."""
        self._line = None
        client = self.client
        if self.ended or client is None:
            return
        asking = self.asking
        packed = entry.packed if asking.gzip else None
        self._note = how if not self._note else f"{self._note}, {how}"
        self._upload_ended = []
        self._keep = client.may_keep(continued=False)
        self.answered = True
        if entry.unchanged_for(asking):
            self.status, body = 304, b""
            etag = entry.etag if packed is None else entry.weak
            lines = entry.bare + (b"ETag: %b\r\n" % etag if etag else b"")
            first = b"HTTP/1.1 304 Not Modified"
        else:
            self.status, body = 200, entry.body if packed is None else packed
            lines = entry.plain_lines if packed is None else entry.packed_lines
            first = b"HTTP/1.1 200 OK"
        extra = b"Age: %d\r\n" % entry.age(self._cache.now) if how is HIT or entry.old else b""
        if not self._keep:
            extra += b"Connection: close\r\n"
        elif not self.head.minor:
            extra += b"Connection: keep-alive\r\n"
        start = b"%b%b%bX-Request-ID: %b\r\n\r\n" % (first, self.rewrite(lines), extra, self.request_id)
        self._send_stored(start, b"" if self.head.method == b"HEAD" else body)

    def adopt(self, connection: BackendConnection, pool: Pool) -> AnswerReader:
        """The answer that was asked for in this request's name is its own."""
        self._line = None
        self._note = "passed"
        self.backend, self._pool = connection, pool
        self._upload_ended = []
        return self

    def pass_on(self) -> None:
        """Ask the backend for this request alone."""
        self._line = None
        if not self.ended:
            self.ask_alone()

    def ask_alone(self) -> None:
        """Forward it."""
        raise NotImplementedError

    # Sending

    def _send_stored(self, start: bytes, body: bytes) -> None:
        client = self.client
        if client is None:
            return
        if len(body) <= _AT_ONCE:
            self.sent = len(body)
            client.write(start + body)
            self._stored_sent()
            return
        client.write(start)
        self._rest = memoryview(body)
        self._pour_stored()

    def _pour_stored(self) -> None:
        client, rest = self.client, self._rest
        if client is None or rest is None:
            return
        while rest and not client.write_blocked:
            piece, rest = rest[:_PIECE], rest[_PIECE:]
            self._rest = rest
            self.sent += len(piece)
            client.write(piece)
        if not rest:
            self._stored_sent()

    def _stored_sent(self) -> None:
        client = self.client
        self._rest = None
        self._end()
        if client is not None:
            client.done(keep=self._keep)

    def client_ready(self) -> None:
        """Go on."""
        super().client_ready()
        if self._rest is not None:
            self._pour_stored()

    def leave_line(self) -> None:
        """Wait no more: the request is over."""
        self._rest = None
        if self._line is not None:
            line, self._line = self._line, None
            line.leave(self)
