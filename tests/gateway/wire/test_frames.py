"""Frames are followed by their headers alone, however they are cut."""

import struct

from hypothesis import given
from hypothesis import strategies as st

from gateway.wire.frames import FrameFollower, close_frame
from tests.gateway.wire.feeding import feed_every_way


def frame(opcode: int, size: int, *, fin: bool = True, masked: bool = False) -> bytes:
    """One frame with a payload of so many bytes."""
    head = bytes([opcode | (0x80 if fin else 0)])
    mask = 0x80 if masked else 0
    if size < 126:
        head += bytes([mask | size])
    elif size < 1 << 16:
        head += bytes([mask | 126]) + struct.pack(">H", size)
    else:
        head += bytes([mask | 127]) + struct.pack(">Q", size)
    return head + (b"mask" if masked else b"") + b"\x81" * size


def follow(pieces: list[bytes]) -> tuple[int, bool]:
    """Messages counted, and whether the last frame is complete."""
    follower = FrameFollower()
    for piece in pieces:
        follower.feed(piece)
    return follower.messages, follower.at_boundary


def test_messages_are_counted_once():
    """Text, binary and fragments count by their last frame; control frames do not, also between fragments."""
    data = frame(1, 5) + frame(2, 0, masked=True) + frame(1, 3, fin=False) + frame(9, 2) + frame(0, 4) + frame(8, 2)
    assert feed_every_way(data, follow) == (3, True)


def test_lengths_of_every_form():
    """Seven, sixteen and sixty-four bits, with and without mask."""
    sizes = [125, 126, 300]
    data = b"".join(frame(2, size, masked=masked) for size in sizes for masked in (True, False))
    assert feed_every_way(data, follow) == (6, True)
    assert follow([frame(2, 70_000), frame(2, 70_000, masked=True)]) == (2, True)


def test_half_a_frame_is_no_boundary():
    """Nothing may be put in there."""
    data = frame(2, 300, masked=True)
    assert [follow([data[:size]])[1] for size in (0, 1, 3, 7, 100, len(data))] == [
        True,
        False,
        False,
        False,
        False,
        True,
    ]


frames = st.builds(
    frame, st.sampled_from([0, 1, 2, 8, 9, 10]), st.integers(0, 400), fin=st.booleans(), masked=st.booleans()
)


@given(st.lists(frames, max_size=6), st.integers(1, 50))
def test_any_cut_gives_the_same_count(parts, step):
    """Counts do not depend on how bytes arrive."""
    data = b"".join(parts)
    expected = sum(1 for part in parts if part[0] & 0x80 and not part[0] & 8)
    assert follow([data[at : at + step] for at in range(0, len(data), step)]) == follow([data]) == (expected, True)


def test_close_frames():
    """Masked towards servers, bare towards clients."""
    assert close_frame(1001, masked=False) == b"\x88\x02\x03\xe9"
    assert close_frame(1001, masked=True) == b"\x88\x82\0\0\0\0\x03\xe9"


@given(st.lists(st.integers(0, 70_000), min_size=1, max_size=4), st.booleans(), st.data())
def test_the_end_of_the_passing_frame_is_known_wherever_the_stream_is_cut(sizes, masked, data):
    """Anywhere in a stream, the next boundary is where the frames say, or is not in the next piece."""
    frames = [frame(2, size, masked=masked) for size in sizes]
    stream = b"".join(frames)
    ends = [sum(map(len, frames[:count])) for count in range(len(frames) + 1)]
    cut = data.draw(st.integers(0, len(stream)))
    piece = stream[cut : data.draw(st.integers(cut, len(stream)))]
    follower = FrameFollower()
    follower.feed(stream[:cut])
    end = next(end for end in ends if end >= cut) - cut
    assert follower.frame_end(piece) == (end if end <= len(piece) else None)
