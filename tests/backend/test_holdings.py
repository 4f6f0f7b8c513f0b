"""What a lane holds, as numbers."""

from backend.holdings import Holdings, Weights


def test_what_a_job_did_is_the_difference_of_counts():
    """Bytes are those of now, counts are since the job's start."""
    before = Weights(10, 20, 30, loads=1, loads_avoided=2, evictions=3, copies=4, writes=0, preloads=1)
    now = Weights(11, 22, 0, loads=2, loads_avoided=2, evictions=5, copies=4, writes=1, preloads=1)
    assert now.since(before) == Weights(11, 22, 0, loads=1, evictions=2, writes=1)


def test_a_lane_without_models_holds_nothing():
    """Before a body says anything all is zero; preloads are counted on top of what it says."""
    lane = Holdings()
    assert set(lane.now().shown().values()) == {0}
    lane.preloaded(3)
    lane.read = lambda: Weights(host_own=5)
    assert lane.now() == Weights(host_own=5, preloads=3)
