"""Which request means which route."""

import pytest

from gateway.api.route import Call, Route, Table
from gateway.errors import GatewayError
from gateway.request import Kind
from gateway.wire.answer import Answer


async def nothing(call: Call) -> Answer:
    return Answer(200)


TABLE = Table([
    Route("GET", "/a", nothing, "", {}),
    Route("POST", "/a", nothing, "", {}, kind=Kind.SUBMIT),
    Route("GET", "/a/{id}", nothing, "", {}),
    Route("DELETE", "/a/{id}/b", nothing, "", {}),
    Route("GET", "/q/{rest*}", nothing, "", {}),
    Route("GET", "/api/x", nothing, "", {}, everywhere=True),
])  # fmt: skip


@pytest.mark.parametrize(
    ("method", "target", "front", "there"),
    [
        (b"GET", b"/a", True, True),
        (b"HEAD", b"/a?x=1", True, True),
        (b"GET", b"/a", False, False),
        (b"GET", b"/a/", True, False),
        (b"GET", b"/a/b/c", True, False),
        (b"GET", b"/ab", True, False),
        (b"GET", b"/q", True, False),
        (b"GET", b"/q/", True, False),
        (b"GET", b"/q/http://x/y", True, True),
        (b"GET", b"/api/x", False, True),
        (b"POST", b"/api/x", True, False),
    ],
)
def test_a_request_is_found_or_left_to_others(method: bytes, target: bytes, front: bool, there: bool):
    """Whole segments; GPU ports have only what is everywhere."""
    assert (TABLE.find(method, target, front=front) is not None) is there


def test_the_kind_is_the_routes():
    """What it costs does not depend on how the path looks elsewhere."""
    found = TABLE.find(b"POST", b"/a", front=True)
    assert found is not None
    assert found[0] is Kind.SUBMIT


def test_a_path_with_other_methods_names_them():
    """405."""
    with pytest.raises(GatewayError) as caught:
        TABLE.find(b"PATCH", b"/a/1/b", front=True)
    assert caught.value.headers == ((b"Allow", b"DELETE"),)
