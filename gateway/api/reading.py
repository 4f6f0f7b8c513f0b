"""What a client sent, read and judged: each mistake is a 400 that names the field and what it may be.

Pure. Owns the words of such answers. Must never know what a field is for.
"""

import json
from collections.abc import Iterable, Mapping
from typing import Any

from gateway.errors import BAD_REQUEST, UNSUPPORTED_ENCODING, GatewayError
from gateway.jobs.incoming import Incoming


def refused(message: str, details: str = "", **extra: Any) -> GatewayError:
    """A 400."""
    return GatewayError(BAD_REQUEST, message, details, **extra)


def object_in(incoming: Incoming, *, empty: bool = False) -> "Fields":
    """The JSON object that is the body; ``empty``: no body is an object without fields."""
    if incoming.field(b"content-encoding").lower() not in {"", "identity"}:
        raise GatewayError(UNSUPPORTED_ENCODING, "The body cannot be compressed here.", "Leave Content-Encoding out.")
    if empty and not incoming.body.strip():
        return Fields({})
    try:
        found = json.loads(incoming.body)
    except (ValueError, RecursionError) as error:
        raise refused("The body is not JSON.", str(error)) from error
    return Fields(mapping(found, "The body"))


def mapping(found: object, what: str) -> Mapping[str, Any]:
    """A JSON object."""
    if not isinstance(found, dict):
        raise refused(f"{what} is not a JSON object.", f"It is {_named(found)}.")
    return found


class Fields:
    """The members of a JSON object, each read once by who knows what it may be. ``null`` is as if it were not there."""

    def __init__(self, found: Mapping[str, Any], where: str = "") -> None:
        self._found = found
        self._where = where

    def __contains__(self, name: str) -> bool:
        return self._found.get(name) is not None

    def raw(self, name: str) -> Any:
        """Whatever stands there."""
        return self._found.get(name)

    def only(self, names: Iterable[str]) -> None:
        """Refuse what is not among ``names``."""
        known = list(names)
        for name in self._found:
            if name not in known:
                text = f"{self._where}{name[:100]!r} is not a field here."
                raise refused(text, f"The fields are {', '.join(known)}.")

    def text(self, name: str, default: str = "", most: int = 1000) -> str:
        """A string of 1 to ``most`` characters."""
        value = self._found.get(name)
        if value is None:
            return default
        if not isinstance(value, str) or not 0 < len(value) <= most:
            raise self._wrong(name, f"a string of 1 to {most} characters", value)
        try:
            value.encode()
        except UnicodeEncodeError:
            raise self._wrong(name, "text", value) from None
        return value

    def whole(self, name: str, low: int, high: int, default: int | None = None) -> int | None:
        """A whole number from ``low`` to ``high``."""
        value = self._found.get(name)
        if value is None:
            return default
        if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
            raise self._wrong(name, f"a whole number from {low} to {high}", value)
        return value

    def seconds(self, name: str, most: float, default: float) -> float:
        """A number from 0 to ``most``."""
        value = self._found.get(name)
        if value is None:
            return default
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= most:
            raise self._wrong(name, f"a number from 0 to {most:g}", value)
        return float(value)

    def flag(self, name: str, default: bool) -> bool:
        """True or false."""
        value = self._found.get(name)
        if value is None:
            return default
        if not isinstance(value, bool):
            raise self._wrong(name, "true or false", value)
        return value

    def members(self, name: str) -> Mapping[str, Any] | None:
        """A JSON object."""
        value = self._found.get(name)
        if value is None:
            return None
        if not isinstance(value, dict):
            raise self._wrong(name, "a JSON object", value)
        return value

    def several(self, name: str, most: int) -> list[Any]:
        """A list of 1 to ``most`` members."""
        value = self._found.get(name)
        if not isinstance(value, list) or not 0 < len(value) <= most:
            raise self._wrong(name, f"a list of 1 to {most} members", value)
        return value

    def _wrong(self, name: str, wanted: str, value: object) -> GatewayError:
        return refused(f"{self._where}{name} must be {wanted}.", f"It is {_named(value)}.")


def whole_in(query: Mapping[str, str], name: str, low: int, high: int, default: int) -> int:
    """A whole number in the query."""
    text = query.get(name)
    if text is None:
        return default
    if not (text.isascii() and text.removeprefix("-").isdigit() and len(text) <= 20 and low <= int(text) <= high):
        raise refused(f"{name} must be a whole number from {low} to {high}.", f"It is {text[:100]!r}.")
    return int(text)


def _named(value: object) -> str:
    """A value as an error message shows it."""
    if isinstance(value, dict | list):
        return f"{'an object' if isinstance(value, dict) else 'a list'} of {len(value)}"
    try:
        return repr(value)[:100]
    except ValueError:
        return "a number too long to be shown"
