"""Child processes: their lines, their end, and the end of what they started."""

import asyncio
import os
import sys
from pathlib import Path

import pytest

from gateway.fleet.child import Child, Lines
from tests.doubles.wait import alive, until


@pytest.mark.parametrize("step", [1, 2, 1000])
def test_lines_come_whole_however_they_are_cut(step: int):
    """Ends of line of every sort, and a character of two bytes across a border."""
    data = "eins\nzw\u00f6lf\r\nfort 10%\rfort 20%\n\nrest".encode()
    lines, found = Lines(), []
    for at in range(0, len(data), step):
        found += lines.feed(data[at : at + step])
    assert found + lines.end() == ["eins", "zw\u00f6lf", "fort 10%", "fort 20%", "rest"]


def test_a_line_that_never_ends_is_cut():
    """Memory is bounded by the limit, whatever comes."""
    lines = Lines(limit=10)
    assert lines.feed(b"x" * 25) == ["x" * 10, "x" * 10]
    assert lines.end() == ["x" * 5]


async def start(code: str, heard: list[tuple[str, str]], tasks: asyncio.TaskGroup) -> Child:
    def hear(stream: str, line: str) -> None:
        heard.append((stream, line))

    return await Child.start([sys.executable, "-c", code], os.environ, hear, tasks)


async def end_of(child: Child) -> int:
    code = await child.exited()
    await child.ended()
    return code


async def test_output_is_told_by_stream_and_the_exit_code_is_the_childs():
    """What was written before the end is heard, even without an end of line."""
    heard: list[tuple[str, str]] = []
    async with asyncio.TaskGroup() as tasks:
        child = await start("import sys; print('a'); sys.stderr.write('b'); sys.exit(7)", heard, tasks)
        assert await end_of(child) == 7
    assert sorted(heard) == [("stderr", "b"), ("stdout", "a")]


async def test_the_end_of_a_child_ends_its_whole_group():
    """A grandchild that holds the pipes neither delays the end nor outlives it."""
    heard: list[tuple[str, str]] = []
    code = (
        "import subprocess, sys;"
        "p = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)']);"
        "print(p.pid, flush=True); sys.exit(1)"
    )
    async with asyncio.timeout(30), asyncio.TaskGroup() as tasks:
        child = await start(code, heard, tasks)
        assert await end_of(child) == 1
        await until(lambda: not alive(int(heard[0][1])))


async def test_the_end_of_stdin_tells_a_child_that_its_parent_is_gone():
    """stdin stays open as long as the child is held."""
    heard: list[tuple[str, str]] = []
    code = "import sys; print('up', flush=True); sys.stdin.read(); print('gone')"
    async with asyncio.timeout(30), asyncio.TaskGroup() as tasks:
        child = await start(code, heard, tasks)
        await until(lambda: heard)
        child.terminate()
        assert await end_of(child) == -15
    assert heard == [("stdout", "up")]


async def test_what_cannot_be_started_raises_and_leaves_no_descriptor():
    """A missing program is an OSError, and the pipes are closed again."""
    before = len(list(Path("/proc/self/fd").iterdir()))
    async with asyncio.TaskGroup() as tasks:
        with pytest.raises(OSError, match="no-such-program"):
            await Child.start(["/no-such-program"], {}, lambda _stream, _line: None, tasks)
    assert len(list(Path("/proc/self/fd").iterdir())) <= before
