"""Output numbers between processes."""

import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from backend.overlay.claims import Claims
from tests.doubles.backend_process import ROOT

pytest.importorskip("fcntl", reason="this system has no byte locks")

HOLDER = """
import sys
from pathlib import Path
from backend.overlay.claims import Claims
folder = sys.argv[1]
claims = Claims(Path(folder))
print([claims.claim((folder, "a"), number) for number in (1, 2)], flush=True)
sys.stdin.readline()
"""

SAVER = """
import os, sys
from pathlib import Path
from backend.overlay.claims import Claims
from backend.overlay.patches.files import Reservations
folder, name = Path(sys.argv[1]), sys.argv[2]
reservations = Reservations()
reservations.claims = Claims(folder)
place = (str(folder), "a")
sys.stdin.readline()
for turn in range(40):
    numbers = [int(each[2:7]) for each in os.listdir(folder) if each.startswith("a_")]
    number = reservations.take(place, turn, max(numbers, default=0) + 1)
    file = folder / f"a_{number:05}_.png"
    print(number, file.exists(), flush=True)
    file.write_text(name)
    reservations.release(lambda owner: owner == turn)
"""


def python(code: str, *arguments: str) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [sys.executable, "-c", code, *arguments],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT,
    )  # fmt: skip


def test_a_number_that_another_process_holds_is_not_given(tmp_path: Path):
    """Until that gives it back, or dies however it dies."""
    place = (str(tmp_path), "a")
    mine = Claims(tmp_path)
    other = python(HOLDER, str(tmp_path))
    try:
        assert other.stdout is not None
        assert other.stdout.readline() == "[True, True]\n"
        assert [mine.claim(place, number) for number in (1, 2, 3)] == [False, False, True]
        assert mine.claim((str(tmp_path), "b"), 1)
    finally:
        other.kill()
        other.communicate()
    assert mine.claim(place, 1)


def test_a_number_whose_file_has_come_meanwhile_is_not_given(tmp_path: Path):
    """The other process is done with it, and has said so by its file."""
    (tmp_path / "a_00001_.png").touch()
    claims = Claims(tmp_path)
    assert [claims.claim((str(tmp_path), "a"), number) for number in (1, 2)] == [False, True]
    assert Claims(None).claim((str(tmp_path), "a"), 1)


def test_processes_that_save_at_once_never_meet(tmp_path: Path):
    """Four of them, one prefix: every number once, and nobody finds his file there already."""
    savers = [python(SAVER, str(tmp_path), str(number)) for number in range(4)]
    for saver in savers:
        assert saver.stdin is not None
        saver.stdin.write("\n")
        saver.stdin.flush()
    said = [saver.communicate(timeout=120)[0].split() for saver in savers]
    numbers = Counter(int(each) for words in said for each in words[::2])
    assert len(numbers) == 160
    assert max(numbers.values()) == 1
    assert {each for words in said for each in words[1::2]} == {"False"}


COUNTING = """
import os, sys, time, types
from contextvars import ContextVar
from pathlib import Path
from backend.context import in_job, in_lane
from backend.overlay.patches import files
call = ContextVar("call", default=None)
sys.modules["comfy_execution"] = types.ModuleType("comfy_execution")
sys.modules["comfy_execution.utils"] = utils = types.ModuleType("comfy_execution.utils")
utils.get_executing_context = call.get
folder, name = Path(sys.argv[1]), sys.argv[2]
def listed(prefix, output):
    return output, prefix, 1 + max((int(each[2:7]) for each in os.listdir(output) if each[:2] == "a_"), default=0)
path = files._save_path(listed)
ended = files._node_ended(lambda *_: None)
files.apart_from_others(folder)
print("ready", flush=True)
sys.stdin.readline()
for turn in range(15):
    with in_lane(0), in_job(f"{name} {turn}"):
        call.set((turn, "node"))
        counter = path("a", str(folder))[2]
        for number in range(counter, counter + 3):
            file = folder / f"a_{number:05}_.png"
            print(number, file.exists(), flush=True)
            file.write_text(name)
            time.sleep(0.001)
        ended(None, None, None, None)
"""


def test_processes_whose_nodes_count_by_themselves_lose_nothing(tmp_path: Path):
    """Three processes, each with a custom node that saves three files for each number it asks for."""
    savers = [python(COUNTING, str(tmp_path), f"saver {index}") for index in range(3)]
    try:
        for saver in savers:
            assert saver.stdout is not None
            assert saver.stdout.readline() == "ready\n"
        said = []
        for saver in savers:
            assert saver.stdin is not None
            saver.stdin.write("go\n")
            saver.stdin.flush()
        for saver in savers:
            said += saver.communicate(timeout=120)[0].split("\n")[:-1]
            assert saver.returncode == 0
    finally:
        for saver in savers:
            saver.kill()
            saver.communicate()
    assert len(said) == 3 * 15 * 3
    assert [line for line in said if line.endswith("True")] == []
    numbers = sorted(int(line.split()[0]) for line in said)
    assert numbers == list(range(1, 3 * 15 * 3 + 1))


def test_a_place_is_one_processs_alone_or_shared_by_several(tmp_path: Path):
    """As long as the processes live."""
    place = (str(tmp_path), "a")
    mine = Claims(tmp_path)
    holds = "; ".join(["import sys; from pathlib import Path; from backend.overlay.claims import Claims",
                       "claims = Claims(Path(sys.argv[1])); place = (sys.argv[1], 'a')",
                       "print(claims.hold(place, True), claims.hold(place, False), flush=True)"])

    def theirs() -> str:
        other = python(holds, str(tmp_path))
        return other.communicate(timeout=60)[0]

    assert mine.hold(place, alone=False)
    assert theirs() == "False True\n"
    assert mine.hold(place, alone=True)
    assert theirs() == "False False\n"
    assert mine.hold(place, alone=None)
    assert theirs() == "True True\n"
    assert not Claims(None).shared
    assert Claims(None).hold(place, alone=True)
