"""``tailrace bench``: what Tailrace and its parts cost on this machine, over a made-up shop."""

from __future__ import annotations

from pathlib import Path

import click

from stream_app.cli.bench_live import floor, latency, start, throughput
from stream_app.cli.bench_output import json_option, numbers, seed_option, write_lines

__all__ = ["bench"]


@click.group()
def bench() -> None:
    """Measure what Tailrace and its parts cost on this machine.

    latency, throughput, floor and start run a broker, Redis and processes of Tailrace; ranking and index do without.
    Figures are of one run; machines that are shared differ by a third from one run to the next.
    """


for _command in (latency, throughput, floor, start):
    bench.add_command(_command)


@bench.command()
@click.option("--items", default=10_000, show_default=True, type=click.IntRange(100, 5_000_000))
@click.option("--users", default=2_000, show_default=True, type=click.IntRange(10, 1_000_000))
@click.option("--events", default=6_400, show_default=True, type=click.IntRange(256, 10_000_000))
@click.option("--batch", default=64, show_default=True, type=click.IntRange(1, 4_096), help="Events at a time.")
@seed_option
@json_option
def ranking(items: int, users: int, events: int, batch: int, seed: int, json_file: Path | None) -> None:
    """Microseconds per event by stage, from JSON to JSON: everything but the broker and Redis."""
    from rich.table import Table

    from stream_app.bench.ranking import PARTS, STAGES, ranking_figures
    from stream_app.bench.shop import made_up_shop
    from stream_app.cli.console import errors, output
    from stream_app.cli.evaluate import advancing, open_progress, writable
    from stream_app.settings import load_settings
    from stream_app.warm_up import warm_up

    if events < 4 * batch:
        raise click.UsageError(f"--events {events} are too few for --batch {batch}: at least {4 * batch}")
    writable(json_file)
    settings = load_settings()
    console = errors()
    with open_progress(console) as progress:
        advance = advancing(progress)
        warm_up(settings)
        shop = made_up_shop(settings, items=items, users=users, events=events, seed=seed, on_progress=advance)
        figures = ranking_figures(
            shop, batch=batch, on_progress=lambda done, total: advance("measured events", done, total)
        )
    figures["seed"] = seed
    table = Table(title=f"{items:,} items, {users:,} users, batches of {batch}: microseconds per event")
    for column in ("stage", "us", "share", ""):
        table.add_column(column, justify="right" if column in ("us", "share") else "left")
    stages = figures["us_per_event"]
    total = sum(stages.values())
    for name, took in stages.items():
        table.add_row(name, f"{took:.1f}", f"{took / total:.0%}", STAGES.get(name, ""))
        for part, of_it in figures.get(f"us_of_{name}", {}).items():
            table.add_row(f"  {part}", f"{of_it:.1f}", f"{of_it / total:.0%}", PARTS.get(part, ""))
    table.add_section()
    table.add_row("in all", f"{figures['us_per_event_in_all']:.1f}", "", "not timed by stage, which itself takes time")
    output().print(table)
    write_lines(json_file, [figures])


@bench.command()
@click.option("--sizes", default="10000,100000", show_default=True, help="Vectors, comma separated.")
@click.option("--dimensions", default=384, show_default=True, type=click.IntRange(2, 4_096))
@seed_option
@json_option
def index(sizes: str, dimensions: int, seed: int, json_file: Path | None) -> None:
    """Fill, search and change the vector index; recall against brute force; memory."""
    from rich.table import Table

    from stream_app.bench.index import index_figures
    from stream_app.cli.console import errors, output
    from stream_app.cli.evaluate import advancing, open_progress, writable
    from stream_app.settings import load_settings

    wanted = [int(size) for size in numbers("--sizes", sizes, least=1, most=5_000_000, whole=True)]
    writable(json_file)
    with open_progress(errors()) as progress:
        figures = index_figures(
            load_settings().index, sizes=wanted, dimensions=dimensions, seed=seed, on_progress=advancing(progress)
        )
    table = Table(title=f"the index, {dimensions} dimensions")
    columns = [name for name in figures[0] if name not in ("benchmark", "dimensions")]
    for column in columns:
        table.add_column(column, justify="right")
    for line in figures:
        table.add_row(*(f"{line[name]:,}" if isinstance(line[name], int) else str(line[name]) for name in columns))
    output().print(table)
    write_lines(json_file, [line | {"seed": seed} for line in figures])
