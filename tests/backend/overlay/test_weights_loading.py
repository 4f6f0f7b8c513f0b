"""What goes on around a loader: the collector stands still, and goes on as it was."""

import gc
import threading

import pytest

from backend.overlay.weights.loading import apart, current, loading


def test_nothing_is_collected_by_itself_while_models_are_made() -> None:
    """Also when loaders stand inside each other or fail; asked for, a collection takes place."""
    assert gc.isenabled()
    with loading(), loading():
        assert not gc.isenabled()
        gc.collect()
    assert gc.isenabled()
    with pytest.raises(ValueError, match="x"), loading():
        raise ValueError("x")
    assert gc.isenabled()
    with apart(), loading():
        assert gc.isenabled(), "as in plain ComfyUI"


def test_the_last_of_several_lanes_switches_it_on_again() -> None:
    """Two loads that overlap."""
    inside, leave = threading.Event(), threading.Event()

    def other() -> None:
        with loading():
            inside.set()
            leave.wait(60)

    thread = threading.Thread(target=other)
    with loading():
        thread.start()
        assert inside.wait(60)
    assert not gc.isenabled()
    assert current() is None
    leave.set()
    thread.join()
    assert gc.isenabled()


def test_a_collector_that_was_off_stays_off() -> None:
    """Somebody else's wish."""
    gc.disable()
    try:
        with loading():
            pass
        assert not gc.isenabled()
    finally:
        gc.enable()
