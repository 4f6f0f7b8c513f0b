"""What is shipped for Prometheus and Grafana: the tools accept it, and every metric it names exists."""

import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.backend.test_metrics import busy, scrape
from tests.doubles.product import ROOT
from tests.gateway.observe.test_metrics import used

DEPLOY = ROOT / "deploy"
NAMED = re.compile(r"(?<![\w:])comfy_(?:gateway|backend)_\w+")
SHIPPED = ["prometheus/rules.yml", "prometheus/rules_test.yml", "grafana/dashboard.json"]
needs_promtool = pytest.mark.skipif(
    shutil.which("promtool") is None, reason="promtool is not installed (Debian: prometheus)"
)


def exposed() -> set[str]:
    """Every sample's name in a scrape of both sides, as queries name them."""
    texts = [used().text().decode(), scrape(busy())]
    return {
        sample.name for text in texts for family in text_string_to_metric_families(text) for sample in family.samples
    }


def promtool(*arguments: str | Path) -> str:
    done = subprocess.run(["promtool", *map(str, arguments)], capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@needs_promtool
def test_promtool_accepts_the_configuration_and_the_rules():
    """Prometheus would load both."""
    assert "SUCCESS" in promtool("check", "config", DEPLOY / "prometheus" / "prometheus.yml")
    assert "SUCCESS" in promtool("check", "rules", DEPLOY / "prometheus" / "rules.yml")


@needs_promtool
def test_the_rules_fire_when_they_should():
    """The rules' own tests: each alert with what raises it, and what does not."""
    assert "SUCCESS" in promtool("test", "rules", DEPLOY / "prometheus" / "rules_test.yml")


@needs_promtool
def test_the_dashboards_queries_parse(tmp_path: Path):
    """Each query of each panel is an expression that Prometheus takes."""
    board = json.loads((DEPLOY / "grafana" / "dashboard.json").read_text(encoding="utf-8"))
    queries = [target["expr"] for panel in board["panels"] for target in panel.get("targets", [])]
    assert len(queries) > 20
    rules = [
        {"record": f"query:{number}", "expr": query.replace("$__rate_interval", "5m")}
        for number, query in enumerate(queries)
    ]
    file = tmp_path / "queries.json"
    file.write_text(json.dumps({"groups": [{"name": "board", "rules": rules}]}), encoding="utf-8")
    assert f"{len(queries)} rules found" in promtool("check", "rules", file)


@pytest.mark.parametrize("name", SHIPPED)
def test_every_metric_named_is_exposed(name: str):
    """A renamed metric does not leave an alert or a panel behind that can never say anything."""
    named = set(NAMED.findall((DEPLOY / name).read_text(encoding="utf-8")))
    assert named
    assert named - exposed() == set()


def test_every_alert_says_what_to_do_and_is_tested():
    """Whoever is woken gets a sentence and a step, and no alert is without a test that it fires."""
    rules = (DEPLOY / "prometheus" / "rules.yml").read_text(encoding="utf-8")
    tests = (DEPLOY / "prometheus" / "rules_test.yml").read_text(encoding="utf-8")
    alerts = re.findall(r"- alert: (\w+)\n(.*?)(?=\n      - alert|\Z)", rules, re.DOTALL)
    assert len(alerts) >= 8
    for name, body in alerts:
        assert "summary:" in body, name
        assert "action:" in body, name
        assert re.search(rf"alertname: {name}\n\s+exp_alerts:\n", tests), f"{name} has no test in which it fires"


def test_grafana_would_find_what_it_is_given():
    """Its files by their shape alone, for no Grafana is started here: source, provider, and where the board is put."""
    yaml = pytest.importorskip("yaml", reason="pyyaml is not installed")
    given = DEPLOY / "grafana/provisioning"
    (source,) = yaml.safe_load((given / "datasources/prometheus.yml").read_text(encoding="utf-8"))["datasources"]
    assert (source["type"], source["isDefault"]) == ("prometheus", True)
    (provider,) = yaml.safe_load((given / "dashboards/comfy-gateway.yml").read_text(encoding="utf-8"))["providers"]
    assert provider["type"] == "file"
    services = yaml.safe_load((DEPLOY / "docker/compose.yml").read_text(encoding="utf-8"))["services"]
    mounts = dict(mount.split(":")[:2] for mount in services["grafana"]["volumes"])
    assert mounts["../grafana/provisioning"] == "/etc/grafana/provisioning"
    assert Path(mounts["../grafana/dashboard.json"]).parent == Path(provider["options"]["path"])
    assert source["url"].endswith(":9090")
    for service in services.values():
        for mount in service.get("volumes", []):
            assert not mount.startswith("..") or (DEPLOY / "docker" / mount.split(":")[0]).exists(), mount
    board = json.loads((DEPLOY / "grafana/dashboard.json").read_text(encoding="utf-8"))
    assert board["uid"]
    assert len({panel["id"] for panel in board["panels"]}) == len(board["panels"])
    placed = [panel["gridPos"] for panel in board["panels"]]
    assert all(place["x"] >= 0 and place["x"] + place["w"] <= 24 and place["h"] > 0 for place in placed)
