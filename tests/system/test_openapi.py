"""What ``/openapi.json`` promises, tried by a machine that reads it: no request makes the gateway fail."""

import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from tests.doubles.product import GENEROUS, Product

COMMAND = "import sys; from schemathesis.cli import schemathesis; schemathesis(sys.argv[1:])"
CHECKS = "not_a_server_error,status_code_conformance,content_type_conformance,response_schema_conformance"


def test_no_request_makes_it_fail(product: Product, tmp_path: Path):
    """Right and wrong requests of every route, and chains of them: no 5xx, and every answer is of a declared form."""
    # Prometheus' text has a reader of its own, and is costly to ask for.
    bounds = ["--exclude-path", "/metrics", "--phases", "examples,coverage,fuzzing,stateful"]
    # A stream that does not end, and what would take its GPUs away from the others who share this system.
    bounds += ["--exclude-path-regex", "^/(dashboard/events|admin/)"]
    assert tried(product, tmp_path, bounds) > 300


def test_no_order_of_an_administrator_makes_it_fail(make: Callable[..., Product], tmp_path: Path):
    """The line paused and resumed, GPUs drained and freed, in any order: a system of its own comes through it."""
    product = make(gpus=2, settings=GENEROUS).start().ready()
    bounds = ["--include-path-regex", "^/admin/", "--phases", "examples,coverage,fuzzing"]
    assert tried(product, tmp_path, bounds) > 40
    assert product.stop() == 0
    assert "Traceback" not in product.log()


def tried(product: Product, folder: Path, bounds: list[str]) -> int:
    """How many requests were made, of which none failed."""
    url = f"http://127.0.0.1:{product.ports[0]}/openapi.json"
    bounds = [*bounds, "-n", "10", "--seed", "1", "--request-timeout", "60", "--max-failures", "20"]
    bounds += ["--generation-database", "none"]
    done = subprocess.run(
        [sys.executable, "-c", COMMAND, "run", url, "--checks", CHECKS, *bounds],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
    passed = re.search(r"(\d+) generated, (\d+) passed", done.stdout)
    assert passed is not None, done.stdout[-3000:]
    assert int(passed[1]) == int(passed[2])
    assert product.ask(product.ports[0], "/health").status == 200
    return int(passed[1])
