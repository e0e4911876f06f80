"""The tables that ``tailrace evaluate`` prints, made of a report."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any, Final

from rich.table import Table

from stream_app.evaluation.metrics import FEW_TESTS

__all__ = ["tables"]

_NONE: Final = "–"
_COLUMNS: Final = ("HR@10", "NDCG@10", "MRR", "HR@50", "coverage@10", "cold HR@10", "cold HR@50")
_KEYS: Final = ("hr@10", "ndcg@10", "mrr", "hr@50", "coverage@10")


def tables(report: Mapping[str, Any]) -> Iterator[Table]:
    """The summary with its sources and baselines, then users by maturity, then time."""
    yield _summary(report)
    if report["tests"]:
        yield _buckets(report, "by_maturity", "earlier events of the user", _span)
        yield _buckets(report, "over_time", "tests in time", _period)


def _summary(report: Mapping[str, Any]) -> Table:
    data = report["data"]
    seconds = f"{report['seconds']:,.0f} s" if report["seconds"] >= 10 else f"{report['seconds']:.1f} s"
    rate = f", {report['tests_per_s']:,.0f} tests/s" if report["tests_per_s"] else ""
    table = Table(
        title=f"{data['name']}: {report['tests']:,} tests ({report['cold']['tests']:,} cold), {report['protocol']}\n"
        f"{data['interactions']:,} interactions of {data['users']:,} users, {data['items']:,} items; {seconds}{rate}",
        caption=_intervals(report),
    )
    table.add_column(f"ranking (published on {report['options']['via']})" if "in_process" in report else "ranking")
    for column in _COLUMNS:
        table.add_column(column, justify="right")
    table.add_row("slates", *_cells({**report["overall"], "cold": report["cold"]}), style="bold")
    if "in_process" in report:
        beside = report["in_process"]
        table.add_row("the same in process", *_cells({**beside["overall"], "cold": beside["cold"]}))
    for name, found in report["sources"].items():
        table.add_row(f"{name} alone", *_cells(found))
    if report["compare"]:
        table.add_section()
        for name, found in report["compare"].items():
            table.add_row(f"{name} (baseline)", *_cells(found))
    return table


def _intervals(report: Mapping[str, Any]) -> str:
    """The 95 % intervals of the slates; with few tests they are what there is to look at."""
    found = report["overall"]["intervals"]
    if not report["tests"]:
        return "nothing was measured"
    said = [f"{name.upper()} {found[name][0]:.4f} to {found[name][1]:.4f}" for name in ("hr@10", "ndcg@10", "mrr")]
    few = f"only {report['tests']} tests; " if report["tests"] < FEW_TESTS else ""
    return f"{few}95 % intervals of the slates: {', '.join(said)}"


def _cells(found: Mapping[str, Any]) -> list[str]:
    values = [found[key] for key in _KEYS] + [found["cold"]["hr@10"], found["cold"]["hr@50"]]
    return [_shown(value) for value in values]


def _buckets(report: Mapping[str, Any], key: str, title: str, name: Callable[[Mapping[str, Any]], str]) -> Table:
    rows = report[key]
    others = list(rows[0]["others"]) if rows else []
    compared = [other for other in others if other in report["compare"]]
    table = Table()
    table.add_column(title)
    for column in ("tests", "HR@10", "95 %", "NDCG@10", "MRR", "HR@50", *(f"{other} HR@10" for other in compared)):
        table.add_column(column, justify="right")
    for row in rows:
        low, high = row["intervals"]["hr@10"]
        table.add_row(
            name(row),
            f"{row['tests']:,}",
            _shown(row["hr@10"]),
            f"{low:.3f}-{high:.3f}",
            *(_shown(row[each]) for each in ("ndcg@10", "mrr", "hr@50")),
            *(_shown(row["others"][other]) for other in compared),
        )
    return table


def _span(row: Mapping[str, Any]) -> str:
    if row["to"] is None:
        return f"{row['from']} or more"
    return str(row["from"]) if row["from"] == row["to"] else f"{row['from']} to {row['to']}"


def _period(row: Mapping[str, Any]) -> str:
    first, last = row["from"].replace("T", " ")[:16], row["to"].replace("T", " ")[:16]
    if first[:10] != last[:10]:
        return f"{first[:10]} to {last[:10]}"
    return first if first == last else f"{first} to {last[11:]}"


def _shown(value: float | None) -> str:
    return _NONE if value is None else f"{value:.4f}"
