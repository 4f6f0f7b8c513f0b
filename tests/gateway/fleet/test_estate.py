"""What one gateway leaves to the next: a lock that dies with its holder, and the name of a living backend."""

import asyncio
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any
from unittest import mock

import pytest

from gateway.fleet import estate
from gateway.fleet.command import Command
from gateway.fleet.estate import Estate, HeldError, Life
from gateway.fleet.life import name_of
from gateway.fleet.member import Member
from gateway.fleet.supervision import Rules
from gateway.fleet.supervisor import Supervisor
from tests.doubles.product import ROOT
from tests.doubles.wait import alive, until, wait_until

READY = """print('BACKEND-READY {"url": "u", "body": "toy 1", "devices": ["cpu"], "pid": 1}', flush=True)"""
RULES = Rules(restart_min=0.01, restart_max=0.05, stop_timeout=2.0)


def test_only_one_gateway_has_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """The second is told who has it; after the first has left it may have it."""
    monkeypatch.setattr(estate, "_PATIENCE", 0.05)
    first, second = Estate(tmp_path), Estate(tmp_path)
    first.take()
    with pytest.raises(HeldError, match="another gateway"):
        second.take()
    first.leave()
    second.take()
    second.leave()


def test_a_killed_gateway_gives_its_folder_up(tmp_path: Path):
    """kill -9 releases the lock."""
    code = f"from gateway.fleet.estate import *; e = Estate(Path({str(tmp_path)!r})); e.take(); print(1, flush=True);"
    holder = subprocess.Popen([sys.executable, "-c", code + "time.sleep(60)"], stdout=subprocess.PIPE, cwd=ROOT)
    assert holder.stdout is not None
    holder.stdout.readline()
    holder.kill()
    holder.wait()
    holder.stdout.close()
    mine = Estate(tmp_path)
    mine.take()
    mine.leave()


def test_only_a_living_backend_is_read(tmp_path: Path):
    """A process id that means another process now is nobody; nor is a file that is broken."""
    mine = Estate(tmp_path)
    mine.take()
    life = Life(os.getpid(), name_of(os.getpid()), ("a", "b"), 1.5, {"body": "x"})
    mine.write(life)
    assert mine.read() == life
    mine.write(Life(os.getpid(), "1-1-other", ("a",)))
    assert mine.read() is None
    mine.write(None)
    assert mine.read() is None
    (tmp_path / "backend.json").write_text("{", encoding="utf-8")
    assert mine.read() is None
    mine.leave()


class Gateway:
    """A supervisor with an estate, its member, and what was heard."""

    def __init__(self, folder: Path, code: str) -> None:
        self.member = Member(1)
        self.lines: list[str] = []
        command = Command((sys.executable, "-c", code), {})
        estate = Estate(folder)
        folder.mkdir(exist_ok=True)
        self.supervisor = Supervisor(command, os.environ, self.member, RULES, self.lines.append, lambda: None, estate)


async def abandon(folder: Path, code: str) -> asyncio.subprocess.Process:
    """Start a backend as a gateway would that is killed then; its process, whose end the test is to wait for."""
    mine = Gateway(folder, code)
    begin, begun = asyncio.create_subprocess_exec, []

    async def noted(*argv: Any, **options: Any) -> asyncio.subprocess.Process:
        begun.append(await begin(*argv, **options))
        return begun[0]

    with mock.patch("asyncio.create_subprocess_exec", noted):
        task = asyncio.get_running_loop().create_task(mine.supervisor.run())
        await until(lambda: mine.member.up)
    pid = mine.supervisor.pid
    assert pid == begun[0].pid
    # What kill -9 does not give anybody the time for.
    mine.supervisor._child.kill = lambda: None  # type: ignore[union-attr]
    task.cancel()
    await asyncio.wait([task])
    assert alive(pid)
    return begun[0]


async def test_the_next_gateway_takes_the_backend_over(tmp_path: Path):
    """It is up at once under the same life, its later lines are heard, and its end is noticed."""
    code = f"import sys, time; {READY}\nfor line in range(600): time.sleep(0.1); print('still here', flush=True)"
    left = await abandon(tmp_path, code)
    pid = left.pid
    heir = Gateway(tmp_path, code)
    assert await heir.supervisor.inherit()
    async with asyncio.timeout(30), asyncio.TaskGroup() as tasks:
        tasks.create_task(heir.supervisor.run())
        await until(lambda: heir.member.up)
        assert heir.supervisor.pid == pid
        assert heir.member.boot == name_of(pid)
        assert (heir.member.body, heir.member.devices) == ("toy 1", ("cpu",))
        await until(lambda: "still here" in heir.lines)
        os.kill(pid, signal.SIGKILL)
        await until(lambda: heir.supervisor.pid not in {None, pid} and heir.member.up)
        heir.supervisor.stop()
        await left.wait()


async def test_a_backend_with_other_settings_is_ended(tmp_path: Path):
    """It is not what the configuration says now, so another one takes its place."""
    left = await abandon(tmp_path, f"import time; {READY}; time.sleep(60)")
    heir = Gateway(tmp_path, f"import time; {READY}; time.sleep(61)")
    assert not await heir.supervisor.inherit()
    assert not alive(left.pid)
    assert await left.wait() == -signal.SIGTERM


def test_a_backend_without_a_gateway_ends_after_its_time(tmp_path: Path):
    """As long as the lock is held it lives; then its seconds run."""
    mine = Estate(tmp_path)
    mine.take()
    code = (
        "import time; from pathlib import Path; from backend.process import exit_without_gateway;"
        f"exit_without_gateway(Path({str(mine.lock)!r}), 0.4); print(1, flush=True); time.sleep(60)"
    )
    backend = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, cwd=ROOT, stderr=subprocess.PIPE)
    assert backend.stdout is not None
    assert backend.stderr is not None
    backend.stdout.readline()
    with pytest.raises(subprocess.TimeoutExpired):
        backend.wait(1.0)
    mine.leave()
    wait_until(lambda: backend.poll() is not None, 20)
    assert backend.returncode == -signal.SIGTERM
    backend.stdout.close()
    backend.stderr.close()
