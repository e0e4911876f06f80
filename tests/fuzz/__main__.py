"""``python -m tests.fuzz --messages 1000000 --seed 0``: exit status 1 when a message was neither read nor refused."""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

import click

from stream_app.logs import configure_logs
from stream_app.settings import LogSettings
from tests.fuzz.run import fuzz
from tests.fuzz.targets import workspace


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description="Mutated messages against every decoder.")
    parser.add_argument("--messages", type=int, default=1_000_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", default="", help="targets with this in their names")
    arguments = parser.parse_args()
    configure_logs(LogSettings(level="error"))  # what is refused is counted here
    shown = [0.0]

    def progress(done: int, seconds: float) -> None:
        if time.monotonic() - shown[0] < 10.0:
            return
        shown[0] = time.monotonic()
        rate = done / max(seconds, 1e-9)
        left = (arguments.messages - done) / rate
        click.echo(f"{done:,} of {arguments.messages:,}, {rate:,.0f}/s, {left:,.0f} s left")

    with workspace() as folder:
        report = fuzz(
            arguments.messages, seed=arguments.seed, folder=Path(folder), only=arguments.only, on_progress=progress
        )
    click.echo(f"\n{'target':32} {'read':>9} {'refused':>9} {'us each':>8}")
    for name in sorted({*report.read, *report.refused}):
        count = report.read[name] + report.refused[name]
        each = report.seconds[name] / count * 1e6
        click.echo(f"{name:32} {report.read[name]:9,} {report.refused[name]:9,} {each:8.0f}")
    click.echo(f"{'all':32} {report.read.total():9,} {report.refused.total():9,}")
    objects, rss = report.objects, [size >> 20 for size in report.rss]
    click.echo(f"objects {objects[0]:,} at half, {objects[-1]:,} at the end; memory {rss[0]} MiB, {rss[-1]} MiB")
    for find in report.finds:
        click.echo(f"\nFIND {find}")
    leaks = report.leaks()
    if leaks:
        click.echo(f"\nLEAK {leaks}")
    survived = report.messages - report.found
    click.echo(f"\n{survived:,} of {report.messages:,} mutated messages survived, {len(report.finds)} kinds of finds")
    return 1 if report.finds or leaks else 0


if __name__ == "__main__":
    sys.exit(main())
