"""The Grafana dashboard, as data: rows of panels, each a title, a unit and expressions of Prometheus.

``python -m deploy.generate`` writes it. Made here and not in Grafana, so that a change can be read, and a test can
compare every name in it with the metrics there are.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any, Literal

__all__ = ["dashboard_json", "expressions"]

_WIDTH, _HEIGHT = 24, 8
_SELECT = '{job=~"$job"}'
_OF_REPLICAS = 'and on (job, instance) tailrace_consumer_lag{job=~"$job", role="interactions"}'
"""Processes without a replica serve its gauges too, at 0."""

Kind = Literal["timeseries", "stat"]


@dataclass(frozen=True, kw_only=True)
class Panel:
    """One panel: what is drawn, in which unit of Grafana, and what it tells (shown at the title)."""

    title: str
    queries: tuple[tuple[str, str], ...]
    tells: str
    unit: str = "short"
    kind: Kind = "timeseries"
    width: int = 8
    log_scale: bool = False
    limit: float | None = None


def _quantiles(name: str) -> tuple[tuple[str, str], ...]:
    return tuple(
        (f"histogram_quantile({q}, sum by (le) (rate({name}_bucket{_SELECT}[$__rate_interval])))", f"{q:.1%}")
        for q in (0.5, 0.95, 0.99, 0.999)
    )


def _rate(name: str, *by: str) -> str:
    return f"sum by ({', '.join(by)}) (rate({name}{_SELECT}[$__rate_interval]))"


_LATE = (
    f"sum(rate(tailrace_freshness_objective_missed_total{_SELECT}[$__rate_interval])) "
    f"/ sum(rate(tailrace_freshness_append_seconds_count{_SELECT}[$__rate_interval]))"
)

ROWS: tuple[tuple[str, tuple[Panel, ...]], ...] = (
    (
        "Freshness",
        (
            Panel(
                title="Event to slate",
                queries=_quantiles("tailrace_freshness_append_seconds"),
                unit="s",
                log_scale=True,
                limit=0.25,
                width=12,
                tells="From the broker's append of an event to its slate's acknowledgement; the line is the objective.",
            ),
            Panel(
                title="Slates later than the objective",
                queries=((_LATE, "late"),),
                unit="percentunit",
                limit=0.01,
                width=6,
                tells="One in a hundred may be: the line. docs/runbook.md: TailraceSlatesLate.",
            ),
            Panel(
                title="Occurrence to slate, 95%",
                queries=(_quantiles("tailrace_freshness_occurred_seconds")[1],),
                unit="s",
                log_scale=True,
                width=6,
                tells="The same from the event's own time: producers, and clocks that are wrong, are in it.",
            ),
        ),
    ),
    (
        "Consumption",
        (
            Panel(
                title="Records taken",
                queries=((_rate("tailrace_events_in_total", "role"), "{{role}}"),),
                unit="cps",
                tells="Per second, by role.",
            ),
            Panel(
                title="Consumer lag",
                queries=((f"sum by (role) (tailrace_consumer_lag{_SELECT})", "{{role}}"),),
                tells="Records that are on the broker and were not delivered yet.",
            ),
            Panel(
                title="Records written",
                queries=((_rate("tailrace_records_out_total", "topic"), "{{topic}}"),),
                unit="cps",
                tells="Acknowledged by the broker, per second, by topic.",
            ),
            Panel(
                title="Where a batch's time goes",
                queries=(
                    (
                        f"{_rate('tailrace_batch_seconds_sum', 'role', 'step')} "
                        f"/ {_rate('tailrace_batch_seconds_count', 'role', 'step')}",
                        "{{role}} {{step}}",
                    ),
                ),
                unit="s",
                tells="Mean per batch. load and save are Redis, publish is the broker, compute is ours.",
            ),
            Panel(
                title="Records per batch",
                queries=(
                    (
                        f"{_rate('tailrace_batch_events_sum', 'role')} "
                        f"/ {_rate('tailrace_batch_events_count', 'role')}",
                        "{{role}}",
                    ),
                ),
                tells="Mean. Near delivery.batch a role is saturated.",
            ),
            Panel(
                title="Waiting for what is away",
                queries=((_rate("tailrace_retries_total", "what"), "{{what}}"),),
                unit="cps",
                tells="Tries again per second. Consumption stands meanwhile.",
            ),
        ),
    ),
    (
        "Input",
        (
            Panel(
                title="Dead letters",
                queries=((_rate("tailrace_dead_letters_total", "role", "reason"), "{{role}} {{reason}}"),),
                unit="cps",
                tells="Records refused, per second. tailrace dead-letters list shows them.",
            ),
            Panel(
                title="Events without effect",
                queries=((_rate("tailrace_events_skipped_total", "why"), "{{why}}"),),
                unit="cps",
                tells="replayed is normal after a restart; duplicate was sent twice.",
            ),
            Panel(
                title="Slates made without an event",
                queries=(
                    (_rate("tailrace_slates_replaced_total"), "an item was withdrawn"),
                    (_rate("tailrace_new_item_users_total", "result"), "new item: {{result}}"),
                ),
                unit="cps",
                tells="Because an item in them was withdrawn, or a new one suits the user.",
            ),
        ),
    ),
    (
        "Processes and replicas",
        (
            Panel(
                title="Ready",
                queries=(
                    (f"sum(tailrace_ready{_SELECT})", "take events"),
                    (f"count(tailrace_ready{_SELECT} == 0) or vector(0)", "do not"),
                ),
                kind="stat",
                width=6,
                tells="Processes of which every role takes events.",
            ),
            Panel(
                title="Checks that are red",
                queries=((f"tailrace_health{_SELECT} == 0", "{{instance}} {{probe}}: {{check}}"),),
                width=6,
                tells="Of /live, /ready and /started, by process. An empty panel is a healthy one.",
            ),
            Panel(
                title="Versions",
                queries=((f"count by (version) (tailrace_build{_SELECT})", "{{version}}"),),
                kind="stat",
                width=6,
                tells="Two of them while an upgrade is rolled out.",
            ),
            Panel(
                title="Items that can be found",
                queries=((f"tailrace_index_items{_SELECT} {_OF_REPLICAS}", "{{instance}}"),),
                width=6,
                tells="By process; they should agree within seconds.",
            ),
            Panel(
                title="Age of what replicas apply",
                queries=((f"tailrace_replica_age_seconds{_SELECT} {_OF_REPLICAS}", "{{instance}}"),),
                unit="s",
                width=6,
                tells="How old the newest record was when it was applied. It stays while nothing is broadcast.",
            ),
            Panel(
                title="Memory",
                queries=((f"process_resident_memory_bytes{_SELECT}", "{{instance}}"),),
                unit="bytes",
                tells="Resident, without the encoder processes.",
            ),
            Panel(
                title="Processor",
                queries=((f"rate(process_cpu_seconds_total{_SELECT}[$__rate_interval])", "{{instance}}"),),
                tells="Cores in use, without the encoder processes.",
            ),
            Panel(
                title="Users held",
                queries=(
                    (f"tailrace_users_cached{_SELECT} {_OF_REPLICAS}", "cached {{instance}}"),
                    (f"tailrace_users_indexed{_SELECT} {_OF_REPLICAS}", "indexed {{instance}}"),
                ),
                tells="States in memory, and users that new items can find.",
            ),
        ),
    ),
    (
        "Encoders",
        (
            Panel(
                title="Texts embedded",
                queries=((_rate("tailrace_encoder_texts_total", "instance"), "{{instance}}"),),
                unit="cps",
                tells="Per second, by process.",
            ),
            Panel(
                title="Texts waiting",
                queries=((f"sum by (priority) (tailrace_encoder_queue{_SELECT})", "{{priority}}"),),
                tells="query and event go before catalogue.",
            ),
            Panel(
                title="Late, given up, started again",
                queries=(
                    (_rate("tailrace_encoder_late_total"), "texts later than their deadline"),
                    (_rate("tailrace_encoder_poison_total"), "texts given up"),
                    (_rate("tailrace_encoder_restarts_total"), "processes started again"),
                ),
                unit="cps",
                tells="All three should be at zero.",
            ),
        ),
    ),
    (
        "Learning",
        (
            Panel(
                title="Examples behind the weights",
                queries=((f"max(tailrace_ranker_examples{_SELECT})", "examples"),),
                tells="Grows as long as people choose things. The ranker's process.",
            ),
            Panel(
                title="Examples of the factors",
                queries=((_rate("tailrace_factor_examples_total"), "examples"),),
                unit="cps",
                tells="Per second.",
            ),
            Panel(
                title="Rows of factors waiting",
                queries=((f"max(tailrace_factor_rows_waiting{_SELECT})", "rows"),),
                tells="Changed and not broadcast yet: high for long, raise factors.flush_rows.",
            ),
        ),
    ),
)


def expressions() -> list[str]:
    """Every expression of the dashboard, its variable's among them."""
    return [_JOBS, *(expression for _, panels in ROWS for panel in panels for expression, _ in panel.queries)]


_JOBS = "label_values(tailrace_build, job)"


def dashboard_json() -> str:
    """The dashboard as Grafana imports it."""
    panels: list[dict[str, Any]] = []
    y = 0
    for title, row in ROWS:
        panels.append(_row(title, len(panels) + 1, y))
        y += 1
        x = 0
        for panel in row:
            if x + panel.width > _WIDTH:
                x, y = 0, y + _HEIGHT
            panels.append(_panel(panel, len(panels) + 1, x, y))
            x += panel.width
        y += _HEIGHT
    board = {
        "uid": "tailrace",
        "title": "Tailrace",
        "tags": ["tailrace"],
        "timezone": "browser",
        "schemaVersion": 39,
        "version": 1,
        "editable": True,
        "graphTooltip": 1,
        "refresh": "15s",
        "time": {"from": "now-1h", "to": "now"},
        "templating": {"list": [_data_source_variable(), _job_variable()]},
        "annotations": {"list": []},
        "panels": panels,
    }
    return json.dumps(board, indent=2) + "\n"


def _row(title: str, number: int, y: int) -> dict[str, Any]:
    return {
        "id": number,
        "type": "row",
        "title": title,
        "collapsed": False,
        "panels": [],
        "gridPos": {"h": 1, "w": _WIDTH, "x": 0, "y": y},
    }


def _panel(panel: Panel, number: int, x: int, y: int) -> dict[str, Any]:
    defaults: dict[str, Any] = {"unit": panel.unit, "min": 0}
    if panel.kind == "timeseries":
        custom: dict[str, Any] = {"fillOpacity": 5, "showPoints": "never"}
        if panel.log_scale:
            custom["scaleDistribution"] = {"type": "log", "log": 10}
            del defaults["min"]
        if panel.limit is not None:
            custom["thresholdsStyle"] = {"mode": "line"}
            steps = [{"color": "green", "value": None}, {"color": "red", "value": panel.limit}]
            defaults["thresholds"] = {"mode": "absolute", "steps": steps}
        defaults["custom"] = custom
    return {
        "id": number,
        "type": panel.kind,
        "title": panel.title,
        "description": panel.tells,
        "datasource": _SOURCE,
        "gridPos": {"h": _HEIGHT, "w": panel.width, "x": x, "y": y},
        "fieldConfig": {"defaults": defaults, "overrides": []},
        "options": {"legend": {"displayMode": "list", "placement": "bottom"}} if panel.kind == "timeseries" else {},
        "targets": [
            {"refId": chr(ord("A") + place), "expr": expression, "legendFormat": legend, "datasource": _SOURCE}
            for place, (expression, legend) in enumerate(panel.queries)
        ],
    }


_SOURCE = {"type": "prometheus", "uid": "${source}"}


def _data_source_variable() -> dict[str, Any]:
    return {"name": "source", "label": "Prometheus", "type": "datasource", "query": "prometheus", "current": {}}


def _job_variable() -> dict[str, Any]:
    return {
        "name": "job",
        "label": "Job",
        "type": "query",
        "datasource": _SOURCE,
        "query": {"query": _JOBS, "refId": "jobs"},
        "definition": _JOBS,
        "refresh": 2,
        "multi": True,
        "includeAll": True,
        "current": {"text": "All", "value": "$__all"},
    }
