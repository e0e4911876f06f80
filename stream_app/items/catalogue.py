"""The item table of a replica: ids to dense rows, and what decides whether an item may be served.

Rows number the arrays of the whole serving side (vectors, statistics, neighbours). A row belongs to one id for as
long as anything refers to it; a deleted item keeps its row, marked as not known, until :meth:`Catalogue.reclaim`.
Ids that only statistics mention get a row too, up to a bound, so that what was learned before an item's
description arrived takes effect when it does.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from itertools import count as numbers
from pathlib import Path
from typing import Any, cast
from zipfile import BadZipFile

import msgspec
import numpy as np
from numpy.typing import NDArray

from schemas.messages import Item
from stream_app.errors import SnapshotError
from stream_app.items.attributes import Attributes
from stream_app.textify.clean import clean
from stream_app.users.state import id_hash

__all__ = ["Catalogue", "ItemFacts"]

_START_CAPACITY = 1_024
_DEAREST = float(np.finfo(np.float32).max)
_COLUMNS = ("known", "available", "published_at", "expires_at", "price")


def label(kind: str, name: str) -> str:
    """A category or brand to compare by: without regard to case and outer spaces."""
    return f"{kind}:{name.strip().casefold()}"


_numberings = numbers(1)


class ItemFacts(msgspec.Struct, frozen=True, array_like=True):
    """What slates and people are shown of an item; the description stays in ``items.v1``."""

    title: str
    categories: tuple[str, ...] = ()
    brand: str | None = None
    owner_id: str | None = None
    language: str | None = None
    price: float | None = None
    currency: str | None = None
    tags: tuple[str, ...] = ()


@dataclass(slots=True)
class _Servable:
    """The servable mask and the half-open span of wall-clock seconds it holds for."""

    mask: NDArray[np.bool_]
    since: float
    until: float


class Catalogue:
    """Items by id and by dense row.

    Args:
        unknown_items: rows kept for ids without a catalogue entry (never seen, or deleted) at most.

    Attributes:
        dropped: ids that found no row because ``unknown_items`` was reached.
        numbering: grows whenever an id gets a row or loses it; no two catalogues of a process have the same.
        reclaims: grows whenever rows are freed: a row looked up before may belong to another id.
        version: grows with every change of an entry.
        attributes: what rules ask about items, by row.
    """

    def __init__(self, *, unknown_items: int) -> None:
        self._unknown_limit = unknown_items
        self._row_of: dict[str, int] = {}
        self._row_of_hash: dict[int, int] = {}
        self._ids: list[str | None] = []
        self._facts: list[ItemFacts | None] = []
        self._free: list[int] = []
        self._known_count = 0
        self._servable: _Servable | None = None
        self.dropped = 0
        self.reclaims = 0
        self.numbering = next(_numberings)
        self.version = 0
        self.attributes = Attributes()
        self._allocate(_START_CAPACITY)

    def _allocate(self, capacity: int) -> None:
        self._known = np.zeros(capacity, np.bool_)
        self._available = np.zeros(capacity, np.bool_)
        self._published_at = np.full(capacity, -np.inf)
        self._expires_at = np.full(capacity, np.inf)
        self._price = np.full(capacity, np.nan, np.float32)
        self._id_hash = np.full(capacity, -1, np.int64)

    def __len__(self) -> int:
        """How many items are in the catalogue (rows of unknown ids apart)."""
        return self._known_count

    @property
    def rows(self) -> int:
        """How many rows there are, used or not: the length of every per-row array."""
        return len(self._ids)

    @property
    def unknown(self) -> int:
        """Rows whose id has no catalogue entry."""
        return len(self._row_of) - self._known_count

    @property
    def known(self) -> NDArray[np.bool_]:
        """Whether the row's item has an entry; bool [rows], a view."""
        return self._known[: self.rows]

    @property
    def published_at(self) -> NDArray[np.float64]:
        """Seconds since 1970 by row, -inf where none is given; a view."""
        return self._published_at[: self.rows]

    @property
    def price(self) -> NDArray[np.float32]:
        """Price by row in units of the item's currency, NaN where none is given; a view."""
        return self._price[: self.rows]

    @property
    def id_hash(self) -> NDArray[np.int64]:
        """:func:`stream_app.users.state.id_hash` of the row's id, -1 for a free row; a view."""
        return self._id_hash[: self.rows]

    def row(self, item_id: str) -> int:
        """The row of an id, -1 when it has none."""
        return self._row_of.get(item_id, -1)

    def rows_of(self, item_ids: Iterable[str]) -> list[int]:
        """The row of each id, -1 where it has none."""
        row_of = self._row_of.get
        return [row_of(item_id, -1) for item_id in item_ids]

    def row_of_hash(self, item_hash: int) -> int:
        """The row of an id hash, -1 when it has none."""
        return self._row_of_hash.get(item_hash, -1)

    def rows_of_hashes(self, hashes: Iterable[int]) -> NDArray[np.int32]:
        """The rows of those of the id hashes that have one, int32."""
        return np.array([row for row in map(self._row_of_hash.get, hashes) if row is not None], np.int32)

    def listed(self, item_id: str) -> bool:
        """Whether the id has an entry that is available; dates are not looked at."""
        row = self._row_of.get(item_id)
        return row is not None and bool(self._known[row] and self._available[row])

    def item_id(self, row: int) -> str:
        """The id of a row in use.

        Raises:
            KeyError: when the row is free.
        """
        item_id = self._ids[row]
        if item_id is None:
            raise KeyError(f"row {row} of the catalogue is free")
        return item_id

    def item_ids(self, rows: Iterable[int]) -> list[str]:
        """:meth:`item_id` of each row."""
        held = self._ids
        found = [held[row] for row in rows]
        if None in found:
            raise KeyError(f"a row of the catalogue is free, of {[*rows]}")
        return cast(list[str], found)

    def facts(self, row: int) -> ItemFacts | None:
        """What is known of the row's item; None when it has no entry."""
        return self._facts[row]

    def labels(self, row: int) -> frozenset[str]:
        """Categories and brand of the row's item, as :func:`label` writes them."""
        facts = self._facts[row]
        if facts is None:
            return frozenset()
        brand = () if facts.brand is None else (label("brand", facts.brand),)
        return frozenset((*(label("category", name) for name in facts.categories), *brand))

    def intern(self, item_id: str) -> int:
        """The row of an id, made when there is none; -1 when ``unknown_items`` rows are taken by such ids."""
        row = self._row_of.get(item_id)
        if row is not None:
            return row
        if self.unknown >= self._unknown_limit:
            self.dropped += 1
            return -1
        return self._new_row(item_id)

    def put(self, item: Item) -> int:
        """Insert or replace an entry; returns its row."""
        row = self._row_of.get(item.item_id)
        if row is None:
            row = self._new_row(item.item_id)
        if not self._known[row]:
            self._known[row] = True
            self._known_count += 1
        self._available[row] = item.available
        self._published_at[row] = _seconds(item.published_at, -math.inf)
        self._expires_at[row] = _seconds(item.expires_at, math.inf)
        # What is dearer than any price is as dear as a number may be here.
        self._price[row] = math.nan if item.price is None else min(item.price, _DEAREST)
        # The title is shown to people in reasons, on pages and terminals: no markup, no control characters.
        self._facts[row] = ItemFacts(
            clean(item.title),
            tuple(item.categories),
            item.brand,
            item.owner_id,
            item.language,
            item.price,
            item.currency,
            tuple(item.tags),
        )
        self._describe(row)
        self._changed(row)
        return row

    def remove(self, item_id: str) -> int:
        """Delete an entry; returns its row (kept for the id), -1 when the id has none."""
        row = self._row_of.get(item_id, -1)
        if row >= 0 and self._known[row]:
            self._forget(row)
            self._known_count -= 1
            self._changed(row)
        return row

    def expiring(self) -> list[tuple[float, str]]:
        """Items with an end: when (seconds since 1970), and which."""
        rows = np.flatnonzero(self.known & np.isfinite(self._expires_at[: self.rows]))
        return [(float(self._expires_at[row]), self.item_id(int(row))) for row in rows]

    def servable(self, now: float) -> NDArray[np.bool_]:
        """Which rows may be shown at ``now`` (wall clock, seconds since 1970): bool [rows], read-only.

        The mask is kept until an item is published or expires, and single entries are changed in place, so a call
        costs nothing in the usual case.
        """
        held = self._servable
        if held is None or not held.since <= now < held.until:
            held = self._servable = self._servable_at(now)
        return held.mask[: self.rows]

    def _servable_at(self, now: float) -> _Servable:
        known = self._known & self._available
        mask = known & (self._published_at <= now) & (self._expires_at > now)
        instants = np.concatenate([self._published_at[known], self._expires_at[known]])
        later = instants[instants > now]
        earlier = instants[instants <= now]
        mask.flags.writeable = True
        return _Servable(
            mask,
            since=float(earlier.max()) if len(earlier) else -math.inf,
            until=float(later.min()) if len(later) else math.inf,
        )

    def _changed(self, row: int) -> None:
        self.version += 1
        held = self._servable
        if held is None:
            return
        if row >= len(held.mask):
            self._servable = None
            return
        held.mask[row] = False
        if not (self._known[row] and self._available[row]):
            return
        published, expires = float(self._published_at[row]), float(self._expires_at[row])
        for instant in (published, expires):
            if held.since < instant < held.until:
                # The mask now holds for a shorter span; which half is only known at the next call.
                self._servable = None
                return
        held.mask[row] = published <= held.since and expires >= held.until

    def _new_row(self, item_id: str) -> int:
        if self._free:
            row = self._free.pop()
            self._ids[row] = item_id
        else:
            row = len(self._ids)
            self._ids.append(item_id)
            self._facts.append(None)
            if row >= len(self._known):
                self._grow(2 * len(self._known))
        item_hash = id_hash(item_id)
        self._id_hash[row] = item_hash
        self.numbering = next(_numberings)
        self._row_of[item_id] = row
        self._row_of_hash[item_hash] = row
        return row

    def _grow(self, capacity: int) -> None:
        held = {name: getattr(self, f"_{name}") for name in (*_COLUMNS, "id_hash")}
        self._allocate(capacity)
        for name, column in held.items():
            getattr(self, f"_{name}")[: len(column)] = column
        self._servable = None

    def _describe(self, row: int) -> None:
        facts = self._facts[row]
        if facts is None:
            self.attributes.set(row)
            return
        self.attributes.set(
            row,
            categories=facts.categories,
            tags=facts.tags,
            brand=facts.brand,
            owner_id=facts.owner_id,
            language=facts.language,
        )

    def _forget(self, row: int) -> None:
        self._known[row] = self._available[row] = False
        self._published_at[row], self._expires_at[row] = -np.inf, np.inf
        self._price[row] = np.nan
        self._facts[row] = None
        self._describe(row)

    def reclaim(self, referenced: NDArray[np.bool_]) -> NDArray[np.int32]:
        """Free the rows of unknown ids that nothing refers to; returns the freed rows, int32.

        Args:
            referenced: bool [rows], rows that statistics or neighbour lists still name.
        """
        freed = np.flatnonzero(~self.known & ~referenced & (self.id_hash >= 0)).astype(np.int32)
        for row in freed.tolist():
            item_id = self.item_id(row)
            del self._row_of[item_id]
            del self._row_of_hash[int(self._id_hash[row])]
            self._ids[row] = None
            self._id_hash[row] = -1
        self.reclaims += bool(len(freed))
        self.numbering = next(_numberings)
        # The lowest rows are reused first, whatever the order of deletion was.
        self._free = sorted({*self._free, *freed.tolist()}, reverse=True)
        return freed

    def save(self, directory: Path) -> None:
        """Write the table into ``directory`` (which exists)."""
        count = self.rows
        columns: dict[str, Any] = {name: getattr(self, f"_{name}")[:count] for name in _COLUMNS}
        np.savez(directory / "catalogue.npz", **columns)
        entries: dict[str, Any] = {"ids": self._ids, "facts": self._facts, "version": self.version}
        (directory / "catalogue.msgpack").write_bytes(msgspec.msgpack.encode(entries))

    @classmethod
    def load(cls, directory: Path, *, unknown_items: int) -> Catalogue:
        """The table that :meth:`save` wrote.

        Raises:
            SnapshotError: when files are missing or do not fit together.
        """
        try:
            packed = msgspec.msgpack.decode((directory / "catalogue.msgpack").read_bytes(), type=_Packed)
            with np.load(directory / "catalogue.npz", allow_pickle=False) as arrays:
                columns = {name: arrays[name] for name in _COLUMNS}
        except (OSError, EOFError, BadZipFile, KeyError, ValueError, msgspec.DecodeError) as error:
            raise SnapshotError(f"the catalogue in {directory} cannot be read: {error}") from error
        count = len(packed.ids)
        if len(packed.facts) != count or any(len(column) != count for column in columns.values()):
            raise SnapshotError(f"the catalogue in {directory}: tables differ in length")
        catalogue = cls(unknown_items=unknown_items)
        catalogue._allocate(max(_START_CAPACITY, 1 << (count + 1).bit_length()))
        catalogue._ids = packed.ids
        catalogue._facts = packed.facts
        catalogue.version = packed.version
        for name, column in columns.items():
            getattr(catalogue, f"_{name}")[:count] = column
        for row, item_id in enumerate(packed.ids):
            if item_id is None:
                catalogue._free.append(row)
                continue
            item_hash = id_hash(item_id)
            catalogue._id_hash[row] = item_hash
            catalogue._row_of[item_id] = row
            catalogue._row_of_hash[item_hash] = row
            catalogue._describe(row)
        catalogue._free.sort(reverse=True)
        catalogue.numbering = next(_numberings)
        catalogue._known_count = int(np.count_nonzero(catalogue.known))
        return catalogue


class _Packed(msgspec.Struct):
    ids: list[str | None]
    facts: list[ItemFacts | None]
    version: int


def _seconds(instant: datetime | None, missing: float) -> float:
    return missing if instant is None else instant.timestamp()
