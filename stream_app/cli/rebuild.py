"""``tailrace rebuild``: derived state made again from the topics it derives from, while everything goes on."""

from __future__ import annotations

from collections.abc import Coroutine
from typing import TYPE_CHECKING, Any, TypeVar

import click

if TYPE_CHECKING:
    from rich.progress import Progress as Bar

    from stream_app.rebuild.users import Progress, UsersOutcome

__all__ = ["rebuild"]

T = TypeVar("T")


@click.group()
def rebuild() -> None:
    """Make derived state again from the topics it derives from, in place, while everything goes on.

    docs/rebuild.md says when, what is and what is not made again, and what it costs. Stopped or killed, nothing is half
    done: start it again.
    """


@rebuild.command()
@click.option("--dry-run", is_flag=True, help="Only say how many states would change.")
@click.option(
    "--partial",
    is_flag=True,
    help="Although the beginning of interactions.v1 is gone: states that know more events than is left are kept.",
)
@click.option(
    "--users-at-once",
    type=click.IntRange(min=1),
    help="States in memory at most; more users take more passes over the topics.  [default: 200000, about 0.5 GB]",
)
def users(dry_run: bool, partial: bool, users_at_once: int | None) -> int:
    """Users' states, from interactions.v1 and users.v1.

    For a Redis that was wiped or has lost writes, a new version of states, or a fixed defect. Exit status 1: some users
    could not be done, because their owners wrote all the time; run it again.
    """
    from stream_app.cli.console import errors, output
    from stream_app.rebuild.users import USERS_AT_ONCE, rebuild_users
    from stream_app.settings import load_settings

    settings = load_settings()
    with _bar("events") as bar:
        task = bar.add_task("", total=None, rate="", users="")
        outcome = _run(
            rebuild_users(
                settings,
                dry_run=dry_run,
                partial=partial,
                users_at_once=users_at_once or USERS_AT_ONCE,
                tell=lambda progress: _advance(bar, task, progress),
            )
        )
    output().print(_summary(outcome, dry_run))
    left = outcome.counts.left
    if left:
        errors().print(
            f"{len(left):,} users were written by their owners each time and are as they were, such as {left[0]!r}: "
            "run it again when there is less to do",
            style="yellow",
        )
    return 1 if left else 0


def _summary(outcome: UsersOutcome, dry_run: bool) -> str:
    counts = outcome.counts
    kept = f", {counts.kept:,} kept that know more than the topic" if counts.kept else ""
    return (
        f"{counts.users:,} users from {outcome.records:,} records in {outcome.passes} "
        f"{'pass' if outcome.passes == 1 else 'passes'}: {'would be ' if dry_run else ''}{counts.created:,} created, "
        f"{counts.replaced:,} replaced, {counts.unchanged:,} unchanged{kept}; "
        f"{outcome.refused:,} records cannot be used"
    )


def _run(work: Coroutine[Any, Any, T]) -> T:
    """Run to the end; what a newer release wrote is an error like others here."""
    from stream_app.cli.console import run
    from stream_app.errors import NewerVersion, TailraceError

    try:
        return run(work)
    except NewerVersion as error:
        raise TailraceError(str(error)) from error


def _bar(unit: str) -> Bar:
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    from stream_app.cli.console import errors

    return Progress(
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn(unit),
        TextColumn("{task.fields[rate]}"),
        TextColumn("{task.fields[users]}"),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        console=errors(),
        speed_estimate_period=30,
    )


def _advance(bar: Bar, task: Any, progress: Progress) -> None:
    speed = next(one for one in bar.tasks if one.id == task).speed
    bar.update(
        task,
        total=progress.total or None,
        completed=int(progress.done),
        rate=f"{speed:,.0f}/s" if speed else "",
        users=f"{progress.users:,} users",
    )
