"""One child process with its own process group, and its output line by line.

Owns pipes, signals and the group's end. Must never decide anything: not when to start, not when to stop.
"""

import asyncio
import codecs
import os
import signal
from collections.abc import Callable, Mapping, Sequence
from typing import Final, Self

LINE_LIMIT: Final = 16 * 1024
"""Characters of a line before it is cut; a program that never ends its lines must not fill memory."""

OnLine = Callable[[str, str], None]
"""Called with ``"stdout"`` or ``"stderr"`` and one line without its end."""


class Lines:
    """Bytes in, whole lines out. Carriage returns end lines too: progress bars are drawn with them."""

    def __init__(self, limit: int = LINE_LIMIT) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self._rest = ""
        self._limit = limit

    def feed(self, data: bytes) -> list[str]:
        """The lines that ``data`` completes, blank ones left out."""
        text = self._rest + self._decoder.decode(data).replace("\r", "\n")
        *lines, self._rest = text.split("\n")
        while len(self._rest) > self._limit:
            lines.append(self._rest[: self._limit])
            self._rest = self._rest[self._limit :]
        return [line for line in lines if line.strip()]

    def end(self) -> list[str]:
        """What was left without an end of line."""
        rest, self._rest = self._rest, ""
        return [rest] if rest.strip() else []


class Child:
    """A running process: ``exited``, then ``ended``. Grandchildren that hold its pipes delay neither for long."""

    def __init__(self, process: asyncio.subprocess.Process, readers: list[asyncio.Task[None]]) -> None:
        self._process = process
        self._readers = readers

    @property
    def pid(self) -> int:
        """The process id; also the id of its group."""
        return self._process.pid

    @classmethod
    async def start(
        cls, argv: Sequence[str], env: Mapping[str, str], on_line: OnLine, tasks: asyncio.TaskGroup
    ) -> Self:
        """Start ``argv`` in a process group of its own; raises ``OSError`` when that cannot be done."""
        outputs = [os.pipe(), os.pipe()]
        try:
            # A new session: Ctrl-C in the terminal reaches the gateway alone, which then ends the backend in order.
            # stdin stays open as long as we live: its end tells the child that we are gone.
            process = await asyncio.create_subprocess_exec(
                *argv,
                stdin=asyncio.subprocess.PIPE,
                stdout=outputs[0][1],
                stderr=outputs[1][1],
                env=dict(env),
                start_new_session=True,
            )
        except BaseException:
            for read_end, _ in outputs:
                os.close(read_end)
            raise
        finally:
            for _, write_end in outputs:
                os.close(write_end)
        readers = [
            tasks.create_task(_read(read_end, name, on_line), name=f"backend-{name}")
            for name, (read_end, _) in zip(("stdout", "stderr"), outputs, strict=True)
        ]
        return cls(process, readers)

    async def exited(self) -> int:
        """The exit code, as soon as the process is gone."""
        return await self._process.wait()

    async def ended(self) -> None:
        """Once it has exited: end its whole group, and return when its output has been read."""
        self.kill()
        # Whoever left the group may hold the pipes open for ever; what the child itself wrote is there by now.
        await asyncio.wait(self._readers, timeout=1.0)
        for reader in self._readers:
            reader.cancel()

    def terminate(self) -> None:
        """Ask the process, and only it, to end: it knows its own children."""
        if self._process.returncode is None:
            self._process.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        """End every process of the group."""
        try:
            os.killpg(self.pid, signal.SIGKILL)
        except (ProcessLookupError, PermissionError):
            return  # nobody is left; macOS says so with the second


async def _read(fd: int, name: str, on_line: OnLine) -> None:
    loop = asyncio.get_running_loop()
    reader = asyncio.StreamReader()
    transport, _ = await loop.connect_read_pipe(
        lambda: asyncio.StreamReaderProtocol(reader), os.fdopen(fd, "rb", buffering=0)
    )
    lines = Lines()
    try:
        while data := await reader.read(64 * 1024):
            for line in lines.feed(data):
                on_line(name, line)
        for line in lines.end():
            on_line(name, line)
    finally:
        transport.close()
