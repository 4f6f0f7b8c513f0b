"""What one backend needs from the gateway: to be started and kept alive, and to be looked at.

Owns nothing but the choice of who does it: what somebody else runs has no supervisor, and its poller says whether it is
there. Must never know clients or jobs.
"""

from collections.abc import Callable, Mapping
from pathlib import Path

from gateway.config import Config
from gateway.fleet.ask import Ask, asker
from gateway.fleet.command import backend_command
from gateway.fleet.estate import Estate
from gateway.fleet.member import Member
from gateway.fleet.poller import Poller
from gateway.fleet.supervision import Rules
from gateway.fleet.supervisor import Supervisor
from gateway.layout import Place


class Upkeep:
    """One backend's supervisor, if it has one, its poller, and how it is asked."""

    def __init__(
        self,
        config: Config,
        place: Place,
        member: Member,
        env: Mapping[str, str],
        *,
        present: Callable[[], bool],
        on_line: Callable[[str], None],
        on_restart: Callable[[], None],
    ) -> None:
        """``present``: whether any client is there; ``on_line`` gets its output, ``on_restart`` each later start."""
        self.place = place
        self.member = member
        self.url = place.backend.url
        self.ask: Ask = asker(self.url)
        self.supervisor: Supervisor | None = None
        if place.backend.start:
            self.supervisor = _supervisor(config, place, member, env, on_line, on_restart)
        advises = place.backend.mode == "auto"
        self.poller = Poller(member, self.ask, present, judges=self.supervisor is None, advises=advises)


def _supervisor(
    config: Config,
    place: Place,
    member: Member,
    env: Mapping[str, str],
    on_line: Callable[[str], None],
    on_restart: Callable[[], None],
) -> Supervisor:
    backend, jobs = place.backend, config.jobs
    estate = Estate(Path(jobs.journal), place.index) if jobs.journal else None
    lock = estate.lock if estate is not None else None
    command = backend_command(backend, place.lanes, env, lock=lock, orphan=jobs.orphan, instance=place.instance)
    rules = Rules(backend.restart_min, backend.restart_max, backend.stop_timeout)
    return Supervisor(command, env, member, rules, on_line, on_restart, estate)
