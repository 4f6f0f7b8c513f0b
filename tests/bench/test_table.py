"""The bench runs, its figures are what they are called, and its table says what is missing."""

import json
import os
import subprocess
import sys
from pathlib import Path

from bench.__main__ import table
from bench.frontend import lay_out
from bench.load import Seen
from bench.rows import RECORD, ROWS, ratio

ROOT = Path(__file__).resolve().parents[2]


def test_one_row_runs(tmp_path: Path):
    """The program itself under load of our own loop: figures for the gateway, printed and as JSON, nothing refused."""
    file = tmp_path / "figures.json"
    command = [sys.executable, "-m", "bench", "--only", "small GET, changing", "--peers", "gateway", "--rounds", "1"]
    environment = os.environ | {"PATH": str(tmp_path), "PYTHONPATH": str(ROOT)}  # neither wrk nor nginx
    done = subprocess.run(
        [*command, "--seconds", "0.3", "--json", str(file)],
        cwd=ROOT, env=environment, capture_output=True, text=True, timeout=120, check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "small GET, changing heads … no ratio" in done.stdout
    told = json.loads(file.read_text())["small GET, changing heads"]
    figures = told["peers"]["gateway"]
    assert figures["cpu"] > 0
    assert figures["rate"] > 0
    assert figures["p50"] <= figures["p99"]
    assert "failed" not in figures


def test_the_ratio_is_of_cpu():
    """The gateway's over nginx's, and none where there is no nginx."""
    ours = {"cpu": 30.0, "rate": 1.0}
    assert ratio({"gateway": ours, "nginx": {"cpu": 20.0, "rate": 1.0}}) == 1.5
    assert ratio({"gateway": ours}) is None


def test_the_table_names_what_is_missing():
    """A peer that is not installed has a line, too."""
    figures = {name: {"cpu": 30.0, "rate": 5.0, "p50": 1.0, "p99": 2.0} for name in ("gateway", "nginx")}
    text = table(ROWS[0], figures, ["haproxy"])
    assert text.startswith("small GET … ratio 1.00")
    assert text.endswith("haproxy          not installed")


def test_latencies_are_of_those_seen():
    """The share that stayed below, in milliseconds."""
    seen = Seen(latencies=[number / 1000 for number in range(100)])
    assert (seen.late(0.5), seen.late(0.99), seen.late(1.0)) == (50.0, 99.0, 99.0)


def test_the_page_has_every_file(tmp_path: Path):
    """What is recorded is there, and the dear answers are left to the server."""
    real = tmp_path / "real"
    (real / "assets").mkdir(parents=True)
    (real / "index.html").write_bytes(b"<html>")
    made = tmp_path / "made"
    targets = lay_out(made, real, RECORD)
    assert len(targets) == 471
    assert (made / "index.html").read_bytes() == b"<html>"
    assert (made / "assets" / "index-BKeTeXLp.js").stat().st_size > 10_000_000
    assert not (made / "api").exists()
