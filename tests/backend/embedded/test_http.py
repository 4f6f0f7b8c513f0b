"""Who may call from a browser."""

import pytest

from backend.embedded.http import same_site


@pytest.mark.parametrize(
    ("host", "origin", "allowed"),
    [
        ("127.0.0.1:8181", None, True),
        ("127.0.0.1:8181", "http://127.0.0.1:8181", True),
        ("localhost:8181", "http://localhost:8181", True),
        ("[::1]:8181", "http://[::1]:8181", True),
        ("127.0.0.1:8181", "http://127.0.0.1:8182", False),
        ("127.0.0.1:8181", "https://evil.example", False),
        ("localhost:8181", "http://localhost.evil.example:8181", False),
        ("127.0.0.1:8181", "http://127.0.0.1:99999999", False),
        ("gpu.example:8181", "https://elsewhere.example", True),
        ("127.0.0.1:8181", "null", True),
    ],
)
def test_pages_of_other_sites_cannot_queue_work(host: str, origin: str | None, allowed: bool):
    """On a loopback address only its own pages may call; elsewhere, as in ComfyUI, nothing is compared."""
    assert same_site(host, origin) is allowed
