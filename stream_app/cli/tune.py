"""``tailrace tune``: settings that suit your log, judged on a part of it that had no say in the choice."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from stream_app.cli.evaluate import advancing, load_log, open_progress, say_what_is_wrong, writable, written

if TYPE_CHECKING:
    from stream_app.evaluation.tune import Score, Tuned

__all__ = ["tune"]

_FILE = click.Path(dir_okay=False, path_type=Path)
_REASONS = {"training part": "in the part searched on; a smaller --share or a longer log leaves some for the rest"}
"""What an evaluation calls otherwise."""


@click.command()
@click.argument("dataset", type=click.Choice(["online-retail"]), required=False)
@click.option("--items", type=_FILE, help="The catalogue (.jsonl, .jsonl.zst, .jsonl.gz).")
@click.option("--interactions", type=_FILE, help="What happened (.jsonl, .jsonl.zst, .jsonl.gz).")
@click.option("--limit", type=click.IntRange(min=1), help="Only the first N interactions, in order of time.")
@click.option("--trials", type=click.IntRange(1, 1_000), default=16, show_default=True, help="Settings to try.")
@click.option("--minutes", type=click.FloatRange(min=0, min_open=True), help="End the search after so long.")
@click.option(
    "--share",
    type=click.FloatRange(0.1, 0.9),
    default=0.5,
    show_default=True,
    help="Share of the interactions, from the first, to search on; the rest judges.",
)
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True, help="Of what is drawn.")
@click.option("--cache", type=click.Path(file_okay=False, path_type=Path), help="Folder for vectors between runs.")
@click.option(
    "--out",
    type=_FILE,
    default=Path("tuned.toml"),
    show_default=True,
    help="Where the settings go, as a file that --config and TAILRACE_CONFIG take.",
)
def tune(
    dataset: str | None,
    items: Path | None,
    interactions: Path | None,
    limit: int | None,
    trials: int,
    minutes: float | None,
    share: float,
    seed: int,
    cache: Path | None,
    out: Path,
) -> int:
    """Search settings on the first part of a log, and compare them with the defaults on the rest.

    Settings drawn at random are replayed over more and more of the first part; the worse half drops out each time.
    docs/evaluation.md lists what is searched.
    """
    writable(out, read=(items, interactions))
    from stream_app.cli.console import errors, output
    from stream_app.evaluation import tune as search
    from stream_app.evaluation.metrics import FEW_TESTS
    from stream_app.evaluation.run import encode_log
    from stream_app.evaluation.wording import number_of, reasons
    from stream_app.settings import load_settings

    settings = load_settings()
    console = errors()
    with open_progress(console) as progress:
        log = load_log(dataset, items, interactions, settings, limit, progress)
    say_what_is_wrong(console, log)
    with open_progress(console) as progress:
        advance = advancing(progress)
        encoded = encode_log(log, settings, cache=cache, on_progress=lambda done, total: advance("texts", done, total))
        tuned = search.tune(
            log,
            encoded,
            settings,
            trials=trials,
            share=share,
            minutes=minutes,
            seed=seed,
            on_progress=advance,
        )
    better = tuned.chosen and tuned.rest.beats(tuned.defaults_rest)
    comments = [
        f"tailrace tune: {log.name}, {number_of(len(log.interactions), 'interaction')}, "
        f"{number_of(trials, 'trial')}, seed {seed}",
        f"HR@10 {_said(tuned.rest)} on the rest of the log, defaults {_said(tuned.defaults_rest)}",
    ]
    # What did not help on the rest is not worth having: then the file holds no setting.
    text = search.to_toml(tuned.chosen if better else {}, comments=comments)
    done = written(console, out, text.encode)
    screen = output()
    screen.print(_table(tuned, share))
    if tuned.stopped:
        console.print("warning: the time was over before the search was", style="yellow")
    if not tuned.rest.tests:
        why = reasons({_REASONS.get(reason, reason): count for reason, count in tuned.untested.items()})
        console.print(f"warning: the rest of the log holds no test (of the whole log: {why})", style="yellow")
    elif tuned.rest.tests < FEW_TESTS:
        console.print(
            f"warning: the rest of the log holds only {number_of(tuned.rest.tests, 'test')}: look at the intervals, "
            "the figures alone say little",
            style="yellow",
        )
    if tuned.rest.tests and better and tuned.by_chance:
        console.print(
            f"warning: of {number_of(tuned.rest.tests, 'test')} {number_of(tuned.won, 'is a hit', 'are hits')} only "
            f"with the chosen settings and {tuned.lost:,} only with the defaults: that may be chance; search on more "
            "interactions",
            style="yellow",
        )
    if not done:
        return 1
    if better:
        screen.print(f"{out} holds the settings; use them with: tailrace --config {out} ...", markup=False)
    else:
        screen.print(f"nothing beat the defaults on the rest of the log: {out} holds none", markup=False)
    return 0


def _table(tuned: Tuned, share: float) -> object:
    from rich.table import Table

    table = Table(title=f"searched on the first {share:.0%}, judged on the rest")
    for column in ("settings", "part", "tests", "HR@10", "95 %", "NDCG@10"):
        table.add_column(column, justify="left" if column in ("settings", "part") else "right", no_wrap=True)
    parts = {"searched": (tuned.defaults_search, tuned.search), "rest": (tuned.defaults_rest, tuned.rest)}
    for part, scores in parts.items():
        for name, score in zip(("defaults", "chosen"), scores, strict=True):
            interval = "–" if score.low is None else f"{score.low:.3f}-{score.high:.3f}"
            table.add_row(name, part, f"{score.tests:,}", _shown(score.hr), interval, _shown(score.ndcg))
        table.add_section()
    if tuned.chosen:
        table.caption = ", ".join(f"{name} = {value}" for name, value in tuned.chosen.items())
    return table


def _said(score: Score) -> str:
    from stream_app.evaluation.wording import number_of

    return f"{_shown(score.hr)} (NDCG@10 {_shown(score.ndcg)}, {number_of(score.tests, 'test')})"


def _shown(value: float | None) -> str:
    return "–" if value is None else f"{value:.4f}"
