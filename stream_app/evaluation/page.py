"""The report as one HTML page: a table, and plots as SVG inside it. Nothing is loaded from elsewhere.

Text and axes take the colour of the page, so that it can be read on light and on dark.
"""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from html import escape
from typing import TYPE_CHECKING, Any, Final

from stream_app.evaluation.metrics import FEW_TESTS
from stream_app.evaluation.wording import number_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["page"]

_INK: Final = "#010203"
"""Stands for the colour of the page's text while a plot is drawn."""
_SLATES: Final = "#2f81c7"
_COLOURS: Final = ("#d9822b", "#3a9a5b", "#b0529f", "#8a7a2e", "#c9474f", "#5c6bc0")
_GREY: Final = "#8a8f98"

_STYLE: Final = """
:root { color-scheme: light dark; --ink: #1c1f24; --paper: #fff; --line: #d5d9df; --soft: #5b626d; --warn: #8a5a00 }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e6e8eb; --paper: #16181c; --line: #3a3f47; --soft: #a3abb6; --warn: #e0b060 }
}
body { font: 16px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--paper);
       max-width: 64rem; margin: 2rem auto; padding: 0 1rem }
h1, p { overflow-wrap: anywhere }
h1 { font-size: 1.5rem; margin-bottom: .2rem } h2 { font-size: 1.15rem; margin-top: 2.2rem }
p.about, figcaption, caption { color: var(--soft) } .warning { color: var(--warn) }
.wide { overflow-x: auto } table { border-collapse: collapse; font-variant-numeric: tabular-nums; width: 100% }
th, td { padding: .25rem .6rem; text-align: right; border-bottom: 1px solid var(--line); white-space: nowrap }
th { vertical-align: bottom } td { vertical-align: top } caption { caption-side: bottom; text-align: left }
th:first-child, td:first-child { text-align: left } tr.slates { font-weight: 600 }
small { display: block; font-weight: normal; font-size: .75rem; line-height: 1.2; color: var(--soft) }
.plots { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(24rem, 100%), 1fr)); gap: 1.5rem }
@media (max-width: 40rem) { th, td { padding: .25rem .35rem } body { font-size: 15px; margin-top: 1rem } }
figure { margin: 0; min-width: 0 } svg { width: 100%; height: auto } svg text { font-family: system-ui, sans-serif }
"""


def page(report: Mapping[str, Any], *, made_by: str) -> str:
    """The page for a report (``stream_app.evaluation.report``).

    Args:
        report: what was found.
        made_by: name and version of the program.
    """
    return "".join(_parts(report, made_by))


def _parts(report: Mapping[str, Any], made_by: str) -> Iterator[str]:
    data = report["data"]
    changed = ", ".join(f"{name} = {value}" for name, value in report["settings"].items()) or "default settings"
    title = f"{data['name']}: {report['protocol']}, {changed}"
    yield (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}</title><style>{_STYLE}</style></head><body>\n"
        f"<h1>{escape(str(data['name']))}: what Tailrace would have recommended</h1>\n"
        f'<p class="about">{number_of(report["tests"], "test")} ({report["cold"]["tests"]:,} cold) from '
        f"{number_of(data['interactions'], 'interaction')} of {number_of(data['users'], 'user')} with "
        f"{number_of(data['items'], 'item')}, "
        f"{escape(str(data['from'] or '')[:10])} to {escape(str(data['to'] or '')[:10])}. Protocol: "
        f"{escape(report['protocol'])}. Seed {report['seed']}. {report['seconds']:,.0f} s. "
        f"Settings: {escape(changed.removesuffix(' settings'))}. {escape(made_by)}.</p>\n"
    )
    for warning in report["warnings"]:
        yield f'<p class="warning">{escape(warning)}</p>\n'
    yield _summary(report)
    if report["tests"]:
        yield from _plots(report)
        yield _table("Users by number of earlier events", report["by_maturity"], _maturity)
        yield _table("Over time", report["over_time"], _period)
    if data["rejected"]:
        yield "<h2>Lines that were left out</h2>\n" + _rows(
            ("reason", "lines"), [(escape(reason), f"{count:,}") for reason, count in data["rejected"].items()]
        )
    yield "</body></html>\n"


def _summary(report: Mapping[str, Any]) -> str:
    head = ("ranking", "HR@10", "NDCG@10", "MRR", "HR@50", "coverage@10", "cold HR@10", "cold HR@50")
    named = {
        "slates": {**report["overall"], "cold": report["cold"]},
        **({"the same in process": _beside(report["in_process"])} if "in_process" in report else {}),
        **{f"{name} alone": found for name, found in report["sources"].items()},
        **{f"{name} (baseline)": found for name, found in report["compare"].items()},
    }
    rows = []
    for name, found in named.items():
        cells = [_cell(found, key) for key in ("hr@10", "ndcg@10", "mrr", "hr@50", "coverage@10")]
        cells += [_cell(found["cold"], key) for key in ("hr@10", "hr@50")]
        rows.append((escape(name), *cells))
    caption = "Small figures: 95 % intervals."
    if report["tests"] < FEW_TESTS:
        caption += f" Only {number_of(report['tests'], 'test')}: look at the intervals, the figures alone say little."
    return "<h2>Summary</h2>\n" + _rows(head, rows, caption=caption, first_class="slates")


def _beside(found: Mapping[str, Any]) -> dict[str, Any]:
    return {**found["overall"], "cold": found["cold"]}


def _table(title: str, parts: Sequence[Mapping[str, Any]], name: Callable[[Mapping[str, Any]], str]) -> str:
    rows = [
        (escape(name(part)), f"{part['tests']:,}", *(_cell(part, key) for key in ("hr@10", "ndcg@10", "mrr", "hr@50")))
        for part in parts
    ]
    return f"<h2>{escape(title)}</h2>\n" + _rows(("", "tests", "HR@10", "NDCG@10", "MRR", "HR@50"), rows)


def _rows(head: Sequence[str], rows: Sequence[Sequence[str]], *, caption: str = "", first_class: str = "") -> str:
    """A table; cells are HTML."""
    body = "".join(
        f"<tr{f' class={first_class}' if first_class and not place else ''}>"
        + "".join(f"<td>{cell}</td>" for cell in row)
        + "</tr>\n"
        for place, row in enumerate(rows)
    )
    titles = "".join(f"<th>{escape(cell)}</th>" for cell in head)
    said = f"<caption>{escape(caption)}</caption>" if caption else ""
    return f'<div class="wide"><table>{said}<thead><tr>{titles}</tr></thead><tbody>\n{body}</tbody></table></div>\n'


def _cell(found: Mapping[str, Any], key: str) -> str:
    if found[key] is None:
        return "–"
    interval = found["intervals"].get(key)
    small = f" <small>{interval[0]:.4f}–{interval[1]:.4f}</small>" if interval else ""
    return f"{found[key]:.4f}{small}"


def _maturity(part: Mapping[str, Any]) -> str:
    low, high = part["from"], part["to"]
    if high is None:
        return f"{low}+"
    return str(low) if low == high else f"{low}–{high}"


def _period(part: Mapping[str, Any]) -> str:
    return str(part["from"]).replace("T", " ")[:16]


def _plots(report: Mapping[str, Any]) -> Iterator[str]:
    plots: list[tuple[str, Callable[[Axes], None]]] = [
        ("Hit rate at 10 over time, with 95 % intervals", lambda axes: _over_time(axes, report)),
        ("Hit rate at 10 by earlier events of the user", lambda axes: _by_maturity(axes, report)),
        (f"Hit rate at 10 of each ranking: {_rankings(report)}", lambda axes: _by_ranking(axes, report, "hr@10")),
        (
            f"Share of the catalogue in somebody's first ten: {_rankings(report)}",
            lambda axes: _by_ranking(axes, report, "coverage@10"),
        ),
        ("Where the taken item stood", lambda axes: _ranks(axes, report)),
        ("Learned weights of the ranker", lambda axes: _weights(axes, report)),
    ]
    yield '<h2>Plots</h2>\n<div class="plots">\n'
    for number, (caption, draw) in enumerate(plots):
        yield f"<figure>{_svg(draw, caption, number)}<figcaption>{escape(caption)}</figcaption></figure>\n"
    yield "</div>\n"


def _rankings(report: Mapping[str, Any]) -> str:
    """What the colours of :func:`_by_ranking` mean."""
    parts = ["slates", *["sources alone (grey)"] * bool(report["sources"])]
    return ", ".join([*parts, *["baselines (orange)"] * bool(report["compare"])])


def _svg(draw: Callable[[Axes], None], title: str, number: int) -> str:
    """A plot as an SVG element."""
    from matplotlib import rc_context
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    colours = dict.fromkeys(
        ("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color", "legend.labelcolor"), _INK
    )
    changes: Any = {**colours, "svg.fonttype": "none", "svg.hashsalt": f"plot-{number}", "font.size": 9}
    with rc_context(changes):
        figure = Figure(figsize=(5.6, 3.3), layout="constrained")
        FigureCanvasSVG(figure)
        axes = figure.add_subplot()
        axes.spines[["top", "right"]].set_visible(False)
        draw(axes)
        file = io.StringIO()
        figure.savefig(file, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    svg = file.getvalue()
    svg = svg[svg.index("<svg") :].replace(_INK, "currentColor")
    # Ids are by place in a plot; several plots share a page.
    svg = re.sub(r'(id="|href="#|url\(#)', rf"\1plot{number}-", svg)
    return svg.replace("<svg ", f'<svg role="img" aria-label="{escape(title)}" ', 1)


def _over_time(axes: Axes, report: Mapping[str, Any]) -> None:
    parts = report["over_time"]
    places = range(len(parts))
    axes.fill_between(
        places,
        [part["intervals"]["hr@10"][0] for part in parts],
        [part["intervals"]["hr@10"][1] for part in parts],
        color=_SLATES,
        alpha=0.2,
        linewidth=0,
    )
    axes.plot(places, [part["hr@10"] for part in parts], color=_SLATES, marker="o", label="slates")
    for colour, name in zip(_COLOURS, _companions(report), strict=False):
        if name not in parts[0]["others"]:
            continue  # measured in process, not on these tests
        axes.plot(places, [part["others"][name] for part in parts], color=colour, marker=".", label=name)
    names = [_period(part)[:10] for part in parts]
    axes.set_xticks(list(places), names, rotation=35, ha="right")
    axes.set_ylim(bottom=0)
    # Above the plot: inside it would lie on the lines, wherever they are.
    axes.legend(frameon=False, ncols=3, loc="lower left", bbox_to_anchor=(0.0, 1.0), borderaxespad=0.2)


def _companions(report: Mapping[str, Any]) -> list[str]:
    """What the slates are plotted against: the baselines, else popularity of the week among the sources."""
    if report["compare"]:
        return list(report["compare"])
    trending = [name for name in report["sources"] if name.startswith("trending")]
    return ["trending_7d"] if "trending_7d" in trending else trending[:1]


def _by_maturity(axes: Axes, report: Mapping[str, Any]) -> None:
    parts = report["by_maturity"]
    rates = [part["hr@10"] for part in parts]
    errors = [
        [rate - part["intervals"]["hr@10"][0] for rate, part in zip(rates, parts, strict=True)],
        [part["intervals"]["hr@10"][1] - rate for rate, part in zip(rates, parts, strict=True)],
    ]
    axes.bar(range(len(parts)), rates, color=_SLATES, yerr=errors, ecolor=_INK, capsize=3)
    names = [f"{_maturity(part)}\n({part['tests']:,})" for part in parts]
    axes.set_xticks(range(len(parts)), names)
    axes.set_xlabel("earlier events (tests)")


def _by_ranking(axes: Axes, report: Mapping[str, Any], key: str) -> None:
    found = {"slates": report["overall"], **report["sources"], **report["compare"]}
    names = list(found)[::-1]
    colours = [_SLATES if name == "slates" else _COLOURS[0] if name in report["compare"] else _GREY for name in names]
    axes.barh(range(len(names)), [found[name][key] or 0.0 for name in names], color=colours)
    axes.set_yticks(range(len(names)), names)


def _ranks(axes: Axes, report: Mapping[str, Any]) -> None:
    counts = {name: count for name, count in report["ranks"].items() if name != "miss"}
    axes.bar(range(len(counts)), list(counts.values()), color=_SLATES)
    axes.set_xticks(range(len(counts)), list(counts))
    axes.set_ylabel("tests")
    axes.set_xlabel(
        f"rank, in steps that grow; {report['ranks']['miss']:,} of {number_of(report['tests'], 'test')} beyond 50"
    )


def _weights(axes: Axes, report: Mapping[str, Any]) -> None:
    ordered = sorted(report["weights"].items(), key=lambda pair: abs(pair[1]))[-16:]
    colours = [_SLATES if weight >= 0 else _COLOURS[4] for _, weight in ordered]
    axes.barh(range(len(ordered)), [weight for _, weight in ordered], color=colours)
    axes.set_yticks(range(len(ordered)), [name for name, _ in ordered], fontsize=8)
    axes.axvline(0, color=_INK, linewidth=0.8)
