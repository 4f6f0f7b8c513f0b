"""A backend that outlives the gateway which started it: its output goes to files, and a later gateway takes it over.

Owns the reading of those files as they grow, and the watch over a process that is not our child. Must never decide
whether to take one over.
"""

import asyncio
import contextlib
import os
import signal
from collections.abc import Awaitable, Callable, Mapping, Sequence
from pathlib import Path
from typing import Final, Self

from gateway.fleet.child import Lines, OnLine
from gateway.fleet.estate import Estate, Life
from gateway.fleet.life import name_of

UNKNOWN_EXIT: Final = 256
"""In place of the exit code of a process that somebody else started; no process has this one."""

_PACE: Final = 0.1
"""Seconds between two looks at the files, and at a process that is not ours to wait for."""
_LARGE: Final = 64 * 1024 * 1024
"""Bytes of output, all read, after which its file begins anew."""


class Survivor:
    """A running backend, started or taken over: ``exited``, then ``ended``."""

    def __init__(
        self, pid: int, name: str, ended: Callable[[], Awaitable[int]], readers: list[asyncio.Task[None]]
    ) -> None:
        self._pid = pid
        self.name = name
        """Which life it is; see ``life.name_of``."""
        self._ended = ended
        self._readers = readers

    @property
    def pid(self) -> int:
        """The process id; also the id of its group."""
        return self._pid

    @classmethod
    async def start(
        cls, argv: Sequence[str], env: Mapping[str, str], on_line: OnLine, tasks: asyncio.TaskGroup, estate: Estate
    ) -> Self:
        """Start ``argv`` in a process group of its own; raises ``OSError`` when that cannot be done."""
        outputs = {name: _anew(estate.output(name)) for name in ("stdout", "stderr")}
        try:
            process = await asyncio.create_subprocess_exec(
                *argv,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=outputs["stdout"],
                stderr=outputs["stderr"],
                env=dict(env),
                start_new_session=True,
            )
        finally:
            for number in outputs.values():
                os.close(number)
        readers = _follow(estate, on_line, tasks, dict.fromkeys(outputs, 0))
        return cls(process.pid, name_of(process.pid), process.wait, readers)

    @classmethod
    def adopt(cls, life: Life, on_line: OnLine, tasks: asyncio.TaskGroup, estate: Estate) -> Self:
        """Take over what another gateway started; its output is read from here on, or all of it if it is not ready."""
        ends = {name: estate.output(name).stat().st_size if life.ready else 0 for name in ("stdout", "stderr")}
        readers = _follow(estate, on_line, tasks, ends)
        return cls(life.pid, life.name, lambda: _gone(life), readers)

    async def exited(self) -> int:
        """The exit code, as soon as the process is gone; ``UNKNOWN_EXIT`` when only another gateway could tell."""
        return await self._ended()

    async def ended(self) -> None:
        """Once it has exited: end its whole group, and return when its output has been read."""
        self.kill()
        # What it wrote is in the files: one more look reads all of it.
        await asyncio.sleep(2 * _PACE)
        for reader in self._readers:
            reader.cancel()

    def terminate(self) -> None:
        """Ask the process, and only it, to end."""
        if name_of(self._pid) == self.name:
            os.kill(self._pid, signal.SIGTERM)

    def kill(self) -> None:
        """End every process of the group."""
        try:
            os.killpg(self._pid, signal.SIGKILL)
        except (ProcessLookupError, PermissionError):
            return  # nobody is left


async def end(life: Life, patience: float) -> None:
    """End a backend that is not to be taken over, within ``patience`` seconds or by force."""
    with contextlib.suppress(ProcessLookupError):
        os.kill(life.pid, signal.SIGTERM)
    try:
        async with asyncio.timeout(patience):
            await _gone(life)
    except TimeoutError:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(life.pid, signal.SIGKILL)
        await _gone(life)


async def _gone(life: Life) -> int:
    while name_of(life.pid) == life.name:  # noqa: ASYNC110 (nobody tells of the end of a process that is not a child)
        await asyncio.sleep(_PACE)
    return UNKNOWN_EXIT


def _anew(file: Path) -> int:
    """Open a file for output, empty. Appending: the file may be emptied again while it is written to.

    A new one in its place: whoever still reads the last lines of the old one is not disturbed.
    """
    file.unlink(missing_ok=True)
    return os.open(file, os.O_CREAT | os.O_TRUNC | os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC, 0o600)


def _follow(
    estate: Estate, on_line: OnLine, tasks: asyncio.TaskGroup, ends: Mapping[str, int]
) -> list[asyncio.Task[None]]:
    return [
        tasks.create_task(_read(estate.output(name), at, name, on_line), name=f"backend-{name}")
        for name, at in ends.items()
    ]


async def _read(file: Path, at: int, name: str, on_line: OnLine) -> None:
    """Tell each line that is added to the file after byte ``at``."""
    lines = Lines()
    number = os.open(file, os.O_RDWR | os.O_CLOEXEC)
    try:
        os.lseek(number, at, os.SEEK_SET)
        while True:
            while data := os.read(number, 64 * 1024):
                for line in lines.feed(data):
                    on_line(name, line)
            if os.fstat(number).st_size >= _LARGE:
                os.ftruncate(number, 0)
                os.lseek(number, 0, os.SEEK_SET)
            await asyncio.sleep(_PACE)
    finally:
        os.close(number)
