"""``mode = "auto"``: what is chosen for what was measured, and what is measured."""

import asyncio
import json
import logging
import os
import socket
from dataclasses import replace
from pathlib import Path

import pytest

from backend import verdict
from gateway import automatic
from gateway.automatic import BOUND, ENOUGH, FINE, PER_GPU, SINGLE, Automatic, Measured, choose, demand_of
from gateway.config import Backend, Config, Jobs, Listen
from gateway.fleet.estate import Estate, Life
from gateway.fleet.life import name_of
from gateway.fleet.member import Member
from tests.conftest import pick_run
from tests.doubles.wait import until

REAL_MEMORY = automatic.machine_memory
LIGHT = Measured(SINGLE, 4, busy=100, bound=70, fine=10, memory=2**30)
"""A run in which one process was too few."""


@pytest.fixture(autouse=True)
def roomy(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine on which several processes have room."""
    monkeypatch.setattr(automatic, "machine_memory", lambda: 2**40)


def config(folder: Path, first: int = 0) -> Config:
    backend = Backend(url=f"http://127.0.0.1:{first or pick_run(4)}", mode="auto")
    return replace(Config(), listen=Listen(gpu_ports=(1, 2, 3, 4)), backend=backend, jobs=Jobs(journal=str(folder)))


def noted(folder: Path, seen: Measured) -> Path:
    one = Automatic(folder, automatic.Choice(seen.mode, ""), seen.gpus)
    one.seen = seen
    one.save()
    return folder


@pytest.mark.parametrize(
    ("seen", "mode", "said"),
    [
        (None, SINGLE, "no run"),
        (replace(LIGHT, busy=ENOUGH - 1), SINGLE, "no run"),
        (replace(LIGHT, gpus=2), SINGLE, "so many GPUs"),
        (LIGHT, PER_GPU, "waited for Python's lock 70% of the time"),
        (replace(LIGHT, bound=49), SINGLE, "49%"),
        (replace(LIGHT, memory=5 * 2**30), SINGLE, "4 as large as that one (5.0 GiB) do not fit into 16.0 GiB"),
        (replace(LIGHT, mode=PER_GPU, bound=0, fine=50), PER_GPU, "would have waited for each other 50%"),
        (replace(LIGHT, mode=PER_GPU, bound=0, fine=51), SINGLE, "as good 51%"),
        (replace(LIGHT, mode=PER_GPU, memory=5 * 2**30), PER_GPU, "90%"),
    ],
)
def test_what_is_chosen_for_what_was_measured(seen: Measured | None, mode: str, said: str):
    """And why: the figure that decided is in the sentence."""
    choice = choose(seen, 4, 16 * 2**30)
    assert choice.mode == mode
    assert said in choice.why


def test_the_bounds_are_those_of_the_backends_verdict():
    """Two programs, one judgement."""
    assert (FINE, BOUND) == (verdict.CLOSE, verdict.BOUND)


def test_backends_that_cannot_tell_are_as_the_others():
    """A process of one lane says what that lane asks for; one that is away says nothing."""
    members = [Member(1, first=gpu) for gpu in range(4)]
    assert demand_of(members) is None
    for member, demand in zip(members, (0.3, None, 0.5, 0.9), strict=True):
        member.demand = demand
    for member in members[:3]:
        member.backend_up()
    assert demand_of(members) == pytest.approx(1.2)


def test_a_second_counts_when_models_ran_in_it(tmp_path: Path):
    """By the demand that was found then; without one, or without calls, nothing is counted."""
    one, member = Automatic(tmp_path, choose(None, 4, 0), 4), Member(4)
    member.backend_up()
    one.watch([member], list)
    for calls, demand in [(0, 1.0), (5, 1.0), (5, 1.0), (9, 0.6), (12, 0.2), (15, None)]:
        member.calls, member.demand = calls, demand
        one.look()
    assert (one.seen.busy, one.seen.bound, one.seen.fine) == (3, 1, 1)


def test_the_next_start_goes_by_what_was_noted(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    """And the log says beforehand that it will, once."""
    caplog.set_level(logging.WARNING)
    one = Automatic(noted(tmp_path, LIGHT), choose(None, 4, 0), 4)
    one.seen = LIGHT
    caplog.clear()
    one.save()
    one.save()
    assert len([line for line in caplog.messages if "the next start will take one process for each GPU" in line]) == 1
    following = Automatic.of(config(tmp_path), {})
    assert following is not None
    assert following.choice.mode == PER_GPU
    assert following.settled(config(tmp_path)).backend.mode == PER_GPU


def test_too_short_a_run_leaves_the_note_as_it_is(tmp_path: Path):
    """A start for a minute's look at something is no measurement."""
    noted(tmp_path, LIGHT)
    noted(tmp_path, replace(LIGHT, busy=ENOUGH - 1, bound=0))
    assert automatic.read(tmp_path) == LIGHT


@pytest.mark.parametrize("text", ["", "[]", '{"mode": "single"}', '{"a": 1}'])
def test_a_note_that_cannot_be_read_is_none(tmp_path: Path, text: str):
    """One process for all, as without a note."""
    automatic.note(tmp_path).write_text(text)
    found = Automatic.of(config(tmp_path), {})
    assert found is not None
    assert found.choice.mode == SINGLE
    numbers = {"mode": SINGLE, "gpus": 4, "busy": "100", "bound": 0, "fine": 0, "memory": 0}
    automatic.note(tmp_path).write_text(json.dumps(numbers))
    assert automatic.read(tmp_path) is None


def test_nothing_is_chosen_where_there_is_no_choice(tmp_path: Path):
    """Another mode, several tables, one GPU, a backend of somebody else's, no folder, plain ComfyUI."""
    auto = config(noted(tmp_path, LIGHT))
    backend = auto.backend
    others = [
        replace(auto, backend=replace(backend, mode=SINGLE)),
        replace(auto, backend=replace(backend, start=False)),
        replace(auto, further=(Backend(),)),
        replace(auto, listen=Listen(gpu_ports=(1,))),
        replace(auto, jobs=Jobs(journal="")),
    ]
    assert [Automatic.of(each, {}) for each in others] == [None] * len(others)
    assert Automatic.of(auto, {"COMFY_MULTI_GPU_SCHED": "0"}) is None
    assert Automatic.of(auto, {}) is not None


def test_ports_that_are_taken_do_not_keep_the_gateway_from_starting(tmp_path: Path):
    """What was not asked for by name must not fail: one process, and the reason."""
    noted(tmp_path, LIGHT)
    first = pick_run(4)
    with socket.create_server(("127.0.0.1", first + 2)):
        found = Automatic.of(config(tmp_path, first), {})
    assert found is not None
    assert found.choice.mode == SINGLE
    assert "cannot be had" in found.choice.why
    listening = replace(config(tmp_path, first), listen=Listen(front_port=first + 1, gpu_ports=(1, 2, 3, 4)))
    found = Automatic.of(listening, {})
    assert found is not None
    assert "which is in [listen]" in found.choice.why


@pytest.mark.parametrize(("argv", "mode"), [(("x", "--instance", "0"), PER_GPU), (("x",), SINGLE)])
def test_a_backend_that_is_at_work_keeps_its_mode(tmp_path: Path, argv: tuple[str, ...], mode: str):
    """A gateway that takes over does not end the jobs that it is there to keep."""
    noted(tmp_path, LIGHT if mode == SINGLE else replace(LIGHT, mode=PER_GPU, bound=0, fine=100))
    Estate(tmp_path, 1).write(Life(os.getpid(), name_of(os.getpid()), argv))
    found = Automatic.of(config(tmp_path), {})
    assert found is not None
    assert found.choice.mode == mode
    assert "left at work" in found.choice.why


def test_a_reload_stays_with_what_was_chosen(tmp_path: Path):
    """The file still says "auto", and that is no change."""
    auto = config(noted(tmp_path, LIGHT))
    found = Automatic.of(auto, {})
    assert found is not None
    again, warnings = found.reading(lambda: (auto, ["w"]))()
    assert (again, warnings) == (found.settled(auto), ["w"])
    single = replace(auto, backend=replace(auto.backend, mode=SINGLE))
    assert found.reading(lambda: (single, []))()[0] == single


async def test_it_measures_until_it_is_cancelled_and_notes_it_then(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """What was seen up to the end is not lost."""
    monkeypatch.setattr(automatic, "LOOK", 0.001)
    one, member = Automatic(tmp_path, choose(None, 4, 0), 4), Member(4)
    member.backend_up()
    member.demand = 0.9

    def busy() -> bool:
        member.calls += 1
        return one.seen.busy >= ENOUGH

    one.watch([member], lambda: [os.getpid()])
    task = asyncio.get_running_loop().create_task(one.run())
    await until(busy)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    found = automatic.read(tmp_path)
    assert found == one.seen
    assert found is not None
    assert found.bound == found.busy
    assert found.memory > 0


def test_memory_is_that_of_the_machine_or_less():
    """As the kernel tells it."""
    assert 2**26 < REAL_MEMORY() <= os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    assert automatic.most_memory(2**22 + 1) == 0
