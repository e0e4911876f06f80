"""The item owner's statistics: decayed counts and transition neighbours, applied exactly once per source offset.

Every row carries how far it is complete (``applied``: source partition -> interactions offset), so a row is
idempotent on its own: after a crash the owner reads its rows back from ``item-signals.v1``, reads
``transitions.v1`` again from the committed offset, and each row skips what it holds already. No transaction
across rows is needed.

Values decay with event time, and late events are decayed on arrival, so the order in which source partitions
interleave does not matter beyond rounding. Sums are float64.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass, field
from itertools import islice
from operator import itemgetter

import numpy as np

from schemas.arrays import pack_float64, unpack_float64
from schemas.messages import ItemSignals, Transition, Transitions
from stream_app.items.partitions import item_partition
from stream_app.settings import ItemSettings

__all__ = ["ItemStatistics", "componentwise_newer"]

_DAY = 86_400.0
_REBASE_HALF_LIVES = 128.0
"""Weights are kept in units of the row's reference time; 2^128 is far from the range of float64."""


@dataclass(slots=True)
class _Row:
    at: float
    counts: list[float]
    reference: float
    symmetric: dict[str, float] = field(default_factory=dict)
    directed: dict[str, float] = field(default_factory=dict)
    applied: dict[int, int] = field(default_factory=dict)


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
        self._half_lives = [days * _DAY for days in settings.half_lives_days]
        self._transition_half_life = settings.transition_half_life_days * _DAY
        self._rows: OrderedDict[str, _Row] = OrderedDict()
        self._dirty: dict[str, int] = {}
        self._evicted: dict[str, int] = {}
        self._in_flight: dict[str, int] = {}
        self._next_offset: int | None = None

    def __len__(self) -> int:
        return len(self._rows)

    @property
    def waiting(self) -> int:
        """Rows that changed since they were last taken for broadcast."""
        return len(self._dirty) + len(self._evicted)

    def apply(self, message: Transitions, *, offset: int) -> int:
        """Apply a message of the owned partition; returns how many rows changed.

        Args:
            message: transitions in the order of their source offsets.
            offset: the message's own offset in ``transitions.v1``.
        """
        changed = 0
        source = message.source_partition
        for transition in message.rows:
            changed += self._apply(transition, source, offset)
        self._next_offset = offset + 1
        while len(self._rows) > self._settings.tracked:
            item_id, _ = self._rows.popitem(last=False)
            self._evicted[item_id] = self._dirty.pop(item_id, offset)
        return changed

    def skip(self, offset: int) -> None:
        """A message of the owned partition that cannot be applied: only its offset counts."""
        self._next_offset = offset + 1

    def _apply(self, transition: Transition, source: int, offset: int) -> int:
        item_id, at = transition.item_id, transition.at
        changed = 0
        if self._owns(item_id):
            row = self._touch(item_id, transition, source, offset)
            if row is not None:
                self._add_count(row, at, transition.count)
                unit = self._unit(row, at) * transition.count
                symmetric = row.symmetric
                for other, weight in zip(transition.previous, transition.symmetric, strict=True):
                    symmetric[other] = symmetric.get(other, 0.0) + weight * unit
                changed += 1
        for other, weight, forward in zip(transition.previous, transition.symmetric, transition.directed, strict=True):
            if not self._owns(other):
                continue
            row = self._touch(other, transition, source, offset)
            if row is None:
                continue
            unit = self._unit(row, at) * transition.count
            row.symmetric[item_id] = row.symmetric.get(item_id, 0.0) + weight * unit
            if forward:
                row.directed[item_id] = row.directed.get(item_id, 0.0) + forward * unit
            changed += 1
        return changed

    def _owns(self, item_id: str) -> bool:
        return item_partition(item_id, self.partitions) == self.partition

    def _touch(self, item_id: str, transition: Transition, source: int, offset: int) -> _Row | None:
        """The row, marked dirty and applied through the transition; None when it was applied before."""
        row = self._rows.get(item_id)
        if row is None:
            row = _Row(transition.at, [0.0] * (len(self._half_lives) + 1), transition.at)
            self._rows[item_id] = row
        elif transition.offset <= row.applied.get(source, -1):
            return None
        else:
            self._rows.move_to_end(item_id)
        row.applied[source] = transition.offset
        self._dirty.setdefault(item_id, offset)
        self._evicted.pop(item_id, None)
        return row

    def _add_count(self, row: _Row, at: float, count: float) -> None:
        counts = row.counts
        if at > row.at:
            self._decay_counts(row, at)
        late = row.at - at
        for index, half_life in enumerate(self._half_lives):
            counts[index] += count * 2.0 ** (-late / half_life)
        counts[-1] += count

    def _decay_counts(self, row: _Row, at: float) -> None:
        elapsed = at - row.at
        for index, half_life in enumerate(self._half_lives):
            row.counts[index] *= 2.0 ** (-elapsed / half_life)
        row.at = at

    def _unit(self, row: _Row, at: float) -> float:
        """What a weight of 1 at time ``at`` is in the row's units; moves the reference before they overflow."""
        lives = (at - row.reference) / self._transition_half_life
        if lives > _REBASE_HALF_LIVES:
            shrink = 2.0**-lives
            for weights in (row.symmetric, row.directed):
                for other in weights:
                    weights[other] *= shrink
            row.reference = at
            return 1.0
        # Far in the past the unit underflows to zero, which is what such an event is worth.
        return float(2.0 ** max(lives, -1_000.0))

    def take(self, limit: int) -> list[tuple[str, ItemSignals | None]]:
        """Rows to broadcast, the longest waiting first, at most ``limit``; None says the item was evicted.

        Until :meth:`taken_are_durable` is called they count as not durable for :meth:`commit_offset`. One broadcast
        at a time: end it with that or :meth:`taken_are_lost` before the next.
        """
        taken: list[tuple[str, ItemSignals | None]] = []
        for waiting, row_of in ((self._evicted, self._tombstone), (self._dirty, self._emit)):
            for item_id in list(waiting)[: limit - len(taken)]:
                self._in_flight[item_id] = waiting.pop(item_id)
                taken.append((item_id, row_of(item_id)))
        return taken

    def taken_are_durable(self) -> None:
        """The rows of the last :meth:`take` are acknowledged by the broker."""
        self._in_flight = {}

    def taken_are_lost(self) -> None:
        """The rows of the last :meth:`take` may not have reached the broker: they wait again, before all others."""
        for item_id, offset in self._in_flight.items():
            waiting = self._dirty if item_id in self._rows else self._evicted
            waiting[item_id] = min(offset, waiting.get(item_id, offset))
        self._dirty = dict(sorted(self._dirty.items(), key=itemgetter(1)))
        self._in_flight = {}

    def commit_offset(self) -> int | None:
        """The offset of ``transitions.v1`` everything before which is durable in ``item-signals.v1``."""
        # Rows became dirty in the order of offsets, so the first is the least; of the few others all are looked at.
        first_dirty = islice(self._dirty.values(), 1)
        return min((*first_dirty, *self._evicted.values(), *self._in_flight.values()), default=self._next_offset)

    def _tombstone(self, item_id: str) -> None:
        return None

    def _emit(self, item_id: str) -> ItemSignals:
        row = self._rows[item_id]
        limit = self._settings.neighbours
        if len(row.symmetric) > limit:
            # What is broadcast is also what a new owner starts from: keep exactly the same.
            kept = sorted(row.symmetric, key=lambda other: (-row.symmetric[other], other))[:limit]
            row.symmetric = {other: row.symmetric[other] for other in kept}
            row.directed = {other: row.directed[other] for other in kept if other in row.directed}
        # Statistics are stated at the latest event time seen by the counts; neighbours are moved to it.
        unit = 2.0 ** (-max(row.at - row.reference, 0.0) / self._transition_half_life)
        at = max(row.at, row.reference)
        neighbours = list(row.symmetric)
        size = len(neighbours)
        symmetric = np.fromiter(row.symmetric.values(), np.float64, size) * unit
        directed = np.fromiter((row.directed.get(other, 0.0) for other in neighbours), np.float64, size) * unit
        if at > row.at:
            self._decay_counts(row, at)
        return ItemSignals(
            item_id=item_id,
            at=at,
            counts=list(row.counts),
            neighbours=neighbours,
            symmetric=pack_float64(symmetric),
            directed=pack_float64(directed),
            applied={str(partition): offset for partition, offset in row.applied.items()},
        )

    def restore(self, signals: ItemSignals) -> bool:
        """Take over a row as it was broadcast; False when a row that holds as much or more is there already.

        Raises:
            ValueError: when its arrays do not fit together.
        """
        held = self._rows.get(signals.item_id)
        if held is not None:
            held_applied = {str(partition): offset for partition, offset in held.applied.items()}
            if not componentwise_newer(signals.applied, held_applied):
                return False
        symmetric = unpack_float64(signals.symmetric)
        directed = unpack_float64(signals.directed)
        if not len(symmetric) == len(directed) == len(signals.neighbours):
            raise ValueError(f"item {signals.item_id!r}: neighbours and weights differ in length")
        if len(signals.counts) != len(self._half_lives) + 1:
            raise ValueError(
                f"item {signals.item_id!r}: {len(signals.counts)} counts, "
                f"items.half_lives_days asks for {len(self._half_lives) + 1}"
            )
        self._rows[signals.item_id] = _Row(
            at=signals.at,
            counts=list(signals.counts),
            reference=signals.at,
            symmetric=dict(zip(signals.neighbours, symmetric.tolist(), strict=True)),
            directed={
                other: weight for other, weight in zip(signals.neighbours, directed.tolist(), strict=True) if weight
            },
            applied={int(partition): offset for partition, offset in signals.applied.items()},
        )
        return True

    def forget(self, item_id: str) -> None:
        """Drop a row that was broadcast as evicted."""
        self._rows.pop(item_id, None)
