"""Message heads: bytes in, judged values out; everything that two readers could read differently is refused.

Pure. Owns the grammar of RFC 9112 §2-6 for requests and answers: what the head is, how long the body is, whether the
connection lives on. Must never know sockets, GPUs or what a request is for. ``httptools`` (llhttp, strict) reads the
field lines; the request line and all that concerns framing is judged here.
"""

import re
from dataclasses import dataclass, field, replace
from typing import Any, Final, NamedTuple

import httptools

from gateway.errors import (
    BACKEND_BROKE,
    BAD_REQUEST,
    EXPECTATION_FAILED,
    HEAD_TOO_LARGE,
    NOT_IMPLEMENTED,
    URI_TOO_LONG,
    VERSION_NOT_SUPPORTED,
    GatewayError,
)

Pair = tuple[bytes, bytes]

HEAD_END: Final = b"\r\n\r\n"

_REQUEST_LINE = re.compile(rb"([A-Z][A-Z0-9_-]{0,31}) ([!-~]+) HTTP/1\.([01])\r\n")
_OTHER_VERSION = re.compile(rb"[A-Z][A-Z0-9_-]{0,31} [!-~]+ HTTP/[0-9](?:\.[0-9])?\r\n")
_STATUS_LINE = re.compile(rb"HTTP/1\.([01]) ([1-5][0-9]{2}|[6-9][0-9]{2})(?: ([\t\x20-\x7e\x80-\xff]*))?\r\n")
_ORIGIN_FORM = re.compile(rb"/[!\"$-~]*")
_ABSOLUTE_FORM = re.compile(rb"(?i:https?)://([A-Za-z0-9._~!$&'()*+,;=%:\[\]-]+)(/[!\"$-~]*|\?[!\"$-~]*)?")
_HOST = re.compile(rb"[A-Za-z0-9._~!$&'()*+,;=%:\[\]-]+")
_LENGTH = re.compile(rb"[0-9]{1,18}")
_TOKEN = re.compile(rb"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
# The names that mean something here, before llhttp has split anything: scanning for them costs a fifth of a callback
# per field. The first letter decides most lines; both spellings of our own names are ours (``fields.OWN``).
_REQUEST_SPECIAL = re.compile(
    rb"\r\n(?=[cefhkptuxCEFHKPTUX])"
    rb"(connection|content-length|expect|forwarded|host|http2-settings|keep-alive"
    rb"|proxy-(?:authenticate|authorization|connection)|te|trailer|transfer-encoding|upgrade"
    rb"|x[-_](?:forwarded[-_](?:for|host|proto)|real[-_]ip|request[-_]id|target[-_]gpu))"
    rb":[ \t]*([^\r]*)",
    re.IGNORECASE,
)
_ANSWER_SPECIAL = re.compile(
    rb"\r\n(?=[chkptuxCHKPTUX])"
    rb"(connection|content-length|http2-settings|keep-alive|proxy-(?:authenticate|authorization|connection)"
    rb"|te|trailer|transfer-encoding|upgrade|x-request-id)"
    rb":[ \t]*([^\r]*)",
    re.IGNORECASE,
)
_BARE_NEWLINE = re.compile(rb"(?<!\r)\n|\r[^\n]")
_FIRST_BYTES = b"ABCDEFGHIJKLMNOPQRSTUVWXYZ\r"


@dataclass(slots=True)
class Fields:
    """What the field lines of one request say. Shared by all requests of a connection that repeat them."""

    block: bytes
    """The lines as sent, each with its CR LF *before* it, and one CR LF behind the last."""
    special: list[Pair]
    """The fields among them that are judged or taken out; names in lower case."""
    host: bytes | None = None
    length: int | None = None
    """``Content-Length``; ``None`` when there is none."""
    chunked: bool = False
    connection: frozenset[bytes] = frozenset()
    """Tokens of ``Connection``, in lower case."""
    upgrade: bool = False
    """Whether it asks for a WebSocket: nothing else is upgradable, ``h2c`` least of all."""
    expect: bool = False
    trailers: bool = False
    """Whether the client wants trailers (``TE: trailers``)."""
    request_id: bytes = b""
    """The one ``X-Request-ID`` sent; empty when there is none, or several."""
    rewritten: bytes | None = field(default=None, compare=False)
    """Room for the lines as they go to the backend, made once by whoever forwards them."""
    address: str = field(default="", compare=False)
    """Room for the address that they say the client has."""
    named: bool = field(default=True, compare=False)
    """Room for whether that address is the client's; else it is that of a proxy which names none."""
    who: Any = field(default=None, compare=False)
    """Room for whom they come from, and how long that holds."""

    @property
    def pairs(self) -> list[Pair]:
        """All fields: order, case and duplicates as sent."""
        return pairs_of(self.block)


class RequestHead(NamedTuple):
    """One request's head. ``target`` is raw and in origin form, or ``*``."""

    method: bytes
    target: bytes
    minor: int
    fields: Fields

    @property
    def keep_alive(self) -> bool:
        """Whether the client wants the connection kept (RFC 9112 §9.3)."""
        if self.minor:
            return b"close" not in self.fields.connection
        return b"keep-alive" in self.fields.connection and b"close" not in self.fields.connection

    def has(self, name: bytes) -> bool:
        """Whether there is a field of that name; ``name`` in lower case."""
        return any(key.lower() == name for key, _ in self.fields.pairs)

    @property
    def has_body(self) -> bool:
        """Whether bytes of a body follow."""
        return self.fields.chunked or bool(self.fields.length)


class AnswerHead(NamedTuple):
    """One answer's head as the backend sent it; ``length`` is ``None`` without ``Content-Length``."""

    status: int
    reason: bytes
    minor: int
    block: bytes
    """The field lines as sent, in the form of ``Fields.block``."""
    special: list[Pair]
    length: int | None
    chunked: bool
    connection: frozenset[bytes]

    @property
    def keep_alive(self) -> bool:
        """Whether the backend keeps its connection open after this answer."""
        if b"close" in self.connection:
            return False
        return bool(self.minor) or b"keep-alive" in self.connection


class _Probe:
    """What ``httptools`` is asked: only whether the lines are well-formed, and how far it came."""

    __slots__ = ("complete",)

    def __init__(self) -> None:
        self.complete = False

    def on_headers_complete(self) -> None:
        self.complete = True


class _Nothing:
    """Nothing is to be called back."""


_NOTHING = _Nothing()


class RequestReader:
    """Reads the request heads of one connection; remembers the last field lines, which clients repeat."""

    __slots__ = ("_block", "_fields", "_max_fields", "_max_line")

    def __init__(self, *, max_line: int, max_fields: int) -> None:
        """Take the limits: bytes of the request line, number of fields."""
        self._max_line = max_line
        self._max_fields = max_fields
        self._block = b""
        self._fields = Fields(b"", [])

    def read(self, data: bytes, end: int) -> RequestHead:
        """Read the head ``data[:end]``, which ends with an empty line; raise ``GatewayError`` when it is none.

        Errors: 400, 414, 417, 431, 501, 505. After any of them the connection cannot go on.
        """
        match = _REQUEST_LINE.match(data)
        if match is None:
            raise _bad_line(data)
        line_end = match.end() - 2
        if line_end > self._max_line:
            raise GatewayError(URI_TOO_LONG, "The request line is too long.", f"At most {self._max_line} bytes.")
        method, target, minor = match.groups()
        block = data[line_end:end]
        if block == self._block:
            fields = self._fields
        else:
            fields = read_fields(block, self._max_fields)
            # Up to a size that makes ten thousand idle connections cheap.
            self._block = block if end - line_end <= 2048 else b""
            self._fields = fields
        head = RequestHead(method, target, 1 if minor == b"1" else 0, fields)
        if fields.host is None or minor != b"1" or fields.upgrade or not _ORIGIN_FORM.fullmatch(target):
            return _unusual(head)
        return head


def read_fields(block: bytes, max_fields: int) -> Fields:
    """Read a request's field lines, in the form of ``Fields.block`` and with the empty line that ends the head.

    Raise ``GatewayError`` (400, 417, 431, 501).
    """
    if block.count(b"\r\n") - 2 > max_fields:
        raise GatewayError(HEAD_TOO_LARGE, "Too many header fields.", f"At most {max_fields}.")
    probe = _Probe()
    trouble = ""
    try:
        httptools.HttpRequestParser(probe).feed_data(b"GET / HTTP/1.1" + block)
    except httptools.HttpParserUpgrade:
        pass
    except httptools.HttpParserError as error:
        trouble = str(error)
        if not probe.complete:
            raise GatewayError(BAD_REQUEST, "A header field is malformed.", trouble) from None
    fields = _judge(block[:-2])
    if trouble:
        raise GatewayError(BAD_REQUEST, "The header fields contradict each other.", trouble)
    return fields


def check_unfinished(data: bytes | bytearray, new: int, *, max_head: int, max_line: int) -> None:
    """Refuse early what can never become a request head: too long, bare line ends, or not HTTP at all.

    ``new`` is how many bytes at the end have not been checked before.
    """
    if len(data) > max_head:
        if data.find(b"\r\n", 0, max_line) < 0:
            raise GatewayError(URI_TOO_LONG, "The request line is too long.", f"At most {max_line} bytes.")
        raise GatewayError(HEAD_TOO_LARGE, "The request head is too large.", f"At most {max_head} bytes.")
    if data[0] not in _FIRST_BYTES:
        raise GatewayError(BAD_REQUEST, "This is not an HTTP request.")
    if _BARE_NEWLINE.search(data, max(0, len(data) - new - 1)):
        raise GatewayError(BAD_REQUEST, "Lines must end with CR LF.")


def read_answer(data: bytes, end: int, max_fields: int) -> AnswerHead:
    """Read a backend's answer head ``data[:end]``; raise ``GatewayError`` (502) for anything ambiguous."""
    match = _STATUS_LINE.match(data)
    if match is None:
        raise GatewayError(BACKEND_BROKE, "The backend's answer is not HTTP/1.x.")
    minor, status, reason = match.groups()
    block = data[match.end() - 2 : end]
    try:
        httptools.HttpResponseParser(_NOTHING).feed_data(b"HTTP/1.1 200 OK" + block)
    except httptools.HttpParserUpgrade:
        pass
    except httptools.HttpParserError as error:
        raise GatewayError(BACKEND_BROKE, "The backend's answer has a malformed head.", str(error)) from None
    if block.count(b"\r\n") - 2 > max_fields:
        raise GatewayError(BACKEND_BROKE, "The backend's answer has a malformed head.")
    return _judge_answer(int(status), reason or b"", int(minor == b"1"), block[:-2])


def check_unfinished_answer(data: bytes | bytearray, max_head: int) -> None:
    """Refuse early what can never become an answer head (502)."""
    if len(data) > max_head:
        raise GatewayError(BACKEND_BROKE, "The backend's answer head is too large.", f"At most {max_head} bytes.")
    if not b"HTTP/1.".startswith(bytes(data[:7])) or _BARE_NEWLINE.search(data):
        raise GatewayError(BACKEND_BROKE, "The backend's answer is not HTTP/1.x.")


def pairs_of(block: bytes) -> list[Pair]:
    """The fields of a block of lines, values without the white space around them."""
    lines = block[2:-2].split(b"\r\n") if len(block) > 2 else []
    return [(name, value.strip(b" \t")) for name, _, value in (line.partition(b":") for line in lines)]


def block_of(pairs: list[Pair]) -> bytes:
    """The lines of some fields, in the form of ``Fields.block``."""
    return b"".join([b"\r\n%b: %b" % pair for pair in pairs]) + b"\r\n"


def tokens(value: bytes) -> list[bytes]:
    """Members of a comma-separated list, in lower case, empty ones left out (RFC 9110 §5.6.1)."""
    return [token for part in value.lower().split(b",") if (token := part.strip(b" \t"))]


def _bad_line(data: bytes) -> GatewayError:
    if _OTHER_VERSION.match(data):
        return GatewayError(VERSION_NOT_SUPPORTED, "Only HTTP/1.0 and HTTP/1.1 are spoken here.")
    return GatewayError(BAD_REQUEST, "The request line is malformed.")


def _unusual(head: RequestHead) -> RequestHead:
    """All that is not a plain HTTP/1.1 request in origin form with a ``Host``."""
    fields = head.fields
    if fields.host is None and head.minor:
        raise GatewayError(BAD_REQUEST, "The Host header is missing.")
    if not head.minor:
        if fields.chunked:
            raise GatewayError(BAD_REQUEST, "HTTP/1.0 knows no Transfer-Encoding.")
        if fields.expect or fields.upgrade:
            # RFC 9110 §10.1.1 and §7.8: not for HTTP/1.0.
            pairs = [pair for pair in fields.pairs if pair[0].lower() != b"expect"]
            fields = _copy(fields, block_of(pairs), expect=False, upgrade=False)
    elif fields.upgrade and head.has_body:
        raise GatewayError(BAD_REQUEST, "A request for a WebSocket has no body.")
    elif fields.upgrade and head.method != b"GET":
        fields = _copy(fields, fields.block, upgrade=False)
    head = head._replace(fields=fields)
    if _ORIGIN_FORM.fullmatch(head.target) or (head.target == b"*" and head.method == b"OPTIONS"):
        return head
    if head.method == b"CONNECT":
        return head
    match = _ABSOLUTE_FORM.fullmatch(head.target)
    if match is None:
        raise GatewayError(BAD_REQUEST, "The request target is malformed.")
    host, path = match.groups()
    path = path or b"/"
    # RFC 9112 §3.2.2: the target's authority replaces what Host says.
    pairs = [(name, value) for name, value in fields.pairs if name.lower() != b"host"]
    target = path if path.startswith(b"/") else b"/" + path
    return head._replace(target=target, fields=_copy(fields, block_of([(b"Host", host), *pairs]), host=host))


def _copy(fields: Fields, block: bytes, **changed: Any) -> Fields:
    """The same with other lines; what was made of the old ones is not taken along."""
    return replace(fields, block=block, rewritten=None, address="", **changed)


def _judge(block: bytes) -> Fields:
    found: dict[bytes, list[bytes]] = {}
    special = []
    for name, value in _REQUEST_SPECIAL.findall(block):
        lower, text = name.lower(), value.rstrip(b" \t")
        special.append((lower, text))
        found.setdefault(lower, []).append(text)
    fields = Fields(block, special)
    hosts = found.get(b"host", ())
    if len(hosts) > 1:
        raise GatewayError(BAD_REQUEST, "There is more than one Host header.")
    if hosts:
        fields.host = hosts[0]
        if not _HOST.fullmatch(hosts[0]):
            raise GatewayError(BAD_REQUEST, "The Host header is malformed.")
    if len(found) > len(hosts):
        _judge_more(fields, found)
    return fields


def _judge_more(fields: Fields, found: dict[bytes, list[bytes]]) -> None:
    fields.length = _content_length(found.get(b"content-length", ()))
    if codings := found.get(b"transfer-encoding"):
        _check_codings(codings, fields.length)
        fields.chunked = True
    if connection := found.get(b"connection"):
        fields.connection = frozenset(tokens(b",".join(connection)))
    if b"upgrade" in fields.connection:
        fields.upgrade = [value.lower() for value in found.get(b"upgrade", ())] == [b"websocket"]
    if expectations := found.get(b"expect"):
        if [value.lower() for value in expectations] != [b"100-continue"]:
            raise GatewayError(EXPECTATION_FAILED, "The only expectation known here is 100-continue.")
        fields.expect = True
    fields.trailers = b"trailers" in tokens(b",".join(found.get(b"te", ())))
    ids = found.get(b"x-request-id", ())
    fields.request_id = ids[0] if len(ids) == 1 else b""


def _content_length(values: list[bytes] | tuple[bytes, ...]) -> int | None:
    if not values:
        return None
    if len(values) > 1 or not _LENGTH.fullmatch(values[0]):
        raise GatewayError(BAD_REQUEST, "The Content-Length header is malformed.")
    return int(values[0])


def _check_codings(values: list[bytes], length: int | None) -> None:
    if length is not None:
        raise GatewayError(BAD_REQUEST, "Content-Length and Transfer-Encoding exclude each other.")
    codings = [part.strip(b" \t").lower() for value in values for part in value.split(b",")]
    if codings == [b"chunked"]:
        return
    if not all(_TOKEN.fullmatch(coding) for coding in codings) or b"chunked" in codings[:-1]:
        raise GatewayError(BAD_REQUEST, "The Transfer-Encoding header is malformed.")
    raise GatewayError(NOT_IMPLEMENTED, "The only transfer coding known here is chunked.")


def _judge_answer(status: int, reason: bytes, minor: int, block: bytes) -> AnswerHead:
    length: int | None = None
    chunked = False
    connection = _NO_TOKENS
    special: list[Pair] = []
    for name, value in _ANSWER_SPECIAL.findall(block):
        lower, text = name.lower(), value.rstrip(b" \t")
        special.append((lower, text))
        if lower == b"content-length":
            if length is not None or not _LENGTH.fullmatch(text):
                raise GatewayError(BACKEND_BROKE, "The backend's answer has an unclear length.")
            length = int(text)
        elif lower == b"transfer-encoding":
            if chunked or not minor or text.lower() != b"chunked":
                raise GatewayError(BACKEND_BROKE, "The backend's answer has an unknown transfer coding.")
            chunked = True
        elif lower == b"connection":
            named = _CONNECTIONS.get(text) or frozenset(tokens(text))
            connection = connection | named if connection else named
    if chunked and length is not None:
        raise GatewayError(BACKEND_BROKE, "The backend's answer has an unclear length.")
    return AnswerHead(status, reason, minor, block, special, length, chunked, connection)


_NO_TOKENS: frozenset[bytes] = frozenset()
_CONNECTIONS = {text: frozenset({text}) for text in (b"close", b"keep-alive")}
