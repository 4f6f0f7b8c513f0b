"""What to do about the backend process, decided: start it, wait, end it, or give up.

Pure: state, event and time go in, the next state and one step come out. The table of phases below is the whole
life of a backend. Must never touch a process or a clock.
"""

from dataclasses import dataclass, replace
from enum import Enum
from typing import Final

from gateway.fleet.command import EXIT_DEVICE_FAULT, EXIT_PORT_IN_USE, EXIT_USAGE

FORGIVEN_AFTER: Final = 60.0
"""Seconds of life after which earlier failures no longer count."""


class Phase(Enum):
    """Where a backend is in its life."""

    NEW = "new"
    STARTING = "starting"
    READY = "ready"
    RESTING = "resting"
    """Dead, and waiting to be started again."""
    STOPPING = "stopping"
    """Asked to end."""
    KILLED = "killed"
    """Made to end."""
    OVER = "over"


@dataclass(frozen=True)
class State:
    """One backend's life so far; times in seconds of the caller's clock."""

    phase: Phase = Phase.NEW
    failures: int = 0
    """Deaths in a row without a minute of life between."""
    started: float = 0.0
    deadline: float | None = None
    """When a ``Tick`` is due; ``None``: never."""
    was_ready: bool = False
    """Whether any start ever got as far as ready."""


@dataclass(frozen=True)
class Rules:
    """Seconds of back-off between restarts, doubled each time, and of patience with a stopping backend."""

    restart_min: float = 1.0
    restart_max: float = 30.0
    stop_timeout: float = 5.0


# Events.
@dataclass(frozen=True)
class Begin:
    """Somebody wants a backend."""


@dataclass(frozen=True)
class BecameReady:
    """The ready line was read."""


@dataclass(frozen=True)
class Exited:
    """The process is gone; ``code`` is negative for a signal."""

    code: int


@dataclass(frozen=True)
class Tick:
    """The deadline has passed."""


@dataclass(frozen=True)
class Stop:
    """The gateway ends; a second one means at once."""


Event = Begin | BecameReady | Exited | Tick | Stop


# Steps.
@dataclass(frozen=True)
class Start:
    """Start the process."""


@dataclass(frozen=True)
class Wait:
    """Wait ``seconds`` before the next start; ``None``: for the next event, however long it takes."""

    seconds: float | None = None


@dataclass(frozen=True)
class Terminate:
    """Ask the process to end."""


@dataclass(frozen=True)
class Kill:
    """End the whole process group."""


@dataclass(frozen=True)
class Done:
    """No more backend. ``why`` is empty for a stop that was asked for, else a line for the user."""

    why: str = ""


Step = Start | Wait | Terminate | Kill | Done


def next_step(state: State, event: Event, now: float, rules: Rules) -> tuple[State, Step]:
    """The state after ``event`` and the one thing to do; raises ``ValueError`` for an event that cannot happen."""
    match event, state.phase:
        case Begin(), Phase.NEW:
            return _started(state, now), Start()
        case BecameReady(), Phase.STARTING:
            return replace(state, phase=Phase.READY, was_ready=True), Wait()
        case Tick(), Phase.RESTING:
            return _started(state, now), Start()
        case Tick(), Phase.STOPPING:
            return replace(state, phase=Phase.KILLED, deadline=None), Kill()
        case Exited(code), Phase.STARTING | Phase.READY:
            return _died(state, code, now, rules)
        case Exited(), Phase.STOPPING | Phase.KILLED:
            return replace(state, phase=Phase.OVER, deadline=None), Done()
        case Stop(), Phase.NEW | Phase.RESTING:
            return replace(state, phase=Phase.OVER, deadline=None), Done()
        case Stop(), Phase.STARTING | Phase.READY:
            return replace(state, phase=Phase.STOPPING, deadline=now + rules.stop_timeout), Terminate()
        case Stop(), Phase.STOPPING | Phase.KILLED:
            return replace(state, phase=Phase.KILLED, deadline=None), Kill()
        case (BecameReady() | Tick()), _:
            return state, Wait()  # overtaken by a death or a stop
        case Stop(), Phase.OVER:
            return state, Done()
    raise ValueError(f"{event} cannot happen to a backend that is {state.phase.value}")


def _started(state: State, now: float) -> State:
    return replace(state, phase=Phase.STARTING, started=now, deadline=None)


def _died(state: State, code: int, now: float, rules: Rules) -> tuple[State, Step]:
    over = replace(state, phase=Phase.OVER, deadline=None)
    if code == EXIT_USAGE:
        return over, Done("the backend cannot run as configured; see its lines above")
    if code == EXIT_PORT_IN_USE and not state.was_ready:
        return over, Done("the backend's port is in use by another process")
    failures = 0 if now - state.started >= FORGIVEN_AFTER else state.failures
    # A poisoned device needs a new process and nothing else; one that stays poisoned backs off like the rest.
    at_once = code == EXIT_DEVICE_FAULT and failures == 0
    delay = 0.0 if at_once else min(rules.restart_max, rules.restart_min * 2.0 ** min(failures, 30))
    return (
        replace(state, phase=Phase.RESTING, failures=failures + 1, deadline=now + delay),
        Wait(delay),
    )


def how_it_ended(code: int) -> str:
    """An exit code in words: ``exit code 1``, ``signal 9``."""
    if code > 255:
        return "how, only the gateway that started it could tell"
    return f"signal {-code}" if code < 0 else f"exit code {code}"
