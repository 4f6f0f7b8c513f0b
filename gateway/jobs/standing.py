"""How a lane stands, in the scheduler's words, out of what the fleet knows of its backend.

Pure. Must never decide what goes there.
"""

from collections.abc import Collection

from gateway.fleet.member import Member
from gateway.schedule.lanes import State


def standing(member: Member, gpu: int, held: Collection[Member]) -> State:
    """Whether the lane of this GPU, by the number users know, takes jobs; ``held``: backends that get nothing now."""
    if not member.up or member.out or gpu >= member.first + member.width:
        return State.DOWN
    if member.fault(gpu):
        return State.FAULTED
    drains = member.drain or gpu in member.drained or member in held
    return State.DRAINING if drains else State.READY
