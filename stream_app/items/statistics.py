"""The item owner's statistics: decayed counts and transition neighbours, applied exactly once per source offset.

Every row carries how far it is complete (``applied``: source partition -> interactions offset), so a row is
idempotent on its own: after a crash the owner reads its rows back from ``item-signals.v1``, reads
``transitions.v1`` again from the committed offset, and each row skips what it holds already. No transaction
across rows is needed.

Values decay with event time, and late events are decayed on arrival, so the order in which source partitions
interleave does not matter beyond rounding. Sums are float64.

Ids are numbered; everything else lies in flat arrays by number that compiled functions change, one call
per message. The neighbours of a row lie in a block (``stream_app.items.blocks``) with at most ``2 * items.neighbours``
entries: a row that is full, or is broadcast with more than ``items.neighbours``, keeps those with the largest
symmetric weights, of equal ones those with the smaller id hash. A number is given to another id once no row and no
neighbour has it.

Memory: 20 bytes per entry of a block, so up to 10 KiB per row with 200 neighbours, and about 250 bytes per numbered
id (rows and all their neighbours, whoever owns them), plus 8 per source partition.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import chain, islice
from operator import itemgetter
from typing import Any, Final, TypeAlias

import numpy as np
from numpy.typing import NDArray

from schemas.arrays import pack_float64, unpack_float64
from schemas.messages import ItemSignals, Transitions
from stream_app.compiled import compiled, compiled_sums
from stream_app.errors import InvalidMessage
from stream_app.heap import keep_best
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

_OLDEST, _NEWEST, _COUNT, _UNUSED, _CHANGED, _TOUCHED = range(6)
"""Places in the state of all rows: the ends of the list of rows by last touch (-1: none), how many rows there are,
how many numbers wait in ``unused``; and of the last message how many rows changed and how many of these were clean
before."""


_ROW: Final = np.dtype(
    [
        ("at", np.float64),
        ("reference", np.float64),
        ("shown", np.float64),
        ("tie", np.int64),
        ("start", np.int64),
        ("references", np.int32),
        ("older", np.int32),
        ("newer", np.int32),
        ("unused", np.int32),
        ("length", np.int32),
        ("block", np.int8),
        ("owned", np.bool_),
        ("present", np.bool_),
        ("dirty", np.bool_),
        ("queued", np.bool_),
    ],
    align=True,
)
"""What is held of a numbered id, side by side, for one look at the memory: times and counts, its place in the list of
rows by last touch, and of its neighbours the first entry, how many there are, and the size of their block (-1: none).
``unused`` is no part of it: the numbers that wait, by place in that list."""
_Rows: TypeAlias = NDArray[Any]


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
        size = _START_CAPACITY
        self._rows = _fresh(size)
        self._counts = np.zeros((size, len(self._half_lives) + 1))
        self._state = np.array([-1, -1, 0, 0, 0, 0], np.int64)
        # The neighbours of all rows: blocks of entries, and their symmetric and directed weights.
        self._neighbours = np.zeros(_START_ENTRIES, np.int32)
        self._weights = np.zeros((_START_ENTRIES, 2))
        self._free = no_blocks()
        # Where a reader keeps each id, -1: not known; see places().
        self._places = np.full(size, -1, np.int32)
        self._places_of = -1
        self._dirty: dict[int, int] = {}
        self._evicted: dict[str, int] = {}
        self._in_flight: dict[str, int] = {}
        self._next_offset: int | None = None

    def __len__(self) -> int:
        return int(self._state[_COUNT])

    def __contains__(self, item_id: str) -> bool:
        number = self._number_of.get(item_id, -1)
        return number >= 0 and bool(self._rows["present"][number])

    @property
    def item_ids(self) -> list[str]:
        """The items with a row."""
        return [self._id(number) for number in np.flatnonzero(self._rows["present"]).tolist()]

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
        named = [row.item_id for row in rows]
        linked = list(chain.from_iterable([row.previous for row in rows]))
        for item_id in dict.fromkeys(chain(named, linked)):
            if item_id not in number_of:
                self._intern(item_id)
        items = np.array([number_of[item_id] for item_id in named], np.int32)
        previous = np.array([number_of[item_id] for item_id in linked], np.int32)
        ends = np.cumsum(np.array([len(row.previous) for row in rows], np.int64))
        at = np.array([row.at for row in rows], np.float64)
        counts = np.array([row.count for row in rows], np.float64)
        shown = np.array([row.shown for row in rows], np.float64)
        symmetric = np.array(list(chain.from_iterable([row.symmetric for row in rows])), np.float64)
        directed = np.array(list(chain.from_iterable([row.directed for row in rows])), np.float64)
        column = self._column(message.source_partition)
        touched = np.empty(len(items) + len(previous), np.int32)
        state = self._state
        state[_CHANGED] = state[_TOUCHED] = 0
        done = 0
        while True:
            done = _apply(
                done, items, offsets, at, counts, shown, ends, previous, symmetric, directed, column, touched,
                self._settings.neighbours, self._half_lives, self._transition_half_life, self._rows, self._counts,
                state, self._neighbours, self._weights, self._free, self._applied,
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
            _drop(number, self._rows, self._state, self._neighbours, self._free, self._applied)
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
            if number == len(self._rows):
                self._grow()
            self._ids.append(item_id)
        self._number_of[item_id] = number
        self._places[number] = -1
        self._rows["tie"][number] = id_hash(item_id)
        self._rows["owned"][number] = item_partition(item_id, self.partitions) == self.partition
        return number

    def _grow(self) -> None:
        """Double the arrays by number."""
        size = len(self._rows)
        self._rows = np.concatenate([self._rows, _fresh(size)])
        self._counts = np.concatenate([self._counts, np.zeros_like(self._counts)])
        self._places = np.concatenate([self._places, np.full(size, -1, np.int32)])
        self._applied = np.concatenate([self._applied, np.full((len(self._columns), size), -1, np.int64)], axis=1)

    def _room(self, entries: int) -> None:
        """See to it that ``entries`` more fit at the untouched end of the blocks."""
        size = len(self._neighbours)
        needed = int(self._free[SIZES]) + entries
        if needed <= size:
            return
        while size < needed:
            size *= 2
        grown = size - len(self._neighbours)
        self._neighbours = np.concatenate([self._neighbours, np.zeros(grown, np.int32)])
        self._weights = np.concatenate([self._weights, np.zeros((grown, 2))])

    def _reclaim(self) -> None:
        """Take back the numbers that nothing refers to any more."""
        rows = self._rows
        waiting = rows["unused"][: self._state[_UNUSED]].copy()
        if not len(waiting):
            return
        self._state[_UNUSED] = 0
        rows["queued"][waiting] = False
        for number in waiting[rows["references"][waiting] == 0].tolist():
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
        self._rows["dirty"][taken.numbers] = False
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
            numbers, self._settings.neighbours, self._half_lives, self._transition_half_life, self._rows, self._counts,
            self._state, self._neighbours, self._weights,
        )  # fmt: skip
        applied = {str(source): self._applied[column, numbers] for source, column in self._columns.items()}
        self._reclaim()
        shown = self._rows["shown"][numbers]
        return TakenRows(evicted, numbers, lengths, neighbours, symmetric, directed, counts, at, applied, shown)

    def counted(self, item_id: str) -> float:
        """How much was ever counted for an item; 0 without a row."""
        return float(self._counts[self._number_of[item_id], -1]) if item_id in self else 0.0

    def broadcast_all(self, gone: Iterable[str], offset: int) -> None:
        """All rows wait to be broadcast, and that the items of ``gone`` have none, if they have none.

        Args:
            offset: in ``transitions.v1``, of what says so: it is not committed before all of that is durable.
        """
        numbers = np.flatnonzero(self._rows["present"])
        self._rows["dirty"][numbers] = True
        # The first is to be the least.
        offset = min((offset, *self._dirty.values()))
        self._dirty = dict.fromkeys((*self._dirty, *numbers.tolist()), offset)
        self._evicted.update({item_id: offset for item_id in gone if item_id not in self})

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
                self._rows["dirty"][number] = True
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
            np.array(signals.counts, np.float64), signals.shown, self._settings.neighbours, self._rows, self._counts,
            self._state, self._neighbours, self._weights, self._free,
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
            _drop(number, self._rows, self._state, self._neighbours, self._free, self._applied)
            self._reclaim()


@compiled
def _room_for(previous: int, limit: int) -> int:
    """Entries a transition may need at the untouched end: every row it touches may move through all sizes."""
    return 2 * (1 + previous) * block_size(size_of(2 * limit))


@compiled
def _queue(number: int, rows: _Rows, state: NDArray[np.int64]) -> None:
    """Remember a number that may have become free."""
    row = rows[number]
    if row.references == 0 and not row.queued:
        row.queued = True
        rows[state[_UNUSED]].unused = number
        state[_UNUSED] += 1


@compiled
def _unlink(number: int, rows: _Rows, state: NDArray[np.int64]) -> None:
    """Take a row out of the list of rows by last touch."""
    older, newer = rows[number].older, rows[number].newer
    if older >= 0:
        rows[older].newer = newer
    else:
        state[_OLDEST] = newer
    if newer >= 0:
        rows[newer].older = older
    else:
        state[_NEWEST] = older


@compiled
def _append(number: int, rows: _Rows, state: NDArray[np.int64]) -> None:
    """Put a row at the end of the list: it was touched last."""
    newest = state[_NEWEST]
    rows[number].older = newest
    rows[number].newer = -1
    if newest >= 0:
        rows[newest].newer = number
    else:
        state[_OLDEST] = number
    state[_NEWEST] = number


@compiled
def _create(number: int, at: float, rows: _Rows, counts: NDArray[np.float64], state: NDArray[np.int64]) -> None:
    row = rows[number]
    row.present = True
    row.at = at
    row.reference = at
    row.shown = 0.0
    row.length = 0
    row.references += 1
    counts[number] = 0.0
    state[_COUNT] += 1
    _append(number, rows, state)


@compiled
def _unlink_neighbours(
    number: int, rows: _Rows, state: NDArray[np.int64], numbers: NDArray[np.int32], free: NDArray[np.int64]
) -> None:
    """A row has no neighbours any more."""
    row = rows[number]
    for entry in range(row.start, row.start + row.length):
        other = numbers[entry]
        rows[other].references -= 1
        _queue(other, rows, state)
    if row.block >= 0:
        release(row.start, row.block, numbers, free)
    row.block = -1
    row.length = 0


@compiled
def _drop(
    number: int,
    rows: _Rows,
    state: NDArray[np.int64],
    numbers: NDArray[np.int32],
    free: NDArray[np.int64],
    applied: NDArray[np.int64],
) -> None:
    """Remove a row."""
    _unlink_neighbours(number, rows, state, numbers, free)
    _unlink(number, rows, state)
    row = rows[number]
    row.present = False
    row.dirty = False
    row.references -= 1
    applied[:, number] = -1
    state[_COUNT] -= 1
    _queue(number, rows, state)


@compiled
def _cut(
    number: int,
    limit: int,
    rows: _Rows,
    state: NDArray[np.int64],
    numbers: NDArray[np.int32],
    weights: NDArray[np.float64],
) -> None:
    """Keep the ``limit`` neighbours with the largest symmetric weights, of equal ones those with the smaller hash."""
    row = rows[number]
    least = row.length - limit
    if least <= 0:
        return
    places = np.empty(least, np.int32)
    held = np.empty(least)
    ties = np.empty(least, np.int64)
    found = 0
    for entry in range(row.start, row.start + row.length):
        light = -weights[entry, 0]
        if found < least or light >= held[0]:
            found = keep_best(places, held, ties, found, entry - row.start, light, -rows[numbers[entry]].tie)
    # From the last on: what then stands at the end stays.
    places.sort()
    for place in places[::-1]:
        entry = row.start + place
        other = numbers[entry]
        row.length -= 1
        last = row.start + row.length
        numbers[entry] = numbers[last]
        weights[entry] = weights[last]
        rows[other].references -= 1
        _queue(other, rows, state)


@compiled_sums
def _find(wanted: int, start: int, end: int, numbers: NDArray[np.int32]) -> int:
    """Where a number is among those from ``start`` to ``end``, in which it is once at most; -1: nowhere. All of them
    are looked at, many at once and without a branch: a third of the time that stopping at the first takes."""
    number = np.int32(wanted)
    among = numbers[start:end]
    found = np.int32(-1)
    for place in range(np.int32(len(among))):
        found = max(found, np.int32(place) if among[place] == number else np.int32(-1))
    return int(start + found) if found >= 0 else -1


@compiled
def _add(
    number: int,
    other: int,
    symmetric: float,
    directed: float,
    limit: int,
    rows: _Rows,
    state: NDArray[np.int64],
    numbers: NDArray[np.int32],
    weights: NDArray[np.float64],
    free: NDArray[np.int64],
) -> None:
    """Add weights to a neighbour of a row."""
    row = rows[number]
    held = _find(other, row.start, row.start + row.length, numbers)
    if held >= 0:
        weights[held, 0] += symmetric
        weights[held, 1] += directed
        return
    if row.length >= 2 * limit:
        _cut(number, limit, rows, state, numbers, weights)
    if row.block < 0 or row.length == block_size(row.block):
        moved = allocate(row.block + 1, numbers, free)
        for step in range(row.length):
            numbers[moved + step] = numbers[row.start + step]
            weights[moved + step] = weights[row.start + step]
        if row.block >= 0:
            release(row.start, row.block, numbers, free)
        row.start = moved
        row.block += 1
    last = row.start + row.length
    numbers[last] = other
    weights[last, 0] = symmetric
    weights[last, 1] = directed
    row.length += 1
    rows[other].references += 1


@compiled
def _touch(
    number: int,
    at: float,
    column: int,
    offset: int,
    touched: NDArray[np.int32],
    rows: _Rows,
    counts: NDArray[np.float64],
    state: NDArray[np.int64],
    applied: NDArray[np.int64],
) -> bool:
    """Make or move up a row, dirty and applied through ``offset``; False when it was applied before."""
    row = rows[number]
    if not row.present:
        _create(number, at, rows, counts, state)
    elif offset <= applied[column, number]:
        return False
    else:
        _unlink(number, rows, state)
        _append(number, rows, state)
    applied[column, number] = offset
    if not row.dirty:
        row.dirty = True
        touched[state[_TOUCHED]] = number
        state[_TOUCHED] += 1
    state[_CHANGED] += 1
    return True


@compiled
def _decay_counts(
    number: int, at: float, half_lives: NDArray[np.float64], rows: _Rows, counts: NDArray[np.float64]
) -> None:
    row = rows[number]
    elapsed = at - row.at
    for column, half_life in enumerate(half_lives):
        counts[number, column] *= 2.0 ** (-elapsed / half_life)
    row.at = at


@compiled
def _unit(number: int, at: float, half_life: float, rows: _Rows, weights: NDArray[np.float64]) -> float:
    """What a weight of 1 at time ``at`` is in the row's units; moves the reference before they overflow."""
    row = rows[number]
    lives = (at - row.reference) / half_life
    if lives > _REBASE_HALF_LIVES:
        shrink = 2.0**-lives
        for entry in range(row.start, row.start + row.length):
            weights[entry, 0] *= shrink
            weights[entry, 1] *= shrink
        row.reference = at
        return 1.0
    # Far in the past the unit underflows to zero, which is what such an event is worth.
    return float(2.0 ** max(lives, -1_000.0))


@compiled
def _apply(
    first: int,
    items: NDArray[np.int32],
    offsets: NDArray[np.int64],
    at: NDArray[np.float64],
    added: NDArray[np.float64],
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
    counts: NDArray[np.float64],
    state: NDArray[np.int64],
    numbers: NDArray[np.int32],
    weights: NDArray[np.float64],
    free: NDArray[np.int64],
    applied: NDArray[np.int64],
) -> int:
    """Apply transitions from ``first`` on, as far as there is room for neighbours; returns the next to apply.

    Arrays are handed from function to function one by one: for a tuple of arrays each call copies all of it, and
    counts references to every array that is taken out (measured: half of the time).
    """
    for place in range(first, len(items)):
        item, offset, time = items[place], offsets[place], at[place]
        begin, end = (ends[place - 1] if place > 0 else 0), ends[place]
        if free[SIZES] + _room_for(end - begin, limit) > len(numbers):
            return place
        row = rows[item]
        if row.owned and _touch(item, time, column, offset, touched, rows, counts, state, applied):
            row.shown += shown[place]
            # An impression is no event of the item: the time its counts are stated at is that of its last one.
            if added[place] > 0.0 and time > row.at:
                _decay_counts(item, time, half_lives, rows, counts)
            late = row.at - time
            for life in range(len(half_lives)):
                counts[item, life] += added[place] * 2.0 ** (-late / half_lives[life])
            counts[item, len(half_lives)] += added[place]
            unit = _unit(item, time, half_life, rows, weights) * added[place]
            for entry in range(begin, end):
                _add(
                    item, previous[entry], symmetric[entry] * unit, 0.0, limit, rows, state, numbers, weights, free
                )  # fmt: skip
        for entry in range(begin, end):
            other = previous[entry]
            if rows[other].owned and _touch(other, time, column, offset, touched, rows, counts, state, applied):
                unit = _unit(other, time, half_life, rows, weights) * added[place]
                _add(
                    other, item, symmetric[entry] * unit, directed[entry] * unit, limit, rows, state, numbers, weights,
                    free,
                )  # fmt: skip
        _queue(item, rows, state)
        for entry in range(begin, end):
            _queue(previous[entry], rows, state)
    return len(items)


@compiled
def _state(
    taken: NDArray[np.int32],
    limit: int,
    half_lives: NDArray[np.float64],
    half_life: float,
    rows: _Rows,
    counts: NDArray[np.float64],
    state: NDArray[np.int64],
    numbers: NDArray[np.int32],
    weights: NDArray[np.float64],
) -> tuple[
    NDArray[np.int32],
    NDArray[np.int32],
    NDArray[np.float64],
    NDArray[np.float64],
    NDArray[np.float64],
    NDArray[np.float64],
]:
    """Rows as they are broadcast: lengths, neighbours, symmetric, directed, counts, at (see ``TakenRows``)."""
    lengths = np.empty(len(taken), np.int32)
    total = 0
    for place, number in enumerate(taken):
        _cut(number, limit, rows, state, numbers, weights)
        lengths[place] = rows[number].length
        total += rows[number].length
    neighbours = np.empty(total, np.int32)
    symmetric = np.empty(total)
    directed = np.empty(total)
    stated = np.empty((len(taken), len(half_lives) + 1))
    at = np.empty(len(taken))
    into = 0
    for place, number in enumerate(taken):
        row = rows[number]
        # Statistics are stated at the latest event time seen by the counts; neighbours are moved to it.
        unit = 2.0 ** (-max(row.at - row.reference, 0.0) / half_life)
        for entry in range(row.start, row.start + row.length):
            neighbours[into] = numbers[entry]
            symmetric[into] = weights[entry, 0] * unit
            directed[into] = weights[entry, 1] * unit
            into += 1
        if row.reference > row.at:
            _decay_counts(number, row.reference, half_lives, rows, counts)
        at[place] = row.at
        stated[place] = counts[number]
    return lengths, neighbours, symmetric, directed, stated, at


@compiled
def _restore(
    number: int,
    others: NDArray[np.int32],
    symmetric: NDArray[np.float64],
    directed: NDArray[np.float64],
    at: float,
    counted: NDArray[np.float64],
    shown: float,
    limit: int,
    rows: _Rows,
    counts: NDArray[np.float64],
    state: NDArray[np.int64],
    numbers: NDArray[np.int32],
    weights: NDArray[np.float64],
    free: NDArray[np.int64],
) -> None:
    """Replace a row, or make it; room for its block was made."""
    row = rows[number]
    if row.present:
        _unlink_neighbours(number, rows, state, numbers, free)
    else:
        _create(number, at, rows, counts, state)
    row.at = at
    row.reference = at
    row.shown = shown
    counts[number] = counted
    if len(others):
        row.block = size_of(len(others))
        row.start = allocate(row.block, numbers, free)
        row.length = len(others)
        for entry in range(len(others)):
            numbers[row.start + entry] = others[entry]
            weights[row.start + entry, 0] = symmetric[entry]
            weights[row.start + entry, 1] = directed[entry]
            rows[others[entry]].references += 1
        if len(others) > 2 * limit:
            _cut(number, limit, rows, state, numbers, weights)


def _fresh(size: int) -> _Rows:
    """Rows of no id yet."""
    rows = np.zeros(size, _ROW)
    for name in ("older", "newer", "block"):
        rows[name] = -1
    return rows
