"""The item owner's statistics: decayed counts and transition neighbours, applied exactly once per source offset.

Every row carries how far it is complete (``applied``: source partition -> interactions offset), so a row is
idempotent on its own: after a crash the owner reads its rows back from ``item-signals.v1``, reads
``transitions.v1`` again from the committed offset, and each row skips what it holds already. No transaction
across rows is needed.

Values decay with event time, and late events are decayed on arrival, so the order in which source partitions
interleave does not matter beyond rounding. Sums are float64.

Ids are numbered; everything else lies in flat arrays by number (``_Rows``) that compiled functions change, one call
per message. The neighbours of a row lie in a block (``stream_app.items.blocks``) with at most ``2 * items.neighbours``
entries: a row that is full, or is broadcast with more than ``items.neighbours``, keeps those with the largest
symmetric weights, of equal ones those with the smaller id hash. A number is given to another id once no row and no
neighbour has it.

Memory: 20 bytes per entry of a block, so up to 10 KiB per row with 200 neighbours, and about 250 bytes per numbered
id (rows and all their neighbours, whoever owns them), plus 8 per source partition.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import islice
from operator import itemgetter
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from schemas.arrays import pack_float64, unpack_float64
from schemas.messages import ItemSignals, Transitions
from stream_app.compiled import compiled
from stream_app.errors import InvalidMessage
from stream_app.items.blocks import SIZES, allocate, block_size, no_blocks, release, size_of
from stream_app.items.partitions import item_partition
from stream_app.settings import ItemSettings
from stream_app.users.state import id_hash

__all__ = ["ItemStatistics", "TakenRows", "componentwise_newer"]

_DAY = 86_400.0
_REBASE_HALF_LIVES = 128.0
"""Weights are kept in units of the row's reference time; 2^128 is far from the range of float64."""
_START_CAPACITY = 256
_START_ENTRIES = 4_096
_AT_ONCE = 8
"""Entries that are looked through together."""

_OLDEST, _NEWEST, _COUNT, _UNUSED, _CHANGED, _TOUCHED = range(6)
"""Places in ``_Rows.state``: the ends of the list of rows by last touch (-1: none), how many rows there are, how many
numbers wait in ``unused``; and of the last message how many rows changed and how many of these were clean before."""


class _Rows(NamedTuple):
    """Arrays by number of an id, and ``state``."""

    tie: NDArray[np.int64]
    owned: NDArray[np.bool_]
    present: NDArray[np.bool_]
    dirty: NDArray[np.bool_]
    references: NDArray[np.int32]
    queued: NDArray[np.bool_]
    unused: NDArray[np.int32]
    older: NDArray[np.int32]
    newer: NDArray[np.int32]
    at: NDArray[np.float64]
    reference: NDArray[np.float64]
    counts: NDArray[np.float64]
    shown: NDArray[np.float64]
    starts: NDArray[np.int64]
    lengths: NDArray[np.int32]
    sizes: NDArray[np.int8]
    state: NDArray[np.int64]


class _Links(NamedTuple):
    """The neighbours of all rows: blocks of entries."""

    numbers: NDArray[np.int32]
    symmetric: NDArray[np.float64]
    directed: NDArray[np.float64]
    free: NDArray[np.int64]


@dataclass(slots=True)
class TakenRows:
    """Rows to broadcast, as arrays; see :meth:`ItemStatistics.take_arrays`.

    Attributes:
        evicted: ids of items that have no row any more.
        numbers: int32 [k], of the rows.
        lengths: int32 [k], how many of the entries below are each row's, one row after the other.
        neighbours: int32 [sum of lengths], numbers.
        symmetric, directed: float64 [sum of lengths].
        counts: float64 [k, columns].
        at: float64 [k], event times (seconds) everything is stated at.
        applied: by source partition: int64 [k], -1 for none.
        shown: float64 [k], how often each was shown while it was new.
    """

    evicted: list[str]
    numbers: NDArray[np.int32]
    lengths: NDArray[np.int32]
    neighbours: NDArray[np.int32]
    symmetric: NDArray[np.float64]
    directed: NDArray[np.float64]
    counts: NDArray[np.float64]
    at: NDArray[np.float64]
    applied: dict[str, NDArray[np.int64]]
    shown: NDArray[np.float64]


def componentwise_newer(candidate: dict[str, int], held: dict[str, int]) -> bool:
    """Whether a row complete through ``candidate`` holds everything of one complete through ``held``."""
    return all(candidate.get(partition, -1) >= offset for partition, offset in held.items())


class ItemStatistics:
    """Rows of the items that one partition of ``transitions.v1`` owns.

    Args:
        partition: the owned partition.
        partitions: how many there are.
        settings: half-lives, bounds.
    """

    def __init__(self, partition: int, partitions: int, settings: ItemSettings) -> None:
        self.partition = partition
        self.partitions = partitions
        self._settings = settings
        self._half_lives = np.array([days * _DAY for days in settings.half_lives_days])
        self._transition_half_life = settings.transition_half_life_days * _DAY
        self._number_of: dict[str, int] = {}
        self._ids: list[str | None] = []
        self._free_numbers: list[int] = []
        self._columns: dict[int, int] = {}
        self._applied = np.full((0, _START_CAPACITY), -1, np.int64)
        size, columns = _START_CAPACITY, len(self._half_lives) + 1
        self._rows = _Rows(
            tie=np.zeros(size, np.int64),
            owned=np.zeros(size, np.bool_),
            present=np.zeros(size, np.bool_),
            dirty=np.zeros(size, np.bool_),
            references=np.zeros(size, np.int32),
            queued=np.zeros(size, np.bool_),
            unused=np.zeros(size, np.int32),
            older=np.full(size, -1, np.int32),
            newer=np.full(size, -1, np.int32),
            at=np.zeros(size),
            reference=np.zeros(size),
            counts=np.zeros((size, columns)),
            shown=np.zeros(size),
            starts=np.zeros(size, np.int64),
            lengths=np.zeros(size, np.int32),
            sizes=np.full(size, -1, np.int8),
            state=np.array([-1, -1, 0, 0, 0, 0], np.int64),
        )
        self._links = _Links(
            np.zeros(_START_ENTRIES, np.int32), np.zeros(_START_ENTRIES), np.zeros(_START_ENTRIES), no_blocks()
        )
        # Where a reader keeps each id, -1: not known; see places().
        self._places = np.full(size, -1, np.int32)
        self._places_of = -1
        self._dirty: dict[int, int] = {}
        self._evicted: dict[str, int] = {}
        self._in_flight: dict[str, int] = {}
        self._next_offset: int | None = None

    def __len__(self) -> int:
        return int(self._rows.state[_COUNT])

    def __contains__(self, item_id: str) -> bool:
        number = self._number_of.get(item_id, -1)
        return number >= 0 and bool(self._rows.present[number])

    @property
    def item_ids(self) -> list[str]:
        """The items with a row."""
        return [self._id(number) for number in np.flatnonzero(self._rows.present).tolist()]

    @property
    def numbered(self) -> int:
        """Ids that are held: items with a row, and their neighbours."""
        return len(self._number_of)

    @property
    def waiting(self) -> int:
        """Rows that changed since they were last taken for broadcast."""
        return len(self._dirty) + len(self._evicted)

    def apply(self, message: Transitions, *, offset: int) -> int:
        """Apply a message of the owned partition; returns how many rows changed.

        Args:
            message: transitions in the order of their source offsets.
            offset: the message's own offset in ``transitions.v1``.

        Raises:
            InvalidMessage: when weights and ids differ in number, or a source offset is no 64-bit integer; nothing
                was applied.
        """
        rows = message.rows
        if any(not len(row.previous) == len(row.symmetric) == len(row.directed) for row in rows):
            raise InvalidMessage("invalid_field", "rows: previous, symmetric and directed differ in length")
        try:
            offsets = np.array([row.offset for row in rows], np.int64)
        except OverflowError as error:
            raise InvalidMessage("invalid_field", "rows: an offset is no 64-bit integer") from error
        number_of = self._number_of
        for row in rows:
            for item_id in (row.item_id, *row.previous):
                if item_id not in number_of:
                    self._intern(item_id)
        items = np.array([number_of[row.item_id] for row in rows], np.int32)
        previous = np.array([number_of[other] for row in rows for other in row.previous], np.int32)
        ends = np.cumsum(np.array([len(row.previous) for row in rows], np.int64))
        at = np.array([row.at for row in rows], np.float64)
        counts = np.array([row.count for row in rows], np.float64)
        shown = np.array([row.shown for row in rows], np.float64)
        symmetric = np.array([weight for row in rows for weight in row.symmetric], np.float64)
        directed = np.array([weight for row in rows for weight in row.directed], np.float64)
        column = self._column(message.source_partition)
        touched = np.empty(len(items) + len(previous), np.int32)
        state = self._rows.state
        state[_CHANGED] = state[_TOUCHED] = 0
        done = 0
        while True:
            done = _apply(
                done, items, offsets, at, counts, shown, ends, previous, symmetric, directed, column, touched,
                self._settings.neighbours, self._half_lives, self._transition_half_life,
                self._rows, self._links, self._applied,
            )  # fmt: skip
            if done == len(items):
                break
            self._room(_room_for(int(ends[done] - (ends[done - 1] if done else 0)), self._settings.neighbours))
        for number in touched[: state[_TOUCHED]].tolist():
            self._dirty[number] = offset
            if self._evicted:
                self._evicted.pop(self._id(number), None)
        changed = int(state[_CHANGED])
        self._next_offset = offset + 1
        while state[_COUNT] > self._settings.tracked:
            number = int(state[_OLDEST])
            self._evicted[self._id(number)] = self._dirty.pop(number, offset)
            _drop(number, self._rows, self._links, self._applied)
        self._reclaim()
        return changed

    def skip(self, offset: int) -> None:
        """A message of the owned partition that cannot be applied: only its offset counts."""
        self._next_offset = offset + 1

    def _id(self, number: int) -> str:
        item_id = self._ids[number]
        if item_id is None:
            raise KeyError(f"number {number} belongs to no item")
        return item_id

    def _column(self, source: int) -> int:
        column = self._columns.get(source)
        if column is None:
            column = self._columns[source] = len(self._columns)
            self._applied = np.concatenate([self._applied, np.full((1, self._applied.shape[1]), -1, np.int64)])
        return column

    def _intern(self, item_id: str) -> int:
        """The number of an id, given when it has none; it is taken back when nothing refers to it."""
        number = self._number_of.get(item_id)
        if number is not None:
            return number
        if self._free_numbers:
            number = self._free_numbers.pop()
            self._ids[number] = item_id
        else:
            number = len(self._ids)
            if number == len(self._rows.tie):
                self._grow()
            self._ids.append(item_id)
        self._number_of[item_id] = number
        self._places[number] = -1
        self._rows.tie[number] = id_hash(item_id)
        self._rows.owned[number] = item_partition(item_id, self.partitions) == self.partition
        return number

    def _grow(self) -> None:
        """Double the arrays by number."""
        size = len(self._rows.tie)
        fresh = {"older": -1, "newer": -1, "sizes": -1}
        grown = {
            name: np.concatenate([array, np.full((size, *array.shape[1:]), fresh.get(name, 0), array.dtype)])
            for name, array in self._rows._asdict().items()
            if name != "state"
        }
        self._rows = self._rows._replace(**grown)
        self._places = np.concatenate([self._places, np.full(size, -1, np.int32)])
        self._applied = np.concatenate([self._applied, np.full((len(self._columns), size), -1, np.int64)], axis=1)

    def _room(self, entries: int) -> None:
        """See to it that ``entries`` more fit at the untouched end of the blocks."""
        links = self._links
        size = len(links.numbers)
        needed = int(links.free[SIZES]) + entries
        if needed <= size:
            return
        while size < needed:
            size *= 2
        grown = size - len(links.numbers)
        self._links = _Links(
            np.concatenate([links.numbers, np.zeros(grown, np.int32)]),
            np.concatenate([links.symmetric, np.zeros(grown)]),
            np.concatenate([links.directed, np.zeros(grown)]),
            links.free,
        )

    def _reclaim(self) -> None:
        """Take back the numbers that nothing refers to any more."""
        rows = self._rows
        waiting = rows.unused[: rows.state[_UNUSED]].copy()
        if not len(waiting):
            return
        rows.state[_UNUSED] = 0
        rows.queued[waiting] = False
        for number in waiting[rows.references[waiting] == 0].tolist():
            del self._number_of[self._id(number)]
            self._ids[number] = None
            self._free_numbers.append(number)

    def take(self, limit: int) -> list[tuple[str, ItemSignals | None]]:
        """Rows to broadcast, the longest waiting first, at most ``limit``; None says the item was evicted.

        Until :meth:`taken_are_durable` is called they count as not durable for :meth:`commit_offset`. One broadcast
        at a time: end it with that or :meth:`taken_are_lost` before the next.
        """
        evicted = list(islice(self._evicted, limit))
        numbers = list(islice(self._dirty, limit - len(evicted)))
        for item_id in evicted:
            self._in_flight[item_id] = self._evicted[item_id]
        for number in numbers:
            self._in_flight[self._id(number)] = self._dirty[number]
        taken = self.take_arrays(limit)
        found: list[tuple[str, ItemSignals | None]] = [(item_id, None) for item_id in taken.evicted]
        found.extend((message.item_id, message) for message in self.messages(taken))
        return found

    def take_arrays(self, limit: int) -> TakenRows:
        """What :meth:`take` would return, for a reader in this process: numbers instead of ids, arrays instead of
        messages. Such a reader has them at once, so they count as durable."""
        evicted = list(islice(self._evicted, limit))
        for item_id in evicted:
            del self._evicted[item_id]
        numbers = list(islice(self._dirty, limit - len(evicted)))
        if len(numbers) == len(self._dirty):
            self._dirty = {}
        else:
            for number in numbers:
                del self._dirty[number]
        taken = self._stated(np.array(numbers, np.int32), evicted)
        self._rows.dirty[taken.numbers] = False
        return taken

    def messages(self, taken: TakenRows) -> list[ItemSignals]:
        """The rows of ``taken`` as messages of ``item-signals.v1``; before anything else changes."""
        found = []
        end = 0
        for place, (number, length) in enumerate(zip(taken.numbers.tolist(), taken.lengths.tolist(), strict=True)):
            begin, end = end, end + length
            found.append(
                ItemSignals(
                    item_id=self._id(number),
                    at=float(taken.at[place]),
                    counts=taken.counts[place].tolist(),
                    neighbours=[self._id(number) for number in taken.neighbours[begin:end].tolist()],
                    symmetric=pack_float64(taken.symmetric[begin:end]),
                    directed=pack_float64(taken.directed[begin:end]),
                    applied={
                        source: int(offsets[place]) for source, offsets in taken.applied.items() if offsets[place] >= 0
                    },
                    shown=float(taken.shown[place]),
                )
            )
        return found

    def stated(self, item_ids: Sequence[str]) -> list[ItemSignals]:
        """The rows of items as they would be broadcast now; they go on waiting if they do.

        Raises:
            KeyError: when an item has no row.
        """
        for item_id in item_ids:
            if item_id not in self:
                raise KeyError(f"item {item_id!r} has no row in partition {self.partition}")
        numbers = np.array([self._number_of[item_id] for item_id in item_ids], np.int32)
        return self.messages(self._stated(numbers, []))

    def _stated(self, numbers: NDArray[np.int32], evicted: list[str]) -> TakenRows:
        """Rows as they are broadcast; cut to ``items.neighbours``, and the counts moved to the time they are stated at.

        What is broadcast is also what a new owner starts from: exactly the same is kept.
        """
        lengths, neighbours, symmetric, directed, counts, at = _state(
            numbers, self._settings.neighbours, self._half_lives, self._transition_half_life, self._rows, self._links
        )
        applied = {str(source): self._applied[column, numbers] for source, column in self._columns.items()}
        self._reclaim()
        shown = self._rows.shown[numbers]
        return TakenRows(evicted, numbers, lengths, neighbours, symmetric, directed, counts, at, applied, shown)

    def places(self, numbers: NDArray[np.int32], intern: Callable[[str], int], *, version: int) -> NDArray[np.int32]:
        """Where the one reader in this process keeps ids, looked up once per id: int32 [len(numbers)].

        Args:
            numbers: int32, of ids in :class:`TakenRows`.
            intern: the place of an id, negative while it has none.
            version: of what ``intern`` says; after another one everything is looked up again.
        """
        if version != self._places_of:
            self._places.fill(-1)
            self._places_of = version
        found: NDArray[np.int32] = self._places[numbers]
        missing = np.flatnonzero(found < 0)
        if len(missing):
            for number in dict.fromkeys(numbers[missing].tolist()):
                self._places[number] = intern(self._id(number))
            found = self._places[numbers]
        return found

    def taken_are_durable(self) -> None:
        """The rows of the last :meth:`take` are acknowledged by the broker."""
        self._in_flight = {}

    def taken_are_lost(self) -> None:
        """The rows of the last :meth:`take` may not have reached the broker: they wait again, before all others."""
        for item_id, offset in self._in_flight.items():
            if item_id in self:
                number = self._number_of[item_id]
                self._dirty[number] = min(offset, self._dirty.get(number, offset))
                self._rows.dirty[number] = True
            else:
                self._evicted[item_id] = min(offset, self._evicted.get(item_id, offset))
        self._dirty = dict(sorted(self._dirty.items(), key=itemgetter(1)))
        self._in_flight = {}

    def commit_offset(self) -> int | None:
        """The offset of ``transitions.v1`` everything before which is durable in ``item-signals.v1``."""
        # Rows became dirty in the order of offsets, so the first is the least; of the few others all are looked at.
        first_dirty = islice(self._dirty.values(), 1)
        return min((*first_dirty, *self._evicted.values(), *self._in_flight.values()), default=self._next_offset)

    def restore(self, signals: ItemSignals) -> bool:
        """Take over a row as it was broadcast; False when a row that holds as much or more is there already.

        Raises:
            ValueError: when its arrays do not fit together, or a number is out of range.
        """
        item_id = signals.item_id
        if item_id in self:
            held = self._applied[:, self._number_of[item_id]].tolist()
            applied = {str(source): held[column] for source, column in self._columns.items()}
            if not componentwise_newer(signals.applied, applied):
                return False
        symmetric = unpack_float64(signals.symmetric)
        directed = unpack_float64(signals.directed)
        neighbours = signals.neighbours
        if not len(symmetric) == len(directed) == len(neighbours):
            raise ValueError(f"item {item_id!r}: neighbours and weights differ in length")
        columns = len(self._half_lives) + 1
        if len(signals.counts) != columns:
            raise ValueError(
                f"item {item_id!r}: {len(signals.counts)} counts, items.half_lives_days asks for {columns}"
            )
        if not all(-(2**63) <= offset < 2**63 for offset in signals.applied.values()):
            raise ValueError(f"item {item_id!r}: an offset of {signals.applied} is no 64-bit integer")
        applied_to = {self._column(int(source)): offset for source, offset in signals.applied.items()}
        if len(set(neighbours)) < len(neighbours):
            last = {other: place for place, other in enumerate(neighbours)}
            neighbours, kept = list(last), list(last.values())
            symmetric, directed = symmetric[kept], directed[kept]
        number = self._intern(item_id)
        others = np.array([self._intern(other) for other in neighbours], np.int32)
        self._room(block_size(size_of(len(others))))
        _restore(
            number, others, symmetric.astype(np.float64), directed.astype(np.float64), signals.at,
            np.array(signals.counts, np.float64), signals.shown, self._settings.neighbours, self._rows, self._links,
        )  # fmt: skip
        self._applied[:, number] = -1
        for column, offset in applied_to.items():
            self._applied[column, number] = offset
        self._reclaim()
        return True

    def forget(self, item_id: str) -> None:
        """Drop a row that was broadcast as evicted."""
        if item_id in self:
            number = self._number_of[item_id]
            self._dirty.pop(number, None)
            _drop(number, self._rows, self._links, self._applied)
            self._reclaim()


@compiled
def _room_for(previous: int, limit: int) -> int:
    """Entries a transition may need at the untouched end: every row it touches may move through all sizes."""
    return 2 * (1 + previous) * block_size(size_of(2 * limit))


@compiled
def _queue(number: int, rows: _Rows) -> None:
    """Remember a number that may have become free."""
    if rows.references[number] == 0 and not rows.queued[number]:
        rows.queued[number] = True
        rows.unused[rows.state[_UNUSED]] = number
        rows.state[_UNUSED] += 1


@compiled
def _unlink(number: int, rows: _Rows) -> None:
    """Take a row out of the list of rows by last touch."""
    older, newer = rows.older[number], rows.newer[number]
    if older >= 0:
        rows.newer[older] = newer
    else:
        rows.state[_OLDEST] = newer
    if newer >= 0:
        rows.older[newer] = older
    else:
        rows.state[_NEWEST] = older


@compiled
def _append(number: int, rows: _Rows) -> None:
    """Put a row at the end of the list: it was touched last."""
    newest = rows.state[_NEWEST]
    rows.older[number] = newest
    rows.newer[number] = -1
    if newest >= 0:
        rows.newer[newest] = number
    else:
        rows.state[_OLDEST] = number
    rows.state[_NEWEST] = number


@compiled
def _create(number: int, at: float, rows: _Rows) -> None:
    rows.present[number] = True
    rows.at[number] = at
    rows.reference[number] = at
    rows.counts[number] = 0.0
    rows.shown[number] = 0.0
    rows.lengths[number] = 0
    rows.references[number] += 1
    rows.state[_COUNT] += 1
    _append(number, rows)


@compiled
def _unlink_neighbours(number: int, rows: _Rows, links: _Links) -> None:
    """A row has no neighbours any more."""
    start = rows.starts[number]
    for entry in range(start, start + rows.lengths[number]):
        other = links.numbers[entry]
        rows.references[other] -= 1
        _queue(other, rows)
    if rows.sizes[number] >= 0:
        release(start, rows.sizes[number], links.numbers, links.free)
    rows.sizes[number] = -1
    rows.lengths[number] = 0


@compiled
def _drop(number: int, rows: _Rows, links: _Links, applied: NDArray[np.int64]) -> None:
    """Remove a row."""
    _unlink_neighbours(number, rows, links)
    _unlink(number, rows)
    rows.present[number] = False
    rows.dirty[number] = False
    applied[:, number] = -1
    rows.state[_COUNT] -= 1
    rows.references[number] -= 1
    _queue(number, rows)


@compiled
def _cut(number: int, limit: int, rows: _Rows, links: _Links) -> None:
    """Keep the ``limit`` neighbours with the largest symmetric weights, of equal ones those with the smaller hash."""
    start = rows.starts[number]
    while rows.lengths[number] > limit:
        worst = start
        for entry in range(start + 1, start + rows.lengths[number]):
            if links.symmetric[entry] < links.symmetric[worst] or (
                links.symmetric[entry] == links.symmetric[worst]
                and rows.tie[links.numbers[entry]] > rows.tie[links.numbers[worst]]
            ):
                worst = entry
        other = links.numbers[worst]
        rows.lengths[number] -= 1
        last = start + rows.lengths[number]
        links.numbers[worst] = links.numbers[last]
        links.symmetric[worst] = links.symmetric[last]
        links.directed[worst] = links.directed[last]
        rows.references[other] -= 1
        _queue(other, rows)


@compiled
def _find(wanted: int, start: int, end: int, numbers: NDArray[np.int32]) -> int:
    """Where a number is among those from ``start`` to ``end``, -1: nowhere. Eight at a time, which the processor
    compares at once; most rows are long, and most of them do not have what is looked for near the beginning."""
    number = np.int32(wanted)
    while end - start >= _AT_ONCE:
        met = np.int32(0)
        for step in range(_AT_ONCE):
            met |= np.int32(numbers[start + step] == number)
        if met:
            break
        start += _AT_ONCE
    for entry in range(start, end):
        if numbers[entry] == number:
            return entry
    return -1


@compiled
def _add(number: int, other: int, symmetric: float, directed: float, limit: int, rows: _Rows, links: _Links) -> None:
    """Add weights to a neighbour of a row."""
    start, length = rows.starts[number], rows.lengths[number]
    held = _find(other, start, start + length, links.numbers)
    if held >= 0:
        links.symmetric[held] += symmetric
        links.directed[held] += directed
        return
    if length >= 2 * limit:
        _cut(number, limit, rows, links)
        length = rows.lengths[number]
    size = rows.sizes[number]
    if size < 0 or length == block_size(size):
        moved = allocate(size + 1, links.numbers, links.free)
        for step in range(length):
            links.numbers[moved + step] = links.numbers[start + step]
            links.symmetric[moved + step] = links.symmetric[start + step]
            links.directed[moved + step] = links.directed[start + step]
        if size >= 0:
            release(start, size, links.numbers, links.free)
        rows.starts[number] = start = moved
        rows.sizes[number] = size + 1
    links.numbers[start + length] = other
    links.symmetric[start + length] = symmetric
    links.directed[start + length] = directed
    rows.lengths[number] = length + 1
    rows.references[other] += 1


@compiled
def _touch(number: int, at: float, column: int, offset: int, touched: NDArray[np.int32], rows: _Rows,
           applied: NDArray[np.int64]) -> bool:  # fmt: skip
    """Make or move up a row, dirty and applied through ``offset``; False when it was applied before."""
    if not rows.present[number]:
        _create(number, at, rows)
    elif offset <= applied[column, number]:
        return False
    else:
        _unlink(number, rows)
        _append(number, rows)
    applied[column, number] = offset
    if not rows.dirty[number]:
        rows.dirty[number] = True
        touched[rows.state[_TOUCHED]] = number
        rows.state[_TOUCHED] += 1
    rows.state[_CHANGED] += 1
    return True


@compiled
def _decay_counts(number: int, at: float, half_lives: NDArray[np.float64], rows: _Rows) -> None:
    elapsed = at - rows.at[number]
    for column, half_life in enumerate(half_lives):
        rows.counts[number, column] *= 2.0 ** (-elapsed / half_life)
    rows.at[number] = at


@compiled
def _unit(number: int, at: float, half_life: float, rows: _Rows, links: _Links) -> float:
    """What a weight of 1 at time ``at`` is in the row's units; moves the reference before they overflow."""
    lives = (at - rows.reference[number]) / half_life
    if lives > _REBASE_HALF_LIVES:
        shrink = 2.0**-lives
        start = rows.starts[number]
        for entry in range(start, start + rows.lengths[number]):
            links.symmetric[entry] *= shrink
            links.directed[entry] *= shrink
        rows.reference[number] = at
        return 1.0
    # Far in the past the unit underflows to zero, which is what such an event is worth.
    return float(2.0 ** max(lives, -1_000.0))


@compiled
def _apply(
    first: int,
    items: NDArray[np.int32],
    offsets: NDArray[np.int64],
    at: NDArray[np.float64],
    counts: NDArray[np.float64],
    shown: NDArray[np.float64],
    ends: NDArray[np.int64],
    previous: NDArray[np.int32],
    symmetric: NDArray[np.float64],
    directed: NDArray[np.float64],
    column: int,
    touched: NDArray[np.int32],
    limit: int,
    half_lives: NDArray[np.float64],
    half_life: float,
    rows: _Rows,
    links: _Links,
    applied: NDArray[np.int64],
) -> int:
    """Apply transitions from ``first`` on, as far as there is room for neighbours; returns the next to apply."""
    for place in range(first, len(items)):
        item, offset, time = items[place], offsets[place], at[place]
        begin, end = (ends[place - 1] if place > 0 else 0), ends[place]
        if links.free[SIZES] + _room_for(end - begin, limit) > len(links.numbers):
            return place
        if rows.owned[item] and _touch(item, time, column, offset, touched, rows, applied):
            rows.shown[item] += shown[place]
            # An impression is no event of the item: the time its counts are stated at is that of its last one.
            if counts[place] > 0.0 and time > rows.at[item]:
                _decay_counts(item, time, half_lives, rows)
            late = rows.at[item] - time
            for life in range(len(half_lives)):
                rows.counts[item, life] += counts[place] * 2.0 ** (-late / half_lives[life])
            rows.counts[item, len(half_lives)] += counts[place]
            unit = _unit(item, time, half_life, rows, links) * counts[place]
            for entry in range(begin, end):
                _add(item, previous[entry], symmetric[entry] * unit, 0.0, limit, rows, links)
        for entry in range(begin, end):
            other = previous[entry]
            if rows.owned[other] and _touch(other, time, column, offset, touched, rows, applied):
                unit = _unit(other, time, half_life, rows, links) * counts[place]
                _add(other, item, symmetric[entry] * unit, directed[entry] * unit, limit, rows, links)
        _queue(item, rows)
        for entry in range(begin, end):
            _queue(previous[entry], rows)
    return len(items)


@compiled
def _state(
    numbers: NDArray[np.int32],
    limit: int,
    half_lives: NDArray[np.float64],
    half_life: float,
    rows: _Rows,
    links: _Links,
) -> tuple[
    NDArray[np.int32],
    NDArray[np.int32],
    NDArray[np.float64],
    NDArray[np.float64],
    NDArray[np.float64],
    NDArray[np.float64],
]:
    """Rows as they are broadcast: lengths, neighbours, symmetric, directed, counts, at (see ``TakenRows``)."""
    lengths = np.empty(len(numbers), np.int32)
    total = 0
    for place, number in enumerate(numbers):
        _cut(number, limit, rows, links)
        lengths[place] = rows.lengths[number]
        total += rows.lengths[number]
    neighbours = np.empty(total, np.int32)
    symmetric = np.empty(total)
    directed = np.empty(total)
    counts = np.empty((len(numbers), len(half_lives) + 1))
    at = np.empty(len(numbers))
    into = 0
    for place, number in enumerate(numbers):
        # Statistics are stated at the latest event time seen by the counts; neighbours are moved to it.
        unit = 2.0 ** (-max(rows.at[number] - rows.reference[number], 0.0) / half_life)
        start = rows.starts[number]
        for entry in range(start, start + rows.lengths[number]):
            neighbours[into] = links.numbers[entry]
            symmetric[into] = links.symmetric[entry] * unit
            directed[into] = links.directed[entry] * unit
            into += 1
        if rows.reference[number] > rows.at[number]:
            _decay_counts(number, rows.reference[number], half_lives, rows)
        at[place] = rows.at[number]
        counts[place] = rows.counts[number]
    return lengths, neighbours, symmetric, directed, counts, at


@compiled
def _restore(
    number: int,
    others: NDArray[np.int32],
    symmetric: NDArray[np.float64],
    directed: NDArray[np.float64],
    at: float,
    counts: NDArray[np.float64],
    shown: float,
    limit: int,
    rows: _Rows,
    links: _Links,
) -> None:
    """Replace a row, or make it; room for its block was made."""
    if rows.present[number]:
        _unlink_neighbours(number, rows, links)
    else:
        _create(number, at, rows)
    rows.at[number] = at
    rows.reference[number] = at
    rows.counts[number] = counts
    rows.shown[number] = shown
    if len(others):
        size = size_of(len(others))
        start = allocate(size, links.numbers, links.free)
        rows.starts[number] = start
        rows.sizes[number] = size
        for entry in range(len(others)):
            links.numbers[start + entry] = others[entry]
            links.symmetric[start + entry] = symmetric[entry]
            links.directed[start + entry] = directed[entry]
            rows.references[others[entry]] += 1
        rows.lengths[number] = len(others)
        if len(others) > 2 * limit:
            _cut(number, limit, rows, links)
