"""Errors: their shape, and that each kind has a status that fits its side."""

import json

from gateway import errors
from gateway.errors import GatewayError, Kind, Retry, Side


def kinds() -> list[Kind]:
    return [value for value in vars(errors).values() if isinstance(value, Kind)]


def test_every_kind_has_its_own_name():
    """The name is what clients and metrics see."""
    names = [kind.name for kind in kinds()]
    assert len(names) == len(set(names)) > 10


def test_statuses_say_whose_fault_it_is():
    """4xx for the client, 5xx for the others, but for what the client asks of us that we do not have (501, 505)."""
    for kind in kinds():
        if kind.side is Side.CLIENT:
            assert 400 <= kind.status < 500 or kind.status in {303, 501, 504, 505}
        else:
            assert 500 <= kind.status < 600


def test_only_what_was_never_sent_may_be_tried_again():
    """No error of an answer that has begun says so."""
    assert {kind.name for kind in kinds() if kind.retry is Retry.IF_UNSENT} == {"backend_unavailable", "gateway_busy"}


def test_the_body_is_comfyuis():
    """As ComfyUI answers a prompt it refuses (server.py: post_prompt)."""
    error = GatewayError(errors.BODY_TOO_LARGE, "Too large.", "Send less.", limit=5)
    assert json.loads(error.body()) == {
        "error": {
            "type": "body_too_large",
            "message": "Too large.",
            "details": "Send less.",
            "extra_info": {"limit": 5},
        },
        "node_errors": {},
    }
    assert str(error) == "Too large."
