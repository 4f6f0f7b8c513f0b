"""One timer looks after all deadlines."""

import asyncio

from gateway.wire.deadlines import NEVER, Deadlines
from tests.doubles.wait import until


class Item:
    """Remembers when it expired."""

    def __init__(self, deadline: float) -> None:
        self.deadline = deadline
        self.calls = 0

    def expired(self, now: float) -> None:
        assert now >= self.deadline
        self.calls += 1
        self.deadline = NEVER


async def test_deadlines_pass_once_and_not_for_those_who_left():
    """Due ones are called at the next look, others never."""
    deadlines = Deadlines(asyncio.get_running_loop(), 0.01)
    looks: list[int] = []
    deadlines.every_look(lambda: looks.append(1))
    due, later, gone = Item(deadlines.now), Item(deadlines.now + 1000), Item(deadlines.now)
    for item in (due, later, gone):
        deadlines.add(item)
    deadlines.discard(gone)
    await until(lambda: len(looks) >= 3)
    assert (due.calls, later.calls, gone.calls) == (1, 0, 0)
    deadlines.close()
    seen = len(looks)
    await asyncio.sleep(0.05)
    assert len(looks) == seen
    deadlines.close()


async def test_items_may_leave_while_they_are_looked_at():
    """One that expires may take others with it."""
    deadlines = Deadlines(asyncio.get_running_loop(), 0.01)

    class Leaving(Item):
        def expired(self, now: float) -> None:
            super().expired(now)
            deadlines.discard(self)

    items = [Leaving(deadlines.now) for _ in range(5)]
    for item in items:
        deadlines.add(item)
    await until(lambda: all(item.calls == 1 for item in items))
    deadlines.close()
