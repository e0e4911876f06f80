"""``tailrace dataset``: public data sets as files in the contract, ready for ``tailrace produce``."""

from __future__ import annotations

from pathlib import Path

import click

__all__ = ["dataset"]


@click.group()
def dataset() -> None:
    """Write a public data set in the contract."""


@dataset.command("online-retail")
@click.option(
    "--out", required=True, type=click.Path(file_okay=False, path_type=Path), help="Folder for the two files."
)
@click.option(
    "--raw",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="The original table (CSV, may be .zst); without it the copy shipped with Tailrace is used.",
)
@click.option("--zst", is_flag=True, help="Compress with Zstandard.")
def online_retail(out: Path, raw: Path | None, zst: bool) -> None:
    """UCI Online Retail (D. Chen, 2015, doi 10.24432/C5BW33, CC BY 4.0): 3,862 items, 396,386 purchases."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    from stream_app.cli.console import errors
    from stream_app.datasets.files import write_dataset
    from stream_app.datasets.online_retail import load_online_retail

    console = errors()
    data = load_online_retail(raw)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        totals = {"items": len(data.items), "interactions": data.interaction_count}
        tasks = {name: progress.add_task(name, total=total) for name, total in totals.items()}
        paths = write_dataset(
            data,
            out,
            compress=zst,
            on_progress=lambda name, lines: progress.update(tasks[name.partition(".")[0]], completed=lines),
        )
    for path, count in zip(paths, totals.values(), strict=True):
        click.echo(f"{path}: {count:,} lines, {path.stat().st_size:,} bytes")
