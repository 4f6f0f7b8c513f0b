"""Reading a submission: an id goes in, and nothing else changes."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.jobs.prompt import again, item, read

VALUES = st.recursive(st.none() | st.booleans() | st.integers() | st.text(), st.lists, max_leaves=5)


@given(
    st.dictionaries(st.text(), VALUES).filter(lambda found: not found.keys() & {"prompt_id", "priority"}),
    st.sampled_from([None, 1]),
)
def test_an_id_is_put_in_and_every_other_byte_stays(value: dict[str, object], indent: int | None):
    """The body is the client's with one member more, cut out again it is the client's, byte for byte."""
    body = b" \n" + json.dumps(value, indent=indent).encode()
    prompt = read(body, "", "fresh")
    assert prompt is not None
    assert json.loads(prompt.body) == {**value, "prompt_id": "fresh"}
    cut = prompt.body.replace(b'"prompt_id": "fresh", ', b"", 1).replace(b'"prompt_id": "fresh"', b"", 1)
    assert cut == body


@pytest.mark.parametrize("body", [b"", b"[]", b"null", b'"x"', b"{", b"\xff\xfe", b"{} {}", b"[" * 100_000])
def test_what_is_no_object_is_not_ours(body: bytes):
    """The backend itself says what is wrong with it."""
    assert read(body, "", "fresh") is None


def test_the_clients_own_id_stands():
    """Not a byte is changed, whatever JSON type the id has."""
    for given_id, name in (("mine", "mine"), (7, "7")):
        body = json.dumps({"prompt": {}, "prompt_id": given_id}).encode()
        prompt = read(body, "", "fresh")
        assert prompt is not None
        assert (prompt.id, prompt.body) == (name, body)


def test_null_is_no_id():
    """It gives way to ours, which must not be overridden by it."""
    prompt = read(b'{"prompt_id": null, "a": 1.5}', "", "fresh")
    assert prompt is not None
    assert json.loads(prompt.body) == {"prompt_id": "fresh", "a": 1.5}


def test_another_encoding_is_kept():
    """The header names it, the backend reads by it, so the inserted id is written in it."""
    body = '{"prompt": "ä"}'.encode("utf-16")
    prompt = read(body, "application/json; charset=utf-16", "fresh")
    assert prompt is not None
    assert json.loads(prompt.body.decode("utf-16")) == {"prompt_id": "fresh", "prompt": "ä"}
    assert read(body, 'application/json; charset="no-such"', "fresh") is None


@pytest.mark.parametrize("name", ["", "x" * 2000, "\ud800", "{x}", "a}", "a{"])
def test_an_id_that_names_nothing_is_refused(name: str):
    """Empty, endless, no text at all, or with braces, which ComfyUI's history cannot be asked for."""
    with pytest.raises(ValueError, match=r"."):
        read(json.dumps({"prompt_id": name}).encode(), "", "fresh")


def test_once_more_means_behind_the_ones_before():
    """``front`` counts once; everything else is submitted as it was."""
    assert json.loads(again(b'{"front": true, "prompt": 1}')) == {"prompt": 1}
    assert again(b'{"prompt":  1}') == b'{"prompt":  1}'


def test_the_item_shows_no_secrets():
    """As ComfyUI shows it: the client's id among the extra data, API keys nowhere."""
    body = {
        "prompt_id": "a", "prompt": {"1": {}}, "client_id": "c",
        "extra_data": {"api_key_comfy_org": "s", "x": 1},
    }  # fmt: skip
    assert item(json.dumps(body).encode(), 3) == [3, "a", {"1": {}}, {"x": 1, "client_id": "c"}, []]
