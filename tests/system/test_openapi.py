"""What ``/openapi.json`` promises, tried by a machine that reads it: no request makes the gateway fail."""

import re
import subprocess
import sys
from pathlib import Path

from tests.doubles.product import Product

COMMAND = "import sys; from schemathesis.cli import schemathesis; schemathesis(sys.argv[1:])"
CHECKS = "not_a_server_error,status_code_conformance,content_type_conformance,response_schema_conformance"


def test_no_request_makes_it_fail(product: Product, tmp_path: Path):
    """Right and wrong requests of every route, and chains of them: no 5xx, and every answer is of a declared form."""
    url = f"http://127.0.0.1:{product.ports[0]}/openapi.json"
    # Prometheus' text has a reader of its own, and is costly to ask for.
    bounds = ["-n", "10", "--seed", "1", "--request-timeout", "60", "--max-failures", "20"]
    bounds += ["--exclude-path", "/metrics", "--generation-database", "none"]
    # A stream that does not end, and what would take its GPUs away from the others who share this system.
    bounds += ["--exclude-path-regex", "^/(dashboard/events|admin/)"]
    bounds += ["--phases", "examples,coverage,fuzzing,stateful"]
    done = subprocess.run(
        [sys.executable, "-c", COMMAND, "run", url, "--checks", CHECKS, *bounds],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
    passed = re.search(r"(\d+) generated, (\d+) passed", done.stdout)
    assert passed is not None, done.stdout[-3000:]
    assert int(passed[1]) == int(passed[2]) > 300
    assert product.ask(product.ports[0], "/health").status == 200
