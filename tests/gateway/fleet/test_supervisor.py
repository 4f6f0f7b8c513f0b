"""The supervisor over real child processes: small programs that act like a backend."""

import asyncio
import contextlib
import os
import signal
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from gateway.fleet.command import Command
from gateway.fleet.member import Member
from gateway.fleet.supervision import Rules
from gateway.fleet.supervisor import BackendFailedError, Supervisor
from tests.doubles.wait import alive, until

READY = """print('BACKEND-READY {"url": "u", "body": "toy 1", "devices": ["cpu"], "pid": 1}', flush=True)"""
OBEDIENT = f"import time; {READY}; time.sleep(60)"
STUBBORN = f"import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); {READY}; time.sleep(60)"
RULES = Rules(restart_min=0.01, restart_max=0.05, stop_timeout=0.3)


class Stage:
    """A supervisor, its member, and what was heard."""

    def __init__(self, code: str, rules: Rules = RULES) -> None:
        self.member = Member(1)
        self.lines: list[str] = []
        self.restarts = 0
        self.supervisor = Supervisor(
            Command((sys.executable, "-c", code), {}), os.environ, self.member, rules, self.lines.append, self.restarted
        )

    def restarted(self) -> None:
        self.restarts += 1


@contextlib.asynccontextmanager
async def running(stage: Stage) -> AsyncIterator[asyncio.Task[None]]:
    async with asyncio.timeout(60), asyncio.TaskGroup() as tasks:
        task = tasks.create_task(stage.supervisor.run())
        yield task
        stage.supervisor.stop()


async def test_the_backend_is_up_when_it_says_so_and_not_before():
    """The ready line, and only it, makes the backend ready; its name and devices come from there."""
    stage = Stage("print('loading'); " + OBEDIENT)
    assert not stage.member.up
    async with running(stage):
        await until(lambda: stage.member.up)
        assert (stage.member.body, stage.member.devices) == ("toy 1", ("cpu",))
    assert stage.lines == ["loading"]
    assert not stage.member.up


async def test_a_killed_backend_is_started_again_and_clients_are_told_meanwhile():
    """kill -9: down with a reason and a time to wait, one restart, then up with another process."""
    stage = Stage(OBEDIENT)
    reasons: list[str] = []
    stage.member.on_change = lambda _: reasons.append(stage.member.reason)
    async with running(stage):
        await until(lambda: stage.member.up)
        first = stage.supervisor.pid
        assert first is not None
        os.kill(first, signal.SIGKILL)
        await until(lambda: stage.member.up and stage.supervisor.pid not in (None, first))
        assert stage.restarts == 1
        assert "ended (signal 9)" in reasons[1]


async def test_a_stubborn_backend_is_killed_after_its_time():
    """Who ignores SIGTERM gets SIGKILL, and run ends."""
    stage = Stage(STUBBORN)
    async with running(stage):
        await until(lambda: stage.member.up)
        pid = stage.supervisor.pid
    assert pid is not None
    assert not alive(pid)


async def test_a_second_stop_does_not_wait():
    """With an hour of patience configured, two stops end a stubborn backend nevertheless."""
    stage = Stage(STUBBORN, Rules(stop_timeout=3600))
    async with running(stage):
        await until(lambda: stage.member.up)
        stage.supervisor.stop()


async def test_a_backend_that_cannot_run_as_configured_is_not_started_again():
    """Exit code 2 ends the supervisor with a line for the user."""
    stage = Stage("import sys; print('no such device'); sys.exit(2)")
    with pytest.raises(BackendFailedError, match="cannot run as configured"):
        await asyncio.wait_for(stage.supervisor.run(), 30)
    assert (stage.lines, stage.restarts) == (["no such device"], 0)


async def test_a_program_that_is_not_there_is_told_once():
    """A missing interpreter is not retried for ever."""
    stage = Stage("")
    stage.supervisor = Supervisor(
        Command(("/no-such-python",), {}), os.environ, stage.member, RULES, stage.lines.append, stage.restarted
    )
    with pytest.raises(BackendFailedError):
        await asyncio.wait_for(stage.supervisor.run(), 30)


async def test_a_cancelled_supervisor_leaves_no_process():
    """Whatever ends the gateway's tasks also ends the backend."""
    stage = Stage(STUBBORN)
    task = asyncio.get_running_loop().create_task(stage.supervisor.run())
    await until(lambda: stage.member.up)
    pid = stage.supervisor.pid
    assert pid is not None
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert not Path(f"/proc/{pid}").exists()  # dead, and collected


async def test_the_backends_environment_is_ours_and_the_commands():
    """Variables of the command win over inherited ones."""
    stage = Stage("")
    code = "import os; print(os.environ['A'], os.environ['B']); raise SystemExit(2)"
    command = Command((sys.executable, "-c", code), {"B": "theirs"})
    stage.supervisor = Supervisor(
        command, {"A": "ours", "B": "ours"}, stage.member, RULES, stage.lines.append, stage.restarted
    )
    with pytest.raises(BackendFailedError):
        await asyncio.wait_for(stage.supervisor.run(), 30)
    assert stage.lines == ["ours theirs"]
