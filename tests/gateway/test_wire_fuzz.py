"""Any bytes, ends, losses and stalls on both sides, in any order: an answer or a close, and nothing left.

``python -m tests.fuzz.wire`` runs the same stage under atheris, where it is installed, for as long as one likes.
"""

import asyncio

from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from gateway.wire.frames import FrameFollower
from gateway.wire.replay import Replay
from tests.doubles.wire_stage import LARGEST, Stage, play
from tests.fuzz.corpus import ANSWERS, REQUESTS

CLIENT, BACKEND = 0, 10


def step(code: int, data: bytes) -> bytes:
    """One step of a script that brings bytes."""
    return bytes((code,)) + len(data).to_bytes(2, "big") + data


def packets(words: list[bytes]) -> st.SearchStrategy[bytes]:
    """One of these, several at once, or anything."""
    some = st.lists(st.sampled_from(words), max_size=4)
    return st.one_of(st.sampled_from(words), st.binary(max_size=60), st.builds(b"".join, some))


steps = st.one_of(
    st.builds(step, st.just(CLIENT), packets(REQUESTS)),
    st.builds(step, st.sampled_from([BACKEND, BACKEND + 16, BACKEND + 32]), packets(ANSWERS)),
    st.sampled_from([bytes((code,)) for code in (6, 7, 8, 8, 9, 13, 14, 15, 29, 30, 31)]),
)
scripts = st.builds(b"".join, st.lists(steps, max_size=20))


def run(data: bytes) -> Stage:
    """Play a script on a loop of its own; what a callback raises is raised here."""
    raised: list[dict[str, object]] = []
    with asyncio.Runner() as runner:
        runner.get_loop().set_exception_handler(lambda _, context: raised.append(context))
        stage = runner.run(play(data))
    assert raised == []
    return stage


def test_the_stage_plays():
    """Two requests over one backend connection, an upload, and a bridge: what is tried by chance below does happen."""
    ok = step(BACKEND, ANSWERS[0])
    stage = run(step(CLIENT, REQUESTS[0]) + ok + step(CLIENT, REQUESTS[0]) + ok)
    assert (bytes(stage.client.sent).count(b"HTTP/1.1 200 OK"), len(stage.backends)) == (2, 1)
    stage = run(step(CLIENT, REQUESTS[2]) + ok)
    assert stage.backends[0].sent.endswith(b"\r\n\r\nabc")
    frame = b"\x81\x05hello"
    stage = run(step(CLIENT, REQUESTS[1]) + step(BACKEND, ANSWERS[6]) + step(BACKEND, frame) + step(CLIENT, frame))
    assert stage.client.sent.endswith(frame)
    assert stage.backends[0].sent.endswith(frame)


@settings(max_examples=400, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(scripts)
def test_any_course_of_events(script):
    """Both sides say what they like, stall, end and break off, in any order."""
    run(script)


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=400))
@example(b"\x00\x00\x04GET ")
def test_any_script_at_all(script):
    """Bytes that nobody made up for HTTP."""
    run(script)


@given(st.lists(st.binary(max_size=300), max_size=20))
def test_any_bytes_over_a_bridge_are_followed(pieces):
    """Frame boundaries, and what would have to be said again, of streams that are none: no error, bounded memory."""
    follower, replay = FrameFollower(), Replay()
    for piece in pieces:
        end = follower.frame_end(piece)
        assert end is None or 0 <= end <= len(piece)
        follower.feed(piece)
        replay.feed(piece)
        assert len(replay.data) <= 16 * 1024 + LARGEST
