"""A process id is used again; a life's name is not."""

import os
import subprocess

from gateway.fleet.life import name_of


def test_a_life_has_one_name():
    """The same as long as the process lives, another for another process, none when it is gone."""
    process = subprocess.Popen(["sleep", "60"])
    try:
        mine, other = name_of(os.getpid()), name_of(process.pid)
        assert mine == name_of(os.getpid())
        assert mine
        assert other
        assert mine != other
    finally:
        process.kill()
    process.wait()
    assert name_of(process.pid) == ""


def test_one_that_nobody_has_collected_yet_is_gone():
    """A zombie does no work."""
    process = subprocess.Popen(["true"])
    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
    assert name_of(process.pid) == ""
    process.wait()
