"""Learned user-item factors, incremental: who takes what after what, in a few dozen numbers per item.

An item has two vectors: *context* (what it says about a user who took it) and *target* (who takes it), and a bias. A
user's factors are the decayed sum of the context vectors of the last items, so there is nothing to store per user, a
new user has factors after one event, and deleting a user leaves nothing behind. The score of an item is
``user . target + bias``. (Asymmetric factors: Paterek 2007; FISM: Kabbur, Ning and Karypis 2013, doi
10.1145/2487575.2487589.)

One event is one example: softmax of the taken item against items drawn uniformly, one AdaGrad step on everything
involved. Uniform draws, and not draws by popularity, measured best on two data sets (.060 against .045 on the first
100,000 events of Online Retail), and so did starting from text (:mod:`stream_app.factors.basis`).

Every row says through which source offsets it was learned, and takes every offset at most once: after a crash the
examples that are delivered again move only what they had not moved.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from schemas.arrays import learnable, pack_float32, unpack_float32
from schemas.messages import ItemFactors, TrainingExample
from stream_app.factors.basis import FactorBasis, without_text
from stream_app.factors.kernels import learn_examples
from stream_app.factors.table import Factors
from stream_app.mixing import GOLDEN
from stream_app.settings import FactorSettings
from stream_app.users.state import id_hash

__all__ = ["FactorLearner"]

_FIRST_ACCUMULATOR = 0.1
_PULL_LIMIT = 2.0
_CLEAN = -1
_PARTITIONS = 10_000
"""More source partitions than any topic of events has."""


class FactorLearner:
    """The factors of all items and how they learn; numbers its rows itself.

    Args:
        settings: dimensions, rates, bounds.
        basis: where items start.
    """

    def __init__(self, settings: FactorSettings, basis: FactorBasis) -> None:
        self.settings = settings
        self.basis = basis
        self._row_of: dict[str, int] = {}
        self._ids: list[str | None] = []
        self._free: list[int] = []
        self._sources: dict[int, int] = {}
        self._drawable: NDArray[np.int32] | None = None
        self._in_flight: dict[str, int] = {}
        self._gone_in_flight: dict[str, int] = {}
        self._gone: dict[str, int] = {}
        self._next_offset: int | None = None
        self.examples = 0
        self.loss = 0.0
        self._allocate(1_024, 1)

    def _allocate(self, rows: int, partitions: int) -> None:
        factors = self.settings.dimensions
        self._context = np.zeros((rows, factors), np.float32)
        self._target = np.zeros((rows, factors), np.float32)
        self._bias = np.zeros(rows, np.float32)
        self._accumulators = np.full((rows, 3), _FIRST_ACCUMULATOR, np.float32)
        self._hashes = np.zeros(rows, np.int64)
        self._applied = np.full((rows, partitions), -1, np.int64)
        self._waiting = np.full(rows, _CLEAN, np.int64)
        self._named = np.zeros(rows, np.bool_)

    def __len__(self) -> int:
        return len(self._row_of)

    @property
    def waiting(self) -> int:
        """Rows that changed since they were last taken for broadcast."""
        return int(np.count_nonzero(self._waiting[: len(self._ids)] >= 0)) + len(self._gone)

    def put(self, item_id: str, vector: NDArray[np.float32] | None) -> None:
        """An item of the catalogue: it may be drawn as a negative from now on.

        Args:
            vector: float32 [dimensions] as the encoder made it; None when there is none. Of an item that learned
                already nothing changes.
        """
        row = self._row_of.get(item_id)
        if row is None:
            row = self._new_row(item_id)
        elif (self._applied[row] >= 0).any():
            return
        start = self._start(item_id, vector)
        self._context[row] = start
        self._target[row] = start

    def remove(self, item_id: str) -> None:
        """An item left the catalogue; its row is forgotten and broadcast as gone."""
        row = self._row_of.pop(item_id, None)
        if row is None:
            return
        if (self._applied[row] >= 0).any():
            # Its own offset where it has one: what changed it may not be committed before it is gone.
            stamps = (self._next_offset or 0, int(self._waiting[row]), self._in_flight.pop(item_id, _CLEAN))
            self._gone[item_id] = min(stamp for stamp in stamps if stamp >= 0)
        self._ids[row] = None
        self._free.append(row)
        self._drawable = None
        self._waiting[row] = _CLEAN
        self._named[row] = False
        self._applied[row] = -1
        self._accumulators[row] = _FIRST_ACCUMULATOR
        self._bias[row] = 0.0

    def _start(self, item_id: str, vector: NDArray[np.float32] | None) -> NDArray[np.float32]:
        if vector is None or len(vector) != len(self.basis.mean):
            return without_text(id_hash(item_id), self.settings.dimensions, self.settings.start_length)
        started: NDArray[np.float32] = self.basis.project(vector[None, :])[0]
        return started

    def _new_row(self, item_id: str) -> int:
        if self._free:
            row = self._free.pop()
            self._ids[row] = item_id
        else:
            row = len(self._ids)
            self._ids.append(item_id)
            if row >= len(self._bias):
                self._grow(2 * row, self._applied.shape[1])
        self._row_of[item_id] = row
        self._hashes[row] = id_hash(item_id)
        self._drawable = None
        return row

    def _grow(self, rows: int, partitions: int) -> None:
        held, applied = self._by_row(), self._applied
        self._allocate(max(rows, len(self._bias)), partitions)
        fresh = self._by_row()
        for old, new in zip(held, fresh, strict=True):
            new[: len(old)] = old
        self._applied[: len(applied), : applied.shape[1]] = applied

    def _by_row(self) -> list[NDArray[Any]]:
        return [self._context, self._target, self._bias, self._accumulators, self._hashes, self._waiting, self._named]

    def _column(self, partition: int) -> int:
        column = self._sources.get(partition)
        if column is None:
            column = self._sources[partition] = len(self._sources)
            if column >= self._applied.shape[1]:
                self._grow(len(self._bias), 2 * column)
        return column

    def learn(self, examples: Sequence[TrainingExample], *, partition: int, offset: int) -> int:
        """One step for each example whose item the catalogue knows; returns how many there were.

        Args:
            examples: in the order of their source offsets.
            partition: their source partition.
            offset: of the message they came in; see :meth:`commit_offset`.

        Raises:
            ValueError: when partition or a source offset cannot be one; nothing was learned.
        """
        self.skip(offset)
        if not 0 <= partition < _PARTITIONS or any(not 0 <= example.offset < 2**62 for example in examples):
            raise ValueError(f"examples of partition {partition} have a place that no record has")
        if self.settings.learning_rate <= 0.0:
            return 0
        # An item that the catalogue does not know has no row.
        row_of = self._row_of.get
        known = [
            (row, example)
            for example in examples
            if example.weight > 0.0 and example.item_id and (row := row_of(example.item_id, -1)) >= 0
        ]
        if not known or len(self._row_of) < 2:
            return 0
        reach = self.settings.history
        count = len(known)
        taken = np.fromiter((row for row, _ in known), np.int32, count)
        lengths = np.fromiter((min(len(example.previous), reach) for _, example in known), np.int32, count)
        history = np.full((count, reach), -1, np.int32)
        same: Sequence[str] | None = None
        for place, (_, example) in enumerate(known):
            # The items of a basket share what came before.
            if same is not None and example.previous == same:
                history[place] = history[place - 1]
            else:
                history[place, : lengths[place]] = [row_of(item_id, -1) for item_id in example.previous[:reach]]
            same = example.previous
        column = self._column(partition)
        if self._drawable is None:
            # In an order of the ids, not of their arrival: another owner draws the same.
            rows = self.rows()
            self._drawable = rows[np.argsort(self._hashes[rows], kind="stable")].astype(np.int32)
        self.loss += learn_examples(
            taken,
            history,
            lengths,
            np.fromiter((min(example.weight, 4.0) for _, example in known), np.float64, count),
            np.fromiter((example.offset for _, example in known), np.int64, count),
            self._draws(taken, np.fromiter((example.at for _, example in known), np.float64, count)),
            column,
            self._drawable,
            self._context,
            self._target,
            self._bias,
            self._accumulators,
            self._applied,
            self._waiting,
            offset,
            self.settings.learning_rate,
            self.settings.l2,
            self.settings.negatives,
            self.settings.decay,
            self.settings.norm,
            _PULL_LIMIT,
        )
        self._named[taken] = True
        self._named[history[history >= 0]] = True
        self.examples += count
        return count

    def _draws(self, taken: NDArray[np.int32], at: NDArray[np.float64]) -> NDArray[np.uint64]:
        """What decides which negatives an example draws: what was taken, and when.

        Not its place: the same log in other partitions, or replayed without a broker, then teaches the same.
        """
        drawn: NDArray[np.uint64] = self._hashes[taken].view(np.uint64) + at.view(np.uint64) * GOLDEN
        return drawn

    def skip(self, offset: int) -> None:
        """A message that teaches nothing was read; see :meth:`commit_offset`."""
        self._next_offset = offset + 1

    def rows(self) -> NDArray[np.int64]:
        """The rows in use."""
        return np.fromiter(self._row_of.values(), np.int64, len(self._row_of))

    def extend(self, basis: FactorBasis, vectors: Mapping[str, NDArray[np.float32]]) -> None:
        """Go on with a basis that has further directions. There every item begins where its text says.

        Args:
            basis: one that :func:`stream_app.factors.basis.extend_basis` made of ours.
            vectors: float32 [dimensions] by item; an item without one stays at zero in the new directions.
        """
        fresh = basis.columns & ~self.basis.columns
        self.basis = basis
        for item_id, vector in vectors.items():
            row = self._row_of.get(item_id)
            if row is not None:
                self._begin(row, fresh, basis.project(vector[None, :])[0])

    def _begin(self, row: int, columns: NDArray[np.bool_], start: NDArray[np.float32]) -> None:
        """Start a row anew in some of its columns."""
        self._context[row, columns] = start[columns]
        self._target[row, columns] = start[columns]
        if (self._applied[row] >= 0).any() and self._waiting[row] < 0:
            self._waiting[row] = max(self._next_offset or 0, 0)

    def take_rows(self, limit: int) -> NDArray[np.int64]:
        """Rows to broadcast, the longest waiting first; they count as broadcast. For use without a broker."""
        rows = self._longest_waiting(limit)
        self._waiting[rows] = _CLEAN
        self._named[rows] = False
        return rows

    def _longest_waiting(self, limit: int, *, named: bool = False) -> NDArray[np.int64]:
        waits = self._waiting[: len(self._ids)] >= 0
        rows = np.flatnonzero(waits & self._named[: len(self._ids)] if named else waits)
        if len(rows) > limit:
            rows = rows[np.argsort(self._waiting[rows], kind="stable")[: max(limit, 0)]]
        return rows

    def share_with(self, factors: Factors, places: NDArray[np.int32]) -> bool:
        """Let a table in this process read what is learned as it is learned; False when it numbers rows in another way.

        Args:
            places: int32, where the table keeps each row.
        """
        if not np.array_equal(places, np.arange(len(self._ids))):
            return False
        factors.reserve(len(places))
        if len(factors.bias) > len(self._bias):
            self._grow(len(factors.bias), self._applied.shape[1])
        factors.share(self._context, self._target, self._bias, len(places))
        return True

    def copy_to(self, factors: Factors, places: NDArray[np.int32], rows: NDArray[np.int64]) -> None:
        """What :meth:`take_rows` gave, for a table in this process: ``places`` int32 says where it keeps each row."""
        factors.apply(places[rows], self._context[rows], self._target[rows], self._bias[rows])

    def arrays(
        self, rows: NDArray[np.int64]
    ) -> tuple[list[str], NDArray[np.float32], NDArray[np.float32], NDArray[np.float32]]:
        """Ids, context, target and bias of rows in use."""
        ids = [self._ids[row] or "" for row in rows.tolist()]
        return ids, self._context[rows], self._target[rows], self._bias[rows]

    def take(self, limit: int, *, named: bool = False) -> list[tuple[str, ItemFactors | None]]:
        """Messages to broadcast, the longest waiting first; None says that the item is gone.

        Args:
            limit: how many at most.
            named: only items that examples named, as taken or as taken before: these moved far. What they were compared
                with moved a hundredth of that, and there is much more of it.

        Until :meth:`taken_are_durable` is called they hold :meth:`commit_offset` back.
        """
        taken: list[tuple[str, ItemFactors | None]] = []
        for item_id in list(self._gone)[:limit]:
            self._gone_in_flight[item_id] = self._gone.pop(item_id)
            taken.append((item_id, None))
        for row in self._longest_waiting(limit - len(taken), named=named).tolist():
            item_id = self._ids[row] or ""
            if item_id in self._gone_in_flight or item_id in self._gone:
                continue  # It is back: its row must not overtake the record that ends the old one.
            self._in_flight[item_id] = int(self._waiting[row])
            self._waiting[row] = _CLEAN
            self._named[row] = False
            taken.append((item_id, self._message(item_id, row)))
        return taken

    def taken_are_durable(self) -> None:
        """What :meth:`take` gave last is acknowledged by the broker."""
        self._in_flight = {}
        self._gone_in_flight = {}

    def taken_are_lost(self) -> None:
        """What :meth:`take` gave last may not have reached the broker: it waits again."""
        for item_id, stamp in self._in_flight.items():
            row = self._row_of.get(item_id)
            if row is not None:
                held = int(self._waiting[row])
                self._waiting[row] = stamp if held < 0 else min(held, stamp)
                self._named[row] = True
        for item_id, stamp in self._gone_in_flight.items():
            self._gone[item_id] = min(stamp, self._gone.get(item_id, stamp))
        self.taken_are_durable()

    def commit_offset(self) -> int | None:
        """The offset of the examples' topic before which everything is durable; None when nothing was learned."""
        stamps = self._waiting[: len(self._ids)]
        stamps = stamps[stamps >= 0]
        first = [int(stamps.min())] if len(stamps) else []
        held = (*first, *self._gone.values(), *self._in_flight.values(), *self._gone_in_flight.values())
        return min(held, default=self._next_offset)

    def _message(self, item_id: str, row: int) -> ItemFactors:
        applied = self._applied[row]
        return ItemFactors(
            item_id=item_id,
            space=self.basis.frame,
            context=pack_float32(self._context[row]),
            target=pack_float32(self._target[row]),
            bias=float(self._bias[row]),
            accumulators=[float(value) for value in self._accumulators[row]],
            applied={
                str(partition): int(applied[column])
                for partition, column in self._sources.items()
                if column < len(applied) and applied[column] >= 0
            },
        )

    def restore(self, message: ItemFactors) -> bool:
        """Take over a row as it was broadcast; False when it is of another space or number of dimensions.

        Raises:
            ValueError: when its arrays cannot be read, or hold what cannot be; nothing was taken over.
        """
        context, target = unpack_float32(message.context), unpack_float32(message.target)
        size = self.settings.dimensions
        if (
            message.space != self.basis.frame
            or len(context) != size
            or len(target) != size
            or len(message.accumulators) != 3
        ):
            return False
        numbers = np.array([message.bias, *message.accumulators])
        places = {int(partition): offset for partition, offset in message.applied.items()}
        if not (learnable(context, target, numbers[:1]) and np.isfinite(numbers).all()):
            raise ValueError(f"factors of item {message.item_id!r} are not finite, or too large")
        if any(not (0 <= partition < _PARTITIONS and offset < 2**62) for partition, offset in places.items()):
            raise ValueError(f"factors of item {message.item_id!r} are of a place that no record has")
        row = self._row_of.get(message.item_id)
        if row is None:
            row = self._new_row(message.item_id)
        start = self._context[row].copy()
        self._context[row], self._target[row], self._bias[row] = context, target, message.bias
        self._accumulators[row] = message.accumulators
        for partition, offset in places.items():
            column = self._column(partition)  # first: it may make the array anew
            self._applied[row, column] = offset
        # Published before the basis had these directions; nothing that was learned is exactly zero.
        missing = self.basis.columns & (context == 0.0) & (target == 0.0) & (start != 0.0)
        if missing.any():
            self._begin(row, missing, start)
        return True
