"""``tailrace spaces``: another model, or other settings of it, without a pause."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress as Bar
    from rich.progress import TaskID

    from schemas.messages import ModelSpace, SpaceControl
    from stream_app.settings import EncoderSettings, Settings
    from stream_app.space_operations import Progress
    from stream_app.spaces.control import EncoderValue

__all__ = ["build_command", "setting_change", "spaces"]

_READY_WITHIN_S = 120.0
"""How long a whole space is waited for to be fitted and to get a basis."""
_STILL_AFTER_S = 30.0
"""After so long without an item more it is said what to look at."""


@click.group()
def spaces() -> None:
    """Change the model while serving: build a space beside the live one, cut over, go back.

    docs/vector-spaces.md walks through it.
    """


@spaces.command("list")
@click.option("--json", "as_json", is_flag=True, help="One JSON object per space.")
def list_(as_json: bool) -> None:
    """Show the spaces that are kept, and which one is served."""
    from rich.markup import escape
    from rich.table import Table

    from stream_app.cli.console import errors, output, run, to_json
    from stream_app.settings import load_settings
    from stream_app.space_operations import left_over, present_control
    from stream_app.topics import Topics

    settings = load_settings()
    control, _ = run(present_control(settings))
    spare = {number: Topics(settings).vectors_of(number) for number in run(left_over(settings))}
    if as_json:
        for one in control.spaces:
            click.echo(to_json({"space": one, "state": _state(control, one)}))
        for number, topic in spare.items():
            click.echo(to_json({"space": None, "state": "left over", "number": number, "topic": topic}))
        return
    table = Table(title=f"Vector spaces, version {control.version}", title_justify="left")
    for column in ("number", "space", "dimensions", "state", "encoder"):
        table.add_column(column)
    for one in control.spaces:
        state = _state(control, one)
        table.add_row(
            str(one.number),
            one.space,
            str(one.dimensions),
            f"[green]{state}[/]" if state == "served" else state,
            escape(_told_encoder(one.encoder)),
        )
    output().print(table)
    for number, topic in spare.items():
        errors().print(
            f"{topic} belongs to no space: a build or a retirement was ended in the middle, or a build begins just "
            f"now; delete it with: tailrace spaces retire {number}",
            style="yellow",
        )


def _told_encoder(encoder: Mapping[str, EncoderValue]) -> str:
    """The model, and of the rest what is not as it is where nobody set anything."""
    from stream_app.encoders import deciding_settings
    from stream_app.settings import EncoderSettings

    usual = deciding_settings(EncoderSettings())
    told = [f"{name} = {value}" for name, value in encoder.items() if name == "model" or value != usual.get(name)]
    return ", ".join(told) or "as the settings say"


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
    help="Another setting of the encoder for this space, for example max_tokens=64; null: not set, as in adapter=null. "
    "May be given again.",
)
@click.option("--wait/--no-wait", default=True, show_default=True, help="Follow it to its end; Ctrl-C ends only that.")
def build(model: str | None, adapter: Path | None, changes: tuple[str, ...], wait: bool) -> int:
    """Build a further space beside the one that is served.

    Catalogue processes embed every item for it, at most spaces.build_share of their time; what is served goes on.
    """
    from stream_app.cli.console import errors, run
    from stream_app.settings import load_settings
    from stream_app.space_operations import build_space

    encoder: dict[str, EncoderValue] = {} if model is None else {"model": model}
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
        return
    wanted = dict(target.encoder) | {"image_weight": min(learned.weight, 0.99)}
    # Not through rich, which would break the line, and take what is in brackets for markup.
    click.echo(
        f"built with image_weight = {learned.built_with:g}; build anew with: {build_command(wanted, settings.encoder)}"
    )


def build_command(encoder: Mapping[str, EncoderValue], here: EncoderSettings) -> str:
    """The command that builds a space with these settings, to be given to a shell.

    Args:
        encoder: settings that decide its vectors.
        here: of this process: what is not set is left out, unless it is set here.
    """
    import shlex

    changes = [
        f"{name}={_written(value)}"
        for name, value in encoder.items()
        if value is not None or getattr(here, name, None) is not None
    ]
    return " ".join(["tailrace spaces build", *(f"--set {shlex.quote(change)}" for change in changes)])


def _written(value: EncoderValue) -> str:
    """As :func:`setting_change` reads it: text as it is, but where it looks like something else."""
    import json

    if isinstance(value, str) and setting_change(f"x={value}")[1] == value:
        return value
    return json.dumps(value)


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
        errors().print(problem, style="yellow", markup=False)
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
    from stream_app.space_operations import delete_left_over, left_over, retire_space

    settings = load_settings()
    if space.isdecimal() and int(space) in run(left_over(settings)):
        click.echo(f"vectors {int(space)} belong to no space; waiting half a minute whether one comes", err=True)
        run(delete_left_over(settings, int(space)))
        click.echo(f"deleted: vectors {int(space)}, which belonged to no space")
        return
    gone = run(retire_space(settings, space))
    click.echo(f"retired: {gone.number} ({gone.space})")


def setting_change(text: str) -> tuple[str, EncoderValue]:
    """A name and a value of the kind it looks like; ``null`` is None, and text in double quotes is text."""
    import json

    name, equals, value = text.partition("=")
    if not equals or not name:
        raise click.UsageError(f"--set {text}: not NAME=VALUE")
    try:
        parsed = json.loads(value)
    except (ValueError, RecursionError):
        return name, value
    return name, parsed if parsed is None or isinstance(parsed, str | int | float | bool) else value


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
    from stream_app.space_operations import Standstill, consumers_of, follow_build, hindrances

    loop = asyncio.get_running_loop()
    standstill = Standstill(_STILL_AFTER_S)
    bar, task = _bar(errors())
    with bar:
        async with aclosing(follow_build(settings, space)) as told:
            async for progress in told:
                _advance(bar, task, progress)
                if progress.complete:
                    break
                if standstill.noticed(progress, loop.time()):
                    bar.console.print(_nothing_comes(space, await consumers_of(settings, space.number)), style="yellow")
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


def _nothing_comes(space: ModelSpace, consumers: int | None) -> str:
    who = (
        f"{consumers} processes work on it, and"
        if consumers
        else "no process works on it: one with the catalogue role has to run (tailrace up --role catalogue), with the "
        "same model at the same place; if one does,"
    )
    return (
        f"nothing more of space {space.number} has come for {_STILL_AFTER_S:g} s: {who} its log says what is wrong. "
        f"Waiting goes on; give it up with: tailrace spaces retire {space.number}"
    )


def _bar(console: Console, *, get_time: Callable[[], float] | None = None) -> tuple[Bar, TaskID]:
    """A bar with its one line."""
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    bar = Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rate]}"),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        console=console,
        speed_estimate_period=30,
        get_time=get_time,
    )
    return bar, bar.add_task("items", total=None, rate="")  # each column has what it shows from the first picture on


def _advance(bar: Bar, task: TaskID, progress: Progress) -> None:
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
            missing = progress.items - progress.done
            if not progress.complete and missing:
                problems.append(f"{missing:,} of {progress.items:,} items are missing: {', '.join(progress.missing)}")
            if progress.waiting:
                problems.append(
                    f"{progress.waiting:,} of {progress.items:,} items have the vector of another text still"
                )
            break
    return problems + await hindrances(settings, space)
