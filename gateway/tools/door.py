"""A running gateway as the commands see it: one address, perhaps a key.

Owns HTTP towards it, on the standard library alone: a command is a short program that must start at once.
"""

import http.client
import json
import ssl
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final
from urllib.parse import urlsplit

_SILENCE: Final = 60.0
"""Seconds; the gateway says something every 15."""


class ToolError(Exception):
    """A command cannot go on; ``str()`` is one line that says what to do. ``code`` is its exit code."""

    def __init__(self, message: str, code: int = 1) -> None:
        super().__init__(message)
        self.code = code


@dataclass(frozen=True)
class Reply:
    """A whole answer."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    def json(self) -> Any:
        """Its JSON; raises ``ToolError`` when it has none."""
        try:
            return json.loads(self.body)
        except ValueError:
            raise ToolError("what answers there is no comfy-gateway; see --url") from None


class Door:
    """The front door of a gateway."""

    def __init__(self, url: str, key: str = "", *, insecure: bool = False) -> None:
        """``url`` is its address; ``insecure`` takes any certificate. Raises ``ToolError`` for what is no address."""
        parts = urlsplit(url)
        if parts.scheme not in {"http", "https"} or not parts.hostname:
            raise ToolError(f"{url} is no address of a gateway, such as http://127.0.0.1:8180")
        self.url = url.rstrip("/")
        self._host = parts.hostname
        self._port = parts.port
        self._headers = {"Authorization": f"Bearer {key}"} if key else {}
        self._context: ssl.SSLContext | None = None
        if parts.scheme == "https":
            self._context = ssl.create_default_context()
            if insecure:
                self._context.check_hostname = False
                self._context.verify_mode = ssl.CERT_NONE

    def ask(self, method: str, target: str, value: object = None) -> Reply:
        """One exchange; raises ``ToolError`` when there is no answer, or it says that a key is needed."""
        body = None if value is None else json.dumps(value).encode()
        connection = self._connect()
        try:
            connection.request(method, target, body=body, headers={**self._headers, **_kind(body)})
            answer = connection.getresponse()
            reply = Reply(answer.status, dict(answer.headers.items()), answer.read())
        except (OSError, http.client.HTTPException) as error:
            raise self._silent(error) from error
        finally:
            connection.close()
        if reply.status in {401, 403}:
            raise ToolError(f"{told(reply)} Give it with --key or COMFY_GATEWAY_KEY.")
        return reply

    def get(self, target: str) -> Any:
        """The JSON of a GET; raises ``ToolError`` with what the gateway says when it is no 200."""
        reply = self.ask("GET", target)
        if reply.status != 200:
            raise ToolError(told(reply))
        return reply.json()

    def events(self, target: str) -> Iterator[tuple[str, Any]]:
        """Server-sent events, until the gateway ends them; raises ``ToolError``."""
        connection = self._connect()
        try:
            connection.request("GET", target, headers=self._headers)
            answer = connection.getresponse()
            if answer.status != 200:
                raise ToolError(told(Reply(answer.status, {}, answer.read())))
            name = ""
            for raw in answer:
                field, _, content = raw.decode().rstrip("\r\n").partition(": ")
                if field == "event":
                    name = content
                elif field == "data":
                    yield name, json.loads(content)
        except (OSError, http.client.HTTPException, ValueError) as error:
            raise self._silent(error) from error
        finally:
            connection.close()

    def _connect(self) -> http.client.HTTPConnection:
        if self._context is not None:
            return http.client.HTTPSConnection(self._host, self._port, timeout=_SILENCE, context=self._context)
        return http.client.HTTPConnection(self._host, self._port, timeout=_SILENCE)

    def kept(self) -> http.client.HTTPConnection:
        """A connection of one's own, for many exchanges; they are to carry ``headers``."""
        return self._connect()

    @property
    def headers(self) -> dict[str, str]:
        """What shows the key."""
        return dict(self._headers)

    def _silent(self, error: Exception) -> ToolError:
        return silent(self.url, error)


def silent(url: str, error: Exception) -> ToolError:
    """Nobody answers there, and why."""
    reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
    return ToolError(f"no answer from {url} ({reason}); is `comfy-gateway up` running there? See --url", 3)


def told(reply: Reply) -> str:
    """What an answer says is wrong, in one line."""
    try:
        error = json.loads(reply.body)["error"]
        text = " ".join(filter(None, [str(error["message"]), str(error.get("details") or "")]))
    except (ValueError, KeyError, TypeError):
        return f"the gateway answered {reply.status}"
    return " ".join(text.split())


def _kind(body: bytes | None) -> dict[str, str]:
    return {} if body is None else {"Content-Type": "application/json"}
