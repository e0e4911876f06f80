"""The tables that ``tailrace evaluate`` prints, made of a report."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Final

from rich.cells import cell_len
from rich.table import Table

from stream_app.evaluation.metrics import FEW_TESTS
from stream_app.evaluation.wording import number_of

__all__ = ["tables"]

_NONE: Final = "–"
_COLUMNS: Final = ("HR@10", "NDCG@10", "MRR", "HR@50", "coverage@10", "cold HR@10", "cold HR@50")
_LEAST: Final = ("cold HR@50", "coverage@10", "cold HR@10", "HR@50", "MRR")
"""What a narrow console does without, what matters least first."""
_KEYS: Final = ("hr@10", "ndcg@10", "mrr", "hr@50", "coverage@10")


def tables(report: Mapping[str, Any], *, width: int) -> Iterator[Table]:
    """The summary with its sources and baselines, then users by maturity, then time.

    Args:
        report: what was found.
        width: of the console; where it is too narrow for everything, the columns that matter least are left out.
    """
    yield _summary(report, width)
    if report["tests"]:
        yield _buckets(report, "by_maturity", "earlier events of the user", _span, width)
        yield _buckets(report, "over_time", "tests in time", _period, width)


def _summary(report: Mapping[str, Any], width: int) -> Table:
    data = report["data"]
    seconds = f"{report['seconds']:,.0f} s" if report["seconds"] >= 10 else f"{report['seconds']:.1f} s"
    rate = f", {report['tests_per_s']:,.0f} tests/s" if report["tests_per_s"] else ""
    title = (
        f"{data['name']}: {number_of(report['tests'], 'test')} ({report['cold']['tests']:,} cold), "
        f"{report['protocol']}\n{number_of(data['interactions'], 'interaction')} of "
        f"{number_of(data['users'], 'user')}, {number_of(data['items'], 'item')}; {seconds}{rate}"
    )
    slates = [("slates", _cells({**report["overall"], "cold": report["cold"]}))]
    if "in_process" in report:
        beside = report["in_process"]
        slates.append(("the same in process", _cells({**beside["overall"], "cold": beside["cold"]})))
    sources = [(name, _cells(found)) for name, found in report["sources"].items()]
    baselines = [(name, _cells(found)) for name, found in report["compare"].items()]
    sections = [
        [*slates, *((f"{name} alone", cells) for name, cells in sources)],
        [(f"{name} (baseline)", cells) for name, cells in baselines],
    ]
    first = f"ranking (published on {report['options']['via']})" if "in_process" in report else "ranking"
    if not _fits([first, *_COLUMNS], sections, width):
        # Here a line says what the names below it are.
        nothing = [""] * len(_COLUMNS)
        sections = [slates, [("sources alone", nothing), *sources], [("baselines", nothing), *baselines]]
        sections = [section for section in sections if len(section) > 1 or section is slates]
    table = _table(first, _COLUMNS, sections, width, least=_LEAST, first_bold=True)
    table.title = title
    table.caption = f"{_intervals(report)}\n{table.caption}" if table.caption else _intervals(report)
    return table


def _table(
    first: str,
    titles: Sequence[str],
    sections: Sequence[Sequence[tuple[str, Sequence[str]]]],
    width: int,
    *,
    least: Sequence[str],
    first_bold: bool = False,
) -> Table:
    """A table of named rows of figures, no wider than ``width``: titles are broken, then columns are left out.

    Args:
        first: title of the names.
        titles: of the figures.
        sections: rows of name and figures.
        width: of the console.
        least: titles of what may be left out, what matters least first.
        first_bold: whether the first row stands out.
    """
    heads = {title: title for title in titles}
    named = first
    if not _fits([first, *titles], sections, width):
        heads = {title: title.replace(" HR@", "\nHR@").replace("coverage@", "coverage\n@") for title in titles}
        named = "\n".join(first.split())
    shown = list(titles)

    def rows() -> list[list[tuple[str, Sequence[str]]]]:
        chosen = [place for place, title in enumerate(titles) if title in shown]
        return [[(name, [cells[place] for place in chosen]) for name, cells in section] for section in sections]

    for title in least:
        if _fits([named, *(heads[each] for each in shown)], rows(), width):
            break
        shown.remove(title)
    left_out = [title for title in titles if title not in shown]
    table = Table(caption=f"left out at this width: {', '.join(left_out)}" if left_out else None)
    # Only the title of the names is broken as it must be: names and figures are never cut.
    table.add_column(first, min_width=_width(named, [name for section in sections for name, _ in section]))
    for title in shown:
        table.add_column(heads[title], justify="right", no_wrap=True)
    for place, section in enumerate(rows()):
        for number, (name, cells) in enumerate(section):
            table.add_row(name, *cells, style="bold" if first_bold and not place and not number else None)
        table.add_section()
    return table


def _fits(titles: Sequence[str], sections: Sequence[Sequence[tuple[str, Sequence[str]]]], width: int) -> bool:
    """Whether columns with these titles, the first that of the names, are no wider than ``width`` with their lines."""
    lines = [(name, *cells) for section in sections for name, cells in section]
    widths = [_width(title, [line[place] for line in lines]) for place, title in enumerate(titles)]
    return sum(widths) + 3 * len(widths) + 1 <= width


def _width(title: str, cells: Sequence[str]) -> int:
    return max(map(cell_len, [*title.split("\n"), *cells]))


def _intervals(report: Mapping[str, Any]) -> str:
    """The 95 % intervals of the slates; with few tests they are what there is to look at."""
    found = report["overall"]["intervals"]
    if not report["tests"]:
        return "nothing was measured"
    said = [f"{name.upper()} {found[name][0]:.4f} to {found[name][1]:.4f}" for name in ("hr@10", "ndcg@10", "mrr")]
    few = f"only {number_of(report['tests'], 'test')}; " if report["tests"] < FEW_TESTS else ""
    return f"{few}95 % intervals of the slates: {', '.join(said)}"


def _cells(found: Mapping[str, Any]) -> list[str]:
    values = [found[key] for key in _KEYS] + [found["cold"]["hr@10"], found["cold"]["hr@50"]]
    return [_shown(value) for value in values]


def _buckets(
    report: Mapping[str, Any], key: str, title: str, name: Callable[[Mapping[str, Any]], str], width: int
) -> Table:
    rows = report[key]
    others = list(rows[0]["others"]) if rows else []
    compared = {f"{other} HR@10": other for other in others if other in report["compare"]}
    found = []
    for row in rows:
        low, high = row["intervals"]["hr@10"]
        cells = (
            f"{row['tests']:,}",
            _shown(row["hr@10"]),
            f"{low:.3f}-{high:.3f}",
            *(_shown(row[each]) for each in ("ndcg@10", "mrr", "hr@50")),
            *(_shown(row["others"][other]) for other in compared.values()),
        )
        found.append((name(row), cells))
    titles = ("tests", "HR@10", "95 %", "NDCG@10", "MRR", "HR@50", *compared)
    return _table(title, titles, [found], width, least=(*reversed(compared), "HR@50", "MRR", "NDCG@10"))


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
