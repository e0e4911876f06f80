"""``tailrace dead-letters``: look at refused records, and replay them after a fix."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any, Literal

import click

if TYPE_CHECKING:
    from collections.abc import Callable

    from stream_app.delivery.publisher import Publisher
    from stream_app.delivery.replay import Filter, Letter, Letters
    from stream_app.settings import Settings

__all__ = ["dead_letters", "letter_rows"]

_VALUE_SHOWN = 2_000


@click.group("dead-letters")
def dead_letters() -> None:
    """Look at refused records, and replay them after a fix."""


def _filtered(command: Callable[..., Any]) -> Callable[..., Any]:
    """The options that choose letters."""
    command = click.option("--reason", "reasons", multiple=True, help="Only this reason code; may be repeated.")(
        command
    )
    return click.option(
        "--topic", "topics", multiple=True, help="Only records of this topic (interactions.v1); may be repeated."
    )(command)


def _filter(reasons: tuple[str, ...], topics: tuple[str, ...], ids: tuple[str, ...] = ()) -> Filter:
    from stream_app.delivery.replay import Filter, LetterId

    try:
        return Filter(reasons=reasons, topics=topics, ids={LetterId.parse(text) for text in ids})
    except ValueError as error:
        raise click.BadParameter(str(error)) from None


@dead_letters.command("list")
@_filtered
@click.option("--limit", type=click.IntRange(min=1), default=50, show_default=True, help="Letters listed, newest kept.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object per letter, all of them.")
def list_(reasons: tuple[str, ...], topics: tuple[str, ...], limit: int, as_json: bool) -> None:
    """List dead letters: id, when, where from, why, and whether they were replayed."""
    from stream_app.cli.console import run
    from stream_app.settings import load_settings

    run(_list(load_settings(), _filter(reasons, topics), limit=limit, as_json=as_json))


@dead_letters.command()
@click.argument("letter_id", metavar="ID")
@click.option("--value", "raw_value", is_flag=True, help="Only the original value, byte for byte.")
@click.pass_context
def show(context: click.Context, letter_id: str, raw_value: bool) -> None:
    """Show one dead letter (ID as listed, for example 2:17): what was wrong, and the record itself."""
    from stream_app.cli.console import run
    from stream_app.settings import load_settings

    found = run(_find(load_settings(), _filter((), (), (letter_id,))))
    if found is None:
        click.echo(f"there is no dead letter {letter_id}", err=True)
        context.exit(1)
    _show(found, raw_value=raw_value)


@dead_letters.command()
@click.argument("ids", metavar="[ID]...", nargs=-1)
@_filtered
@click.option("--all", "everything", is_flag=True, help="All letters; needed when nothing else chooses.")
@click.option("--again", is_flag=True, help="Also those that were replayed already.")
@click.option("--rekey", is_flag=True, help="Take the key from the id in the value (null_key, key_mismatch).")
@click.option("--dry-run", is_flag=True, help="Say what would be done and do nothing.")
@click.pass_context
def replay(
    context: click.Context,
    ids: tuple[str, ...],
    reasons: tuple[str, ...],
    topics: tuple[str, ...],
    everything: bool,
    again: bool,
    rekey: bool,
    dry_run: bool,
) -> None:
    """Put refused records back on their topic: original bytes, key and headers, on the original partition.

    What was replayed is remembered on the dead letter topic and not replayed again. Exit status 1 when a letter
    could not be replayed.
    """
    from stream_app.cli.console import run
    from stream_app.settings import load_settings

    if not (ids or reasons or topics or everything):
        raise click.UsageError("choose letters by ID, --reason or --topic, or give --all")
    settings = load_settings()
    counts = run(_replay(settings, _filter(reasons, topics, ids), again=again, rekey=rekey, dry_run=dry_run))
    done = "would be replayed" if dry_run else "replayed"
    click.echo(
        f"{counts['replayed']:,} {done}, {counts['before']:,} were replayed before, {counts['impossible']:,} cannot be"
    )
    if counts["impossible"]:
        context.exit(1)


async def _list(settings: Settings, wanted: Filter, *, limit: int, as_json: bool) -> None:
    from collections import deque

    from rich.table import Table
    from rich.text import Text

    from stream_app.cli.console import PATIENCE_S, output, to_json
    from stream_app.delivery.replay import Letters

    letters = await Letters.open(settings, patience_s=PATIENCE_S)
    reasons: Counter[str] = Counter()
    newest: deque[tuple[Any, tuple[str, ...]]] = deque(maxlen=limit)
    async for letter in letters.read(wanted):
        message = letter.message
        if as_json:
            click.echo(to_json({"id": str(letter.id), "replayed": letter.replayed, "letter": message}))
            continue
        reasons[message.reason] += 1
        place = f"{message.topic}[{message.partition}]@{message.offset}"
        when = f"{message.failed_at:%Y-%m-%d %H:%M:%S}"
        cells = (str(letter.id), when, place, message.reason, message.detail[:200], "yes" if letter.replayed else "")
        newest.append((message.failed_at, cells))
    if as_json:
        return
    table = Table("id", "when", "record", "reason", "what to do", "replayed")
    for _, row in sorted(newest):
        table.add_row(*(Text(cell) for cell in row))
    console = output()
    total = sum(reasons.values())
    if total:
        console.print(table)
        if total > limit:
            console.print(f"{total - limit:,} more (--limit)")
    console.print(
        f"{total:,} dead letters"
        + (": " if total else "")
        + ", ".join(
            f"{count:,} {reason}" for reason, count in sorted(reasons.items(), key=lambda one: (-one[1], one[0]))
        )
    )


async def _find(settings: Settings, wanted: Filter) -> Letter | None:
    from contextlib import aclosing

    from stream_app.cli.console import PATIENCE_S
    from stream_app.delivery.replay import Letters

    letters = await Letters.open(settings, patience_s=PATIENCE_S)
    async with aclosing(letters.read(wanted)) as found:
        async for letter in found:
            return letter
    return None


def _show(letter: Letter, *, raw_value: bool) -> None:
    from rich.table import Table
    from rich.text import Text

    from stream_app.cli.console import output
    from stream_app.delivery.replay import carried

    if raw_value:
        _, value, _ = carried(letter.message)
        click.get_binary_stream("stdout").write(value or b"")
        return
    table = Table(title=f"Dead letter {letter.id}", title_justify="left", show_header=False)
    table.add_column(style="dim")
    table.add_column()
    for name, content in letter_rows(letter).items():
        table.add_row(Text(name), Text(content))  # a header's name is the producer's, and no markup
    output().print(table)


def letter_rows(letter: Letter) -> dict[str, str]:
    """What is shown of a letter, by name; of one that is damaged, what can be."""
    from stream_app.delivery.replay import carried
    from stream_app.errors import InvalidMessage

    message = letter.message
    about = {
        "reason": message.reason,
        "detail": message.detail,
        "record": f"{message.topic} partition {message.partition} offset {message.offset}",
        "refused": f"by {message.stage}, try {message.attempts}, {message.failed_at}",
        "replayed": "yes" if letter.replayed else "no",
    }
    try:
        key, value, headers = carried(message)
    except InvalidMessage as error:
        return {**about, "content": error.detail}
    return {
        **about,
        "key": "null" if key is None else _text(key),
        "value": f"{message.value_bytes:,} bytes, too large to keep here; replay fetches it from its topic"
        if message.truncated
        else "null"
        if value is None
        else _text(value),
        **{f"header {name}": _text(content) for name, content in headers},
    }


def _text(data: bytes) -> str:
    """``data`` for people: as text where it is, escaped where it is not, and cut."""
    shown = data[:_VALUE_SHOWN].decode("utf-8", "backslashreplace")
    printable = "".join(char if char.isprintable() or char == "\n" else ascii(char)[1:-1] for char in shown)
    return printable if len(data) <= _VALUE_SHOWN else f"{printable}... ({len(data):,} bytes)"


async def _replay(settings: Settings, wanted: Filter, *, again: bool, rekey: bool, dry_run: bool) -> Counter[str]:
    from contextlib import aclosing

    from stream_app.cli.console import PATIENCE_S
    from stream_app.delivery.publisher import Publisher
    from stream_app.delivery.replay import Letters
    from stream_app.metrics import Metrics

    counts: Counter[str] = Counter()
    letters = await Letters.open(settings, patience_s=PATIENCE_S)
    publisher = Publisher(settings, Metrics())
    await publisher.start()
    try:
        async with aclosing(letters.read(wanted)) as chosen:
            async for letter in chosen:
                counts[await _replay_one(letter, letters, publisher, again=again, rekey=rekey, dry_run=dry_run)] += 1
    finally:
        await publisher.stop()
    return counts


async def _replay_one(
    letter: Letter, letters: Letters, publisher: Publisher, *, again: bool, rekey: bool, dry_run: bool
) -> Literal["replayed", "before", "impossible"]:
    from stream_app.cli.console import PATIENCE_S, errors
    from stream_app.delivery.publisher import RefusedRecord
    from stream_app.delivery.replay import original_record
    from stream_app.errors import InvalidMessage

    if letter.replayed and not again:
        return "before"
    try:
        record = await original_record(letter, letters.settings, rekey=rekey, patience_s=PATIENCE_S)
        if not dry_run:
            await publisher.publish([record])
            await publisher.publish([letters.marker(letter)])
    except (InvalidMessage, RefusedRecord) as error:
        why = error.detail if isinstance(error, InvalidMessage) else str(error)
        errors().print(f"{letter.id} ({letter.message.reason}): {why}", style="yellow", markup=False)
        return "impossible"
    if dry_run:
        size = "null" if record.value is None else f"{len(record.value):,} bytes"
        key = "null" if record.key is None else _text(record.key)
        where = "" if record.partition is None else f" partition {record.partition}"
        click.echo(f"{letter.id} ({letter.message.reason}): {size} with key {key} to {record.topic}{where}")
    return "replayed"
