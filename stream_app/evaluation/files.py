"""Items and interactions of an evaluation, from JSONL files in the contract (``.zst``: Zstandard)."""

from __future__ import annotations

import io
from collections.abc import Container, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, TypeVar

import msgspec
import zstandard

from schemas.messages import Interaction, Item
from stream_app.errors import DatasetError

__all__ = ["first_only", "read_interactions", "read_items"]

_T = TypeVar("_T", Item, Interaction)


def read_items(path: Path) -> list[Item]:
    """Every item of the file; of several with one id the last counts.

    Raises:
        DatasetError: when the file cannot be read or a line is not an item; names the line.
    """
    return list({item.item_id: item for item in _messages(path, Item)}.values())


def read_interactions(path: Path, *, types: Container[str], limit: int | None = None) -> list[Interaction]:
    """Interactions of the file in its order, which must be that of time.

    Args:
        types: event types that are known.
        limit: how many to read; None: all.

    Raises:
        DatasetError: when the file cannot be read, a line is not an interaction of a known type, or goes back in
            time; names the line.
    """
    events: list[Interaction] = []
    for number, event in enumerate(_messages(path, Interaction), start=1):
        if limit is not None and len(events) >= limit:
            break
        if event.type not in types:
            raise DatasetError(f"{path}, line {number}: unknown event type {event.type!r}; add it to event_types")
        if events and event.occurred_at < events[-1].occurred_at:
            raise DatasetError(
                f"{path}, line {number}: {event.occurred_at} is earlier than the line before; sort by occurred_at"
            )
        events.append(event)
    return events


def first_only(events: Iterable[Interaction]) -> list[Interaction]:
    """The events without a user's later interactions with the same item."""
    seen: set[tuple[str, str | None]] = set()
    kept = []
    for event in events:
        pair = (event.user_id, event.item_id)
        if pair not in seen:
            seen.add(pair)
            kept.append(event)
    return kept


def _messages(path: Path, type_: type[_T]) -> Iterator[_T]:
    decoder = msgspec.json.Decoder(type_)
    with _lines(path) as lines:
        number = 0
        try:
            for line in lines:
                number += 1
                if line.strip():
                    yield decoder.decode(line)
        except msgspec.DecodeError as error:
            raise DatasetError(f"{path}, line {number}: not a valid {type_.__name__.lower()}: {error}") from error
        except (OSError, EOFError, zstandard.ZstdError) as error:
            raise DatasetError(f"{path}, after line {number}: cannot be read: {error}") from error


@contextmanager
def _lines(path: Path) -> Iterator[IO[bytes]]:
    try:
        raw = path.open("rb")
    except OSError as error:
        raise DatasetError(f"{path}: {error.strerror or error}; is the path right?") from error
    with raw:
        if path.suffix == ".zst":
            reader = zstandard.ZstdDecompressor().stream_reader(raw, read_across_frames=True)
            yield io.BufferedReader(reader, 1 << 16)
        else:
            yield raw
