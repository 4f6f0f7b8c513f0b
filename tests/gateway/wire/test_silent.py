"""Control frames where there is no backend to answer them: one mechanism for held and for displaced clients."""

import pytest

from gateway.wire.frames import close_frame, frame
from gateway.wire.replay import CLOSE, PING
from gateway.wire.silent import PONG, PROTOCOL_ERROR, answer_controls


class Line:
    """A transport that remembers what it was told."""

    def __init__(self, *, reads: bool = True) -> None:
        self.sent = b""
        self.closed = ""
        self._reads = reads

    def write(self, data: bytes) -> None:
        self.sent += data

    def is_closing(self) -> bool:
        return bool(self.closed)

    def close(self) -> None:
        self.closed = "closed"

    def abort(self) -> None:
        self.closed = "aborted"

    def get_write_buffer_size(self) -> int:
        return 0 if self._reads else len(self.sent)


@pytest.mark.parametrize(
    ("controls", "sent", "closed"),
    [
        ([], b"", ""),
        ([(PING, b""), (PING, b"x" * 125)], frame(PONG, b"") + frame(PONG, b"x" * 125), ""),
        ([(PONG, b"unasked")], b"", ""),
        ([(CLOSE, b"")], frame(CLOSE, b""), "closed"),
        ([(CLOSE, b"\x03\xe8bye"), (PING, b"late")], frame(CLOSE, b"\x03\xe8bye"), "closed"),
        ([(PING, b"x" * 126)], close_frame(PROTOCOL_ERROR, masked=False), "closed"),
    ],
)
def test_pings_get_pongs_and_a_close_gets_a_close(controls, sent, closed):
    """And nothing after it; what is larger than a control frame may be ends with 1002."""
    line = Line()
    answer_controls(line, controls)
    assert (line.sent, line.closed) == (sent, closed)


def test_a_flood_of_pings_whose_answers_nobody_reads_ends():
    """Pongs do not fill memory."""
    line = Line(reads=False)
    for _ in range(600):
        answer_controls(line, [(PING, b"x" * 125)] * 10)
    assert line.closed == "aborted"
    assert len(line.sent) < 70_000
