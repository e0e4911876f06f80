"""Statistics of items as ranking reads them: decayed counts and neighbours by dense row.

A replica's copy of ``item-signals.v1``. The item owner decides the values (``stream_app.items.statistics``); here
they are only moved to the time of a request and laid out for arrays: the neighbours of all rows lie in blocks of
three flat arrays (``stream_app.items.blocks``), which compiled functions read directly (:attr:`Signals.arena`).

Memory: 12 bytes per entry of a block (at most twice the neighbours, see there), and about 130 bytes per row.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple
from zipfile import BadZipFile

import msgspec
import numpy as np
from numpy.typing import NDArray

from schemas.arrays import unpack_float64
from schemas.messages import ItemSignals
from stream_app.compiled import compiled
from stream_app.errors import SnapshotError
from stream_app.items.blocks import SIZES, allocate, block_size, no_blocks, release, size_of
from stream_app.items.catalogue import Catalogue
from stream_app.items.trending import TopRows
from stream_app.settings import ItemSettings

__all__ = ["Arena", "Neighbours", "Signals", "decayed_column", "decayed_counts"]

_DAY = 86_400.0
_START_CAPACITY = 1_024
_START_ENTRIES = 16_384
_LARGEST = 1e30
"""What is larger is no count, weight or time, and would not stay finite in sums of float32."""
_NO_WEIGHTS: NDArray[np.float64] = np.zeros(0)


class Neighbours(NamedTuple):
    """Neighbours of one item, stated at event time ``at`` (seconds): three arrays of one length.

    ``rows`` int32, distinct; ``symmetric`` and ``directed`` float32 weights.
    """

    rows: NDArray[np.int32]
    symmetric: NDArray[np.float32]
    directed: NDArray[np.float32]
    at: float


class Arena(NamedTuple):
    """The neighbours of all rows, for compiled functions: those of ``row`` are the entries ``starts[row]`` to
    ``starts[row] + lengths[row]`` of ``rows``, ``symmetric`` and ``directed``.

    Attributes:
        starts: int64 [capacity].
        lengths: int32 [capacity], 0 for rows without neighbours.
        stated: float64 [capacity], event time (seconds) the weights are stated at.
        scale: float64 [capacity], ``1 / sqrt(max(count of all time, 1))``.
        rows: int32 [entries], distinct within a row's entries.
        symmetric, directed: float32 [entries].

    It holds until the next change of the signals: growing replaces the arrays.
    """

    starts: NDArray[np.int64]
    lengths: NDArray[np.int32]
    stated: NDArray[np.float64]
    scale: NDArray[np.float64]
    rows: NDArray[np.int32]
    symmetric: NDArray[np.float32]
    directed: NDArray[np.float32]


class Stated(NamedTuple):
    """Messages as :meth:`Signals.apply_arrays` takes them, but for the rows."""

    lengths: NDArray[np.int32]
    symmetric: NDArray[np.float64]
    directed: NDArray[np.float64]
    counts: NDArray[np.float64]
    at: NDArray[np.float64]
    applied: dict[str, NDArray[np.int64]]
    shown: NDArray[np.float64]

    @property
    def numbers(self) -> tuple[NDArray[np.float64], ...]:
        """Those that have to be numbers."""
        return self.symmetric, self.directed, self.counts, self.at, self.shown


class Signals:
    """Counts and neighbours by row of a :class:`Catalogue`.

    Args:
        settings: half-lives; a row with another number of counts is an error.
        top: how many trending rows are kept per half-life.
    """

    def __init__(self, settings: ItemSettings, *, top: int = 256) -> None:
        half_lives = [days * _DAY for days in settings.half_lives_days]
        self._rates = np.array([1.0 / seconds for seconds in half_lives] + [0.0])
        self._transition_rate = 1.0 / (settings.transition_half_life_days * _DAY)
        self._top = TopRows(len(self._rates), top)
        self._rows = 0
        self.longest = 0
        self._sources: dict[str, int] = {}
        self._applied = np.full((0, _START_CAPACITY), -1, np.int64)
        self._counts = np.zeros((_START_CAPACITY, len(self._rates)))
        self._shown = np.zeros(_START_CAPACITY)
        self._keys = np.full((len(self._rates), _START_CAPACITY), -np.inf)
        self._sizes = np.full(_START_CAPACITY, -1, np.int8)
        self._free = no_blocks()
        self.arena = Arena(
            starts=np.zeros(_START_CAPACITY, np.int64),
            lengths=np.zeros(_START_CAPACITY, np.int32),
            stated=np.zeros(_START_CAPACITY),
            scale=np.ones(_START_CAPACITY),
            rows=np.zeros(_START_ENTRIES, np.int32),
            symmetric=np.zeros(_START_ENTRIES, np.float32),
            directed=np.zeros(_START_ENTRIES, np.float32),
        )
        self.version = 0

    @property
    def transition_rate(self) -> float:
        """Half-lives of transitions per second."""
        return self._transition_rate

    @property
    def counts(self) -> NDArray[np.float64]:
        """Counts by row as they were stated: float64 [capacity, columns]; read-only, good until the next change."""
        return self._counts

    @property
    def shown_counts(self) -> NDArray[np.float64]:
        """How often each row was shown while it was new: float64 [capacity]; like :attr:`counts`."""
        return self._shown

    @property
    def rates(self) -> NDArray[np.float64]:
        """Half-lives of each column of counts per second: float64 [columns], read-only."""
        return self._rates

    @property
    def columns(self) -> int:
        """Counts per item: one per half-life, and the one that never decays (the last)."""
        return len(self._rates)

    @property
    def rows(self) -> int:
        """Rows with an entry or before one; rows beyond have counted nothing."""
        return self._rows

    def total(self, rows: NDArray[np.integer[Any]]) -> NDArray[np.float64]:
        """Counts of all time of rows, float64 [len(rows)]."""
        self.reserve(int(rows.max()) + 1 if len(rows) else 0)
        found: NDArray[np.float64] = self._counts[rows, -1]
        return found

    def shown(self, rows: NDArray[np.integer[Any]]) -> NDArray[np.float64]:
        """How often rows were shown while they were new, as far as impressions say: float64 [len(rows)]."""
        self.reserve(int(rows.max()) + 1 if len(rows) else 0)
        found: NDArray[np.float64] = self._shown[rows]
        return found

    def popularity(self, at: float, rows: NDArray[np.integer[Any]]) -> NDArray[np.float64]:
        """Counts of rows decayed to ``at`` (event time, seconds): float64 [len(rows), columns]."""
        self.reserve(int(rows.max()) + 1 if len(rows) else 0)
        found = np.empty((len(rows), len(self._rates)))
        decayed_counts(at, rows.astype(np.int32, copy=False), self._counts, self.arena.stated, self._rates, found)
        return found

    def momentum(self, column: int) -> NDArray[np.float64]:
        """Keys that order rows by decayed count in ``column``, whatever the time: float64 [rows], -inf: none."""
        keys: NDArray[np.float64] = self._keys[column, : self.rows]
        return keys

    def trending(self, column: int, ties: NDArray[np.int64]) -> NDArray[np.int32]:
        """Rows with the largest decayed counts in ``column``, best first; the order does not depend on the time.

        Args:
            column: index of the half-life; the last is all time.
            ties: int64 by row, the smaller goes first (``Catalogue.id_hash``).
        """
        tops, counts = self.tops(ties)
        found: NDArray[np.int32] = tops[column, : counts[column]].copy()
        return found

    def tops(self, ties: NDArray[np.int64]) -> tuple[NDArray[np.int32], NDArray[np.int64]]:
        """:meth:`trending` of every column: int32 [columns, most], and how many there are, int64 [columns]. Read-only,
        and good until the next change."""
        return self._top.rows(self._keys, ties, min(self.rows, len(ties)))

    def neighbours(self, row: int) -> Neighbours:
        """Neighbours of a row, as they were stated; empty when there are none. Views: read-only, and good until the
        next change."""
        arena = self.arena
        start = int(arena.starts[row]) if row < self._rows else 0
        end = start + (int(arena.lengths[row]) if row < self._rows else 0)
        stated = float(arena.stated[row]) if row < self._rows else 0.0
        return Neighbours(arena.rows[start:end], arena.symmetric[start:end], arena.directed[start:end], stated)

    def decay(self, stated_at: float, at: float) -> float:
        """What is left at ``at`` of a neighbour weight stated at ``stated_at`` (event times, seconds)."""
        return float(2.0 ** (-max(at - stated_at, 0.0) * self._transition_rate))

    def apply(self, item_id: str, signals: ItemSignals | None, catalogue: Catalogue) -> bool:
        """Take over a row of ``item-signals.v1``; None says its owner has none any more.

        Returns:
            False when the held row is complete through later offsets, or no row is free for the id.

        Raises:
            ValueError: see :meth:`stated`.
        """
        if signals is None:
            row = catalogue.row(item_id)
            if not 0 <= row < self.rows:
                return False
            self._clear(np.array([row], np.int32))
            return True
        try:
            stated = self.stated([signals])
        except ValueError as error:
            raise ValueError(f"signals of item {item_id!r}: {error}") from error
        row = catalogue.intern(item_id)
        if row < 0 or self.holds_more(row, signals.applied):
            return False
        intern = catalogue.intern
        neighbours = np.array([intern(other) for other in signals.neighbours], np.int32)
        found = self.apply_arrays(np.array([row], np.int32), stated.lengths, neighbours, *stated[1:])
        return bool(found[0])

    def stated(self, messages: Sequence[ItemSignals]) -> Stated:
        """What messages say, as arrays.

        Raises:
            ValueError: when arrays differ in length, the number of half-lives is another, a number is not finite or too
                large, or an offset is no int64.
        """
        if any(len(message.counts) != self.columns for message in messages):
            raise ValueError(
                f"there are not {self.columns} counts, as this process expects (items.half_lives_days differs "
                "between processes)"
            )
        symmetric = [unpack_float64(message.symmetric) for message in messages]
        directed = [unpack_float64(message.directed) for message in messages]
        lengths = [len(message.neighbours) for message in messages]
        if lengths != [len(one) for one in symmetric] or lengths != [len(one) for one in directed]:
            raise ValueError("neighbours and weights differ in length")
        applied: dict[str, NDArray[np.int64]] = {}
        try:
            for place, message in enumerate(messages):
                for source, offset in message.applied.items():
                    if source not in applied:
                        applied[source] = np.full(len(messages), -1, np.int64)
                    applied[source][place] = offset
        except OverflowError as error:
            raise ValueError("an offset is no 64-bit integer") from error
        found = Stated(
            np.array(lengths, np.int32),
            np.concatenate([_NO_WEIGHTS, *symmetric]),
            np.concatenate([_NO_WEIGHTS, *directed]),
            np.array([message.counts for message in messages], np.float64).reshape(len(messages), self.columns),
            np.array([message.at for message in messages], np.float64),
            applied,
            np.array([message.shown for message in messages], np.float64),
        )
        if any(not (np.abs(values) <= _LARGEST).all() for values in found.numbers):
            raise ValueError("a number is not finite, or too large")
        if any((values < 0.0).any() for values in (found.symmetric, found.directed, found.counts, found.shown)):
            raise ValueError("a count or weight is negative")
        return found

    def holds_more(self, row: int, applied: Mapping[str, int]) -> bool:
        """Whether a row is complete through later offsets than these."""
        if row >= self._rows:
            return False
        return any(applied.get(source, -1) < self._applied[place, row] for source, place in self._sources.items())

    def apply_arrays(
        self,
        rows: NDArray[np.int32],
        lengths: NDArray[np.int32],
        neighbours: NDArray[np.int32],
        symmetric: NDArray[np.float64],
        directed: NDArray[np.float64],
        counts: NDArray[np.float64],
        at: NDArray[np.float64],
        applied: dict[str, NDArray[np.int64]],
        shown: NDArray[np.float64],
    ) -> NDArray[np.bool_]:
        """Take over ``k`` rows without a message; what fits together is the caller's care.

        Args:
            rows: int32 [k], distinct, none negative.
            lengths: int32 [k], how many of the entries below are each row's, one row after the other.
            neighbours: int32 [sum of lengths], rows, distinct within a row; -1 leaves the entry out.
            symmetric, directed: float64 [sum of lengths], weights.
            counts: float64 [k, columns].
            at: float64 [k], event times (seconds) everything is stated at.
            applied: by source partition: int64 [k], offsets through which the rows are complete, -1 for none.
            shown: float64 [k], how often each was shown while it was new.

        Returns:
            bool [k], False where the held row is complete through later offsets.
        """
        top = max(int(rows.max(initial=-1)), int(neighbours.max(initial=-1)))
        self.reserve(top + 1)
        for source in applied:
            if source not in self._sources:
                self._sources[source] = len(self._sources)
                self._applied = np.concatenate([self._applied, np.full((1, self._applied.shape[1]), -1, np.int64)])
        offsets = np.full((len(self._sources), len(rows)), -1, np.int64)
        for source, values in applied.items():
            offsets[self._sources[source]] = values
        # A block holds less than twice its entries, or four.
        self._room(2 * len(neighbours) + 4 * len(rows))
        self.longest = max(self.longest, int(lengths.max(initial=0)))
        found = np.zeros(len(rows), np.bool_)
        _take_over(
            rows, lengths, neighbours, symmetric, directed, counts, at, offsets, shown, found,
            self.arena, self._sizes, self._free, self._applied, self._counts, self._shown, self._keys, self._rates,
        )  # fmt: skip
        self.version += int(np.count_nonzero(found))
        self._top.change(rows)
        return found

    def _clear(self, rows: NDArray[np.int32]) -> None:
        """Rows of ours count nothing and have no neighbours any more."""
        arena = self.arena
        for row in rows.tolist():
            if self._sizes[row] >= 0:
                release(int(arena.starts[row]), int(self._sizes[row]), arena.rows, self._free)
        self._sizes[rows] = -1
        arena.lengths[rows] = 0
        arena.stated[rows] = 0.0
        arena.scale[rows] = 1.0
        self._applied[:, rows] = -1
        self._counts[rows] = 0.0
        self._shown[rows] = 0.0
        self._keys[:, rows] = -np.inf
        self._top.change(rows)
        self.version += len(rows)

    def referenced(self, rows: int) -> NDArray[np.bool_]:
        """Which of the first ``rows`` rows have statistics or are somebody's neighbour: bool [rows]."""
        referenced = np.zeros(rows, np.bool_)
        _refer(self._applied[:, : min(rows, self._rows)], self.arena, referenced)
        return referenced

    def forget(self, rows: NDArray[np.int32]) -> None:
        """Drop the statistics of ``rows`` and every mention of them; looks at all neighbours."""
        self._clear(rows[(rows >= 0) & (rows < self._rows)])
        gone = np.zeros(max(self.rows, int(rows.max()) + 1 if len(rows) else 0), np.bool_)
        gone[rows] = True
        _leave_out(gone, self._rows, self.arena)

    def reserve(self, rows: int) -> None:
        """Make room for as many rows; ranking looks at rows of items nobody has touched yet."""
        if rows <= self._rows:
            return
        self._rows = rows
        arena = self.arena
        size = len(arena.starts)
        if rows <= size:
            return
        while size < rows:
            size *= 2
        grown = size - len(arena.starts)
        self.arena = arena._replace(
            starts=np.concatenate([arena.starts, np.zeros(grown, np.int64)]),
            lengths=np.concatenate([arena.lengths, np.zeros(grown, np.int32)]),
            stated=np.concatenate([arena.stated, np.zeros(grown)]),
            scale=np.concatenate([arena.scale, np.ones(grown)]),
        )
        self._sizes = np.concatenate([self._sizes, np.full(grown, -1, np.int8)])
        self._counts = np.concatenate([self._counts, np.zeros((grown, self.columns))])
        self._shown = np.concatenate([self._shown, np.zeros(grown)])
        self._keys = np.concatenate([self._keys, np.full((self.columns, grown), -np.inf)], axis=1)
        self._applied = np.concatenate([self._applied, np.full((len(self._sources), grown), -1, np.int64)], axis=1)

    def _room(self, entries: int) -> None:
        """See to it that ``entries`` more fit at the untouched end."""
        arena = self.arena
        needed = int(self._free[SIZES]) + entries
        size = len(arena.rows)
        if needed <= size:
            return
        while size < needed:
            size *= 2
        grown = size - len(arena.rows)
        self.arena = arena._replace(
            rows=np.concatenate([arena.rows, np.zeros(grown, np.int32)]),
            symmetric=np.concatenate([arena.symmetric, np.zeros(grown, np.float32)]),
            directed=np.concatenate([arena.directed, np.zeros(grown, np.float32)]),
        )

    def save(self, directory: Path) -> None:
        """Write everything into ``directory`` (which exists)."""
        count = self.rows
        arena = self.arena
        lengths = arena.lengths[:count].astype(np.int64)
        # Where each entry of the rows, one row after the other, lies in the blocks.
        ends = np.cumsum(lengths)
        entries = np.arange(int(lengths.sum())) + np.repeat(arena.starts[:count] - (ends - lengths), lengths)
        np.savez(
            directory / "signals.npz",
            version=np.int64(self.version),
            counts=self._counts[:count],
            shown=self._shown[:count],
            at=arena.stated[:count],
            applied=self._applied[:, :count],
            lengths=lengths,
            rows=arena.rows[entries],
            symmetric=arena.symmetric[entries],
            directed=arena.directed[entries],
        )
        (directory / "signals.msgpack").write_bytes(msgspec.msgpack.encode(list(self._sources)))

    @classmethod
    def load(cls, directory: Path, settings: ItemSettings, *, top: int = 256) -> Signals:
        """What :meth:`save` wrote.

        Raises:
            SnapshotError: when files are missing, do not fit together or were written with other half-lives.
        """
        signals = cls(settings, top=top)
        try:
            sources = msgspec.msgpack.decode((directory / "signals.msgpack").read_bytes(), type=list[str])
            with np.load(directory / "signals.npz", allow_pickle=False) as arrays:
                held = {name: arrays[name] for name in arrays.files}
            count, links = len(held["at"]), len(held["rows"])
            if held["applied"].shape != (len(sources), count) or held["counts"].shape != (count, signals.columns):
                raise ValueError("tables differ in length, or were written with other half-lives")
            if {int(held["lengths"].sum()), len(held["symmetric"]), len(held["directed"])} != {links}:
                raise ValueError("lists of neighbours differ in length")
            if held["lengths"].min(initial=0) < 0 or held["rows"].min(initial=0) < 0:
                raise ValueError("a length or a row is negative")
            for name in ("counts", "at", "symmetric", "directed", "shown"):
                # ``shown`` is not there in files of older releases.
                if name in held and not (np.abs(held[name]) <= _LARGEST).all():
                    raise ValueError(f"{name}: a number is not finite, or too large")
                if name in held and name != "at" and (held[name] < 0.0).any():
                    raise ValueError(f"{name}: a number is negative")
            signals.reserve(count)
            signals.apply_arrays(
                np.arange(count, dtype=np.int32),
                held["lengths"].astype(np.int32),
                held["rows"].astype(np.int32),
                held["symmetric"].astype(np.float64),
                held["directed"].astype(np.float64),
                held["counts"].astype(np.float64),
                held["at"].astype(np.float64),
                dict(zip(sources, held["applied"].astype(np.int64), strict=True)),
                # Not there in files of older releases.
                held.get("shown", np.zeros(count)).astype(np.float64),
            )
            signals.version = int(held["version"])
        except (OSError, EOFError, BadZipFile, KeyError, ValueError, msgspec.DecodeError) as error:
            raise SnapshotError(f"the signals in {directory} cannot be read: {error}") from error
        return signals


@compiled
def decayed_counts(
    at: float,
    rows: NDArray[np.int32],
    counts: NDArray[np.float64],
    stated: NDArray[np.float64],
    rates: NDArray[np.float64],
    found: NDArray[np.float64],
) -> None:
    """:meth:`Signals.popularity` over plain arrays: :attr:`Signals.counts`, ``arena.stated``, :attr:`Signals.rates`."""
    for place, row in enumerate(rows):
        elapsed = max(at - stated[row], 0.0)
        for column, rate in enumerate(rates):
            lives = elapsed * rate
            count = counts[row, column]
            # Most of what is asked for counts nothing, or does not decay.
            found[place, column] = count * np.exp2(-lives) if lives > 0.0 and count > 0.0 else count


@compiled
def decayed_column(
    at: float,
    rows: NDArray[np.int32],
    counts: NDArray[np.float64],
    stated: NDArray[np.float64],
    column: int,
    rate: float,
    found: NDArray[np.float64],
) -> None:
    """One column of :func:`decayed_counts`: float64 [len(rows)]."""
    for place, row in enumerate(rows):
        count = counts[row, column]
        found[place] = count * np.exp2(-max(at - stated[row], 0.0) * rate) if count > 0.0 else 0.0


@compiled
def _take_over(
    rows: NDArray[np.int32],
    lengths: NDArray[np.int32],
    neighbours: NDArray[np.int32],
    symmetric: NDArray[np.float64],
    directed: NDArray[np.float64],
    counts: NDArray[np.float64],
    at: NDArray[np.float64],
    offsets: NDArray[np.int64],
    shown: NDArray[np.float64],
    found: NDArray[np.bool_],
    arena: Arena,
    sizes: NDArray[np.int8],
    free: NDArray[np.int64],
    applied: NDArray[np.int64],
    all_counts: NDArray[np.float64],
    all_shown: NDArray[np.float64],
    keys: NDArray[np.float64],
    rates: NDArray[np.float64],
) -> None:
    """:meth:`Signals.apply_arrays`, with room made before."""
    end = 0
    for place, row in enumerate(rows):
        begin = end
        end += lengths[place]
        newer = True
        for source in range(len(offsets)):
            newer = newer and offsets[source, place] >= applied[source, row]
        if not newer:
            continue
        found[place] = True
        for source in range(len(offsets)):
            applied[source, row] = offsets[source, place]
        length = 0
        for entry in range(begin, end):
            length += neighbours[entry] >= 0
        if length == 0 or sizes[row] < 0 or length > block_size(sizes[row]):
            if sizes[row] >= 0:
                release(arena.starts[row], sizes[row], arena.rows, free)
                sizes[row] = -1
            if length > 0:
                sizes[row] = size_of(length)
                arena.starts[row] = allocate(sizes[row], arena.rows, free)
        into = arena.starts[row]
        for entry in range(begin, end):
            if neighbours[entry] >= 0:
                arena.rows[into] = neighbours[entry]
                arena.symmetric[into] = symmetric[entry]
                arena.directed[into] = directed[entry]
                into += 1
        arena.lengths[row] = length
        arena.stated[row] = at[place]
        for column, rate in enumerate(rates):
            count = counts[place, column]
            all_counts[row, column] = count
            keys[column, row] = (np.log2(count) if count > 0.0 else -np.inf) + at[place] * rate
        all_shown[row] = shown[place]
        arena.scale[row] = 1.0 / np.sqrt(max(all_counts[row, len(rates) - 1], 1.0))


@compiled
def _refer(applied: NDArray[np.int64], arena: Arena, referenced: NDArray[np.bool_]) -> None:
    """Mark the rows that have statistics, and their neighbours."""
    for row in range(applied.shape[1]):
        stated = False
        for source in range(applied.shape[0]):
            stated = stated or applied[source, row] >= 0
        if stated:
            referenced[row] = True
            for entry in range(arena.starts[row], arena.starts[row] + arena.lengths[row]):
                if arena.rows[entry] < len(referenced):
                    referenced[arena.rows[entry]] = True


@compiled
def _leave_out(gone: NDArray[np.bool_], rows: int, arena: Arena) -> None:
    """Take the neighbours that are ``gone`` out of the first ``rows`` rows."""
    for row in range(rows):
        start = arena.starts[row]
        kept = start
        for entry in range(start, start + arena.lengths[row]):
            if not gone[arena.rows[entry]]:
                arena.rows[kept] = arena.rows[entry]
                arena.symmetric[kept] = arena.symmetric[entry]
                arena.directed[kept] = arena.directed[entry]
                kept += 1
        arena.lengths[row] = kept - start
