"""Small made-up logs for tests of evaluation."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from schemas.messages import Interaction, Item

__all__ = ["DAY", "buy", "catalogue", "events", "pairs_log", "write_lines"]

DAY = 86_400.0


def buy(number: int, user: str, item: str | None, at: float, type_: str = "purchase", **more: Any) -> Interaction:
    """One event; ``at`` in seconds since 1970, or since 2001 where small numbers would be before anything accepted."""
    return Interaction(
        event_id=str(number),
        user_id=user,
        type=type_,
        item_id=item,
        occurred_at=datetime.fromtimestamp(at, UTC),
        **more,
    )


def events(*bought: tuple[str, str, float]) -> list[Interaction]:
    """Purchases: user, item, time."""
    return [buy(number, *fields) for number, fields in enumerate(bought)]


def catalogue(count: int) -> list[Item]:
    """Items i0, i1, ..."""
    return [Item(item_id=f"i{number}", title=f"Item {number}") for number in range(count)]


def pairs_log(users: int = 150, items: int = 100, *, seed: int = 1, start: float = 1e9) -> list[Interaction]:
    """Whoever buys an even item buys the next one a day later."""
    rng = np.random.default_rng(seed)
    happened, clock = [], start
    for user in range(users):
        even = 2 * int(rng.integers(items // 2))
        happened += [(f"u{user}", f"i{even}", clock), (f"u{user}", f"i{even + 1}", clock + DAY)]
        clock += DAY + 1.0
    return events(*happened)


def write_lines(path: Path, lines: Iterable[msgspec.Struct | bytes | dict[str, Any]]) -> Path:
    """``path`` with one message, document or raw line each."""
    encoded = (line if isinstance(line, bytes) else msgspec.json.encode(line) for line in lines)
    path.write_bytes(b"".join(line + b"\n" for line in encoded))
    return path
