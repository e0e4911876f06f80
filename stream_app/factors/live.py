"""The learned factors of a catalogue that changes while they are learned: what their one owner does with each record.

An item has factors from the moment it is both described and embedded: drawn as a negative any earlier, it would lose
its start from text.

The basis is fitted when the first example is to be learned, to the items there are by then, and it is final once all
of its directions are found, which takes two items each. Fitted to fewer, it is *extended* when the catalogue has
doubled: the directions it has stay as they are, further ones are added, and factors learned before begin in those
where their text says. So whatever was learned under any of its versions stays comparable, and nothing is ever learned
anew. (128 items make as good a basis of 64 directions as all of Online Retail's, see decision 0017.)
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from schemas import messages
from schemas.arrays import unpack_float32
from schemas.messages import ItemFactors, ItemVector, TrainingExamples
from stream_app.factors.basis import FactorBasis, extend_basis, fit_basis
from stream_app.factors.learner import FactorLearner
from stream_app.settings import FactorSettings

__all__ = ["LiveFactors", "holds_less"]

_SETTLED = 0.9
"""A catalogue of which so large a share has vectors is there; while fewer have, it is being loaded."""
_KEPT = 16_384
"""Vectors kept until the basis is final at most; with so many the first is fitted, wanted or not."""
_EARLY = 10_000
"""Vectors kept of items that are not described yet."""


class LiveFactors:
    """Items, vectors, examples and rows in; the basis and changed rows out. Not safe for use from several threads.

    To go on where another owner ended: :meth:`restore_basis`, then every item and vector, then :meth:`restore`.

    Args:
        settings: dimensions, rates, bounds.
        space: the model's vector space; vectors of another one are ignored.
        dimensions: length of its vectors.
    """

    def __init__(self, settings: FactorSettings, *, space: str, dimensions: int) -> None:
        self.settings = settings
        self.space = space
        self._dimensions = dimensions
        self._items: set[str] = set()
        self._vectors: dict[str, NDArray[np.float32]] = {}
        self._early: OrderedDict[str, NDArray[np.float32]] = OrderedDict()
        self._learner: FactorLearner | None = None
        self._fitted_to = 0
        self._orphans: list[str] = []
        self._orphans_taken = 0
        self._next_offset: int | None = None

    def __len__(self) -> int:
        """Items that have factors, or will as soon as there is a basis."""
        return len(self._vectors) if self._learner is None else len(self._learner)

    @property
    def basis(self) -> FactorBasis | None:
        """What is in force."""
        return None if self._learner is None else self._learner.basis

    @property
    def examples(self) -> int:
        """Examples learned from since this owner took over."""
        return 0 if self._learner is None else self._learner.examples

    @property
    def waiting(self) -> int:
        """Records to broadcast."""
        return len(self._orphans) + (0 if self._learner is None else self._learner.waiting)

    def apply_item(self, item_id: str, *, there: bool) -> None:
        """An entry of ``items.v1``, or its deletion."""
        if there:
            self._items.add(item_id)
            vector = self._early.pop(item_id, None)
            if vector is not None:
                self._put(item_id, vector)
            return
        self._items.discard(item_id)
        self._early.pop(item_id, None)
        self._vectors.pop(item_id, None)
        if self._learner is not None:
            self._learner.remove(item_id)

    def apply_vector(self, item_id: str, vector: ItemVector | None) -> None:
        """A vector of ``item-vectors.v1``; None takes it away, and what was learned of the item stays.

        Raises:
            ValueError: when it has the wrong length or is not finite.
        """
        if vector is None:
            self._early.pop(item_id, None)
            self._vectors.pop(item_id, None)
            return
        if vector.space != self.space:
            return
        values = unpack_float32(vector.vector)
        if len(values) != self._dimensions or not np.isfinite(values).all():
            raise ValueError(f"the vector of item {item_id!r} must be {self._dimensions} finite numbers")
        if item_id in self._items:
            self._put(item_id, values)
            return
        self._early[item_id] = values
        self._early.move_to_end(item_id)
        while len(self._early) > _EARLY:
            self._early.popitem(last=False)

    def _put(self, item_id: str, vector: NDArray[np.float32]) -> None:
        if not self._final and len(self._vectors) < _KEPT:
            self._vectors[item_id] = vector
        if self._learner is not None:
            self._learner.put(item_id, vector)

    @property
    def _final(self) -> bool:
        basis = self.basis
        return basis is not None and basis.found >= min(self.settings.dimensions, self._dimensions)

    def due(self, *, wanted: bool) -> FactorBasis | None:
        """The basis to publish and then :meth:`adopt`; None while the one in force is the right one.

        Args:
            wanted: an example is there to be learned.
        """
        count, basis = len(self._vectors), self.basis
        if self._final or count < 2 or self.settings.learning_rate <= 0.0:
            return None
        if basis is None:
            enough = count >= min(2 * self.settings.dimensions, _SETTLED * len(self._items))
            if count < _KEPT and not (wanted and enough):
                return None
        elif count < 2 * max(self._fitted_to, 2 * basis.found):
            return None
        table = np.stack(list(self._vectors.values()))
        length = self.settings.start_length
        if basis is None:
            return fit_basis(table, space=self.space, factors=self.settings.dimensions, length=length)
        return extend_basis(basis, table, length=length)

    def adopt(self, basis: FactorBasis) -> None:
        """Learn from this basis on, which is durable: a first one, or an extension of the one in force."""
        self._fitted_to = len(self._vectors)
        if self._learner is None:
            self._learner = FactorLearner(self.settings, basis)
            if self._next_offset is not None:
                self._learner.skip(self._next_offset - 1)
            for item_id, vector in self._vectors.items():
                self._learner.put(item_id, vector)
        else:
            self._learner.extend(basis, self._vectors)
        if self._final:
            self._vectors = {}

    def restore_basis(self, message: messages.FactorBasis | None) -> bool:
        """Go on with a basis that was published, before any item; False when it is of another space or size.

        Raises:
            ValueError: when its arrays cannot be read.
        """
        if message is None or message.space != self.space:
            return False
        if (message.dimensions, message.factors) != (self._dimensions, self.settings.dimensions):
            return False
        self._learner = FactorLearner(self.settings, FactorBasis.of(message))
        return True

    def restore(self, rows: Mapping[str, ItemFactors]) -> int:
        """Go on with the rows that were published last, after every item; returns how many.

        What means nothing any more is broadcast as gone: rows of items that left, and rows whose basis is lost.
        """
        taken = 0
        for item_id, row in rows.items():
            comparable = self._learner is not None or row.space != self.space
            if item_id not in self._items or not comparable:
                self._orphans.append(item_id)
            elif self._learner is not None:
                try:
                    taken += self._learner.restore(row)
                except ValueError:
                    # Not of our making: the next row of the item takes its place.
                    continue
        return taken

    def learn(self, batch: TrainingExamples, *, offset: int) -> int:
        """One step for each example whose item has factors; returns how many there were.

        Args:
            batch: in the order of source offsets.
            offset: of the message; see :meth:`commit_offset`.

        Raises:
            ValueError: when it says that it is from a place that cannot be; nothing was learned.
        """
        self.skip(offset)
        if self._learner is None:
            return 0
        return self._learner.learn(batch.examples, partition=batch.source_partition, offset=offset)

    def skip(self, offset: int) -> None:
        """A message that says nothing was read; see :meth:`commit_offset`."""
        self._next_offset = offset + 1
        if self._learner is not None:
            self._learner.skip(offset)

    def take(self, limit: int, *, named: bool = False) -> list[tuple[str, ItemFactors | None]]:
        """Messages to broadcast, at most ``limit``; None says that the item has none any more. With ``named`` only what
        moved far, see :meth:`FactorLearner.take`.

        Until :meth:`taken_are_durable` is called they hold :meth:`commit_offset` back.
        """
        if self._orphans:
            # Alone: a new row of the same item must not overtake the record that ends the old one.
            self._orphans_taken = min(limit, len(self._orphans))
            return [(item_id, None) for item_id in self._orphans[:limit]]
        return [] if self._learner is None else self._learner.take(limit, named=named)

    def taken_are_durable(self) -> None:
        """What :meth:`take` gave last is acknowledged by the broker."""
        del self._orphans[: self._orphans_taken]
        self._orphans_taken = 0
        if self._learner is not None:
            self._learner.taken_are_durable()

    def taken_are_lost(self) -> None:
        """What :meth:`take` gave last may not have reached the broker: it waits again."""
        self._orphans_taken = 0
        if self._learner is not None:
            self._learner.taken_are_lost()

    def commit_offset(self) -> int:
        """The offset of the examples' topic before which everything is durable; 0 when nothing was read."""
        offset = self._next_offset if self._learner is None else self._learner.commit_offset()
        return offset or 0


def holds_less(row: ItemFactors, held: ItemFactors) -> bool:
    """Whether a row that was published after ``held`` is older: an owner that was paused published it late."""
    if (row.space, len(row.context)) != (held.space, len(held.context)):
        return False
    places = row.applied.keys() | held.applied.keys()
    behind = [row.applied.get(place, -1) - held.applied.get(place, -1) for place in places]
    return min(behind, default=0) < 0 and max(behind, default=0) <= 0
