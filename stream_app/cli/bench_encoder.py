"""``tailrace bench encoder``: the encoder pool, against its limit, beside queries, and through the broker."""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast

import click

from stream_app.cli.bench_output import json_option, print_lines, write_lines

if TYPE_CHECKING:
    from stream_app.bench.child import Progress
    from stream_app.settings import Settings

__all__ = ["PARTS", "encoder", "failures"]

PARTS = ("pool", "queries", "embedded", "kafka", "precision", "compile")
"""What can be measured, in this order; ``embedded`` and ``kafka`` are the way through a broker of that kind.
``compile`` is not among the defaults: it takes minutes and a compiler."""


@click.command()
@click.option("--parts", default="pool,queries,embedded,precision", show_default=True, help=f"Of {', '.join(PARTS)}.")
@click.option(
    "--titles",
    default=6_000,
    show_default=True,
    type=click.IntRange(512, 1_000_000),
    help="Texts, all different; for precision at most those that are shipped.",
)
@click.option("--queries", default=300, show_default=True, type=click.IntRange(10, 3_000), help="One at a time.")
@click.option(
    "--rounds",
    default=3,
    show_default=True,
    type=click.IntRange(1, 100),
    help="Of pool and bare loop, and of compiled and not.",
)
@json_option
def encoder(parts: str, titles: int, queries: int, rounds: int, json_file: Path | None) -> int:
    """Texts per second of the encoder pool, what a query waits, and what lower precision changes.

    pool: against a bare loop of perfectly sorted batches, in turns. queries: one at a time, alone and while the
    catalogue is embedded. embedded, kafka: from items.v1 to item-vectors.v1, and again with another price. precision:
    each one on offer against float32. compile: with torch.compile and without, in turns. Model, device and precision
    are those of the settings (TAILRACE_ENCODER__...).

    Ends with 1 where a text was embedded for another price, or a precision does not pass the quality gate.
    """
    from stream_app.cli.console import errors, run
    from stream_app.cli.evaluate import advancing, open_progress, writable
    from stream_app.settings import load_settings

    wanted = _wanted(parts)
    writable(json_file)
    settings = load_settings()
    console = errors()
    lines: list[dict[str, Any]] = []
    with open_progress(console) as progress:
        for part in wanted:
            work = _work(part, titles=titles, queries=queries, rounds=rounds)
            found = run(work(settings, advancing(progress)))
            lines += found
            if not found:
                console.print(f"{part}: {settings.encoder.model} offers nothing beside float32")
    for line in lines:
        print_lines(f"encoder: {line['what']}", [line])
    write_lines(json_file, lines)
    wrong = failures(lines)
    for failure in wrong:
        console.print(failure, style="red", highlight=False, markup=False)
    return int(bool(wrong))


def failures(lines: Sequence[Mapping[str, Any]]) -> list[str]:
    """What must not be, in words: of the figures of all parts."""
    from stream_app.bench.quality import LEAST_MEAN_COSINE, LEAST_OVERLAP

    said = []
    for line in lines:
        if line.get("repriced_texts"):
            said.append(f"{line['repriced_texts']:,} texts were embedded for prices that changed")
        if refused := line.get("refused"):
            said.append(f"encoder.precision = '{line['precision']}' cannot be used: {refused}")
        elif line.get("passes") is False:
            said.append(
                f"encoder.precision = '{line['precision']}' does not pass the quality gate: mean cosine "
                f"{line['mean_cosine']} (at least {LEAST_MEAN_COSINE}), overlap of the ten nearest {line['overlap']} "
                f"(at least {LEAST_OVERLAP}); use another precision with this model"
            )
    return said


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
) -> Callable[[Settings, Progress], Coroutine[Any, Any, list[dict[str, Any]]]]:
    from stream_app.bench import encoder as bench

    async def work(settings: Settings, on_progress: Progress) -> list[dict[str, Any]]:
        if part == "pool":
            return [await bench.pool_figures(settings, titles=titles, rounds=rounds, on_progress=on_progress)]
        if part == "queries":
            return [await bench.query_figures(settings, titles=titles, queries=queries, on_progress=on_progress)]
        if part == "compile":
            return [await bench.compile_figures(settings, titles=titles, rounds=rounds, on_progress=on_progress)]
        if part == "precision":
            return await bench.precision_figures(settings, titles=titles, on_progress=on_progress)
        broker = cast(Literal["embedded", "kafka"], part)
        return [await bench.end_to_end_figures(settings, broker=broker, titles=titles, on_progress=on_progress)]

    return work
