"""What the tests' own ground rules promise."""

import socket

import pytest


def test_no_test_reaches_beyond_this_machine():
    """A connection to anywhere else raises before a packet leaves."""
    with socket.socket() as outside, pytest.raises(RuntimeError, match=r"192\.0\.2\.1"):
        outside.connect(("192.0.2.1", 9))
