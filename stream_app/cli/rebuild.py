"""``tailrace rebuild``: derived state made again from the topics it derives from, while everything goes on."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import TYPE_CHECKING, Any, TypeVar

import click

if TYPE_CHECKING:
    from rich.progress import Progress as Bar

    from stream_app.rebuild.users import Progress, UsersOutcome
    from stream_app.settings import Settings

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


@rebuild.command()
@click.option("--dry-run", is_flag=True, help="Only say how many items there are.")
@click.option("--partial", is_flag=True, help="Although the beginning of interactions.v1 is gone.")
def items(dry_run: bool, partial: bool) -> int:
    """Statistics of items (counts and neighbours), from interactions.v1 and users.v1.

    The rows are handed to the items' owners, who go on with them. Exit status 1: some owners have not taken them over.
    """
    from stream_app.cli.console import errors, output
    from stream_app.rebuild.items import rebuild_items
    from stream_app.settings import load_settings

    settings = load_settings()
    with _bar("events") as bar:
        task = bar.add_task("", total=None, rate="", users="")

        def tell(read: int, total: int) -> None:
            speed = next(one for one in bar.tasks if one.id == task).speed
            bar.update(task, total=total or None, completed=read, rate=f"{speed:,.0f}/s" if speed else "")

        outcome = _run(rebuild_items(settings, dry_run=dry_run, partial=partial, tell=tell))
    done = "would have" if dry_run else "have"
    output().print(f"{outcome.items:,} items {done} rows made of {outcome.records:,} records")
    if outcome.waiting:
        errors().print(
            f"the owners of partitions {', '.join(map(str, outcome.waiting))} of transitions.v1 have not taken them "
            "over: they do it when they get to it; is a process with the items role running?",
            style="yellow",
        )
    return 1 if outcome.waiting else 0


@rebuild.command()
@click.option("--dry-run", is_flag=True, help="Only say how many slates there are.")
@click.option(
    "--users-per-s",
    type=click.FloatRange(min=0, min_open=True, max=100_000),
    default=100.0,
    show_default=True,
    help="Users each process ranks for it per second; events go first.",
)
@click.option("--stop", is_flag=True, help="Ask for it no longer; what is done stays.")
def recommendations(dry_run: bool, users_per_s: float, stop: bool) -> int:
    """Every user's slate, by the users' owners: after rules, models or users' states have changed.

    The owners do it while this watches. Started again it watches what goes on already. Exit status 1: nothing happened
    for a while, and some slates are as they were.
    """
    from stream_app.cli.console import errors, output
    from stream_app.settings import load_settings

    settings = load_settings()
    if stop:
        asked = _run(_take_back(settings))
        output().print("not asked for any more" if asked else "nobody had asked for it")
        return 0
    with _bar("slates") as bar:
        task = bar.add_task("", total=None, rate="", users="")

        def tell(new: int, users: int) -> None:
            speed = next(one for one in bar.tasks if one.id == task).speed
            bar.update(task, total=users or None, completed=new, rate=f"{speed:,.0f}/s" if speed else "")

        try:
            new, old = _run(_remake(settings, users_per_s, dry_run, tell))
        except KeyboardInterrupt:
            errors().print("it goes on without you; end it with: tailrace rebuild recommendations --stop")
            raise
    if dry_run:
        output().print(f"{new + len(old):,} slates would be made again")
        return 0
    output().print(f"{new:,} slates made again, {len(old):,} as they were")
    if old:
        errors().print(
            f"nothing happened for {_QUIET_S:g} s: their users have no state in Redis, or nobody owns them, such as "
            f"{old[0]!r}; it goes on being asked for: end it with --stop",
            style="yellow",
        )
    return 1 if old else 0


_QUIET_S = 30.0
"""How long nothing happens before a rebuild of slates is given up (seconds)."""


async def _take_back(settings: Settings) -> bool:
    from stream_app.stores.redis_client import connect_redis
    from stream_app.stores.requests import SlateRebuilds

    redis = connect_redis(settings)
    try:
        return await SlateRebuilds(redis, settings).take_back()
    finally:
        await redis.aclose()


async def _remake(
    settings: Settings, users_per_s: float, dry_run: bool, tell: Callable[[int, int], None]
) -> tuple[int, list[str]]:
    """How many slates are new, and users whose slates are not."""
    from stream_app.rebuild.recommendations import remake_slates
    from stream_app.stores.redis_client import connect_redis
    from stream_app.stores.requests import SlateRebuilds

    redis = connect_redis(settings)
    try:
        return await remake_slates(
            settings,
            SlateRebuilds(redis, settings),
            users_per_s=users_per_s,
            quiet_s=_QUIET_S,
            dry_run=dry_run,
            tell=tell,
        )
    finally:
        await redis.aclose()


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
