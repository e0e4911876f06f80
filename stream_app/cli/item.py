"""``tailrace item``: everything that is known of an item, from the three compacted topics."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any, TypeVar

import click

if TYPE_CHECKING:
    from collections.abc import Callable

    from schemas.messages import Item, ItemSignals, ItemVector
    from stream_app.settings import Settings

__all__ = ["item"]

_NEIGHBOURS = 10
T = TypeVar("T")


@click.command()
@click.argument("item_id", metavar="ITEM")
@click.option("--json", "as_json", is_flag=True, help="One JSON object.")
@click.pass_context
def item(context: click.Context, item_id: str, as_json: bool) -> None:
    """Show what is known of ITEM: its catalogue entry, whether it has a vector, its statistics and neighbours.

    Exit status 1 when nothing is known.
    """
    from stream_app.cli.console import run, to_json
    from stream_app.settings import load_settings

    settings = load_settings()
    known = run(_look_up(settings, item_id))
    if as_json:
        click.echo(to_json(_plain(known, settings)))
    else:
        _print(known, settings, item_id)
    if not (known.in_catalogue or known.entry or known.vector or known.signals):
        context.exit(1)


@dataclass(frozen=True, kw_only=True)
class _Known:
    """``in_catalogue`` is True with ``entry`` None for an item that was deleted."""

    in_catalogue: bool
    entry: Item | None
    vector: ItemVector | None
    signals: ItemSignals | None


async def _look_up(settings: Settings, item_id: str) -> _Known:
    import asyncio

    from schemas.decode import decode_item, decode_item_signals, decode_item_vector
    from stream_app.cli.console import PATIENCE_S
    from stream_app.delivery.reading import default_partition, latest
    from stream_app.items.partitions import item_partition
    from stream_app.topics import Topics

    topics, key = Topics(settings), item_id.encode()

    def find(topic: str, partition: Callable[[int], int] | None) -> Any:
        return latest(settings, topic, key, partition=partition, patience_s=PATIENCE_S)

    entry, vector, signals = await asyncio.gather(
        find(topics.items, None),  # any producer, any partitioner
        find(topics.item_vectors, lambda count: default_partition(key, count)),
        find(topics.item_signals, lambda count: item_partition(item_id, count)),
    )
    return _Known(
        in_catalogue=entry is not None,
        entry=entry and decode_item(entry.key, entry.value, entry.headers)[1],
        vector=vector and decode_item_vector(vector.key, vector.value)[1],
        signals=signals and decode_item_signals(signals.key, signals.value)[1],
    )


def _hindrance(entry: Item, now: datetime) -> str | None:
    """Why the item is not recommended at the moment; None when nothing in its entry speaks against it."""
    if not entry.available:
        return "not available"
    if entry.published_at is not None and now < entry.published_at:
        return f"not published before {entry.published_at}"
    if entry.expires_at is not None and now >= entry.expires_at:
        return f"expired since {entry.expires_at}"
    return None


def _neighbours(signals: ItemSignals) -> list[tuple[str, float, float]]:
    """The strongest neighbours: id, symmetric and directed weight."""
    from schemas.arrays import unpack_float64

    rows = zip(
        signals.neighbours,
        unpack_float64(signals.symmetric).tolist(),
        unpack_float64(signals.directed).tolist(),
        strict=True,
    )
    return sorted(rows, key=lambda row: -row[1])[:_NEIGHBOURS]


def _counts(signals: ItemSignals, settings: Settings) -> dict[str, float]:
    names = [f"{days:g} days" for days in settings.items.half_lives_days]
    if len(names) + 1 != len(signals.counts):  # written under other settings
        names = [f"half-life {index + 1}" for index in range(len(signals.counts) - 1)]
    return dict(zip([*names, "all time"], signals.counts, strict=True))


def _plain(known: _Known, settings: Settings) -> dict[str, Any]:
    signals, vector = known.signals, known.vector
    return {
        "item": known.entry,
        "deleted": known.in_catalogue and known.entry is None,
        "vector": vector and {"space": vector.space, "dimensions": vector.dimensions, "text": vector.text},
        "counts": signals and _counts(signals, settings),
        "counts_at": signals and signals.at,
        "neighbours": [
            {"item_id": name, "symmetric": symmetric, "directed": directed}
            for name, symmetric, directed in (_neighbours(signals) if signals else ())
        ],
    }


def _print(known: _Known, settings: Settings, item_id: str) -> None:
    from datetime import UTC

    from rich.table import Table
    from rich.text import Text

    from stream_app.cli.console import output

    table = Table(title=item_id, title_justify="left", show_header=False)
    table.add_column(style="dim")
    table.add_column()

    def row(name: str, text: str) -> None:
        table.add_row(name, Text(text))

    entry, vector, signals = known.entry, known.vector, known.signals
    if entry is None:
        row("catalogue", "deleted" if known.in_catalogue else "not in the catalogue")
    else:
        row("title", entry.title)
        shown = ("description", "categories", "tags", "brand", "price", "currency", "language", "owner_id")
        for name in shown:
            if value := getattr(entry, name):
                row(name, ", ".join(value) if isinstance(value, list) else str(value)[:500])
        row("catalogue", _hindrance(entry, datetime.now(UTC)) or "may be recommended")
    row("vector", f"{vector.dimensions} dimensions, {vector.space}" if vector else "none yet")
    if vector:
        row("text embedded", vector.text[:500])
    if signals is None:
        row("events", "none yet")
    else:
        row("events", ", ".join(f"{name} {count:.4g}" for name, count in _counts(signals, settings).items()))
        row("as of", datetime.fromtimestamp(signals.at, UTC).isoformat(timespec="seconds"))
        for name, symmetric, directed in _neighbours(signals):
            row("neighbour", f"{name}  (together {symmetric:.3g}, after {directed:.3g})")
    output().print(table)
