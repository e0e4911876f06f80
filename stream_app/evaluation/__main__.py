"""``python -m stream_app.evaluation ITEMS INTERACTIONS``: replay a data set and print how good the slates are."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import click
import msgspec
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from schemas.messages import Interaction, Item
from stream_app.datasets.online_retail import load_online_retail
from stream_app.errors import TailraceError
from stream_app.evaluation.files import first_only, read_interactions, read_items
from stream_app.evaluation.metrics import Scores
from stream_app.evaluation.prequential import Options, Prequential, Report
from stream_app.evaluation.vectors import default_cache, item_vectors
from stream_app.settings import Settings, load_settings

_COLUMNS = ("HR@10", "NDCG@10", "MRR", "HR@50", "coverage@10", "cold HR@10", "cold HR@50")


@click.command()
@click.argument("items", type=click.Path(path_type=Path), required=False)
@click.argument("interactions", type=click.Path(path_type=Path), required=False)
@click.option("--limit", type=click.IntRange(min=1), help="Only the first N interactions.")
@click.option("--publish-every", type=click.IntRange(min=1), default=1, show_default=True, help="Lag, in events.")
@click.option(
    "--first-only", "only_first", is_flag=True, help="Leave out an item's later interactions with the same user."
)
@click.option("--sources", is_flag=True, help="Also score every source on its own.")
@click.option("--cache", type=click.Path(path_type=Path), default=default_cache, help="Folder for vectors.")
@click.option("--json", "json_file", type=click.Path(path_type=Path), help="Also write the report to this file.")
def main(
    items: Path | None,
    interactions: Path | None,
    *,
    limit: int | None,
    publish_every: int,
    only_first: bool,
    sources: bool,
    cache: Path,
    json_file: Path | None,
) -> None:
    """Rank before every basket, then learn from it (prequential evaluation).

    ITEMS and INTERACTIONS are JSONL files in the contract (.zst: compressed); without them the shop that ships with
    Tailrace is replayed.
    """
    console = Console(stderr=True)
    try:
        settings = load_settings()
        catalogue, events = _load(items, interactions, settings, limit)
        if only_first:
            events = first_only(events)
        report = _replay(
            console, settings, catalogue, events, Options(publish_every=publish_every, sources=sources), cache
        )
    except TailraceError as error:
        raise click.ClickException(str(error)) from error
    Console().print(_table(report))
    if json_file is not None:
        json_file.write_bytes(msgspec.json.format(msgspec.json.encode(asdict(report))) + b"\n")


def _load(
    items: Path | None, interactions: Path | None, settings: Settings, limit: int | None
) -> tuple[list[Item], list[Interaction]]:
    if items is None:
        dataset = load_online_retail()
        return list(dataset.items), list(dataset.interactions)[:limit]
    if interactions is None:
        raise click.UsageError("ITEMS was given without INTERACTIONS")
    return read_items(items), read_interactions(interactions, types=settings.event_types, limit=limit)


def _replay(
    console: Console,
    settings: Settings,
    catalogue: list[Item],
    events: list[Interaction],
    options: Options,
    cache: Path,
) -> Report:
    with Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        console=console,
        transient=True,
    ) as progress:
        encoding = progress.add_task("texts", total=len(catalogue))
        space, vectors = item_vectors(
            catalogue,
            settings.encoder,
            cache=cache,
            on_progress=lambda done: progress.update(encoding, completed=done),
        )
        progress.update(encoding, completed=len(catalogue))
        replay = Prequential(settings, catalogue, vectors, space=space, options=options)
        replaying = progress.add_task("events", total=len(events))
        return replay.run(events, len(events), on_progress=lambda done: progress.update(replaying, completed=done))


def _table(report: Report) -> Table:
    table = Table(
        title=f"{report.events:,} events, {report.items:,} items, {report.slates.tests:,} tests "
        f"({report.slates.cold_tests:,} cold)"
    )
    table.add_column("ranking")
    for column in _COLUMNS:
        table.add_column(column, justify="right")
    table.add_row("slates", *_cells(report.slates))
    for name, scores in report.sources.items():
        table.add_row(f"{name} alone", *_cells(scores))
    return table


def _cells(scores: Scores) -> list[str]:
    return [
        f"{scores.hr_at_10:.4f}",
        f"{scores.ndcg_at_10:.4f}",
        f"{scores.mrr:.4f}",
        f"{scores.hr_at_50:.4f}",
        f"{scores.coverage_at_10:.3f}",
        f"{scores.cold_hr_at_10:.4f}",
        f"{scores.cold_hr_at_50:.4f}",
    ]


if __name__ == "__main__":
    main()
