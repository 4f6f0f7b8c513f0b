"""Who may be the one bridge of a client."""

from gateway.observe.metrics import Metrics
from gateway.ws_bridge import Bridges, Claim


def test_one_claim_of_a_key_goes_at_a_time_and_the_newest_last():
    """A claim goes when all older ones have been released, not when they were told to."""
    bridges = Bridges(Metrics(1, "0"))
    evicted: list[int] = []
    gone: list[int] = []

    def claim(number: int, client: str = "me") -> Claim:
        return bridges.claim(("0", client), lambda: evicted.append(number), lambda: gone.append(number))

    first, second, third = claim(1), claim(2), claim(3)
    assert [each.waiting for each in (first, second, third)] == [False, True, True]
    assert evicted == [1, 1, 2]
    assert not claim(9, "you").waiting
    second.release()
    assert gone == []
    first.release()
    first.release()
    assert gone == [3]
    assert not third.waiting
    fourth = claim(4)
    assert fourth.waiting
    assert evicted == [1, 1, 2, 3]
    third.release()
    assert gone == [3, 4]
