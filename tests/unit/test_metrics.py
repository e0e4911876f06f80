"""Metrics: every name the operations page documents is served, and freshness is counted against its objective."""

from __future__ import annotations

import re
from dataclasses import fields
from pathlib import Path

import pytest
from prometheus_client import generate_latest

from stream_app import __version__
from stream_app.metrics import Metrics
from stream_app.settings import MetricsSettings

OPERATIONS = Path(__file__).parents[2] / "docs" / "operations.md"


def text(metrics: Metrics) -> str:
    return generate_latest(metrics.registry).decode()


def value(metrics: Metrics, name: str, **labels: str) -> float | None:
    return metrics.registry.get_sample_value(name, labels)


def ours(metrics: Metrics) -> set[str]:
    return {family.name for family in metrics.registry.collect() if family.name.startswith("tailrace_")}


def test_every_field_is_a_metric_with_a_description():
    metrics = Metrics()
    families = {family.name: family for family in metrics.registry.collect()}
    assert len(ours(metrics)) == len(fields(Metrics)) - 1, "every field but the registry is one metric"
    for name in ours(metrics):
        assert families[name].documentation.endswith("."), name


def test_every_name_on_the_operations_page_is_a_metric():
    metrics = Metrics()
    exist = ours(metrics)
    suffixed = {
        f"{name}{end}" for name in exist for end in ("_total", "_bucket", "_sum", "_count", "_created", "_info")
    }
    documented = set(re.findall(r"\btailrace_[a-z_]+[a-z]\b", OPERATIONS.read_text()))
    assert documented, "the page documents metrics"
    assert documented <= exist | suffixed, documented - exist - suffixed


def test_every_metric_is_on_the_operations_page():
    page = OPERATIONS.read_text()
    assert [name for name in sorted(ours(Metrics())) if name not in page] == []


def test_freshness_counts_in_seconds_and_against_the_objective():
    metrics = Metrics()
    metrics.observe_freshness(event_s=[0.001, 9.0], append_s=[0.25, 0.2501, 3.0], objective_s=0.25)
    assert value(metrics, "tailrace_freshness_occurred_seconds_count") == 2
    assert value(metrics, "tailrace_freshness_append_seconds_count") == 3
    assert value(metrics, "tailrace_freshness_append_seconds_bucket", le="0.25") == 1
    assert value(metrics, "tailrace_freshness_append_seconds_sum") == pytest.approx(3.5001)
    assert value(metrics, "tailrace_freshness_objective_missed_total") == 2


def test_the_default_objective_is_a_bucket_so_that_a_burn_rate_needs_no_interpolation():
    metrics = Metrics()
    metrics.observe_freshness(event_s=[], append_s=[0.1], objective_s=1.0)
    objective_s = MetricsSettings().freshness_objective_ms / 1000
    assert value(metrics, "tailrace_freshness_append_seconds_bucket", le=f"{objective_s:g}") == 1


def test_two_processes_in_one_test_do_not_share_metrics():
    one, other = Metrics(), Metrics()
    one.events_in.labels("items").inc()
    assert value(other, "tailrace_events_in_total", role="items") is None


def test_the_version_and_the_process_are_there():
    metrics = Metrics()
    assert value(metrics, "tailrace_build", version=__version__) == 1
    assert "process_resident_memory_bytes" in text(metrics)


def test_what_is_computed_when_it_is_asked_for_is_asked_for_each_time():
    metrics = Metrics()
    metrics.health.samples = lambda: [(("live", "loop"), 1.0)]
    assert value(metrics, "tailrace_health", probe="live", check="loop") == 1
    metrics.health.samples = lambda: [(("live", "loop"), 0.0)]
    assert value(metrics, "tailrace_health", probe="live", check="loop") == 0
