"""``tailrace adapter``: what a shop's events teach on top of the encoder, trained, looked at and compared."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from stream_app.cli.evaluate import advancing, load_log, open_progress, say_what_is_wrong, writable

if TYPE_CHECKING:
    from rich.console import Console

    from stream_app.adapters.file import AdapterFile
    from stream_app.adapters.train import Examples
    from stream_app.settings import Settings

__all__ = ["adapter"]

_FILE = click.Path(dir_okay=False, path_type=Path)
_FIGURES = ("hr@10", "ndcg@10", "hr@50", "coverage@10", "cold hr@10", "cold hr@50")


@click.group()
def adapter() -> None:
    """Train, look at and compare adapters: small maps of the encoder's vectors, learned from events."""


@adapter.command("train")
@click.argument("dataset", type=click.Choice(["online-retail"]), required=False)
@click.option("--items", type=_FILE, help="The catalogue (.jsonl, .jsonl.zst, .jsonl.gz).")
@click.option("--interactions", type=_FILE, help="What happened (.jsonl, .jsonl.zst, .jsonl.gz).")
@click.option("--topics", is_flag=True, help="Read items, vectors, interactions and slates from the broker instead.")
@click.option(
    "--events",
    type=click.IntRange(1, 100_000_000),
    default=1_000_000,
    show_default=True,
    help="With --topics: the newest N interactions, which bounds memory.",
)
@click.option("--limit", type=click.IntRange(min=1), help="Only the first N interactions, in order of time.")
@click.option("--first-only", is_flag=True, help="Leave out a user's later interactions with the same item.")
@click.option(
    "--windows",
    type=click.IntRange(2, 1_000),
    default=20,
    show_default=True,
    help="Parts of the log; each is ranked by what was learned of those before, then learned from.",
)
@click.option(
    "--train-share",
    type=click.FloatRange(0, 1, max_open=True),
    default=0.1,
    show_default=True,
    help="Share of the interactions, from the first, that are not tests.",
)
@click.option("--start", type=_FILE, help="Begin with this adapter, perhaps another shop's, of the same model.")
@click.option("--hidden", type=click.IntRange(1, 4_096), help="Width of the trunk. [default: 256, or that of --start]")
@click.option("--epochs", type=click.IntRange(1, 100), default=4, show_default=True, help="Times through each part.")
@click.option(
    "--anchor",
    type=click.FloatRange(0, 100),
    help="How much items are held where the text has them: more finds more new items, less more known ones. "
    "[default: 1]",
)
@click.option("--threads", type=click.IntRange(1, 256), default=1, show_default=True, help="Threads that train.")
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True, help="Of what is drawn.")
@click.option("--keep", is_flag=True, help="Write the adapter even if it does not win.")
@click.option("--cache", type=click.Path(file_okay=False, path_type=Path), help="Folder for vectors between runs.")
@click.option("--out", type=_FILE, default=Path("adapter.safetensors"), show_default=True, help="Where it goes.")
@click.option("--overwrite", is_flag=True, help="Replace the file at --out; a space that is served from it breaks.")
@click.option("--json", "as_json", is_flag=True, help="Print what was measured as one JSON object.")
def train_command(
    dataset: str | None,
    items: Path | None,
    interactions: Path | None,
    topics: bool,
    events: int,
    limit: int | None,
    first_only: bool,
    windows: int,
    train_share: float,
    start: Path | None,
    hidden: int | None,
    epochs: int,
    anchor: float | None,
    threads: int,
    seed: int,
    keep: bool,
    cache: Path | None,
    out: Path,
    overwrite: bool,
    as_json: bool,
) -> int:
    """Train an adapter, and write it if it beats the encoder's own space.

    Every part of the log is ranked before it is learned from, by the adapter and by its base. The adapter is promoted
    when its NDCG@10 is better beyond chance and new items are not found less often. Exit status 1 when it is not, and
    then nothing is written without --keep. docs/adapters.md has the method.
    """
    if topics and (dataset or items or interactions or limit):
        raise click.UsageError(
            "--topics reads the broker; it goes without a data set, --items, --interactions, --limit"
        )
    if start is not None and hidden is not None:
        raise click.UsageError("--hidden is that of the adapter that --start names; leave it out")
    if out.exists() and not overwrite:
        # Said before hours of training. Whether the file will be the same is not known by then; it hardly ever is.
        raise click.UsageError(
            f"--out {out} is there already. Each training makes another vector space, and where this file's is served, "
            "processes would not start again with another in its place: name another file, one per training, or "
            "replace this one with --overwrite"
        )
    writable(out, read=(items, interactions))
    from stream_app.adapters.file import AdapterFile
    from stream_app.adapters.train import train
    from stream_app.adapters.training import TrainingOptions
    from stream_app.cli.console import errors, output, to_json
    from stream_app.settings import load_settings

    settings = load_settings()
    console = errors()
    begin = None if start is None else AdapterFile.load(start)
    if topics:
        examples = _from_topics(settings, events)
    else:
        examples = _from_files(dataset, items, interactions, settings, limit, console, cache)
    if begin is not None and begin.base_space != examples.space:
        AdapterFile.load(start or out, base_space=examples.space)  # says what does not fit
    given: dict[str, Any] = {"hidden": hidden, "anchor": anchor}
    options = TrainingOptions(
        epochs=epochs,
        threads=threads,
        seed=seed,
        **{name: value for name, value in given.items() if value is not None},
    )
    with open_progress(console) as progress:
        found = train(
            _first_only(examples) if first_only else examples,
            settings,
            options,
            windows=windows,
            train_share=train_share,
            start=begin,
            on_progress=advancing(progress),
        )
    if found.promoted or keep:
        found.save(out)
    screen = output()
    if as_json:
        click.echo(to_json({"promoted": found.promoted, "space": found.space, **found.metrics}))
    else:
        screen.print(_table(found.metrics, f"{examples.name}: each part ranked before it was learned from"))
    _say(console, found, out, keep=keep)
    return 0 if found.promoted else 1


@adapter.command("show")
@click.argument("file", type=_FILE)
@click.option("--json", "as_json", is_flag=True, help="One JSON object.")
def show_command(file: Path, as_json: bool) -> None:
    """Say what is in FILE: its spaces, what it was trained on, and what that gave."""
    from stream_app.adapters.file import AdapterFile
    from stream_app.cli.console import output, to_json

    found = AdapterFile.load(file)
    facts = {
        "space": found.space,
        "base_space": found.base_space,
        "dimensions": found.dimensions,
        "hidden": found.adapter.hidden,
        "shares": dict(found.adapter.shares),
        "promoted": found.promoted,
        "training": found.training,
        "metrics": found.metrics,
    }
    if as_json:
        click.echo(to_json(facts))
        return
    screen = output()
    training = found.training
    shares = ", ".join(f"{task} {share:.2f}" for task, share in found.adapter.shares.items())
    lines = {
        "space": found.space,
        "takes vectors of": found.base_space,
        "dimensions": f"{found.dimensions}, trunk of {found.adapter.hidden}",
        "tasks": shares,
        "trained on": f"{training.data}: {training.events:,} interactions, {training.items:,} items, "
        f"{training.first} to {training.last}, {training.windows} windows, seed {training.seed}",
        "examples": ", ".join(f"{task} {count:,}" for task, count in training.examples.items()),
        "started from": training.started_from or "half-whitening",
        "promoted": "yes" if found.promoted else "no",
    }
    for name, line in lines.items():
        screen.print(f"{name + ':':18}{line}", markup=False)
    if found.metrics:
        screen.print(_table(found.metrics, "measured when it was trained"))


@adapter.command("evaluate")
@click.argument("file", type=_FILE)
@click.argument("dataset", type=click.Choice(["online-retail"]), required=False)
@click.option("--items", type=_FILE, help="The catalogue (.jsonl, .jsonl.zst, .jsonl.gz).")
@click.option("--interactions", type=_FILE, help="What happened (.jsonl, .jsonl.zst, .jsonl.gz).")
@click.option("--limit", type=click.IntRange(min=1), help="Only the first N interactions, in order of time.")
@click.option("--first-only", is_flag=True, help="Leave out a user's later interactions with the same item.")
@click.option(
    "--train-share",
    type=click.FloatRange(0, 1, max_open=True),
    default=0.1,
    show_default=True,
    help="Share of the interactions, from the first, that are not tests.",
)
@click.option(
    "--all",
    "everything",
    is_flag=True,
    help="Also count what happened before the adapter's training ended; for a log of another shop, unknown to it.",
)
@click.option("--cache", type=click.Path(file_okay=False, path_type=Path), help="Folder for vectors between runs.")
@click.option("--json", "as_json", is_flag=True, help="Print what was measured as one JSON object.")
def evaluate_command(
    file: Path,
    dataset: str | None,
    items: Path | None,
    interactions: Path | None,
    limit: int | None,
    first_only: bool,
    train_share: float,
    everything: bool,
    cache: Path | None,
    as_json: bool,
) -> int:
    """Compare the adapter in FILE with its base on a log, without learning from it.

    Only what happened after its training ended is counted: of earlier events it may have learned the outcome. Exit
    status 1 when the adapter is not better, or nothing could be tested.
    """
    from stream_app.adapters.file import AdapterFile
    from stream_app.adapters.prequential import compare, report, wins
    from stream_app.adapters.train import matrix
    from stream_app.cli.console import errors, output, to_json
    from stream_app.settings import load_settings
    from workers.models import describe_model

    settings = load_settings()
    console = errors()
    found = AdapterFile.load(file, base_space=describe_model(settings.encoder).space)
    examples = _from_files(dataset, items, interactions, settings, limit, console, cache)
    if first_only:
        examples = _first_only(examples)
    events = examples.interactions
    tested_from = int(len(events) * train_share)
    ended = None if everything else found.training.ended
    with open_progress(console) as progress:
        advance = advancing(progress)
        measured = report(
            compare(
                settings,
                events,
                {item.item_id: row for row, item in enumerate(examples.items)},
                matrix(examples.items, examples.vectors),
                found.adapter,
                counted=lambda before, event: before >= tested_from and (ended is None or event.occurred_at > ended),
                on_progress=lambda done: advance("interactions", done, len(events)),
            )
        )
    if as_json:
        click.echo(to_json({"better": wins(measured), **measured}))
    else:
        output().print(_table(measured, f"{examples.name}: {found.space}"))
    if not measured["tests"]:
        why = f"; its training ended {found.training.last}, and --all counts what was before" if ended else ""
        console.print(f"warning: the log holds no test{why}", style="yellow", markup=False)
    return 0 if wins(measured) else 1


def _from_files(
    dataset: str | None,
    items: Path | None,
    interactions: Path | None,
    settings: Settings,
    limit: int | None,
    console: Console,
    cache: Path | None,
) -> Examples:
    from stream_app.adapters.train import Examples
    from stream_app.errors import DatasetError
    from stream_app.evaluation.run import encode_log

    with open_progress(console) as progress:
        log = load_log(dataset, items, interactions, settings, limit, progress)
    say_what_is_wrong(console, log)
    with open_progress(console) as progress:
        advance = advancing(progress)
        encoded = encode_log(log, settings, cache=cache, on_progress=lambda done, total: advance("texts", done, total))
    if not encoded.items:
        raise DatasetError(
            f"{log.name}: no item has a text, so there is nothing to adapt; name a catalogue with --items"
        )
    return Examples(
        name=log.name, items=log.items, interactions=log.interactions, vectors=encoded.items, space=encoded.space
    )


def _from_topics(settings: Settings, events: int) -> Examples:
    from stream_app.adapters.topics import read_topics
    from stream_app.cli.console import PATIENCE_S, run

    return run(read_topics(settings, events=events, patience_s=PATIENCE_S))


def _first_only(examples: Examples) -> Examples:
    from dataclasses import replace

    from stream_app.evaluation.files import first_only

    return replace(examples, interactions=first_only(examples.interactions))


def _table(measured: Mapping[str, Any], title: str) -> object:
    from rich.table import Table

    table = Table(title=f"{title}\n{measured['tests']:,} tests, {measured['cold_tests']:,} of new items")
    table.add_column("text alone")
    for name in _FIGURES:
        table.add_column(name.replace("hr", "HR").replace("ndcg", "NDCG"), justify="right", no_wrap=True)
    for name in ("base", "adapted"):
        figures = measured[name]
        table.add_row(name, *("–" if figures[key] is None else f"{figures[key]:.4f}" for key in _FIGURES))
    said = [
        f"{name} {found[0]:+.4f} ({found[1]:+.4f} to {found[2]:+.4f})"
        for name, found in measured["difference"].items()
        if found is not None
    ]
    table.caption = (
        f"difference with its 95 % interval over users: {', '.join(said)}" if said else "nothing was measured"
    )
    return table


def _say(console: Console, found: AdapterFile, out: Path, *, keep: bool) -> None:
    if found.promoted:
        console.print(f"promoted: {out} holds it, space {found.space}", style="green", markup=False)
        return
    if not found.metrics["tests"]:
        why = "the log holds no test"
    elif (found.metrics["difference"]["ndcg@10"] or [0, 0, 0])[1] <= 0:
        why = "NDCG@10 is not better beyond chance"
    else:
        why = "new items are found less often; a larger --anchor finds more of them"
    done = f"{out} holds it all the same" if keep else "nothing was written; --keep writes it all the same"
    console.print(f"not promoted: {why}; {done}", style="yellow", markup=False)
