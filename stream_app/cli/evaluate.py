"""``tailrace evaluate``: what Tailrace would have recommended, measured on your own log."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from pathlib import Path
from threading import Timer
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress, TaskID

    from stream_app.adapters.file import AdapterFile
    from stream_app.embedded.stack import BrokerKind
    from stream_app.evaluation.files import Log
    from stream_app.settings import Settings

__all__ = ["evaluate", "load_log", "open_progress", "say_what_is_wrong", "writable", "written"]

_FILE = click.Path(dir_okay=False, path_type=Path)
_LINE_EVERY_S = 10.0
"""Progress without a terminal."""


@click.command()
@click.argument("dataset", type=click.Choice(["online-retail"]), required=False)
@click.option("--items", type=_FILE, help="The catalogue (.jsonl, .jsonl.zst, .jsonl.gz).")
@click.option("--interactions", type=_FILE, help="What happened (.jsonl, .jsonl.zst, .jsonl.gz).")
@click.option("--limit", type=click.IntRange(min=1), help="Only the first N interactions, in order of time.")
@click.option(
    "--protocol",
    type=click.Choice(["streaming", "leave-one-out"]),
    default="streaming",
    show_default=True,
    help="streaming: test every basket, then learn from it. leave-one-out: learn from all but each user's last new "
    "item, then test that.",
)
@click.option("--sources/--no-sources", default=True, show_default=True, help="Also score every source on its own.")
@click.option(
    "--compare",
    callback=lambda _context, _option, given: _baselines(given),
    metavar="NAMES",
    help="Also run these baselines on the same tests: popularity,covisitation,text,isgd,bpr, or all.",
)
@click.option("--first-only", is_flag=True, help="Leave out a user's later interactions with the same item.")
@click.option(
    "--train-share",
    type=click.FloatRange(0, 1, max_open=True),
    default=0.1,
    show_default=True,
    help="Share of the interactions, from the first, that only train.",
)
@click.option(
    "--publish-every",
    type=click.IntRange(min=1),
    default=1,
    show_default=True,
    help="Statistics and weights reach ranking after so many events: the lag of a real deployment.",
)
@click.option(
    "--via",
    type=click.Choice(["kafka"]),
    help="Also send the log through a broker and live processes, started here, and measure what they publish.",
)
@click.option(
    "--broker",
    type=click.Choice(["kafka", "embedded"]),
    help="Which broker --via starts: Apache Kafka (the default where it is installed) or the embedded one.",
)
@click.option(
    "--seed",
    type=click.IntRange(min=0),
    default=0,
    show_default=True,
    help="Of the baselines that draw random numbers; slates do not.",
)
@click.option(
    "--adapter",
    type=_FILE,
    help="Serve the vectors of this adapter (tailrace adapter train). What it was trained on it knows: train it on the "
    "first part of a log, and let --train-share leave that part out of the tests.",
)
@click.option("--cache", type=click.Path(file_okay=False, path_type=Path), help="Folder for vectors between runs.")
@click.option("--json", "json_file", type=_FILE, help="Also write everything to this file.")
@click.option("--html", "html_file", type=_FILE, help="Also write a page with plots to this file.")
def evaluate(
    dataset: str | None,
    items: Path | None,
    interactions: Path | None,
    json_file: Path | None,
    html_file: Path | None,
    **options: Any,
) -> int:
    """Replay a log in order of time: rank for the user before every basket, compare, then learn from it.

    The log is two files in the contract (schemas/v1/items.json, schemas/v1/interactions.json), or the shop that ships
    with Tailrace: tailrace evaluate online-retail. No broker is needed. Lines that cannot be used are counted and left
    out. docs/evaluation.md says how things are counted.
    """
    options["via"] = _broker(options["via"], options.pop("broker"), options["protocol"])
    if json_file is not None and html_file is not None and json_file.resolve() == html_file.resolve():
        raise click.UsageError(f"--json and --html both name {json_file}; one would overwrite the other")
    writable(json_file, read=(items, interactions))
    writable(html_file, read=(items, interactions))
    from stream_app.cli.console import errors, output
    from stream_app.evaluation.tables import tables
    from stream_app.settings import load_settings

    settings = load_settings()
    options["adapter"] = _adapter(options["adapter"], options["via"], settings)
    console = errors()
    with open_progress(console) as progress:
        log = load_log(dataset, items, interactions, settings, options["limit"], progress)
    say_what_is_wrong(console, log)
    with open_progress(console) as progress:
        found = _evaluate(log, settings, progress, **options)
    # Before anything is printed: whoever reads our output may be gone by then (``| head``).
    status = 0
    if json_file is not None:
        status |= not written(console, json_file, lambda: _json(found))
    if html_file is not None:
        status |= not written(console, html_file, lambda: _page(found))
    screen = output()
    for table in tables(found, width=screen.width):
        screen.print(table)
    for warning in found["warnings"][len(log.warnings) :]:
        console.print(f"warning: {warning}", style="yellow", markup=False)
    return status


def _baselines(given: str | None) -> tuple[str, ...]:
    """The names in a comma separated list."""
    from stream_app.evaluation.baselines import BASELINES

    if given is None:
        return ()
    names = tuple(filter(None, (name.strip() for name in given.split(","))))
    names = BASELINES if names == ("all",) else names
    unknown = [name for name in names if name not in BASELINES]
    if unknown or not names:
        raise click.BadParameter(f"{', '.join(unknown) or 'nothing'}: choose from {', '.join(BASELINES)}, or all")
    return names


def _broker(via: str | None, broker: str | None, protocol: str) -> str | None:
    """The broker to start, None for none."""
    if via is None:
        if broker is not None:
            raise click.UsageError("--broker goes with --via kafka")
        return None
    if protocol != "streaming":
        raise click.UsageError("--via kafka goes with --protocol streaming")
    from stream_app.embedded.kafka.install import kafka_missing

    missing = kafka_missing()
    if broker is None:
        return "embedded" if missing else "kafka"
    if broker == "kafka" and missing:
        raise click.UsageError(missing)
    return broker


def _adapter(file: Path | None, via: str | None, settings: Settings) -> AdapterFile | None:
    """The adapter to serve, None for none."""
    if file is None:
        return None
    if via is not None:
        raise click.UsageError("--adapter goes without --via: live processes serve what spaces.v1 says")
    from stream_app.adapters.file import AdapterFile
    from workers.models import describe_model

    return AdapterFile.load(file, base_space=describe_model(settings.encoder).space)


def writable(file: Path | None, *, read: Iterable[Path | None] = ()) -> None:
    """Say before an hour's work that its result cannot be written; a file that was not there is not there after it.

    Args:
        file: the result; None: there will be none.
        read: what is read, and must not be written over.
    """
    if file is None:
        return
    if file.resolve() in {other.resolve() for other in read if other is not None}:
        raise click.UsageError(f"{file} is what is read; its contents would be lost")
    try:
        new = not file.exists()
        with file.open("ab"):
            pass
        if new:
            # Of a link that led nowhere what it leads to is new, and the link stays.
            file.resolve().unlink()
    except OSError as error:
        raise click.UsageError(f"{file} cannot be written: {error.strerror or error}") from error


def written(console: Console, file: Path, content: Callable[[], bytes]) -> bool:
    """Write ``file``; where that fails say why, so that what was found is still shown and other files are written."""
    data = content()
    try:
        file.write_bytes(data)
    except OSError as error:
        console.print(f"{file} was not written: {error.strerror or error}", style="red", markup=False)
        return False
    return True


def _json(found: dict[str, Any]) -> bytes:
    import msgspec

    return msgspec.json.format(msgspec.json.encode(found), indent=2) + b"\n"


def _page(found: dict[str, Any]) -> bytes:
    from stream_app import __version__
    from stream_app.evaluation.page import page

    return page(found, made_by=f"Tailrace {__version__}").encode()


def open_progress(console: Console) -> AbstractContextManager[Progress]:
    """Progress bars, on a terminal."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    return Progress(*columns, console=console, transient=True, disable=not console.is_terminal)


def advancing(progress: Progress) -> Callable[[str, int, int], None]:
    """Moves one bar per thing that is done: told what, how much of it, and of how much. Where there is no terminal, a
    line now and then instead."""
    if progress.disable:
        return _lines(progress.console)
    bars: dict[str, TaskID] = {}

    def advance(what: str, done: int, total: int) -> None:
        if what not in bars:
            bars[what] = progress.add_task(what, total=total)
        progress.update(bars[what], completed=done, total=total)

    return advance


def _lines(console: Console) -> Callable[[str, int, int], None]:
    began: dict[str, float] = {}
    said = last = time.monotonic()
    silent: Timer | None = None

    def advance(what: str, done: int, total: int) -> None:
        nonlocal said, last, silent
        if silent is not None:
            silent.cancel()
            silent = None
        now = time.monotonic()
        start, last = began.setdefault(what, last), now
        if total == 1:  # nothing is told in between
            if not done:
                silent = Timer(_LINE_EVERY_S / 2, lambda: console.print(f"{what} ...", markup=False))
                silent.daemon = True
                silent.start()
            return
        if now - said < _LINE_EVERY_S or done >= total:
            return
        said = now
        rate = done / max(now - start, 1e-9)
        left = f", {(total - done) / rate:,.0f} s left" if rate else ""
        console.print(f"{what}: {done:,} of {total:,} ({done / total:.0%}), {rate:,.0f} per second{left}", markup=False)

    return advance


def load_log(
    dataset: str | None,
    items: Path | None,
    interactions: Path | None,
    settings: Settings,
    limit: int | None,
    progress: Progress,
) -> Log:
    """The log that the options of a command name."""
    if (dataset is None) == (interactions is None):
        raise click.UsageError("name a log: --items FILE --interactions FILE, or the data set online-retail")
    if dataset is not None and items is not None:
        raise click.UsageError("--items goes with --interactions; online-retail has its own catalogue")
    from stream_app.datasets.online_retail import load_online_retail
    from stream_app.evaluation.files import from_dataset, read_log

    reading = progress.add_task("reading", total=None)
    if interactions is None:
        return from_dataset(load_online_retail(), limit=limit)
    return read_log(
        items,
        interactions,
        settings,
        limit=limit,
        on_progress=lambda lines: progress.update(reading, completed=lines),
    )


def say_what_is_wrong(console: Console, log: Log) -> None:
    """Lines that were left out, and what was put right."""
    for line in log.bad_lines:
        console.print(line, style="red", markup=False)
    for warning in log.warnings:
        console.print(f"warning: {warning}", style="yellow", markup=False)


def _evaluate(
    log: Log,
    settings: Settings,
    progress: Progress,
    *,
    protocol: str,
    compare: tuple[str, ...],
    sources: bool,
    first_only: bool,
    train_share: float,
    publish_every: int,
    seed: int,
    cache: Path | None,
    limit: int | None,
    via: BrokerKind | None,
    adapter: AdapterFile | None,
) -> dict[str, Any]:
    from stream_app.cli.settings_reference import effective_settings
    from stream_app.evaluation.prequential import Options
    from stream_app.evaluation.run import evaluate_log

    return evaluate_log(
        log,
        settings,
        Options(train_share=train_share, publish_every=publish_every, sources=sources, seed=seed),
        protocol="leave-one-out" if protocol == "leave-one-out" else "streaming",
        compare=compare,
        first_only=first_only,
        limit=limit,
        via=via,
        adapter=adapter,
        cache=cache,
        changed={row.name: row.value for row in effective_settings(settings) if row.value != row.default},
        on_progress=advancing(progress),
    )
