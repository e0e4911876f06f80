"""What deploy/ says agrees with the code: generated files are current, metrics exist, alerts have their place in the
runbook. What needs a program (helm, promtool, ...) is in ``tests/deploy``."""

from __future__ import annotations

import json
import re
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import yaml

from deploy.generate import generated
from deploy.grafana.dashboard import expressions
from stream_app.app import ROLES
from stream_app.metrics import Metrics
from tests.unit.test_documents import slug

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"
_PROCESS = {
    "process_start_time_seconds",
    "process_resident_memory_bytes",
    "process_cpu_seconds_total",
    "up",
}
"""Metrics that are not ours: prometheus_client's, and Prometheus' own."""


def rules() -> list[dict[str, Any]]:
    groups = yaml.safe_load((DEPLOY / "prometheus" / "alerts.yaml").read_text(encoding="utf-8"))["groups"]
    return [rule for group in groups for rule in group["rules"]]


def series() -> dict[str, set[str] | None]:
    """Names of all series a process serves, each with its labels; None where a collector does not say them."""
    ends = {"counter": ("_total", "_created"), "histogram": ("_bucket", "_sum", "_count", "_created")}
    labels = {
        metric._name: set(metric._labelnames)
        for metric in (getattr(METRICS, field.name) for field in fields(METRICS))
        if hasattr(metric, "_labelnames")
    }
    found: dict[str, set[str] | None] = {}
    for family in METRICS.registry.collect():
        own = labels.get(family.name)
        for end in ends.get(family.type, ("",)):
            found[family.name + end] = own and own | {"le"} if end == "_bucket" else own
    return found


METRICS = Metrics()


def names_in(expression: str) -> set[str]:
    """Names of series: what is no label, function or keyword, recognised by its prefix or by the list above."""
    without_text = re.sub(r'"[^"]*"', "", expression)
    return set(re.findall(r"\b(tailrace_\w+|process_\w+|up)\b", without_text))


@pytest.mark.parametrize("path", generated(), ids=lambda path: str(path.relative_to(DEPLOY)))
def test_generated_files_are_current(path: Path) -> None:
    assert path.read_text(encoding="utf-8") == generated()[path], "run: python -m deploy.generate"


def all_expressions() -> list[str]:
    return [*(rule["expr"] for rule in rules()), *expressions()]


def test_rules_and_dashboard_use_only_metrics_that_exist() -> None:
    known = set(series()) | _PROCESS
    recorded = {rule["record"] for rule in rules() if "record" in rule}
    seen = set()
    for expression in all_expressions():
        for name in recorded:
            expression = expression.replace(name, "")
        names = names_in(expression)
        assert names <= known, f"{names - known} in: {expression}"
        seen |= names
    assert len(seen) > 20


def test_rules_and_dashboard_ask_only_for_labels_that_exist() -> None:
    """A selector by a label that a series has not finds nothing, for ever and in silence."""
    known = series()

    def may_ask(name: str, asked: set[str]) -> bool:
        own = known[name]
        return own is None or asked <= own | {"job", "instance", "le"}

    for expression in all_expressions():
        for name, selector in re.findall(r"\b(tailrace_\w+)\{([^}]*)\}", expression):
            asked = set(re.findall(r"(\w+)\s*(?:=~|!~|!=|=)", selector))
            assert may_ask(name, asked), expression
        for by, name in re.findall(r"by \(([^)]*)\) \((?:rate\(|increase\()?(tailrace_\w+)", expression):
            asked = {label.strip() for label in by.split(",") if label.strip()}
            assert may_ask(name, asked), expression


def test_recordings_that_are_used_are_made() -> None:
    recorded = {rule["record"] for rule in rules() if "record" in rule}
    used = {name for rule in rules() for name in re.findall(r"\b[a-z_]+:[a-z_]+:\w+", rule["expr"])}
    assert used == recorded, "each is made, and for something"


def test_every_alert_has_its_section_in_the_runbook() -> None:
    headings = re.findall(r"^## (.+)$", (ROOT / "docs" / "runbook.md").read_text(encoding="utf-8"), re.MULTILINE)
    alerts = [rule for rule in rules() if "alert" in rule]
    assert [rule["alert"] for rule in alerts] == headings, "one section per alert, in the same order"
    for rule in alerts:
        page, _, anchor = rule["annotations"]["runbook_url"].partition("#")
        assert page == "docs/runbook.md"
        assert anchor == slug(rule["alert"])
        assert rule["labels"]["severity"] in {"critical", "warning"}
        assert {"summary", "description"} <= set(rule["annotations"])


def test_every_alert_is_explained_to_operators() -> None:
    page = (ROOT / "docs" / "operations.md").read_text(encoding="utf-8")
    assert [rule["alert"] for rule in rules() if "alert" in rule and f"`{rule['alert']}`" not in page] == []


def test_every_alert_is_tested_to_fire_and_not_to() -> None:
    """promtool runs these; here only that none was forgotten."""
    fires: set[str] = set()
    silent: set[str] = set()
    for path in sorted((DEPLOY / "prometheus").glob("*_test.yaml")):
        for case in yaml.safe_load(path.read_text(encoding="utf-8"))["tests"]:
            for check in case.get("alert_rule_test", []):
                (fires if check["exp_alerts"] else silent).add(check["alertname"])
            for check in case.get("promql_expr_test", []):
                fires.update(re.findall(r'^ALERTS\{alertname="(\w+)"\}$', check["expr"]))
    alerts = {rule["alert"] for rule in rules() if "alert" in rule}
    assert fires == alerts
    # Where one case has series that fire and series that do not, the expected alerts name only the first.
    in_one_case = {
        "TailraceFallingBehind",
        "TailraceWaiting",
        "TailraceDown",
        "TailraceNotAlive",
        "TailraceNotReady",
        "TailraceRestarting",
        "TailraceEncoderRestarting",
        "TailraceEncoderLate",
        "TailraceReplicaBehind",
    }
    assert silent | in_one_case == alerts


def test_the_dashboard_is_one_that_grafana_takes() -> None:
    board = json.loads((DEPLOY / "grafana" / "tailrace.json").read_text(encoding="utf-8"))
    panels = board["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    taken: set[tuple[int, int]] = set()
    for panel in panels:
        at = panel["gridPos"]
        cells = {(at["x"] + x, at["y"] + y) for x in range(at["w"]) for y in range(at["h"])}
        assert not cells & taken, f"{panel['title']} lies over another panel"
        assert max(x for x, _ in cells) < 24
        taken |= cells
    variables = {variable["name"] for variable in board["templating"]["list"]}
    for panel in panels:
        for target in panel.get("targets", []):
            used = set(re.findall(r"\$(\w+)", target["expr"])) - {"__rate_interval"}
            assert used <= variables


def test_the_alerts_know_every_role() -> None:
    (missing,) = (rule for rule in rules() if rule.get("alert") == "TailraceRoleMissing")
    assert set(re.findall(r'role="(\w+)"', missing["expr"])) == set(ROLES)
