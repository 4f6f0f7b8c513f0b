"""The order of the waiting line."""

from gateway.schedule.line import Line, Waiting
from gateway.schedule.workflow import UNKNOWN


def entry(seq: int, client: str = "c", *, priority: int = 0, since: float = 0.0, number: float = 0.0) -> Waiting:
    return Waiting(f"j{seq}", client, UNKNOWN, seq, since, priority=priority, number=number or float(seq))


def order(line: Line, now: float = 0.0, cost: float = 10.0) -> list[str]:
    return [waiting.job for waiting in line.order(now, lambda _: cost)]


def test_one_client_is_served_as_it_came():
    """First in, first out; and a lower number of its own goes first."""
    line = Line(60.0)
    for seq in (1, 2, 3):
        line.add(entry(seq))
    assert order(line) == ["j1", "j2", "j3"]
    line.add(entry(4, number=-4.0))
    assert order(line) == ["j4", "j1", "j2", "j3"]


def test_priorities_come_first_and_age_makes_up_for_them():
    """A higher one goes first, until the lower has waited for the steps between them."""
    line = Line(60.0)
    line.add(entry(1, "a"))
    line.add(entry(2, "b", priority=2, since=100.0))
    assert order(line, 100.0) == ["j2", "j1"]
    assert order(line, 130.0) == ["j1", "j2"]


def test_age_alone_puts_nobody_before_another_of_the_same_priority():
    """A client that came late does not wait for all old jobs of another."""
    line = Line(60.0)
    for seq in range(1, 6):
        line.add(entry(seq, "many"))
    line.charge("many", 100.0)
    line.add(entry(6, "late", since=1000.0))
    # It begins level with the least served, which came first; then it is its turn.
    assert order(line, 1001.0)[:3] == ["j1", "j6", "j2"]


def test_clients_take_turns_by_gpu_seconds():
    """Who has had less is next, whatever came first; the order says how that goes on."""
    line = Line(60.0)
    for seq in range(1, 5):
        line.add(entry(seq, "a"))
    line.add(entry(5, "b"))
    line.add(entry(6, "b"))
    assert order(line) == ["j1", "j5", "j2", "j6", "j3", "j4"]


def test_a_larger_share_has_more_turns():
    """Twice the share: twice the GPU seconds."""
    line = Line(60.0, {"a": 2.0})
    for seq in range(1, 7):
        line.add(entry(seq, "a"))
    for seq in range(7, 10):
        line.add(entry(seq, "b"))
    taken = order(line)[:6]
    assert sum(int(job[1:]) <= 6 for job in taken) == 4


def test_nobody_saves_up_while_away():
    """A client that comes back begins where the least served of those that are here is."""
    line = Line(60.0)
    line.add(entry(1, "here"))
    line.charge("here", 1000.0)
    line.add(entry(2, "back"))
    for seq in range(3, 8):
        line.add(entry(seq, "back"))
        line.add(entry(seq + 10, "here"))
    assert order(line)[:6] == ["j1", "j2", "j3", "j13", "j4", "j14"]


def test_what_is_taken_out_is_gone():
    """And leaves the counts as they were."""
    line = Line(60.0)
    line.add(entry(1))
    line.add(entry(2))
    assert line.waiting_of("c") == 2
    assert line.remove("j1") is not None
    assert line.remove("j1") is None
    assert (order(line), line.waiting_of("c"), len(line)) == (["j2"], 1, 1)
