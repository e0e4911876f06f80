"""``tailrace produce``: items, interactions, users or rules from a file, validated line by line, to their topic."""

from __future__ import annotations

import time
from contextlib import ExitStack
from typing import TYPE_CHECKING, Final, Self

import click

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress, TaskID

    from stream_app.cli.producing import Kind, Outcome
    from stream_app.errors import InvalidMessage

__all__ = ["produce"]

_PLAIN_EVERY_S: Final = 5.0


@click.command()
@click.argument("kind", type=click.Choice(["items", "interactions", "users", "rules"]))
@click.argument("file", type=click.Path(exists=True, dir_okay=False, allow_dash=True))
@click.option("--rate", type=click.FloatRange(min=0, min_open=True), help="At most so many records per second.")
@click.option("--skip-bad", is_flag=True, help="Refused lines do not make the exit status 1.")
@click.option("--show-bad", type=click.IntRange(min=0), default=20, show_default=True, help="Refused lines shown.")
@click.option("--check", is_flag=True, help="Only validate; nothing is sent and no broker is needed.")
@click.pass_context
def produce(
    context: click.Context, kind: Kind, file: str, rate: float | None, skip_bad: bool, show_bad: int, check: bool
) -> None:
    """Send the lines of FILE (.jsonl, .jsonl.zst, or - for standard input) to their topic.

    Each line is a message of the contract (schemas/v1/items.json, interactions.json, users.json or rules.json),
    its id the key. Lines that Tailrace would refuse are not sent but shown with their number, and make the exit
    status 1. Ends when the broker has acknowledged everything else.
    """
    from stream_app.cli.console import errors, run
    from stream_app.cli.producing import produce_file
    from stream_app.settings import load_settings

    settings = load_settings()
    with _Report(errors(), file, show_bad=show_bad) as report:
        outcome = run(
            produce_file(
                settings, kind, file, rate=rate, check=check, on_refused=report.refused, on_progress=report.progress
            )
        )
    done = "are valid" if check else f"acknowledged by Kafka at {settings.kafka}"
    click.echo(f"{outcome.sent:,} {kind} {done} in {outcome.seconds:.1f} s ({outcome.rate:,.0f}/s)")
    if outcome.refused:
        click.echo(f"{outcome.refused:,} lines refused", err=True)
        if not skip_bad:
            context.exit(1)


class _Report:
    """Progress and refused lines: a bar on a terminal, a line every few seconds elsewhere."""

    def __init__(self, console: Console, file: str, *, show_bad: int) -> None:
        self._console = console
        self._file = "standard input" if file == "-" else file
        self._show_bad = show_bad
        self._shown = 0
        self._last = time.monotonic()
        self._stack = ExitStack()
        self._bar: tuple[Progress, TaskID] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self._stack.close()

    def refused(self, number: int, error: InvalidMessage) -> None:
        """One line that is not sent."""
        self._shown += 1
        if self._shown <= self._show_bad:
            self._console.print(f"{self._file}:{number}: {error.reason}: {error.detail}", style="red", markup=False)
        elif self._shown == self._show_bad + 1:
            self._console.print("... further refused lines are counted, not shown (--show-bad)", style="red")

    def progress(self, outcome: Outcome) -> None:
        """Called every few hundred lines."""
        if self._console.is_terminal:
            progress, task = self._bar or self._open(outcome)
            progress.update(
                task, completed=outcome.position, records=f"{outcome.sent:,}", rate=f"{outcome.rate:,.0f}/s"
            )
            return
        now = time.monotonic()
        if now - self._last >= _PLAIN_EVERY_S:
            self._last = now
            share = f", {outcome.position / outcome.size:.0%} of the file" if outcome.size else ""
            self._console.print(f"{outcome.sent:,} sent, {outcome.rate:,.0f}/s{share}")

    def _open(self, outcome: Outcome) -> tuple[Progress, TaskID]:
        from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

        columns = (
            TextColumn("{task.fields[records]} sent"),
            BarColumn(),
            TaskProgressColumn(),
            TextColumn("{task.fields[rate]}"),
            TimeRemainingColumn(),
        )
        progress = self._stack.enter_context(Progress(*columns, console=self._console, transient=True))
        self._bar = progress, progress.add_task("", total=outcome.size, records="0", rate="")
        return self._bar
