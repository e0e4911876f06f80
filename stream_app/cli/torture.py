"""``tailrace torture``: see what faults do to it, and that nothing is left of them."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from stream_app.torture.schedule import ALL_KINDS, Kind

if TYPE_CHECKING:
    from rich.console import Console

    from stream_app.torture.outcome import Outcome
    from stream_app.torture.run import Report
    from stream_app.torture.stream import Stream

__all__ = ["torture"]

_SHOWN = 20
"""Differences shown of a run."""


def _kinds(_context: click.Context, _option: click.Parameter, given: str | None) -> tuple[Kind, ...]:
    try:
        return tuple(Kind(name.strip()) for name in given.split(",")) if given else ()
    except ValueError as error:
        raise click.BadParameter(f"{error}; there are {', '.join(ALL_KINDS)}") from None


@click.command()
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True, help="Of the first run.")
@click.option("--runs", type=click.IntRange(1, 10_000), default=1, show_default=True, help="With one seed each.")
@click.option("--events", type=click.IntRange(100, 1_000_000), default=20_000, show_default=True, help="Of each run.")
@click.option("--rate", type=click.FloatRange(1, 100_000), default=400.0, show_default=True, help="Events per second.")
@click.option("--processes", type=click.IntRange(1, 16), default=3, show_default=True, help="Of Tailrace.")
@click.option("--faults", type=click.IntRange(0, 1_000), default=10, show_default=True, help="Of each run.")
@click.option("--kinds", callback=_kinds, metavar="NAMES", help=f"Only these, of {', '.join(ALL_KINDS)}.")
@click.option("--items", type=click.IntRange(10, 200), default=150, show_default=True, help="Of the catalogue.")
@click.option("--users", type=click.IntRange(1, 100_000), default=400, show_default=True, help="Who send events.")
@click.option(
    "--broker",
    type=click.Choice(["kafka", "embedded"]),
    help="Which one is started: Apache Kafka (where it is installed) or the embedded one, which itself has no faults.",
)
@click.option("--json", "json_file", type=click.Path(dir_okay=False, path_type=Path), help="Also write this file.")
def torture(
    seed: int,
    runs: int,
    events: int,
    rate: float,
    processes: int,
    faults: int,
    kinds: tuple[Kind, ...],
    items: int,
    users: int,
    broker: str | None,
    json_file: Path | None,
) -> int:
    """Kill, freeze and cut off processes, broker and Redis while events come, and compare with a run without.

    Everything is started here, on free ports and in a temporary folder: nothing of yours is touched. A seed decides
    what goes wrong, and when; all of it heals. Equal means: the state of every user, the statistics of every item, the
    examples of the ranker and every user's last slate. Exit status 1 when a run is not, or a process ended by itself.
    docs/faults.md has the list.
    """
    from stream_app.cli.console import errors, run, to_json
    from stream_app.embedded import kafka_missing
    from stream_app.torture.faults import possible_kinds
    from stream_app.torture.schedule import make_schedule
    from stream_app.torture.stream import make_stream

    chosen = broker or ("kafka" if kafka_missing() is None else "embedded")
    possible = possible_kinds(chosen)
    if impossible := [str(kind) for kind in kinds if kind not in possible]:
        raise click.UsageError(f"--kinds {','.join(impossible)}: not with --broker {chosen} on this machine")
    console = errors()
    stream = make_stream(seed, items=items, users=users, events=events)
    lines: list[dict[str, Any]] = []

    def one(schedule: Any, what: str) -> Report:
        console.rule(what)
        return run(_run(stream, schedule, chosen, processes, rate, console))

    calm = one((), f"{events:,} events, {processes} processes, nothing goes wrong").outcome
    assert calm is not None  # noqa: S101 - it would have raised
    unequal = 0
    for number in range(seed, seed + runs):
        schedule = make_schedule(number, events=events, processes=processes, faults=faults, kinds=kinds or possible)
        report = one(schedule, f"seed {number}")
        lines.append(_line(number, calm, report))
        differences = lines[-1]["differences"]
        for ended in report.ended:
            console.print(f"  ended by itself: {ended}", style="red", markup=False)
        unequal += bool(differences) or bool(report.ended)
        for difference in differences[:_SHOWN]:
            console.print(f"  {difference}", style="red", markup=False)
        console.print(
            f"seed {number}: {len(differences):,} differences" if differences else f"seed {number}: equal",
            style="bold red" if differences else "bold green",
        )
        if json_file is not None:
            json_file.write_text("".join(f"{to_json(line)}\n" for line in lines), encoding="utf-8")
    console.rule(f"{runs - unequal} of {runs} runs equal to the one without faults")
    return int(unequal > 0)


def _line(seed: int, calm: Outcome, report: Report) -> dict[str, Any]:
    assert report.outcome is not None  # noqa: S101 - it would have raised
    return {
        "seed": seed,
        "differences": calm.differences(report.outcome),
        "faults": [[str(fault), round(began, 1), round(healed, 1)] for fault, began, healed in report.faults],
        "ended_by_themselves": report.ended,
        "sending_s": round(report.seconds[0], 1),
        "settling_s": round(report.seconds[1], 1),
    }


async def _run(stream: Stream, schedule: Any, broker: Any, processes: int, rate: float, console: Console) -> Report:
    from stream_app.cli.evaluate import advancing, open_progress
    from stream_app.embedded.workspace import workspace
    from stream_app.torture.run import torture as run_torture

    began = time.monotonic()
    with workspace() as directory, open_progress(console) as progress:
        advance = advancing(progress)

        def told(what: str, done: int, total: int) -> None:
            if what in {"processes start", "events", "settling"}:
                advance(what, done, total)
            else:
                progress.console.print(f"{time.monotonic() - began:7.1f} s  {what}", markup=False)

        return await run_torture(
            stream, schedule, broker=broker, directory=directory, processes=processes, rate=rate, told=told
        )
