"""What a client said is kept for a backend that must hear it again; what it asks of its other end is told apart."""

import os

from hypothesis import given
from hypothesis import strategies as st

from gateway.wire.frames import FrameFollower, frame
from gateway.wire.replay import CLOSE, PING, Replay


def masked(opcode: int, payload: bytes, *, fin: bool = True) -> bytes:
    """A frame as clients send it."""
    mask = os.urandom(4)
    plain = frame(opcode, payload)
    head = plain[: len(plain) - len(payload)]
    body = bytes(byte ^ mask[at % 4] for at, byte in enumerate(payload))
    return bytes((head[0] if fin else head[0] & 0x7F, head[1] | 0x80)) + head[2:] + mask + body


FRAMES = st.lists(
    st.tuples(st.sampled_from([0x1, 0x2, PING, 0xA, CLOSE]), st.binary(max_size=300)).filter(
        lambda pair: pair[0] < 8 or len(pair[1]) < 126
    ),
    max_size=8,
)


@given(FRAMES, st.integers(1, 50))
def test_data_frames_are_kept_as_they_came_and_control_frames_are_told(frames: list[tuple[int, bytes]], step: int):
    """However the bytes are cut: the same data frames in order, and each control frame with its payload unmasked."""
    raw = [masked(opcode, payload) for opcode, payload in frames]
    stream = b"".join(raw)
    replay, controls = Replay(), []
    for at in range(0, len(stream), step):
        controls += replay.feed(stream[at : at + step])
    assert replay.possible
    assert replay.data == b"".join(each for each, (opcode, _) in zip(raw, frames, strict=True) if opcode < 8)
    assert controls == [(opcode, payload) for opcode, payload in frames if opcode >= 8]


def test_half_a_frame_is_kept_too():
    """The rest of it will follow on the new connection."""
    replay = Replay()
    whole = masked(1, b"hello")
    replay.feed(whole[:4])
    assert replay.data == whole[:4]


def test_memory_is_bounded_and_pings_do_not_count():
    """A client that talks a lot cannot be given another backend; one that only pings can, for ever."""
    quiet, loud = Replay(), Replay()
    for _ in range(100_000):
        quiet.feed(masked(PING, b"12345678"))
    assert quiet.possible
    assert quiet.data == b""
    for _ in range(100):
        loud.feed(masked(2, b"x" * 1000))
    assert not loud.possible
    assert loud.data == b""
    assert loud.feed(masked(PING, b"")) == []


def test_a_large_frame_is_given_up_before_it_is_whole():
    """Its length alone does not fill memory."""
    replay = Replay()
    for _ in range(40):
        replay.feed(masked(2, b"x" * 60_000)[:1000] if replay.data == b"" else b"y" * 1000)
    assert not replay.possible


def test_a_goodbye_is_noticed():
    """A stream that ends after a Close frame ended in order."""
    follower = FrameFollower()
    follower.feed(frame(1, b"x"))
    assert not follower.closing
    follower.feed(frame(CLOSE, b"\x03\xe9"))
    assert follower.closing


def test_frames_of_every_length_are_framed_as_the_follower_reads_them():
    """The three forms of a length."""
    for size in (0, 125, 126, 65_535, 65_536):
        follower = FrameFollower()
        follower.feed(frame(1, b"x" * size))
        assert (follower.messages, follower.at_boundary) == (1, True)
