"""``tailrace spaces``: another model, or other settings of it, without a pause."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from rich.progress import Progress as Bar

    from schemas.messages import ModelSpace, SpaceControl
    from stream_app.settings import Settings
    from stream_app.space_operations import Progress

__all__ = ["setting_change", "spaces"]

_READY_WITHIN_S = 120.0
"""How long a whole space is waited for to be fitted and to get a basis."""


@click.group()
def spaces() -> None:
    """Change the model while serving: build a space beside the live one, cut over, go back.

    docs/vector-spaces.md walks through it.
    """


@spaces.command("list")
@click.option("--json", "as_json", is_flag=True, help="One JSON object per space.")
def list_(as_json: bool) -> None:
    """Show the spaces that are kept, and which one is served."""
    from rich.table import Table

    from stream_app.cli.console import output, run, to_json
    from stream_app.settings import load_settings
    from stream_app.space_operations import present_control

    control, _ = run(present_control(load_settings()))
    if as_json:
        for one in control.spaces:
            click.echo(to_json({"space": one, "state": _state(control, one)}))
        return
    table = Table(title=f"Vector spaces, version {control.version}", title_justify="left")
    for column in ("number", "space", "dimensions", "state", "encoder"):
        table.add_column(column)
    for one in control.spaces:
        encoder = ", ".join(f"{name} = {value}" for name, value in one.encoder.items()) or "as the settings say"
        state = _state(control, one)
        table.add_row(
            str(one.number),
            one.space,
            str(one.dimensions),
            f"[green]{state}[/]" if state == "served" else state,
            encoder,
        )
    output().print(table)


def _state(control: SpaceControl, space: ModelSpace) -> str:
    if space.space == control.serving:
        return "served"
    return "served before" if space.space == control.previous else "beside"


@spaces.command()
@click.option("--model", help="As encoder.model: a name or a local folder, there on every machine.")
@click.option(
    "--adapter",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="A file of tailrace adapter train, there on every machine: no text is embedded anew.",
)
@click.option(
    "--set",
    "changes",
    metavar="NAME=VALUE",
    multiple=True,
    help="Another setting of the encoder for this space, for example max_tokens=64; may be given again.",
)
@click.option("--wait/--no-wait", default=True, show_default=True, help="Follow it to its end; Ctrl-C ends only that.")
def build(model: str | None, adapter: Path | None, changes: tuple[str, ...], wait: bool) -> int:
    """Build a further space beside the one that is served.

    Catalogue processes embed every item for it, at most spaces.build_share of their time; what is served goes on.
    """
    from stream_app.cli.console import errors, run
    from stream_app.settings import load_settings
    from stream_app.space_operations import build_space

    encoder: dict[str, Any] = {} if model is None else {"model": model}
    if adapter is not None:
        encoder["adapter"] = str(adapter.absolute())
    encoder |= dict(setting_change(change) for change in changes)
    if not encoder:
        raise click.UsageError("say what is to be different: --model, --adapter, or --set NAME=VALUE")
    settings = load_settings()
    space = run(build_space(settings, encoder))
    errors().print(f"building space {space.number}: {space.space}")
    return _follow(settings, space) if wait else 0


@spaces.command()
@click.argument("space")
def follow(space: str) -> int:
    """Show how far a space is, until it has everything."""
    from stream_app.settings import load_settings

    settings = load_settings()
    return _follow(settings, _find(settings, space))


@spaces.command()
@click.argument("space")
@click.option("--items", "count", type=click.IntRange(10, 100_000), default=4_000, show_default=True, help="Sample.")
@click.option("--show", type=click.IntRange(0, 100), default=5, show_default=True, help="Items shown with neighbours.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object.")
def compare(space: str, count: int, show: int, as_json: bool) -> None:
    """Compare a space with the one that is served: what is near to what, and how well that is what people take."""
    from stream_app.cli.console import output, run, to_json
    from stream_app.settings import load_settings
    from stream_app.space_comparison import compare_spaces

    settings = load_settings()
    target = _find(settings, space)
    compared = run(compare_spaces(settings, target, count=count, show=show))
    if as_json:
        click.echo(to_json(compared))
        return
    from rich.table import Table

    table = Table(title=f"{compared.items:,} items in both", title_justify="left")
    table.add_column("")
    table.add_column(f"served: {compared.served}", justify="right")
    table.add_column(f"{target.number}: {target.space}", justify="right")
    table.add_row("mean cosine of two items", f"{compared.spread[0]:.3f}", f"{compared.spread[1]:.3f}")
    if compared.taken_items:
        shares = [f"{share:.4f}" for share in compared.taken]
        table.add_row(f"of what is taken with an item, near to it ({compared.taken_items:,} items)", *shares)
    output().print(table)
    output().print(f"of the 10 nearest to an item, the same in both: {compared.overlap:.3f}")
    for one in compared.shown:
        pair = Table(title=one.text[:100], title_justify="left", show_header=False)
        for left, right in zip(*one.neighbours, strict=True):
            pair.add_row(left[:70], right[:70])
        output().print(pair)


@spaces.command("image-weight")
@click.argument("space")
@click.option("--items", "count", type=click.IntRange(10, 100_000), default=4_000, show_default=True, help="Sample.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object.")
def image_weight(space: str, count: int, as_json: bool) -> None:
    """Learn what images should count, from a space that was built with them and from what people take together.

    Nothing is changed: build a space with the weight it says, and compare the two.
    """
    from stream_app.cli.console import output, run, to_json
    from stream_app.images.weight import weight_of_images
    from stream_app.settings import load_settings

    settings = load_settings()
    target = _find(settings, space)
    learned = run(weight_of_images(settings, target, count=count))
    if as_json:
        click.echo(to_json(learned))
        return
    from rich.table import Table

    title = f"{learned.items:,} items, {learned.taken_items:,} of them taken together with others"
    table = Table(title=title, title_justify="left")
    table.add_column("image_weight", justify="right")
    table.add_column("of what is taken with an item, near to it", justify="right")
    for weight, recall in learned.recalls:
        name = {0.0: "text alone", 1.0: "image alone"}.get(weight, f"{weight:.2f}")
        table.add_row(name, f"{recall:.4f}", style="green" if weight == learned.weight else None)
    output().print(table)
    if learned.weight == 0.0:
        output().print("images bring nothing together that the text does not: leave them out")
    else:
        output().print(
            f"built with image_weight = {learned.built_with:g}; build anew with: {_rebuild(target, learned.weight)}"
        )


def _rebuild(space: ModelSpace, weight: float) -> str:
    """The command that builds the space with another weight of images."""
    changes = space.encoder | {"image_weight": min(weight, 0.99)}
    return " ".join(["tailrace spaces build", *(f"--set {name}={value}" for name, value in changes.items())])


@spaces.command()
@click.argument("space")
@click.option("--force", is_flag=True, help="Although items are missing, or it is not fitted.")
def cutover(space: str, force: bool) -> int:
    """Serve another space from now on: one message, and each process changes as soon as it has everything.

    Refused while the space lacks items, a fit or a basis that the served one has.
    """
    from stream_app.cli.console import errors, run
    from stream_app.settings import load_settings
    from stream_app.space_operations import cut_over_to

    settings = load_settings()
    target = _find(settings, space)
    problems = run(_problems(settings, target))
    for problem in problems:
        errors().print(problem, style="yellow")
    if problems and not force:
        errors().print("not cut over; wait, or insist with --force", style="red")
        return 1
    control = run(cut_over_to(settings, target.space))
    click.echo(f"served from now on: {control.serving}; go back with: tailrace spaces rollback")
    return 0


@spaces.command()
def rollback() -> None:
    """Serve what was served before, which was kept up to date."""
    from stream_app.cli.console import run
    from stream_app.settings import load_settings
    from stream_app.space_operations import roll_back_space

    control = run(roll_back_space(load_settings()))
    click.echo(f"served from now on: {control.serving}")


@spaces.command()
@click.argument("space")
@click.confirmation_option("--yes", prompt="Delete the vectors of this space? To go back to it, it is built again")
def retire(space: str) -> None:
    """Keep a space no longer, and delete its vectors."""
    from stream_app.cli.console import run
    from stream_app.settings import load_settings
    from stream_app.space_operations import retire_space

    gone = run(retire_space(load_settings(), space))
    click.echo(f"retired: {gone.number} ({gone.space})")


def setting_change(text: str) -> tuple[str, str | int | float | bool]:
    """A name and a value of the kind it looks like."""
    import json

    name, equals, value = text.partition("=")
    if not equals or not name:
        raise click.UsageError(f"--set {text}: not NAME=VALUE")
    try:
        parsed = json.loads(value)
    except ValueError:
        return name, value
    return name, parsed if isinstance(parsed, str | int | float | bool) else value


def _find(settings: Settings, name: str) -> ModelSpace:
    from stream_app.cli.console import run
    from stream_app.space_operations import present_control
    from stream_app.spaces.control import find_space

    return find_space(run(present_control(settings))[0], name)


def _follow(settings: Settings, space: ModelSpace) -> int:
    from stream_app.cli.console import errors, run

    try:
        return run(_follow_to_the_end(settings, space))
    except KeyboardInterrupt:
        errors().print(f"it goes on without you: tailrace spaces follow {space.number}", style="yellow")
        return 130


async def _follow_to_the_end(settings: Settings, space: ModelSpace) -> int:
    """With a bar, rate and estimate, until the space has everything it needs to be served."""
    import asyncio
    from contextlib import aclosing

    from stream_app.cli.console import errors
    from stream_app.space_operations import follow_build, hindrances

    with _bar() as bar:
        task = bar.add_task("items", total=None)
        async with aclosing(follow_build(settings, space)) as told:
            async for progress in told:
                _advance(bar, task, progress)
                if progress.complete:
                    break
    loop = asyncio.get_running_loop()
    deadline = loop.time() + _READY_WITHIN_S
    while problems := await hindrances(settings, space):
        if loop.time() > deadline:
            errors().print(f"all items are there, but {'; '.join(problems)}", style="yellow")
            return 1
        await asyncio.sleep(1.0)
    errors().print(
        f"complete; look at it with: tailrace spaces compare {space.number}\n"
        f"and serve it with: tailrace spaces cutover {space.number}",
        style="green",
    )
    return 0


def _bar() -> Bar:
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
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rate]}"),
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
        total=progress.items or None,
        completed=progress.done,
        rate=f"{speed:.0f}/s" if speed else "",
    )


async def _problems(settings: Settings, space: ModelSpace) -> list[str]:
    """Why a space should not be served now; empty when nothing speaks against it."""
    from contextlib import aclosing

    from stream_app.space_operations import follow_build, hindrances

    problems = []
    async with aclosing(follow_build(settings, space)) as told:
        async for progress in told:
            if not progress.caught_up:
                continue
            if not progress.complete:
                some = ", ".join(progress.missing)
                problems.append(f"{progress.items - progress.done:,} of {progress.items:,} items are missing: {some}")
            break
    return problems + await hindrances(settings, space)
