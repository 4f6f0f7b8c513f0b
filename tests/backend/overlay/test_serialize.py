"""Packs that run one job at a time: who waits, for whom, in which order."""

import threading
import time
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from backend.overlay.serialize import Packs, held, pack_of, packs_used


def node_class(module: str | None) -> object:
    return type("Node", (), {} if module is None else {"RELATIVE_PYTHON_MODULE": module})


CLASSES = {
    "KSampler": node_class("nodes"),
    "Core": node_class(None),
    "Impact": node_class("custom_nodes.ComfyUI-Impact-Pack"),
    "Single": node_class("custom_nodes.my_nodes"),
}
IMPACT = frozenset({"comfyui-impact-pack"})


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.001)


def test_a_node_class_names_its_pack():
    """Folders and single files in custom_nodes are packs; ComfyUI's own nodes belong to none."""
    found = {name: pack_of(node) for name, node in CLASSES.items()}
    assert found == {"KSampler": None, "Core": None, "Impact": "ComfyUI-Impact-Pack", "Single": "my_nodes"}


def test_a_prompts_packs_are_those_of_its_nodes():
    """Unknown classes and malformed nodes belong to none; what is not named in the configuration does not count."""
    prompt: dict[str, Any] = {
        "1": {"class_type": "Impact"},
        "2": {"class_type": "KSampler"},
        "3": {"class_type": "Gone"},
        "4": {"class_type": 7},
        "5": "no node",
        "6": {"class_type": "Single"},
    }
    assert packs_used(prompt, CLASSES) == {"comfyui-impact-pack", "my_nodes"}
    assert Packs([" ComfyUI-Impact-Pack "]).used(prompt, CLASSES) == IMPACT
    assert Packs(["my_nodes.py"]).used(prompt, CLASSES) == {"my_nodes"}
    assert Packs().used(prompt, CLASSES) == frozenset()


def test_a_named_pack_that_does_not_exist_is_told():
    """A misspelt name in the configuration is found when the nodes are loaded."""
    assert Packs(["comfyui-impact-pack", "impactpack"]).unknown(CLASSES) == ["impactpack"]


def test_one_at_a_time_and_in_order():
    """Jobs with the same pack never overlap and go in the order they came."""
    packs = Packs()
    order: list[int] = []
    inside: list[int] = []
    gate = threading.Event()

    def worker(index: int) -> None:
        with packs.one_at_a_time(IMPACT):
            inside.append(index)
            assert inside == [index]
            gate.wait(30)
            order.append(index)
            inside.remove(index)

    threads = []
    for index in range(5):
        threads.append(threading.Thread(target=worker, args=(index,)))
        threads[-1].start()
        until(lambda index=index: len(packs) == index + 1)
    gate.set()
    for thread in threads:
        thread.join()
    assert order == [0, 1, 2, 3, 4]
    assert len(packs) == 0


def test_jobs_of_other_packs_do_not_wait():
    """A pack in use holds back nobody who does not need it; jobs without one never wait."""
    packs = Packs()
    with packs.one_at_a_time(frozenset({"a"})):
        with packs.one_at_a_time(frozenset({"b"})):
            pass
        with packs.one_at_a_time(frozenset()):
            assert len(packs) == 1


def test_nobody_overtakes_a_job_that_needs_two_packs():
    """A job waiting for a and b is not starved by jobs that need only b."""
    packs = Packs()
    order: list[str] = []

    def worker(name: str, needs: frozenset[str]) -> None:
        with packs.one_at_a_time(needs):
            order.append(name)

    with packs.one_at_a_time(frozenset({"a"})):
        both = threading.Thread(target=worker, args=("both", frozenset({"a", "b"})))
        both.start()
        until(lambda: len(packs) == 2)
        later = threading.Thread(target=worker, args=("later", frozenset({"b"})))
        later.start()
        until(lambda: len(packs) == 3)
        assert order == []
    both.join()
    later.join()
    assert order == ["both", "later"]


def test_a_stopped_job_does_not_wait_on():
    """An interrupted job enters at once, for the executor to end it, and leaves no trace in the line."""
    packs = Packs()
    stopped = threading.Event()
    entered = threading.Event()

    def worker() -> None:
        with packs.one_at_a_time(IMPACT, stopped.is_set):
            assert held() == frozenset()
            entered.set()

    with packs.one_at_a_time(IMPACT):
        thread = threading.Thread(target=worker)
        thread.start()
        until(lambda: len(packs) == 2)
        assert not entered.is_set()
        assert held() == IMPACT
        stopped.set()
        packs.wake()
        assert entered.wait(30)
        thread.join()
        assert len(packs) == 1


def test_an_error_inside_gives_the_turn_to_the_next():
    """A job that fails, in whatever way, does not keep its packs."""
    packs = Packs()
    with pytest.raises(SystemExit), packs.one_at_a_time(IMPACT):
        raise SystemExit
    with packs.one_at_a_time(IMPACT):
        assert len(packs) == 1


@given(st.lists(st.frozensets(st.sampled_from("abc")), min_size=1, max_size=8))
def test_whatever_the_jobs_need_all_of_them_finish(needs: list[frozenset[str]]):
    """No set of needs and no order of arrival ends in a deadlock, and no pack is ever used twice at once."""
    packs = Packs()
    used: list[str] = []
    clashes: list[str] = []
    lock = threading.Lock()

    def worker(mine: frozenset[str]) -> None:
        with packs.one_at_a_time(mine):
            with lock:
                clashes.extend(name for name in mine if name in used)
                used.extend(mine)
            with lock:
                for name in mine:
                    used.remove(name)

    threads = [threading.Thread(target=worker, args=(mine,), daemon=True) for mine in needs]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert not any(thread.is_alive() for thread in threads)
    assert clashes == []
