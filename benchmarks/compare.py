"""Base against head on one machine: runs of both in alternation, and their ratios.

Figures of a shared machine differ by a third from hour to hour; those of runs that follow each other do so less, and
their ratios least. So nothing here is compared with a number that was written down once.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import click
import orjson

__all__ = ["ranking_ratios"]


def ranking_ratios(base: Path, head: Path, *, rounds: int, events: int) -> list[dict[str, Any]]:
    """What `tailrace bench ranking` takes in ``head``, as a share of what it takes in ``base``.

    Args:
        base, head: folders of checkouts; both run with this Python and its libraries.
        rounds: runs of each, one after the other in turn; the first of each also compiles.
        events: of each run.

    Returns:
        one line: ``us_base``, ``us_head`` (medians of the whole), ``ratio`` (median of the rounds' ratios), the least
        and the largest ratio, and ``ratio_by_stage`` (of medians).

    Raises:
        click.ClickException: when a folder is no checkout, or a run fails.
    """
    checkouts = (base.resolve(), head.resolve())
    for checkout in checkouts:
        if not (checkout / "stream_app" / "cli" / "bench.py").is_file():
            raise click.ClickException(f"{checkout} is no checkout with `tailrace bench`")
    runs: tuple[list[dict[str, Any]], list[dict[str, Any]]] = ([], [])
    for number in range(rounds):
        for place in (0, 1) if number % 2 == 0 else (1, 0):
            runs[place].append(_ranking(checkouts[place], events))
            click.echo(f"round {number + 1}: {checkouts[place]}: {runs[place][-1]['us_per_event_in_all']} us", err=True)
    of_base, of_head = runs
    whole = [[run["us_per_event_in_all"] for run in found] for found in runs]
    ratios = [ours / theirs for theirs, ours in zip(*whole, strict=True)]
    stages = [stage for stage in of_head[0]["us_per_event"] if all(stage in r["us_per_event"] for r in of_base)]
    by_stage = {stage: round(_median(of_head, stage) / max(_median(of_base, stage), 0.05), 3) for stage in stages}
    return [
        {
            "benchmark": "compare",
            "rounds": rounds,
            "events": events,
            "us_base": statistics.median(whole[0]),
            "us_head": statistics.median(whole[1]),
            "ratio": round(statistics.median(ratios), 3),
            "least": round(min(ratios), 3),
            "largest": round(max(ratios), 3),
            "ratio_by_stage": by_stage,
        }
    ]


def _median(runs: list[dict[str, Any]], stage: str) -> float:
    return float(statistics.median(run["us_per_event"].get(stage, 0.0) for run in runs))


def _ranking(checkout: Path, events: int) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "figures.json"
        done = subprocess.run(
            [sys.executable, "-m", "stream_app.cli", "bench", "ranking", "--events", str(events), "--json", str(file)],
            cwd=checkout,
            env={**os.environ, "PYTHONPATH": str(checkout)},
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode or not file.exists():
            raise click.ClickException(
                f"{checkout}: tailrace bench ranking ended with {done.returncode}:\n{done.stderr}"
            )
        (figures,) = orjson.loads(file.read_bytes())
        return dict(figures)
