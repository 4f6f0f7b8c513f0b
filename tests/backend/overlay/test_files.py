"""Output names: never twice, and plain ComfyUI's as long as one node saves alone."""

import asyncio
import contextlib
import contextvars
import copy
import json
import os
import pickle
import threading
import time
import types
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from backend.overlay.patches import files
from tests.backend.overlay.doubles import cpu_lanes, installed, job
from tests.doubles.wait import wait_until

Modules = dict[str, types.ModuleType]


@pytest.fixture
def patched(comfy: Modules, tmp_path: Path) -> Iterator[Any]:
    """ComfyUI's ``folder_paths`` and ``comfy_execution.utils`` with the patches.

    ``path`` asks for a number as a saver of ComfyUI's own does, ``own`` as one of a custom node.
    """
    paths: Any = comfy["folder_paths"]
    paths.__file__ = str(tmp_path.parent / "folder_paths.py")
    asks = "def ask(*args):\n    return folder_paths.get_save_image_path(*args)\n"
    management: Any = comfy["comfy.model_management"]
    management.throw_exception_if_processing_interrupted = lambda: None
    callers = []
    for file in ("comfy_extras/nodes_images.py", "custom_nodes/pack/nodes.py"):
        names: dict[str, Any] = {"folder_paths": paths}
        exec(compile(asks, str(tmp_path.parent / file), "exec"), names)
        callers.append(names["ask"])
    with installed(files.patches(cpu_lanes())):
        yield types.SimpleNamespace(
            path=callers[0],
            own=callers[1],
            node=comfy["comfy_execution.utils"].CurrentNodeContext,  # type: ignore[attr-defined]
            execution=comfy["execution"],
            management=management,
        )
    assert len(files._taken) == len(files._taken.turns) == 0


def save(folder: str, name: str, counter: int, content: str = "") -> str:
    file = Path(folder) / f"{name}_{counter:05}_.png"
    file.write_text(content)
    return file.name


def test_two_lanes_in_the_middle_of_saving_get_different_numbers(patched: Any, tmp_path: Path):
    """A lane that has asked and not written yet keeps its number, also for what it counts upwards to."""
    with job(0), patched.node("a", "1"):
        _, _, mine, *_ = patched.path("ComfyUI", str(tmp_path))
        with job(1), patched.node("b", "1"):
            _, _, theirs, *_ = patched.path("ComfyUI", str(tmp_path))
            assert (mine, theirs) == (1, 2)
            mine += 1
            theirs += 1
            assert (mine, theirs) == (3, 4)


def test_the_unpatched_function_gives_the_same_number_twice(comfy: Modules, tmp_path: Path):
    """Without the overlay the two would overwrite each other: the test above can fail."""
    path = comfy["folder_paths"].get_save_image_path  # type: ignore[attr-defined]
    assert path("ComfyUI", str(tmp_path))[2] == path("ComfyUI", str(tmp_path))[2]


def test_names_are_plain_comfyuis_when_one_lane_saves_alone(patched: Any, tmp_path: Path):
    """Numbers go on from the largest there is, batch after batch, with no gap, also when a number was not used."""
    save(str(tmp_path), "ComfyUI", 41)
    seen = []
    with job(2):
        for node in range(3):
            with patched.node("a", str(node)):
                folder, name, counter, *_ = patched.path("ComfyUI", str(tmp_path))
                for _ in range(2):
                    seen.append(save(folder, name, counter))
                    counter += 1
        with patched.node("a", "twice"):
            assert patched.path("ComfyUI", str(tmp_path))[2] == patched.path("ComfyUI", str(tmp_path))[2] == 48
    assert seen == [f"ComfyUI_{number:05}_.png" for number in range(42, 48)]


def test_numbers_are_free_again_after_the_node_call(patched: Any, tmp_path: Path):
    """What a node reserved and did not save is given to the next one."""
    with job(0), patched.node("a", "1"):
        assert patched.path("x", str(tmp_path))[2] + 3 == 4
    assert len(files._taken) == 0
    with job(1), patched.node("b", "1"):
        assert patched.path("x", str(tmp_path))[2] == 1


def test_numbers_are_free_again_after_the_job_however_it_ended(patched: Any, tmp_path: Path):
    """A reservation made outside a node call does not outlive its job."""

    def node() -> None:
        patched.path("x", str(tmp_path))
        raise KeyboardInterrupt

    with job(0), pytest.raises(KeyboardInterrupt):
        patched.execution.PromptExecutor().execute({"1": {"run": node}}, "a")
    assert len(files._taken) == 0


def test_a_lane_that_ended_leaves_its_files_to_those_who_count_on(patched: Any, tmp_path: Path):
    """A number that another lane took, saved and gave back is not reached by one that counts upwards."""
    with job(0), patched.node("a", "1"):
        folder, name, mine, *_ = patched.path("x", str(tmp_path))
        with job(1), patched.node("b", "1"):
            _, _, theirs, *_ = patched.path("x", str(tmp_path))
            save(folder, name, theirs)
        assert save(folder, name, mine) == "x_00001_.png"
        assert save(folder, name, mine + 1) == "x_00003_.png"


def test_outside_lanes_the_number_is_a_plain_one(patched: Any, tmp_path: Path):
    """The server's own code gets an int, but never one that a lane is about to use."""
    assert type(patched.path("x", str(tmp_path))[2]) is int
    with job(0), patched.node("a", "1"):
        assert patched.path("x", str(tmp_path))[2] == 1
        numbers: list[Any] = []
        thread = threading.Thread(target=lambda: numbers.append(patched.path("x", str(tmp_path))[2]))
        thread.start()
        thread.join()
        assert numbers == [2]


def test_prefixes_do_not_share_numbers(patched: Any, tmp_path: Path):
    """Other prefixes, folders and spellings of the same folder are told apart as the file system tells them."""
    with job(0), patched.node("a", "1"):
        assert patched.path("x", str(tmp_path))[2] == 1
        with job(1), patched.node("b", "1"):
            assert patched.path("y", str(tmp_path))[2] == 1
            assert patched.path("sub/x", str(tmp_path))[2] == 1
            assert patched.path("x", str(tmp_path / "sub" / ".."))[2] == 2


def test_a_counter_is_an_int_in_every_other_way():
    """Formatting, arithmetic, JSON, pickle and copies see a number; only adding a small count reserves."""
    given: list[int] = []

    def following(number: int) -> files.Counter:
        given.append(number)
        return files.Counter.of(number * 10, following)

    counter = files.Counter.of(7, following)
    assert (f"{counter:05}", str(counter), repr(counter), hash(counter)) == ("00007", "7", "7", hash(7))
    assert (counter - 1, counter * 2, -counter, counter + -1, counter + 0) == (6, 14, -7, 6, 7)
    assert counter + 0.5 == 7.5
    assert json.dumps({"n": counter}) == '{"n": 7}'
    assert all(type(made) is int for made in (pickle.loads(pickle.dumps(counter)), copy.copy(counter)))
    assert type(copy.deepcopy([counter])[0]) is int
    assert counter + 100_000 == 100_007
    assert given == []
    assert counter + 1 == 80
    assert counter + 1 == 80
    assert counter + 2 == 1 + (counter + 1) == 810
    assert given == [8, 81]


def test_reservations_do_not_pile_up_when_it_is_never_quiet():
    """With some lane always saving, what lies behind all of them is forgotten."""
    taken = files.Reservations()
    for index in range(1000):
        taken.take(("folder", "x"), index, index + 1)
        taken.release(lambda owner, index=index: owner == index - 1)
    assert len(taken) < 5


@pytest.mark.parametrize("batch", [1, 4])
def test_four_lanes_at_once_lose_nothing(patched: Any, tmp_path: Path, batch: int):
    """Four workers saving batches under one prefix end with as many files as pictures, each with its content."""
    barrier = threading.Barrier(4)
    names: list[str] = []

    def worker(lane: int) -> None:
        with job(lane):
            for index in range(10):
                barrier.wait(30)
                with patched.node(f"job {lane}", str(index)):
                    folder, name, counter, *_ = patched.path("ComfyUI", str(tmp_path))
                    for picture in range(batch):
                        names.append(save(folder, name, counter, f"{lane} {index} {picture}"))
                        counter += 1

    threads = [threading.Thread(target=worker, args=(lane,)) for lane in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(names) == len(set(names)) == 40 * batch
    contents = {file.read_text() for file in tmp_path.iterdir()}
    assert len(contents) == 40 * batch


def increments(folder: Path, counter: int, count: int) -> Iterator[int]:
    for _ in range(count):
        yield counter
        counter += 1


def enumerates(folder: Path, counter: int, count: int) -> Iterator[int]:
    for number, _ in enumerate(range(count), start=counter):
        yield number


def plain_ints(folder: Path, counter: int, count: int) -> Iterator[int]:
    number = int(counter)
    for _ in range(count):
        yield number
        number += 1


def numpys(folder: Path, counter: int, count: int) -> Iterator[int]:
    for step in np.arange(count):
        yield int(counter + step)


def ranges(folder: Path, counter: int, count: int) -> Iterator[int]:
    yield from range(counter, counter + count)


def listings(folder: Path, counter: int, count: int) -> Iterator[int]:
    for _ in range(count):
        yield 1 + max((int(name.split("_")[1]) for name in os.listdir(folder)), default=0)  # noqa: PTH208 (as packs do)


WAYS = [increments, enumerates, plain_ints, numpys, ranges, listings]


def lanes_saving(work: Callable[[int], None], lanes: int = 4) -> None:
    """Each lane's work in a thread of its own; raises what one of them raises, fails when one does not end."""
    with ThreadPoolExecutor(lanes) as pool:
        for done in [pool.submit(work, lane) for lane in range(lanes)]:
            done.result(60)


@pytest.mark.parametrize("mixed", [False, True])
@pytest.mark.parametrize("way", WAYS)
def test_however_a_custom_node_counts_nothing_is_lost(
    patched: Any, tmp_path: Path, way: Callable[[Path, int, int], Iterator[int]], mixed: bool
):
    """4 lanes, 10 jobs each of 4 pictures; mixed: every other job is saved by ComfyUI's own saver."""
    names: list[str] = []

    def worker(lane: int) -> None:
        for index in range(10):
            own = mixed and (lane + index) % 2 == 1
            with job(lane, f"{lane}-{index}"), patched.node(f"{lane}-{index}", "1"):
                folder, name, counter, *_ = (patched.path if own else patched.own)("same", str(tmp_path))
                for number in (increments if own else way)(Path(folder), counter, 4):
                    time.sleep(0.001)
                    names.append(save(folder, name, number, f"{lane} {index} {number}"))

    lanes_saving(worker)
    assert len(names) == 160
    assert len(set(names)) == len(list(tmp_path.iterdir())) == 160
    if not mixed:
        assert sorted(names) == [f"same_{number:05}_.png" for number in range(1, 161)]  # no gap either


def begun(work: Callable[[], None]) -> threading.Thread:
    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    return thread


def waiting() -> bool:
    return bool(files._taken.turns._line)


def test_another_lane_waits_until_the_files_are_there_and_counts_anew(patched: Any, tmp_path: Path):
    """Not longer: the end of the node call lets it go on, the job's is not needed."""
    got: list[int] = []

    def other() -> None:
        with job(1, "b"), patched.node("b", "1"):
            got.append(patched.own("x", str(tmp_path))[2])

    with job(0, "a"):
        with patched.node("a", "1"):
            folder, name, mine, *_ = patched.own("x", str(tmp_path))
            thread = begun(other)
            wait_until(waiting)
            for number in range(mine, mine + 3):
                save(folder, name, number)
            assert got == []
        thread.join(30)
        assert got == [4]


def test_other_prefixes_and_the_same_lane_do_not_wait(patched: Any, tmp_path: Path):
    """Of two nodes of one job that save at once, as async nodes do, neither waits for the other."""
    with job(0, "a"), patched.node("a", "1"):
        assert patched.own("x", str(tmp_path))[2] == 1
        with patched.node("a", "2"):
            assert patched.own("x", str(tmp_path))[2] == 2
        with job(1, "b"), patched.node("b", "1"):
            assert patched.own("y", str(tmp_path))[2] == 1


async def test_an_async_node_holds_its_prefix_across_awaits(patched: Any, tmp_path: Path):
    """Its call ends when it returns, not when it first waits."""
    names: list[str] = []

    async def node(lane: int, index: int) -> None:
        with patched.node(f"{lane}", str(index)):
            folder, name, counter, *_ = patched.own("x", str(tmp_path))
            for number in range(counter, counter + 3):
                await asyncio.sleep(0.002)
                names.append(save(folder, name, number))

    def worker(lane: int) -> None:
        for index in range(5):
            with job(lane, f"{lane}-{index}"):
                asyncio.run(node(lane, index))

    await asyncio.to_thread(lanes_saving, worker)
    assert len(names) == len(set(names)) == 60


def test_waiting_ends_when_the_waiting_job_is_interrupted(patched: Any, tmp_path: Path):
    """With ComfyUI's own exception, and nothing held; a job that is not meant goes on waiting."""
    aimed: list[int] = []
    ended: list[str] = []

    def throw() -> None:
        if files.current_lane() in aimed:
            raise InterruptedError

    patched.management.throw_exception_if_processing_interrupted = throw

    def other(lane: int) -> None:
        with job(lane, str(lane)), contextlib.suppress(InterruptedError), patched.node("b", "1"):
            patched.own("x", str(tmp_path))
            ended.append(f"{lane} saved")
        ended.append(f"{lane} over")

    with job(0, "a"), patched.node("a", "1"):
        patched.own("x", str(tmp_path))
        threads = [begun(lambda lane=lane: other(lane)) for lane in (1, 2)]
        wait_until(lambda: len(files._taken.turns._line) == 2)
        aimed.append(1)
        threads[0].join(30)
        assert ended == ["1 over"]
    threads[1].join(30)
    assert ended == ["1 over", "2 saved", "2 over"]


@pytest.mark.parametrize("ends", [KeyboardInterrupt, MemoryError, SystemExit])
def test_a_prefix_is_free_again_however_its_node_ends(patched: Any, tmp_path: Path, ends: type[BaseException]):
    """Out of memory, interrupted, or a worker that is lost: the next lane does not wait."""

    def node() -> None:
        with patched.node("a", "1"):
            patched.own("x", str(tmp_path))
            raise ends

    with job(0, "a"), pytest.raises(ends):
        node()
    with job(1, "b"), patched.node("b", "1"):
        assert patched.own("x", str(tmp_path))[2] == 1


def test_two_lanes_that_want_each_others_prefix_do_not_lock_up(patched: Any, tmp_path: Path):
    """The one that closes the circle goes on, with numbers the other does not reach."""
    both = threading.Barrier(2)
    names: list[str] = []

    def worker(lane: int) -> None:
        with job(lane, f"{lane}"), patched.node(f"{lane}", "1"):
            for prefix in ("x", "y") if lane else ("y", "x"):
                folder, name, counter, *_ = patched.own(prefix, str(tmp_path))
                names.extend(save(folder, name, number) for number in range(counter, counter + 5))
                if prefix == ("x" if lane else "y"):
                    both.wait(30)

    lanes_saving(worker, lanes=2)
    assert len(names) == len(set(names)) == 20


@pytest.mark.parametrize("own", [False, True])
def test_waiting_is_bounded(patched: Any, tmp_path: Path, own: bool, monkeypatch: pytest.MonkeyPatch):
    """Who has waited long enough saves further up, where one that counts by itself does not come."""
    monkeypatch.setattr(files._taken.turns, "limit", 0.01)
    with job(0, "a"), patched.node("a", "1"):
        folder, name, mine, *_ = patched.own("x", str(tmp_path))
        names = [save(folder, name, mine)]
        with job(1, "b"), patched.node("b", "1"):
            _, _, theirs, *_ = (patched.own if own else patched.path)("x", str(tmp_path))
            names += [save(folder, name, number) for number in increments(tmp_path, theirs, 3)]
            names += [save(folder, name, number) for number in range(int(mine) + 1, int(mine) + 50)]
    assert len(names) == len(set(names)) == 53


def test_a_thread_that_outlives_its_node_holds_nothing(patched: Any, tmp_path: Path):
    """It gets a number, and nobody waits for an end that does not come."""
    context = []
    with job(0, "a"), patched.node("a", "1"):
        context.append(contextvars.copy_context())
    context[0].run(patched.own, "x", str(tmp_path))
    assert len(files._taken.turns) == 0
    files.job_ended(0)
