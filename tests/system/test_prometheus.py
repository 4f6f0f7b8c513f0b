"""A real Prometheus with the scrape file that is shipped."""

import json
import shutil
import subprocess
import urllib.parse
from pathlib import Path

import pytest

from tests.conftest import pick_ports
from tests.doubles.product import ROOT, Product
from tests.doubles.prompts import tiny
from tests.doubles.wait import wait_until


@pytest.mark.skipif(shutil.which("prometheus") is None, reason="prometheus is not installed (Debian: prometheus)")
def test_a_real_prometheus_collects_both_sides(product: Product, tmp_path: Path):
    """With deploy/prometheus/prometheus.yml, only its port and interval changed, gateway and backend are collected."""
    shipped = (ROOT / "deploy" / "prometheus" / "prometheus.yml").read_text(encoding="utf-8")
    assert "127.0.0.1:8180" in shipped
    adapted = shipped.replace(":8180", f":{product.ports[0]}").replace("15s", "1s").replace("10s", "1s")
    config = tmp_path / "prometheus.yml"
    config.write_text(adapted, encoding="utf-8")
    shutil.copy(ROOT / "deploy" / "prometheus" / "rules.yml", tmp_path)
    assert product.post(product.ports[1], "/prompt", {"prompt": tiny(9)}).status == 200
    (port,) = pick_ports(1)
    with (tmp_path / "log").open("wb") as log:
        server = subprocess.Popen(
            [
                "prometheus",
                f"--config.file={config}",
                f"--storage.tsdb.path={tmp_path / 'data'}",
                f"--web.listen-address=127.0.0.1:{port}",
            ],
            stdout=log,
            stderr=log,
        )
    try:

        def ask(query: str) -> list[object]:
            answer = product.ask(port, "/api/v1/query?" + urllib.parse.urlencode({"query": query}))
            found: list[object] = json.loads(answer.body)["data"]["result"] if answer.status == 200 else []
            return found

        wait_until(lambda: ask('up{job="comfy-gateway"} == 1'), 40, (tmp_path / "log").read_text(encoding="utf-8"))
        wait_until(lambda: ask('comfy_gateway_requests_total{kind="submit"} > 0'), 20, "the gateway's metrics")
        wait_until(lambda: ask('comfy_backend_jobs_total{gpu="0",outcome="success"} > 0'), 20, "the backend's metrics")
        groups = json.loads(product.ask(port, "/api/v1/rules").body)["data"]["groups"]
        rules = [rule for group in groups for rule in group["rules"]]
        assert len(rules) > 10
        assert not [rule["name"] for rule in rules if rule.get("lastError")]
    finally:
        server.terminate()
        server.wait(20)
