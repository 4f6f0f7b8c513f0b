"""The fleet: which backends are there, how full each of their lanes is, and which one is next.

Owns the numbering of GPUs over all backends. Pure: no clock, no I/O; pollers bring looks, supervisors say whether their
backend is up. Must never know HTTP or processes.
"""

from collections.abc import Callable, Collection, Iterable, Sequence

from gateway.config import Config
from gateway.errors import BACKEND_UNAVAILABLE, GatewayError
from gateway.fleet.member import RETRY_AFTER, Lane, Member, Reservation
from gateway.fleet.sessions import home
from gateway.layout import Place, layout, together


class Fleet:
    """The table of backends and their lanes. ``up`` while any of them takes requests.

    ``reason`` says in one sentence why none does; ``retry_after`` is the seconds a client should wait then.
    """

    def __init__(self, members: "int | Iterable[Member]") -> None:
        """``members``, in the order of their GPUs; a number stands for one backend with so many lanes."""
        self.members: Sequence[Member] = (
            (Member(members),) if isinstance(members, int) else tuple(members)
        )
        self._of = [member for member in self.members for _ in range(member.gpus)]
        self.up = False
        self.on_change: Callable[[Member], None] = _nothing
        """Called after a backend has come or gone, or its health has changed."""
        self.choice = ""
        """Why there are as many backends as there are, where that was chosen and not configured."""
        self.sticky = False
        """Whether a client's jobs stay with its home, because that alone has its files."""
        self._next = 0
        for member in self.members:
            member.on_change = self._changed

    def __repr__(self) -> str:
        loads = " ".join(f"gpu{gpu}={self.load(gpu)}" for gpu in range(self.gpus))
        return f"<Fleet {'up' if self.up else 'down'} {loads}>"

    @property
    def gpus(self) -> int:
        """Number of lanes."""
        return len(self._of)

    @property
    def reason(self) -> str:
        """Why no backend is there; empty while one is."""
        return "" if self.up else self._soonest().reason

    @property
    def retry_after(self) -> int:
        """Seconds until it is worth asking again; 0 while one is there."""
        return 0 if self.up else self._soonest().retry_after

    @property
    def width(self) -> int:
        """Lanes that the backends really have, as far as is known."""
        return sum(member.width for member in self.members)

    @property
    def healthy(self) -> int:
        """Lanes that take jobs now."""
        return sum(member.width - len(member.faults) for member in self.members if member.up)

    @property
    def faults(self) -> list[str]:
        """A sentence for each lane that takes no jobs though its backend is up, and for each backend that is not.

        And one where every lane is drained, so that jobs wait for nobody.
        """
        several = len(self.members) > 1
        found: list[str] = []
        for member in self.members:
            if member.up:
                found += member.faults
            elif several:
                found.append(f"GPU {member.first} to {member.first + member.gpus - 1}: {member.reason}")
        if all(gpu in self._of[gpu].drained for gpu in range(self.gpus)):
            found.append("Every GPU is drained: new jobs wait.")
        return found

    def fault(self, gpu: int | None) -> str:
        """The sentence for a client of a lane that takes no jobs; empty for all others, and for no lane."""
        return "" if gpu is None else self._of[gpu].fault(gpu)

    def unseen(self, gpu: int) -> str:
        """Why a GPU is in no answer about all queues."""
        member = self._of[gpu]
        if not member.up:
            return f"Its backend is down: {member.reason}"
        return "The backend has no such GPU." if gpu >= member.first + member.width else "Its backend did not answer."

    def member(self, gpu: int) -> Member:
        """The backend that a GPU belongs to."""
        return self._of[gpu]

    def lane(self, gpu: int) -> Lane:
        """The counts of one lane."""
        member = self._of[gpu]
        return member.lane(gpu - member.first)

    def load(self, gpu: int) -> int:
        """Jobs on the lane: seen by the last look, and sent since."""
        return self.lane(gpu).load

    def choose(self, among: Collection[int] | None = None) -> int:
        """The least busy lane that takes jobs; among equals the one that was not chosen for longest.

        Only lanes ``among`` these, if any are given. A backend that is away, out or draining is passed over as long as
        there is another; a GPU that was drained always. Raises ``GatewayError`` (503) when that leaves none.
        """
        lanes = [gpu for gpu in self._candidates(among) if gpu not in self._of[gpu].drained]
        if not lanes:
            text = "Every GPU that could take this job is drained."
            hint = "comfy-gateway resume N gives GPU N jobs again; its own port takes them meanwhile."
            raise GatewayError(BACKEND_UNAVAILABLE, text, hint, retry_after=RETRY_AFTER)
        order = [gpu for gpu in lanes if gpu >= self._next] + [gpu for gpu in lanes if gpu < self._next]
        gpu = min([gpu for gpu in order if not self.fault(gpu)] or order, key=self._fullness)
        self._next = (gpu + 1) % self.gpus
        return gpu

    def home(self, client: str) -> Member:
        """The backend to which everything of a client goes that names neither a GPU nor a job."""
        return self.members[0] if len(self.members) == 1 else home(client, self.members)

    def near(self, client: str) -> range | None:
        """The GPUs among which a client's jobs of the front door are spread; ``None``: all."""
        if not self.sticky or len(self.members) == 1:
            return None
        member = self.home(client)
        return range(member.first, member.first + member.width)

    def reserve(self, gpu: int) -> Reservation:
        """Count a submission on ``gpu`` from now on; call before sending it."""
        return self._of[gpu].reserve(gpu)

    def _candidates(self, among: Collection[int] | None) -> list[int]:
        members = self.members
        if len(members) > 1:
            here = [member for member in members if member.up]
            members = [member for member in here if not (member.out or member.drain)] or here or members
        lanes = [gpu for member in members for gpu in range(member.first, member.first + member.width)]
        if among is None:
            return lanes
        return [gpu for gpu in lanes if gpu in among] or sorted(among)

    def _fullness(self, gpu: int) -> float:
        return self.load(gpu) / self._of[gpu].weight

    def _soonest(self) -> Member:
        return min(self.members, key=lambda member: member.retry_after)

    def apply(self, config: Config) -> None:
        """Go by other weights and drains of the same backends from now on."""
        for place in layout(config):
            member = self.members[place.index]
            member.weight, member.drain = place.backend.weight, place.backend.drain

    def _changed(self, member: Member) -> None:
        self.up = any(each.up for each in self.members)
        self.on_change(member)


def fleet_of(places: Iterable[Place], stay: str = "auto") -> Fleet:
    """The fleet that a layout describes; ``stay`` as in ``[jobs]``."""
    places = tuple(places)
    fleet = Fleet(
        Member(
            place.lanes,
            index=place.index,
            first=place.first,
            weight=place.backend.weight,
            drain=place.backend.drain,
            out_after=place.backend.out_after,
            back_after=place.backend.back_after,
        )
        for place in places
    )
    fleet.sticky = stay == "stick" or (stay == "auto" and not together(places))
    return fleet


def _nothing(member: Member) -> None:
    """Nobody listens."""
