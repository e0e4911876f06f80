"""The tables of an evaluation can be read on a console of any width: columns are left out, figures are never cut."""

from __future__ import annotations

import io
from typing import Any

import pytest
from rich.console import Console

from stream_app.evaluation.metrics import wilson
from stream_app.evaluation.tables import tables

BASELINES = ("popularity", "covisitation", "text", "isgd", "bpr")
SOURCES = ("text_slow", "factors_fast", "trending_30d")


def figures(tests: int = 16_041) -> dict[str, Any]:
    found = wilson(tests // 8, tests)
    intervals = {key: [found.low, found.high] for key in ("hr@10", "ndcg@10", "mrr", "hr@50")}
    keys = ("hr@10", "ndcg@10", "mrr", "hr@50", "coverage@10")
    return {"tests": tests, **dict.fromkeys(keys, 0.1234), "intervals": intervals}


def alone() -> dict[str, Any]:
    return {**figures(), "cold": figures()}


def report(*, live: bool = False, tests: int = 160_410) -> dict[str, Any]:
    others = dict.fromkeys((*SOURCES, *BASELINES), 0.4321)
    day = {"from": "2024-03-01T00:30:00+00:00", "to": "2024-03-01T00:47:00+00:00"}
    beside = {"in_process": {"overall": figures(tests), "cold": figures()}} if live else {}
    return {
        "tests": tests,
        "seconds": 12.0,
        "tests_per_s": 99.0,
        "protocol": "streaming",
        "data": {"name": "log.jsonl", "interactions": 396_386, "users": 4_300, "items": 3_862},
        "options": {"via": "embedded" if live else None},
        "overall": figures(tests),
        "cold": figures(),
        "sources": {name: alone() for name in SOURCES},
        "compare": {name: alone() for name in BASELINES},
        "by_maturity": [{"from": 100, "to": None, **figures(), "others": others}],
        "over_time": [{**day, **figures(), "others": others}],
        **beside,
    }


def printed(report: dict[str, Any], width: int) -> str:
    console = Console(file=io.StringIO(), width=width, highlight=False)
    for table in tables(report, width=width):
        console.print(table)
    file = console.file
    assert isinstance(file, io.StringIO)
    return file.getvalue()


@pytest.mark.parametrize("live", [False, True])
@pytest.mark.parametrize("width", [80, 100, 120, 160])
def test_tables_fit_and_nothing_is_cut(width: int, live: bool) -> None:
    shown = printed(report(live=live), width)
    assert "…" not in shown
    assert max(map(len, shown.splitlines())) <= width
    assert all(name in shown for name in (*BASELINES, *SOURCES, "slates", "baseline", "alone"))
    assert shown.count("0.118-0.128") + shown.count("0.120-0.130") == 2, "the interval is in both tables"
    figures_of = [line for line in shown.splitlines() if "covisitation " in line and "0.1234" in line]
    assert len(figures_of) == 1, "a baseline's name and figures share a line"
    assert figures_of[0].count("0.1234") >= 5


def test_what_is_left_out_is_said_and_a_wide_console_shows_everything() -> None:
    narrow, wide = printed(report(), 80), printed(report(), 240)
    assert "left out at this width: cold HR@50" in narrow
    assert "left out at this width: HR@50, popularity HR@10, covisitation HR@10," in " ".join(narrow.split())
    assert "left out" not in wide
    assert all(f"{name} HR@10" in wide and f"{name} (baseline)" in wide for name in BASELINES)
    assert all(f"{name} alone" in wide for name in SOURCES)


def test_one_of_a_kind_is_said_as_one() -> None:
    one = report(tests=1)
    one["data"] = {"name": "log.jsonl", "interactions": 1, "users": 1, "items": 1}
    shown = printed(one, 240)
    assert "log.jsonl: 1 test (" in shown
    assert "1 interaction of 1 user, 1 item;" in shown
    assert "only 1 test;" in shown
