"""Alerts and dashboard, judged by Prometheus' own promtool."""

import json
import re
from pathlib import Path

import yaml

from helm.render import CHART, MONITORED, manifests, program, run

ALERTS = CHART / "files" / "alerts.yaml"
STORIES = Path(__file__).with_name("alerts.yaml")
# Grafana puts values in their place before it asks Prometheus.
VARIABLE = re.compile(r"\$(namespace|job)\b")


def test_prometheus_accepts_the_alerts_that_reach_the_cluster(tmp_path: Path) -> None:
    (rule,) = (m for m in manifests(MONITORED) if m["kind"] == "PrometheusRule")
    assert rule["spec"] == yaml.safe_load(ALERTS.read_text())
    done = run(program("promtool"), "check", "rules", ALERTS)
    assert done.returncode == 0, done.stderr


def test_every_alert_fires_and_stays_quiet(tmp_path: Path) -> None:
    (tmp_path / "alerts-under-test.yaml").write_text(ALERTS.read_text())
    (tmp_path / "stories.yaml").write_text(STORIES.read_text())
    done = run(program("promtool"), "test", "rules", tmp_path / "stories.yaml")
    assert done.returncode == 0, done.stdout + done.stderr
    checks = [check for story in yaml.safe_load(STORIES.read_text())["tests"] for check in story["alert_rule_test"]]
    alerts = {rule["alert"] for group in yaml.safe_load(ALERTS.read_text())["groups"] for rule in group["rules"]}
    assert {check["alertname"] for check in checks if check["exp_alerts"]} == alerts
    assert {check["alertname"] for check in checks if not check["exp_alerts"]} == alerts


def test_prometheus_understands_every_query_of_the_dashboard(tmp_path: Path) -> None:
    (config_map,) = (m for m in manifests() if m["kind"] == "ConfigMap")
    dashboard = json.loads(config_map["data"]["training-jobs.json"])
    queries = [VARIABLE.sub(".*", target["expr"]) for panel in dashboard["panels"] for target in panel["targets"]]
    rules = [{"record": f"query:{i}", "expr": query} for i, query in enumerate(queries)]
    file = tmp_path / "queries.yaml"
    file.write_text(yaml.safe_dump({"groups": [{"name": "dashboard", "rules": rules}]}))
    done = run(program("promtool"), "check", "rules", file)
    assert done.returncode == 0, done.stderr
    assert len(rules) == 27


def test_panels_of_the_dashboard_do_not_overlap() -> None:
    (config_map,) = (m for m in manifests() if m["kind"] == "ConfigMap")
    panels = json.loads(config_map["data"]["training-jobs.json"])["panels"]
    places = [(panel["gridPos"]["x"], panel["gridPos"]["y"]) for panel in panels]
    assert len(set(places)) == len(panels)
    assert {panel["gridPos"]["x"] + panel["gridPos"]["w"] for panel in panels} == {8, 16, 24}
