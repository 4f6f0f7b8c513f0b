"""Keeps the backend alive: starts it, waits for its ready line, starts it again when it dies, ends it with us.

Owns the child process and performs, one after the other, the steps that ``supervision`` decides. Must never decide
itself, and never wait for a time where an event can be waited for.
"""

import asyncio
import contextlib
import json
import logging
import math
import time
from collections.abc import Callable, Mapping
from typing import Any, Final

from gateway.fleet.child import Child
from gateway.fleet.command import EXIT_USAGE, READY_PREFIX, Command
from gateway.fleet.estate import Estate, Life
from gateway.fleet.life import name_of
from gateway.fleet.member import Member
from gateway.fleet.supervision import (
    BecameReady,
    Begin,
    Done,
    Event,
    Exited,
    Kill,
    Phase,
    Rules,
    Start,
    State,
    Step,
    Stop,
    Terminate,
    Tick,
    how_it_ended,
    next_step,
)
from gateway.fleet.survivor import Survivor, end

log = logging.getLogger("gateway.supervisor")


class BackendFailedError(Exception):
    """The backend cannot run and starting it again would not help; ``str()`` is a line for the user."""


class Supervisor:
    """One backend process, from ``run`` until ``stop``.

    ``on_line`` gets the backend's output, ``on_restart`` is told of each start after the first.
    """

    def __init__(
        self,
        command: Command,
        env: Mapping[str, str],
        member: Member,
        rules: Rules,
        on_line: Callable[[str], None],
        on_restart: Callable[[], None],
        estate: Estate | None = None,
    ) -> None:
        """``estate``: where a backend is noted that outlives this gateway; ``None``: it ends with us."""
        self._command = command
        self._env = {**env, **command.env}
        self.member: Final = member
        self._rules = rules
        self._on_line = on_line
        self._on_restart = on_restart
        self._events: asyncio.Queue[Event] = asyncio.Queue()
        self._state = State()
        self._child: Child | Survivor | None = None
        self._estate = estate
        self._left = False
        self._heritage: Life | None = None
        """A backend that is already there, to be taken over instead of starting one."""

    async def inherit(self) -> bool:
        """Look for a backend that an earlier gateway left: whether there is one to take over.

        One that was started otherwise than we would is ended. Comes before ``run``.
        """
        life = self._estate.read() if self._estate is not None else None
        if life is None:
            return False
        if life.argv != self._command.argv:
            log.info("a backend is left over (process %d), started with other settings: ending it", life.pid)
            await end(life, self._rules.stop_timeout)
            return False
        self._heritage = life
        return True

    @property
    def pid(self) -> int | None:
        """The backend's process id while it runs."""
        return self._child.pid if self._child is not None else None

    def stop(self) -> None:
        """End the backend and then ``run``; called again, at once."""
        self._events.put_nowait(Stop())

    def leave(self) -> None:
        """Let the backend go on for the gateway that comes next, where it is noted; ``run`` is to be cancelled then."""
        self._left = self._estate is not None

    async def run(self) -> None:
        """Keep a backend running; returns after ``stop``, raises ``BackendFailedError`` when it is hopeless."""
        self._events.put_nowait(Begin())
        try:
            async with asyncio.TaskGroup() as tasks:
                why = await self._drive(tasks)
        finally:
            if self._child is not None and not self._left:
                # We are being cancelled: nothing may stay behind. Only a process that hangs in a driver takes longer.
                self._child.kill()
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(self._rules.stop_timeout):
                        await self._child.exited()
        if why:
            raise BackendFailedError(why)

    async def _drive(self, tasks: asyncio.TaskGroup) -> str:
        while True:
            event = await self._next_event()
            before = self._state
            self._state, step = next_step(before, event, time.monotonic(), self._rules)
            self._tell(before, event, step)
            if isinstance(step, Done):
                return step.why
            await self._perform(step, tasks)

    async def _next_event(self) -> Event:
        deadline = self._state.deadline
        if deadline is None:
            return await self._events.get()
        try:
            async with asyncio.timeout(max(0.0, deadline - time.monotonic())):
                return await self._events.get()
        except TimeoutError:
            return Tick()

    async def _perform(self, step: Step, tasks: asyncio.TaskGroup) -> None:
        match step:
            case Start():
                await self._start(tasks)
            case Terminate() if self._child is not None:
                self._child.terminate()
            case Kill() if self._child is not None:
                self._child.kill()

    async def _start(self, tasks: asyncio.TaskGroup) -> None:
        if self._state.failures:
            self._on_restart()
        life, self._heritage = self._heritage, None
        if life is not None and self._estate is not None and name_of(life.pid) == life.name:
            self._take_over(life, self._estate, tasks)
            return
        try:
            self._child = await self._start_child(tasks)
        except OSError as error:
            log.error("cannot start the backend: %s", error)  # noqa: TRY400 (the line says it all)
            self._events.put_nowait(Exited(EXIT_USAGE))
            return
        log.info("backend started, process %d", self._child.pid)
        tasks.create_task(self._watch(self._child), name="backend-exit")

    async def _start_child(self, tasks: asyncio.TaskGroup) -> Child | Survivor:
        argv = self._command.argv
        if self._estate is None:
            return await Child.start(argv, self._env, self._line, tasks)
        child = await Survivor.start(argv, self._env, self._line, tasks, self._estate)
        self._estate.write(Life(child.pid, child.name, argv))
        return child

    def _take_over(self, life: Life, estate: Estate, tasks: asyncio.TaskGroup) -> None:
        self._child = child = Survivor.adopt(life, self._line, tasks, estate)
        log.info("backend found at work, process %d", child.pid)
        tasks.create_task(self._watch(child), name="backend-exit")
        if life.ready is not None:
            self._is_ready(life.ready, life.booted)

    async def _watch(self, child: Child | Survivor) -> None:
        code = await child.exited()
        self._child = None
        if self._estate is not None:
            self._estate.write(None)
        self._events.put_nowait(Exited(code))  # before its last lines are read: clients are to know at once
        await child.ended()

    def _line(self, stream: str, line: str) -> None:
        if stream == "stdout" and line.startswith(READY_PREFIX):
            ready = read_ready(line)
            if ready is not None and self._state.phase is Phase.STARTING:
                self._is_ready(ready, time.time())
            return
        self._on_line(line)

    def _is_ready(self, ready: dict[str, Any], booted: float) -> None:
        pid = self.pid
        name = name_of(pid) if pid is not None else ""
        if self._estate is not None and pid is not None:
            self._estate.write(Life(pid, name, self._command.argv, booted, ready))
        devices = [str(device) for device in ready.get("devices", ())]
        self.member.backend_up(str(ready.get("body", "")), devices, boot=name, booted=booted)
        self._events.put_nowait(BecameReady())

    def _tell(self, before: State, event: Event, step: Step) -> None:
        """Say what happened, to the log and to the fleet."""
        if isinstance(event, Exited) and before.phase in (Phase.STARTING, Phase.READY):
            delay = self._state.deadline - time.monotonic() if self._state.deadline is not None else 0.0
            ended = how_it_ended(event.code)
            self.member.backend_down(
                f"The backend ended ({ended}) and is being restarted.", retry_after=max(1, math.ceil(delay) + 2)
            )
            if not isinstance(step, Done):
                log.error("the backend ended (%s); starting it again in %.1f s", ended, max(0.0, delay))
        elif isinstance(event, Stop):
            self.member.backend_down("The gateway is stopping.", retry_after=10)
        elif isinstance(step, Kill) and isinstance(event, Tick):
            log.warning("the backend did not stop within %g s: killing it", self._rules.stop_timeout)
        elif isinstance(step, Start) and before.phase is Phase.RESTING:
            self.member.backend_down("The backend is starting again.", retry_after=5)


def read_ready(line: str) -> dict[str, Any] | None:
    """The object of a ready line; ``None`` when the line is not one."""
    try:
        found = json.loads(line.removeprefix(READY_PREFIX))
    except ValueError:
        return None
    return found if isinstance(found, dict) else None
