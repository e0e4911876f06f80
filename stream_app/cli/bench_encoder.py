"""``tailrace bench encoder``: the encoder pool, against its limit, beside queries, and through the broker."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast

import click

from stream_app.cli.bench_output import json_option, print_lines, write_lines

if TYPE_CHECKING:
    from stream_app.bench.child import Progress
    from stream_app.settings import Settings

__all__ = ["PARTS", "encoder"]

PARTS = ("pool", "queries", "embedded", "kafka", "precision")
"""What can be measured, in this order; ``embedded`` and ``kafka`` are the way through a broker of that kind."""


@click.command()
@click.option("--parts", default="pool,queries,embedded,precision", show_default=True, help=f"Of {', '.join(PARTS)}.")
@click.option(
    "--titles", default=6_000, show_default=True, type=click.IntRange(512, 1_000_000), help="Texts, all different."
)
@click.option("--queries", default=300, show_default=True, type=click.IntRange(10, 3_000), help="One at a time.")
@click.option("--rounds", default=3, show_default=True, type=click.IntRange(1, 100), help="Of pool and bare loop.")
@json_option
def encoder(parts: str, titles: int, queries: int, rounds: int, json_file: Path | None) -> int:
    """Texts per second of the encoder pool, what a query waits, and what lower precision changes.

    pool: against a bare loop of perfectly sorted batches, in turns. queries: one at a time, alone and while the
    catalogue is embedded. embedded, kafka: from items.v1 to item-vectors.v1, and again with another price. precision:
    the one in use against float32. Model, device and precision are those of the settings (TAILRACE_ENCODER__...).
    """
    from stream_app.cli.console import errors, run
    from stream_app.cli.evaluate import advancing, open_progress, writable
    from stream_app.settings import load_settings

    wanted = _wanted(parts)
    writable(json_file)
    settings = load_settings()
    console = errors()
    lines = []
    with open_progress(console) as progress:
        for part in wanted:
            work = _work(part, titles=titles, queries=queries, rounds=rounds)
            lines.append(run(work(settings, advancing(progress))))
    for line in lines:
        print_lines(f"encoder: {line['what']}", [line])
    write_lines(json_file, lines)
    again = [line for line in lines if line.get("repriced_texts")]
    for line in again:
        console.print(f"{line['repriced_texts']:,} texts were embedded for prices that changed", style="red")
    return int(bool(again))


def _wanted(parts: str) -> list[str]:
    from stream_app.embedded.kafka.install import kafka_missing

    named = [name.strip() for name in parts.split(",")]
    if unknown := [name for name in named if name not in PARTS]:
        raise click.UsageError(f"--parts {', '.join(unknown) or parts!r}: allowed are {', '.join(PARTS)}")
    if "kafka" in named and (missing := kafka_missing()):
        raise click.UsageError(missing)
    return [name for name in PARTS if name in named]


def _work(
    part: str, *, titles: int, queries: int, rounds: int
) -> Callable[[Settings, Progress], Coroutine[Any, Any, dict[str, Any]]]:
    from stream_app.bench import encoder as bench

    def work(settings: Settings, on_progress: Progress) -> Coroutine[Any, Any, dict[str, Any]]:
        if part == "pool":
            return bench.pool_figures(settings, titles=titles, rounds=rounds, on_progress=on_progress)
        if part == "queries":
            return bench.query_figures(settings, titles=titles, queries=queries, on_progress=on_progress)
        if part == "precision":
            return bench.precision_figures(settings, on_progress=on_progress)
        broker = cast(Literal["embedded", "kafka"], part)
        return bench.end_to_end_figures(settings, broker=broker, titles=titles, on_progress=on_progress)

    return work
