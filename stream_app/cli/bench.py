"""``tailrace bench``: what Tailrace and its parts cost on this machine, over a made-up shop."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import click

from stream_app.cli.bench_encoder import encoder
from stream_app.cli.bench_live import cutover, floor, latency, outages, soak, start, throughput
from stream_app.cli.bench_output import json_option, numbers, seed_option, write_lines

__all__ = ["bench"]


@click.group()
def bench() -> None:
    """Measure what Tailrace and its parts cost on this machine.

    latency, throughput, floor, cutover, outages, soak, start and encoder run a broker, Redis and processes of Tailrace;
    ranking, index and growth do without (growth starts a Redis to fill it).
    Figures are of one run; machines that are shared differ by a third from one run to the next.
    """


for _command in (latency, throughput, floor, cutover, outages, soak, start, encoder):
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

    _enough(events, batch)
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
    elapsed = figures["us_elapsed_with_two_threads"]
    table.add_row("with two threads", f"{elapsed:.1f}", "", "the time that passes, where a core is free")
    output().print(table)
    write_lines(json_file, [figures])


def _enough(events: int, batch: int) -> None:
    from stream_app.bench.ranking import FEWEST_BATCHES

    fewest = FEWEST_BATCHES * batch
    if events < fewest:
        raise click.UsageError(f"--events {events} are too few for --batch {batch}: at least {fewest}")


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


@bench.command()
@click.option("--items", default="1000,10000,100000", show_default=True, help="Sizes of the catalogue.")
@click.option("--users", default="2000,20000", show_default=True, help="Numbers of users.")
@click.option("--history", default="10,50,200", show_default=True, help="Events of each user, all of them kept.")
@click.option(
    "--redis-users", default="2000,100000", show_default=True, help="Users whose states are put into Redis; 0: none."
)
@click.option("--events", default=3_200, show_default=True, type=click.IntRange(256, 1_000_000), help="Of each shop.")
@click.option("--batch", default=64, show_default=True, type=click.IntRange(1, 4_096), help="Events at a time.")
@seed_option
@json_option
def growth(
    items: str, users: str, history: str, redis_users: str, events: int, batch: int, seed: int, json_file: Path | None
) -> None:
    """What an event, an item and a user cost as catalogue, users and histories grow.

    Sizes are comma separated. One varies at a time; the others are 10,000 items, 2,000 users, 20 events each. Time is
    that of ranking, without the broker and Redis.
    """
    from stream_app.bench.growth import GrowthJob, growth_figures
    from stream_app.cli.console import errors, run
    from stream_app.cli.evaluate import advancing, open_progress, writable
    from stream_app.settings import load_settings

    _enough(events, batch)
    given = {"items": (items, 100, 5_000_000), "users": (users, 10, 1_000_000), "history": (history, 1, 1_000)}
    axes = {
        name: [int(size) for size in numbers(f"--{name}", text, least=least, most=most, whole=True)]
        for name, (text, least, most) in given.items()
    }
    stored = [int(size) for size in numbers("--redis-users", redis_users, least=0, most=100_000_000, whole=True)]
    writable(json_file)
    with open_progress(errors()) as progress:
        lines = run(
            growth_figures(
                load_settings(), GrowthJob(events=events, batch=batch, seed=seed), axes,
                redis_users=[size for size in stored if size], on_progress=advancing(progress),
            )
        )  # fmt: skip
    _print_growth(lines)
    write_lines(json_file, lines)


def _print_growth(lines: Sequence[Mapping[str, Any]]) -> None:
    """Time and memory by size, a table each; a group of rows per axis."""
    from rich.table import Table

    from stream_app.bench.growth import AXES, GROUPS
    from stream_app.cli.console import output

    ranked = [line for line in lines if line["axis"] in AXES]
    groups = [*GROUPS, "other"]
    time_table = Table(title="microseconds per event: which stages grow", show_edge=False)
    space_table = Table(title="bytes of memory", show_edge=False)
    parts = list(ranked[0]["bytes_by_part"]) if ranked else []
    for table, columns in (
        (time_table, ["events/s", "us", "p99", *groups, "grew most"]),
        (space_table, ["per item", *parts, "state, packed", "in memory"]),
    ):
        table.add_column("shop")
        for column in columns:
            table.add_column(column, justify="right")
    for before, line in zip([None, *ranked], ranked, strict=False):
        if before is not None and before["axis"] != line["axis"]:
            time_table.add_section()
            space_table.add_section()
        shop = f"{line[line['axis']]:,} {line['axis']}"
        grew = ", ".join(f"{name} +{took:,.0f}" for name, took in line["grew_most"].items())
        by_group = (f"{line['us_by_group'][name]:,.0f}" for name in groups)
        time_table.add_row(
            shop, f"{line['events_per_s']:,}", f"{line['us_per_event']:,.0f}", f"{line['p99_us']:,.0f}", *by_group, grew
        )
        by_part = (f"{line['bytes_by_part'][name]:,}" for name in parts)
        space_table.add_row(
            shop, f"{line['bytes_per_item']:,}", *by_part, f"{line['state_bytes']:,}", f"{line['cached_state_bytes']:,}"
        )
    for line in lines:
        if line["axis"] == "redis":
            space_table.add_row(f"Redis with {line['users']:,} users: {line['redis_bytes_per_user']:,} a user")
    output().print(time_table)
    output().print(space_table)
