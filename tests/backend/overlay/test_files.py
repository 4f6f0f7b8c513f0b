"""Output names: never twice, and plain ComfyUI's as long as one node saves alone."""

import copy
import json
import pickle
import threading
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from backend.overlay.patches import files
from tests.backend.overlay.doubles import cpu_lanes, installed, job

Modules = dict[str, types.ModuleType]


@pytest.fixture
def patched(comfy: Modules) -> Iterator[Any]:
    """ComfyUI's ``folder_paths`` and ``comfy_execution.utils`` with the patches."""
    with installed(files.patches(cpu_lanes())):
        yield types.SimpleNamespace(
            path=comfy["folder_paths"].get_save_image_path,  # type: ignore[attr-defined]
            node=comfy["comfy_execution.utils"].CurrentNodeContext,  # type: ignore[attr-defined]
            execution=comfy["execution"],
        )


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
