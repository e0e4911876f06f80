"""Everything ranking reads, in one place: a replica fills it from the compacted topics, evaluation in process.

The order in which topics interleave does not matter: an item's entry, vector and statistics may come in any order,
and what came before the entry takes effect with it.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import chain
from pathlib import Path
from typing import TypeVar

import msgspec
import numpy as np
from numpy.typing import NDArray

from schemas import messages
from schemas.arrays import learnable, unpack_float32
from schemas.messages import Item, ItemFactors, ItemSignals, ItemVector, RankerWeights, Rule, VectorSpace, Versions
from stream_app.codes import Codes
from stream_app.errors import SnapshotError
from stream_app.factors.basis import FactorBasis, carry_basis
from stream_app.factors.table import Factors
from stream_app.index.hnsw import VectorIndex
from stream_app.items.catalogue import Catalogue
from stream_app.items.cold import ColdItems
from stream_app.items.signals import Signals
from stream_app.items.statistics import ItemStatistics
from stream_app.ranking.features import feature_names
from stream_app.ranking.softmax import SoftmaxRanker
from stream_app.retrieval.tables import Tables
from stream_app.rules.book import RuleBook
from stream_app.settings import Settings
from stream_app.spaces.indexed import SpaceIndex
from stream_app.spaces.served import ServedSpace

__all__ = ["ServingState"]

_Record = TypeVar("_Record")

_FORMAT = 3
_SLICE = 1_024
"""Vectors taken from a space at once."""
_CARRIED_ON = 16_384
"""Items a basis is carried over to another space with at most, a sample by id hash."""
_COVERED = 0.99
"""A space that is built beside the served one is whole when it has vectors of so large a share of its items; what is
missing are items that came just now, or that the model cannot embed."""
_OTHERS = 8
"""Spaces that are not kept here whose last records are remembered at most."""


class ServingState:
    """Catalogue, index, statistics and ranker of one process.

    Not safe for use from several threads.

    Args:
        settings: bounds, half-lives, learning.
        space: the model's vector space that is served; vectors of one that is not kept are ignored.
        dimensions: length of its vectors.

    Attributes:
        live: the vectors that are served.
        beside: further spaces that are kept, by name: what :meth:`cut_over` may take for the live one.
        counters: what was applied and what was ignored, by name.
    """

    def __init__(self, settings: Settings, *, space: str, dimensions: int) -> None:
        self.settings = settings
        self.live = SpaceIndex(settings, space=space, dimensions=dimensions)
        self.beside: dict[str, SpaceIndex] = {}
        self._whitenings: dict[str, VectorSpace] = {}
        self._bases: dict[str, FactorBasis] = {}
        self._frame = ""
        self.catalogue = Catalogue(unknown_items=settings.replica.unknown_items)
        self.signals = Signals(settings.items)
        self.factors = Factors(settings.factors)
        self.cold = ColdItems()
        self.rules = RuleBook(self.catalogue, limit=settings.slate.rules)
        self.ranker = SoftmaxRanker(feature_names(settings.items), settings.ranker)
        self.counters: Counter[str] = Counter()
        # Codes of new items, and what they were made of.
        self._cold_codes: (
            tuple[tuple[NDArray[np.int32], Codes, int], tuple[NDArray[np.int8], NDArray[np.float32]]] | None
        ) = None

    @property
    def space(self) -> str:
        """The model's vector space that is served."""
        return self.live.space

    @property
    def served(self) -> ServedSpace:
        """The space of the vectors in :attr:`index`: the model's own, or a half-whitening of it."""
        return self.live.served

    @property
    def index(self) -> VectorIndex:
        """The vectors that are served; another object after a change of space."""
        return self.live.index

    @property
    def frame(self) -> str:
        """What learned factors are comparable in: the space whose basis they started from."""
        return (self._frame or self.space) if self.factors.basis is None else self.factors.basis.frame

    @property
    def versions(self) -> Versions:
        """What a slate made now was made by."""
        return Versions(
            space=self.served.name,
            index=f"{len(self.index)}.{self.index.version}",
            ranker=self.ranker.label,
        )

    def apply_item(self, item_id: str, item: Item | None) -> None:
        """An entry of ``items.v1``; None deletes the item, which leaves index and slates at once."""
        if item is None:
            row = self.catalogue.remove(item_id)
            if row >= 0:
                self._remove_vectors(np.array([row], np.int32))
                self.factors.forget(np.array([row], np.int32))
                self.cold.set(row, cold=False)
                self.rules.item_changed(row)
            if self.catalogue.unknown > self.settings.replica.unknown_items:
                self._make_room()
            self.counters["items_removed"] += 1
            return
        row = self.catalogue.put(item)
        self._update_cold(row, changed=True)
        self.rules.item_changed(row)
        self.counters["items"] += 1

    def apply_rule(self, rule_id: str, rule: Rule | None, *, now: float) -> None:
        """A rule of ``rules.v1``; None deletes it. ``now`` is wall clock, seconds since 1970."""
        self.rules.put(rule_id, rule, now=now)
        self.counters["rules" if rule is not None else "rules_removed"] += 1

    def servable(self, now: float) -> NDArray[np.bool_]:
        """Which rows may be shown at ``now`` (wall clock, seconds since 1970) to anybody: bool [rows], read-only."""
        return self.rules.servable(self.catalogue.servable(now), now)

    def tables(self, now: float, rising: int) -> Tables:
        """Everything ranking reads at ``now`` (wall clock, seconds since 1970), until the state changes.

        Args:
            rising: the column of counts that says which new items rise.
        """
        catalogue, signals, factors, index = self.catalogue, self.signals, self.factors, self.index
        rows, hashes = catalogue.rows, catalogue.id_hash
        # Compiled code does not check its indices: there is room for whatever a row can name.
        signals.reserve(rows)
        factors.reserve(rows)
        vectors, factor_codes = index.table(rows), factors.codes
        tops, top_counts = signals.tops(hashes)
        cold = self.cold.rows(catalogue, signals.momentum(rising))
        return Tables(
            self.servable(now), hashes, catalogue.published_at, vectors, index.present, index.codes.values,
            index.codes.steps, signals.counts, signals.shown_counts, signals.rates, signals.arena,
            signals.transition_rate, tops, top_counts, factors.context, factors.target, factors.bias, factors.has,
            factor_codes.values, factor_codes.steps, cold, *self._codes_of_cold(cold),
        )  # fmt: skip

    def _codes_of_cold(self, cold: NDArray[np.int32]) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
        """Codes of the new items one after the other: every request looks at all of them."""
        codes, held = self.index.codes, self._cold_codes
        if held is None or held[0][0] is not cold or held[0][1] is not codes or held[0][2] != codes.changes:
            held = self._cold_codes = (cold, codes, codes.changes), codes.of(cold)
        return held[1]

    def apply_vector(self, item_id: str, vector: ItemVector | None, *, space: str | None = None) -> None:
        """A vector of ``item-vectors.v1``; None takes it out. Vectors of a space that is not kept are ignored.

        Args:
            space: whose topic the record is of; None: the one that is served.

        Raises:
            ValueError: when the vector has the wrong length or is not of unit length.
        """
        kept = self.live if space in (None, self.space) else self.beside.get(space or "")
        if kept is None or (vector is not None and vector.space != kept.space):
            self.counters["vectors_of_other_spaces"] += 1
            return
        if vector is None:
            row = self.catalogue.row(item_id)
            if row >= 0:
                kept.index.remove(np.array([row], np.int32))
                if kept is self.live:
                    self.factors.forget_started(np.array([row], np.int32))
            self.counters["vectors_removed"] += 1
            return
        values = unpack_float32(vector.vector)
        row = self._intern(item_id)
        if row < 0:
            self.counters["vectors_without_place"] += 1
            return
        kept.put(row, values)
        if kept is self.live:
            self.factors.start(np.array([row], np.int32), values[None, :])
            self._update_cold(row, changed=True)
        self.counters["vectors"] += 1

    def apply_signals(self, item_id: str, signals: ItemSignals | None) -> bool:
        """A row of ``item-signals.v1``; None says that its owner dropped it. False when it was older than ours.

        Raises:
            ValueError: when its arrays do not fit together.
        """
        if signals is not None:
            self._intern(item_id)
        applied = self.signals.apply(item_id, signals, self.catalogue)
        row = self.catalogue.row(item_id)
        if applied and row >= 0:
            self._update_cold(row, counted=True)
        self.counters["signals" if applied else "signals_ignored"] += 1
        return applied

    def apply_all_signals(self, messages: Sequence[tuple[str, ItemSignals]]) -> None:
        """:meth:`apply_signals` of several items, a third of the time for each.

        Raises:
            ValueError: when something is wrong with one of them, or they cannot be applied together (an item comes
                twice, or there is no place for it or for a neighbour); nothing was applied, and one by one it is said
                what, or room is made.
        """
        catalogue, reclaims = self.catalogue, self.catalogue.reclaims
        stated = self.signals.stated([signals for _, signals in messages])
        interned = [self._intern(item_id) for item_id, _ in messages]
        if catalogue.reclaims != reclaims or min(interned) < 0 or len(set(interned)) < len(interned):
            raise ValueError("these signals cannot be applied together")
        fresh = [
            place
            for place, (row, (_, signals)) in enumerate(zip(interned, messages, strict=True))
            if not self.signals.holds_more(row, signals.applied)
        ]
        ignored = len(messages) - len(fresh)
        if ignored:
            # What is ignored takes no places for its neighbours.
            messages = [messages[place] for place in fresh]
            stated = self.signals.stated([signals for _, signals in messages])
        linked = list(chain.from_iterable([signals.neighbours for _, signals in messages]))
        neighbours = catalogue.rows_of(linked)
        if min(neighbours, default=0) < 0:
            neighbours = [catalogue.intern(item_id) for item_id in linked]
            if min(neighbours) < 0:
                raise ValueError("these signals cannot be applied together")
        rows = np.array([interned[place] for place in fresh], np.int32)
        self.signals.apply_arrays(rows, stated.lengths, np.array(neighbours, np.int32), *stated[1:])
        self.cold.set_all(rows, self.is_cold(rows), counted=True)
        self.counters["signals"] += len(rows)
        self.counters["signals_ignored"] += ignored

    def apply_statistics(self, statistics: ItemStatistics) -> None:
        """Take over what an owner in this process has waiting, all of it, without messages.

        The state is then what :meth:`apply_signals` of ``statistics.take(statistics.waiting)`` makes of it.
        """
        taken = statistics.take_arrays(statistics.waiting)
        for item_id in taken.evicted:
            self.apply_signals(item_id, None)
        catalogue, reclaims = self.catalogue, self.catalogue.reclaims
        rows = statistics.places(taken.numbers, self._intern, version=reclaims)
        neighbours = statistics.places(taken.neighbours, catalogue.intern, version=reclaims)
        if catalogue.reclaims != reclaims or rows.min(initial=0) < 0:
            # Too many unknown ids: rows were freed meanwhile, perhaps some of these. One after the other, then.
            for message in statistics.messages(taken):
                self.apply_signals(message.item_id, message)
            return
        applied = self.signals.apply_arrays(
            rows,
            taken.lengths,
            neighbours,
            taken.symmetric,
            taken.directed,
            taken.counts,
            taken.at,
            taken.applied,
            taken.shown,
        )
        count = int(np.count_nonzero(applied))
        changed = rows if count == len(rows) else rows[applied]
        self.cold.set_all(changed, self.is_cold(changed), counted=True)
        self.counters["signals"] += count
        self.counters["signals_ignored"] += len(rows) - count

    def is_cold(self, rows: NDArray[np.int32]) -> NDArray[np.bool_]:
        """Which rows are those of new items: in the catalogue, with hardly any events; bool [len(rows)]."""
        return self.catalogue.known[rows] & (self.signals.total(rows) < self.settings.retrieval.cold_events)

    def apply_weights(self, weights: RankerWeights) -> bool:
        """Weights of ``ranker-weights.v1``; False when they are older than ours or another variant's."""
        applied = self.ranker.restore(weights)
        self.counters["weights" if applied else "weights_ignored"] += 1
        return applied

    def apply_basis(self, message: messages.FactorBasis) -> bool:
        """A record of ``factor-basis.v1``: items without learned factors start there; False when it is not for us.

        Raises:
            ValueError: when its arrays cannot be read.
        """
        kept = self.live if message.space == self.space else self.beside.get(message.space)
        fits = kept is None or message.dimensions == kept.index.dimensions
        if not fits or message.factors != self.settings.factors.dimensions:
            self.counters["bases_ignored"] += 1
            return False
        basis = FactorBasis.of(message)
        if kept is not self.live:
            # Of a space that is kept beside the served one, or will be.
            _remember(self._bases, message.space, basis)
            self.counters["bases_of_other_spaces"] += 1
            return False
        if basis.same_as(self.factors.basis):
            self.counters["bases_ignored"] += 1
            return False
        self._begin_from(basis, self.frame)
        self._start_factors(self.index.rows())
        self.counters["bases"] += 1
        return True

    def _begin_from(self, basis: FactorBasis, frame: str) -> None:
        """Put a basis in force; what was learned in another ``frame`` than its own is not comparable, and goes."""
        if basis.frame != frame:
            self.factors.forget(np.flatnonzero(self.factors.learned).astype(np.int32))
        self.factors.basis, self._frame = basis, ""

    def forget_basis(self, space: str) -> None:
        """The basis of a space that is kept no longer is gone; the one in force stays."""
        self._bases.pop(space, None)

    def apply_factors(self, item_id: str, factors: ItemFactors | None) -> bool:
        """A row of ``item-factors.v1``; None says that the learner dropped it. False when it is not for us.

        Raises:
            ValueError: when its arrays cannot be read or are not finite.
        """
        if factors is None:
            row = self.catalogue.row(item_id)
            if row >= 0:
                self.factors.forget(np.array([row], np.int32))
                self._start_factors(np.array([row], np.int32))
            self.counters["factors_removed"] += 1
            return row >= 0
        context, target = unpack_float32(factors.context), unpack_float32(factors.target)
        if factors.space != self.frame or {len(context), len(target)} != {self.settings.factors.dimensions}:
            self.counters["factors_ignored"] += 1
            return False
        if not learnable(context, target, np.array([factors.bias])):
            raise ValueError(f"factors of item {item_id!r} are not finite, or too large")
        row = self._intern(item_id)
        if row < 0:
            self.counters["factors_without_place"] += 1
            return False
        self.factors.put(row, context, target, factors.bias)
        self.counters["factors"] += 1
        return True

    def apply_all_factors(self, messages: Sequence[tuple[str, ItemFactors]]) -> None:
        """:meth:`apply_factors` of several items, a third of the time for each.

        Raises:
            ValueError: when something is wrong with one of them, or they cannot be applied together (of another space,
                an item comes twice, or no place is free); nothing was applied, and one by one it is said what.
        """
        size, reclaims = self.settings.factors.dimensions, self.catalogue.reclaims
        context, target = (
            np.concatenate([unpack_float32(text) for text in texts])
            for texts in ([one.context for _, one in messages], [one.target for _, one in messages])
        )
        bias = np.array([one.bias for _, one in messages], np.float64)
        fit = all(
            one.space == self.frame and len(one.context) == len(one.target) == len(messages[0][1].context)
            for _, one in messages
        )
        if not fit or len(context) != size * len(messages) or len(target) != len(context):
            raise ValueError("these factors cannot be applied together")
        if not learnable(context, target, bias):
            raise ValueError("factors of an item are not finite, or too large")
        rows = np.array([self._intern(item_id) for item_id, _ in messages], np.int32)
        if self.catalogue.reclaims != reclaims or rows.min() < 0 or len(set(rows.tolist())) < len(rows):
            raise ValueError("these factors cannot be applied together")
        self.factors.apply(rows, context.reshape(-1, size), target.reshape(-1, size), bias.astype(np.float32))
        self.counters["factors"] += len(rows)

    def _start_factors(self, rows: NDArray[np.int32]) -> None:
        """Those of the rows that have a vector and nothing learned start from it."""
        if self.factors.basis is None:
            return
        rows = rows[self.index.has(rows)]
        self.factors.reserve(int(rows.max(initial=-1)) + 1)
        rows = rows[~self.factors.learned[rows]]
        for start in range(0, len(rows), _SLICE):
            piece = rows[start : start + _SLICE]
            self.factors.start(piece, self.live.model_vectors(piece))

    def apply_space(self, message: VectorSpace | None, *, space: str | None = None) -> bool:
        """A record of ``spaces.v1``: the space to serve from now on, None for the model's own; False when ignored.

        The vectors are taken there in the shadow; :meth:`advance_space` cuts over. The newest record counts, whatever
        its version: everyone reads them in the same order.

        Args:
            space: of which model's space the record speaks; None: of the one that is served.

        Raises:
            ValueError: when it is not a space of our vectors.
        """
        name = message.space if message is not None else space or self.space
        if not self.settings.spaces.whiten:
            self.counters["spaces_ignored"] += 1
            return False
        if name != self.space:
            if message is None:
                self._whitenings.pop(name, None)
            else:
                _remember(self._whitenings, name, message)
        kept = self.live if name == self.space else self.beside.get(name)
        if kept is None or not kept.serve(message):
            self.counters["spaces_ignored"] += 1
            return False
        self.counters["spaces"] += 1
        return True

    @property
    def migrating(self) -> bool:
        """Whether what is served is being made ready in another space of the same model."""
        return self.live.migrating

    def advance_space(self, *, wait: bool = False) -> bool:
        """Cut over to the space that was made ready in the shadow, with ``wait`` as soon as it is; whether that was.

        Not to be called while something ranks or saves: vectors of two spaces must not meet.
        """
        for kept in self.beside.values():
            try:
                kept.advance(wait=wait)
            except Exception:  # no room for it: what is served goes on, and the other is as it was
                kept.give_up()
                self.counters["spaces_given_up"] += 1
        return self.live.advance(wait=wait)

    def keep_beside(self, space: str, dimensions: int) -> None:
        """Keep the vectors of a further model's space from now on; nothing when they are kept already."""
        if space == self.space or space in self.beside:
            return
        kept = self.beside[space] = SpaceIndex(self.settings, space=space, dimensions=dimensions)
        whitening = self._whitenings.get(space)
        if whitening is not None and whitening.dimensions == dimensions:
            kept.serve(whitening)

    def drop_beside(self, space: str) -> None:
        """Keep the vectors of a space no longer; nothing when it is the one that is served."""
        self.beside.pop(space, None)

    def cut_over(self, space: str) -> None:
        """Serve another model's space, one of :attr:`beside`, from now on; the one served until now takes its place.

        Afterwards everything is as if the space had been served from the beginning, but for learned factors: they do
        not depend on the model, and stay. Not to be called while something ranks or saves.

        Raises:
            KeyError: when the space is not kept.
        """
        before, basis, frame = self.live, self.factors.basis, self.frame
        self.live = self.beside.pop(space)
        self.beside[before.space] = before
        # Seen by what remembers which version of an index it looked at: it never goes back.
        self.live.index.version = max(self.live.index.version, before.index.version) + 1
        if before.coming.message is not None:
            _remember(self._whitenings, before.space, before.coming.message)
        else:
            self._whitenings.pop(before.space, None)
        if basis is not None:
            _remember(self._bases, before.space, basis)
        self.factors.forget_started(np.flatnonzero(self.factors.has & ~self.factors.learned).astype(np.int32))
        carried = self._bases.get(space)
        if carried is not None:
            self._begin_from(carried, frame)
        else:
            # What was learned stays good for as long as no other beginning is told of.
            self.factors.basis, self._frame = None, frame
        self._start_factors(self.index.rows())
        known = np.flatnonzero(self.catalogue.known).astype(np.int32)
        self.cold.set_all(known, self.is_cold(known), changed=True)
        self.counters["cut_overs"] += 1

    def covered(self, space: str) -> bool:
        """Whether a space kept beside the served one has a vector of nearly every item that one has."""
        kept, rows = self.beside.get(space), self.index.rows()
        if kept is None or not len(rows):
            return False
        missing = len(rows) - int(np.count_nonzero(kept.index.has(rows)))
        return missing < len(rows) and missing <= max(1.0, (1.0 - _COVERED) * len(rows))

    def to_space(self, vectors: Mapping[str, NDArray[np.float32]]) -> dict[str, NDArray[np.float32]]:
        """The model's vectors of texts, by text, as vectors of the space served now. Not kept: the space may change."""
        if not vectors:
            return {}
        served = self.served.from_model(np.stack(list(vectors.values())))
        return dict(zip(vectors, served, strict=True))

    def space_due(self, space: str | None = None) -> bool:
        """Whether a space has to be fitted (again): the one that is served, or one kept beside it that is whole."""
        if space is None or space == self.space:
            return self.live.due()
        kept = self.beside.get(space)
        return kept is not None and kept.due() and self.covered(space)

    def fit_space(self, space: str | None = None) -> Callable[[], VectorSpace | None]:
        """A fit to the vectors there are now, which the returned function does: in a thread, if its caller likes.

        See :meth:`stream_app.spaces.indexed.SpaceIndex.fit`.
        """
        kept = self.live if space is None or space == self.space else self.beside[space]
        return kept.fit(self.catalogue.id_hash)

    def basis_due(self, space: str) -> bool:
        """Whether the basis of learned factors is to be carried over to a space kept beside the served one."""
        return self.factors.basis is not None and space not in self._bases and self.covered(space)

    def carry_basis(self, space: str) -> Callable[[], messages.FactorBasis]:
        """The basis in force carried over to another space. The returned function does it: in a thread, if its caller
        likes.

        Raises:
            KeyError: when the space is not kept.
            ValueError: when there is no basis.
        """
        live, kept, basis = self.live, self.beside[space], self.factors.basis
        if basis is None:
            raise ValueError("there is no basis to carry over")
        index, served, new_index, new_served = live.index, live.served, kept.index, kept.served
        rows = index.rows()
        rows = rows[new_index.has(rows)]
        rows = rows[np.argsort(self.catalogue.id_hash[rows], kind="stable")][:_CARRIED_ON]

        def carried() -> messages.FactorBasis:
            old, new = index.vectors(rows), new_index.vectors(rows)
            both = old.any(axis=1) & new.any(axis=1)
            old, new = served.to_model(old[both]), new_served.to_model(new[both])
            return carry_basis(basis, old, new, space=space).message()

        return carried

    def _intern(self, item_id: str) -> int:
        """A row for the id; -1 when there is none even after making room (``replica.unknown_items`` is 0)."""
        row = self.catalogue.intern(item_id)
        if row < 0:
            self._make_room()
            row = self.catalogue.intern(item_id)
        return row

    def _make_room(self) -> None:
        """Free rows of ids without an entry: first those nothing refers to, then those with the fewest events.

        A tenth of the bound is freed at a time, so that looking at all neighbours is rare.
        """
        catalogue = self.catalogue
        rows = np.arange(catalogue.rows, dtype=np.int32)
        self.factors.reserve(len(rows))
        needed = self.signals.referenced(len(rows)) | self.factors.learned[: len(rows)]
        for space in (self.live, *self.beside.values()):
            needed |= space.index.has(rows)
        self.factors.forget(catalogue.reclaim(needed))
        surplus = catalogue.unknown - int(0.9 * self.settings.replica.unknown_items)
        if surplus <= 0:
            return
        unknown = np.flatnonzero(~catalogue.known & (catalogue.id_hash >= 0)).astype(np.int32)
        order = np.lexsort((catalogue.id_hash[unknown], self.signals.total(unknown)))
        dropped = unknown[order[:surplus]]
        self.signals.forget(dropped)
        self._remove_vectors(dropped)
        self.factors.forget(dropped)
        kept = np.ones(len(rows), np.bool_)
        kept[dropped] = False
        catalogue.reclaim(kept)
        self.counters["unknown_items_dropped"] += len(dropped)

    def _remove_vectors(self, rows: NDArray[np.int32]) -> None:
        for kept in (self.live, *self.beside.values()):
            kept.index.remove(rows)

    def _update_cold(self, row: int, *, changed: bool = False, counted: bool = False) -> None:
        threshold = self.settings.retrieval.cold_events
        cold = bool(self.catalogue.known[row]) and self.signals.total(np.array([row]))[0] < threshold
        self.cold.set(row, cold=cold, changed=changed, counted=counted)

    @contextmanager
    def saving(self) -> Iterator[None]:
        """While :meth:`save` runs in a thread: ranking goes on and changes nothing that is saved.

        Applying records must wait.
        """
        self.signals.reserve(self.catalogue.rows)
        self.factors.reserve(self.catalogue.rows)
        with self.index.held():
            yield

    def save(self, directory: Path) -> None:
        """Write a snapshot into ``directory`` (made when missing)."""
        directory.mkdir(parents=True, exist_ok=True)
        self.catalogue.save(directory)
        self.index.save(directory)
        self.signals.save(directory)
        self.factors.save(directory, self.catalogue.rows)
        meta = _Meta(
            format=_FORMAT,
            space=self.space,
            dimensions=self.index.dimensions,
            ranker=self.ranker.weights_message(),
            served=self.served.message,
            coming=self.live.coming.message if self.migrating else None,
            migrating=self.migrating,
            whitenings=list(self._whitenings.values()),
            bases=[basis.message() for basis in self._bases.values()],
        )
        (directory / "serving.json").write_bytes(msgspec.json.encode(meta))
        (directory / "rules.json").write_bytes(msgspec.json.encode(self.rules.rules))

    @classmethod
    def load(cls, directory: Path, settings: Settings, *, space: str, dimensions: int) -> ServingState:
        """The state that :meth:`save` wrote.

        Raises:
            SnapshotError: when it cannot be read, or is of another vector space, format or set of half-lives.
        """
        try:
            meta = msgspec.json.decode((directory / "serving.json").read_bytes(), type=_Meta)
        except (OSError, msgspec.DecodeError) as error:
            raise SnapshotError(f"the snapshot in {directory} cannot be read: {error}") from error
        if (meta.format, meta.space, meta.dimensions) != (_FORMAT, space, dimensions):
            raise SnapshotError(
                f"the snapshot in {directory} is of format {meta.format}, space {meta.space!r} with "
                f"{meta.dimensions} dimensions; this process needs {_FORMAT}, {space!r}, {dimensions}"
            )
        if meta.served is not None and not settings.spaces.whiten:
            raise SnapshotError(f"the snapshot in {directory} is half-whitened, which spaces.whiten switches off")
        state = cls(settings, space=space, dimensions=dimensions)
        state.catalogue = Catalogue.load(directory, unknown_items=settings.replica.unknown_items)
        state.rules = RuleBook(state.catalogue, limit=settings.slate.rules)
        for rule in _rules(directory):
            state.rules.put(rule.rule_id, rule, now=-math.inf)
        state.live.index = VectorIndex.load(directory, settings.index)
        try:
            state.live.served = ServedSpace(space, meta.served)
            for whitening in meta.whitenings:
                _remember(state._whitenings, whitening.space, whitening)
            for basis in meta.bases:
                _remember(state._bases, basis.space, FactorBasis.of(basis))
            if meta.migrating:
                # The record that asked for it is behind the snapshot's offsets: it will not come again.
                state.apply_space(meta.coming)
        except ValueError as error:
            raise SnapshotError(f"the snapshot in {directory} cannot be read: {error}") from error
        state.signals = Signals.load(directory, settings.items)
        state.factors = Factors.load(directory, settings.factors)
        state.ranker.restore(meta.ranker)
        known = np.flatnonzero(state.catalogue.known).astype(np.int32)
        state.cold.set_all(known, state.is_cold(known))
        return state


def _rules(directory: Path) -> list[Rule]:
    """The rules of a snapshot; none in one that was written before there were any."""
    path = directory / "rules.json"
    try:
        return msgspec.json.decode(path.read_bytes(), type=list[Rule]) if path.exists() else []
    except (OSError, msgspec.DecodeError) as error:
        raise SnapshotError(f"the rules in {directory} cannot be read: {error}") from error


class _Meta(msgspec.Struct):
    format: int
    space: str
    dimensions: int
    ranker: RankerWeights
    served: VectorSpace | None = None
    coming: VectorSpace | None = None
    migrating: bool = False
    whitenings: list[VectorSpace] = []
    bases: list[messages.FactorBasis] = []


def _remember(held: dict[str, _Record], space: str, record: _Record) -> None:
    """The last record of a space, of a few of them."""
    held.pop(space, None)
    held[space] = record
    while len(held) > _OTHERS:
        del held[next(iter(held))]
