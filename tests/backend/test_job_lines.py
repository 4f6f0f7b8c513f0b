"""Whose line a line is."""

import io
import logging
import sys
import threading
from urllib.parse import unquote

import pytest

from backend import job_lines
from backend.context import in_job, in_lane
from backend.job_lines import MarkedLines, mark_of


def test_the_lines_of_a_job_say_so_and_no_others():
    """Printed in parts, several at once, or drawn over each other: each line is marked once, where it begins."""
    out = io.StringIO()
    stream = MarkedLines(out)
    print("before", file=stream)  # type: ignore[arg-type]
    with in_lane(1), in_job("a"):
        print("one", "line", file=stream)  # type: ignore[arg-type]
        print("two\nlines\n", file=stream)  # type: ignore[arg-type]
        stream.write("\r 10%")
        stream.write("\r 20%")
        stream.write("\n")
        stream.writelines(["x\n", "y"])
    with in_job("b"):
        stream.write("not a's\n")
    stream.write("after\n")
    mark = "[lane 1 job a] "
    assert out.getvalue() == (
        f"before\n{mark}one line\n{mark}two\n{mark}lines\n\n\r{mark} 10%\r{mark} 20%\n{mark}x\n{mark}y"
        "[job b] not a's\nafter\n"
    )


def test_threads_do_not_share_their_lines_beginnings():
    """What another thread has begun is not taken for a line of this one's job."""
    out = io.StringIO()
    stream = MarkedLines(out)
    other = threading.Thread(target=stream.write, args=("half a line",))
    other.start()
    other.join()
    with in_job("a"):
        stream.write("whole\n")
    assert out.getvalue() == "half a line[job a] whole\n"


def test_a_mark_ends_where_it_seems_to():
    """Clients choose their ids: no blank, bracket or line's end in one breaks the line, and none is endless."""
    mark = mark_of("a] \n[job b", 0)
    assert mark.startswith("[lane 0 job ")
    inner = mark.removeprefix("[lane 0 job ").removesuffix("] ")
    assert not set(inner) & set(" \n[]")
    assert unquote(inner) == "a] \n[job b"
    assert len(mark_of("ö" * 100_000, None)) < 2000


def test_loggers_write_to_the_marked_streams(monkeypatch: pytest.MonkeyPatch):
    """Also those that were set up before; what else a stream can do is there as before."""
    error = io.StringIO()
    monkeypatch.setattr(sys, "stdout", io.StringIO())
    monkeypatch.setattr(sys, "stderr", error)
    log = logging.getLogger("tests.job_lines")
    handler = logging.StreamHandler(error)
    log.addHandler(handler)
    log.propagate = False
    try:
        job_lines.install()
        with in_job("a"):
            log.warning("two\nlines")
        log.warning("nobody's")
    finally:
        log.removeHandler(handler)
    assert error.getvalue() == "[job a] two\n[job a] lines\nnobody's\n"
    assert sys.stderr.getvalue() == error.getvalue()  # type: ignore[attr-defined]
