"""Prometheus' own tool on the rules: well formed, and firing when they should and not when they should not."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from tests.deploy.conftest import DEPLOY, Run, find

PROMETHEUS = DEPLOY / "prometheus"
TESTS = sorted(PROMETHEUS.glob("*_test.yaml"))


def test_the_rules_are_well_formed(run: Run) -> None:
    # The days' windows ask for one series in many ways; nothing else may be said twice.
    run("promtool", "check", "rules", "--lint=all", "--lint-fatal", PROMETHEUS / "alerts.yaml")


@pytest.mark.parametrize("path", TESTS, ids=lambda path: path.stem)
def test_alerts_fire_when_they_should(run: Run, path: Path) -> None:
    run("promtool", "test", "rules", path)


def test_an_alert_that_does_not_fire_is_noticed(tmp_path: Path) -> None:
    """The test above can fail: with another threshold the same cases do."""
    import subprocess

    rules = (PROMETHEUS / "alerts.yaml").read_text(encoding="utf-8")
    assert "> 1000" in rules
    (tmp_path / "alerts.yaml").write_text(rules.replace("> 1000", "> 1000000"), encoding="utf-8")
    cases = yaml.safe_load((PROMETHEUS / "alerts_test.yaml").read_text(encoding="utf-8"))
    cases["tests"] = [case for case in cases["tests"] if "a lag that grows" in case["name"]]
    (tmp_path / "one_test.yaml").write_text(yaml.safe_dump(cases), encoding="utf-8")
    done = subprocess.run(
        [find("promtool"), "test", "rules", str(tmp_path / "one_test.yaml")], capture_output=True, text=True
    )
    assert done.returncode != 0
    assert "TailraceFallingBehind" in done.stdout + done.stderr


def test_prometheus_takes_the_configuration_of_the_compose_file(run: Run, tmp_path: Path) -> None:
    text = (DEPLOY / "compose" / "prometheus.yml").read_text(encoding="utf-8")
    assert "/etc/prometheus/alerts.yaml" in text
    (tmp_path / "prometheus.yml").write_text(
        text.replace("/etc/prometheus/alerts.yaml", str(PROMETHEUS / "alerts.yaml")), encoding="utf-8"
    )
    run("promtool", "check", "config", tmp_path / "prometheus.yml")
