"""The pool's address."""

import pytest

from gateway.wire.pool import parse_backend_url


@pytest.mark.parametrize(
    ("url", "parsed"),
    [
        ("http://127.0.0.1:8188", ("", "127.0.0.1", 8188)),
        ("http://[::1]:8188/", ("", "::1", 8188)),
        ("http://backend", ("", "backend", 80)),
        ("unix:/run/comfy.sock", ("/run/comfy.sock", "", 0)),
    ],
)
def test_backend_addresses(url, parsed):
    """Host and port, or a socket's path."""
    assert parse_backend_url(url) == parsed


@pytest.mark.parametrize("url", ["https://a", "a:1", "http://", "http://a/path", "http://a?b", "unix:a", "http://a:x"])
def test_other_addresses_are_refused(url):
    """With a sentence, not with a connection error later."""
    with pytest.raises(ValueError, match=r"."):
        parse_backend_url(url)
