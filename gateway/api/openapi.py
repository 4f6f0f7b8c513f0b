"""``/openapi.json``: the gateway's own routes as OpenAPI 3.1, made from the table that answers them.

Pure. Owns the form of the document. A route that is not in the table is not in it, and the other way round.
"""

import re
from collections.abc import Iterable, Mapping
from typing import Any, Final

from gateway import __version__
from gateway.api.route import Route
from gateway.api.schemas import EXAMPLES, GPU, NAME, SCHEMAS, ref

_PARAMETER: Final = re.compile(r"\{(\w+)\*?\}")
_PATH: Final[Mapping[str, Any]] = {"n": GPU, "gpu": GPU, "backend": GPU}
_LINK: Final = {"id": "$response.body#/id"}
_PHRASES: Final[Mapping[int, str]] = {
    101: "It is a WebSocket from here on.",
    200: "Done.",
    202: "Taken; it goes on.",
    204: "There is nothing more to tell.",
    206: "A part of it.",
    304: "It has not changed.",
    400: "The request is wrong; nothing has been done.",
    401: "A key is needed.",
    403: "This key may not do that.",
    404: "There is no such thing.",
    405: "The route does not have this method.",
    406: "There is nothing of that type.",
    413: "The body is too large.",
    415: "The body cannot be read in this form.",
    416: "There is no such part.",
    422: "It cannot be done as asked.",
    429: "Too much at once; Retry-After says when to come again.",
    500: "It has been tried and did not succeed.",
    502: "The backend gave no usable answer.",
    503: "The backend is not there; Retry-After says when to come again.",
    504: "The backend gave no answer in time.",
}
_ANY: Final[Mapping[int, str]] = {401: "Error", 403: "Error", 429: "Error"}
"""What every route may answer: for want of a key, and for too many requests."""
_BODIES: Final[Mapping[int, str]] = {400: "Error", 413: "Error"}


def document(routes: Iterable[Route]) -> dict[str, Any]:
    """The whole document."""
    paths: dict[str, dict[str, Any]] = {}
    known = list(routes)
    links = {_id(each): _LINK for each in known if each.path.startswith("/jobs/{id}") and "{n}" not in each.path}
    for route in known:
        path = _PARAMETER.sub(r"{\1}", route.path)
        operation = paths.setdefault(path, {})[route.method.lower()] = _operation(route)
        for status, told in route.answers.items():
            if told == "Submitted":
                operation["responses"][str(status)]["links"] = {
                    name: {"operationId": name, "parameters": link} for name, link in links.items()
                }
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "comfy-gateway",
            "version": __version__,
            "description": "The gateway's own routes. All of ComfyUI's are at their places on the same ports.",
        },
        "paths": paths,
        "components": {"schemas": dict(SCHEMAS)},
    }


def _operation(route: Route) -> dict[str, Any]:
    parameters = [
        {"name": name, "in": "path", "required": True, "schema": _PATH.get(name, NAME)}
        for name in _PARAMETER.findall(route.path)
    ]
    parameters += [{"name": name, "in": "query", "schema": dict(schema)} for name, schema in route.query.items()]
    parameters += [{"name": name, "in": "header", "schema": dict(schema)} for name, schema in route.headers.items()]
    answers = {**_ANY, **(_BODIES if route.body else {}), **route.answers}
    found: dict[str, Any] = {
        "summary": route.summary,
        "operationId": _id(route),
        "parameters": parameters,
        "responses": {str(status): _answer(status, answers[status]) for status in sorted(answers)},
    }
    if route.body:
        content: dict[str, Any] = {"application/json": {"schema": ref(route.body)}}
        if route.body in EXAMPLES:
            examples = {name: {"value": value} for name, value in EXAMPLES[route.body].items()}
            content["application/json"]["examples"] = examples
        found["requestBody"] = {"content": content, "required": not route.may_be_empty}
    return found


def _answer(status: int, told: str) -> dict[str, Any]:
    found: dict[str, Any] = {"description": _PHRASES[status]}
    if not told:
        return found
    if "/" in told:
        found["content"] = {each: {} for each in told.split(", ")}
    else:
        found["content"] = {"application/json": {"schema": ref(told)}}
    return found


def _id(route: Route) -> str:
    words = [each for each in re.split(r"[^A-Za-z0-9]+", f"{route.method.lower()} {route.path}") if each]
    return "_".join(words)
