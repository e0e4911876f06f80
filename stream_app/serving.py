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

import msgspec
import numpy as np
from numpy.typing import NDArray

from schemas import messages
from schemas.arrays import unpack_float32
from schemas.messages import Item, ItemFactors, ItemSignals, ItemVector, RankerWeights, Rule, VectorSpace, Versions
from stream_app.codes import Codes
from stream_app.errors import SnapshotError
from stream_app.factors.basis import FactorBasis
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
from stream_app.spaces.migration import Migration
from stream_app.spaces.served import ServedSpace, axes_within, describe
from stream_app.spaces.whitening import Statistics, fit

__all__ = ["ServingState"]

_FORMAT = 3
_FITTED_ON = 50_000
"""Items a space is fitted on at most, a sample by id hash: more would hardly change it, and cost time."""
_FIT_SLICE = 1_024
"""Vectors taken to or from a space at once."""


class ServingState:
    """Catalogue, index, statistics and ranker of one process.

    Not safe for use from several threads.

    Args:
        settings: bounds, half-lives, learning.
        space: the model's vector space; vectors of another one are ignored.
        dimensions: length of its vectors.

    Attributes:
        space: the model's vector space.
        served: the space of the vectors in the index: the model's own, or a half-whitening of it.
        index: the vectors; another object after a change of space.
        counters: what was applied and what was ignored, by name.
    """

    def __init__(self, settings: Settings, *, space: str, dimensions: int) -> None:
        self.settings = settings
        self.space = space
        self.served = ServedSpace(space)
        self._migration: Migration | None = None
        self.catalogue = Catalogue(unknown_items=settings.replica.unknown_items)
        self.index = VectorIndex(dimensions, settings.index)
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
                self.index.remove(np.array([row], np.int32))
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

    def apply_vector(self, item_id: str, vector: ItemVector | None) -> None:
        """A vector of ``item-vectors.v1``; None takes it out. Vectors of another space are ignored.

        Raises:
            ValueError: when the vector has the wrong length or is not of unit length.
        """
        if vector is None:
            row = self.catalogue.row(item_id)
            if row >= 0:
                self.index.remove(np.array([row], np.int32))
                self.factors.forget_started(np.array([row], np.int32))
            self.counters["vectors_removed"] += 1
            return
        if vector.space != self.space:
            self.counters["vectors_of_other_spaces"] += 1
            return
        values = unpack_float32(vector.vector)
        row = self._intern(item_id)
        if row < 0:
            self.counters["vectors_without_place"] += 1
            return
        self.index.upsert(np.array([row], np.int32), self.served.from_model(values[None, :]))
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
        fits = message.space == self.space and message.dimensions == self.index.dimensions
        if not fits or message.factors != self.settings.factors.dimensions:
            self.counters["bases_ignored"] += 1
            return False
        basis = FactorBasis.of(message)
        if basis.same_as(self.factors.basis):
            self.counters["bases_ignored"] += 1
            return False
        self.factors.basis = basis
        self._start_factors(self.index.rows())
        self.counters["bases"] += 1
        return True

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
        if factors.space != self.space or {len(context), len(target)} != {self.settings.factors.dimensions}:
            self.counters["factors_ignored"] += 1
            return False
        if not (np.isfinite(context).all() and np.isfinite(target).all() and np.isfinite(factors.bias)):
            raise ValueError(f"factors of item {item_id!r} are not finite")
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
        bias = np.array([one.bias for _, one in messages], np.float32)
        fit = all(
            one.space == self.space and len(one.context) == len(one.target) == len(messages[0][1].context)
            for _, one in messages
        )
        if not fit or len(context) != size * len(messages) or len(target) != len(context):
            raise ValueError("these factors cannot be applied together")
        if not (np.isfinite(context).all() and np.isfinite(target).all() and np.isfinite(bias).all()):
            raise ValueError("factors of an item are not finite")
        rows = np.array([self._intern(item_id) for item_id, _ in messages], np.int32)
        if self.catalogue.reclaims != reclaims or rows.min() < 0 or len(set(rows.tolist())) < len(rows):
            raise ValueError("these factors cannot be applied together")
        self.factors.apply(rows, context.reshape(-1, size), target.reshape(-1, size), bias)
        self.counters["factors"] += len(rows)

    def _start_factors(self, rows: NDArray[np.int32]) -> None:
        """Those of the rows that have a vector and nothing learned start from it."""
        if self.factors.basis is None:
            return
        rows = rows[self.index.has(rows)]
        for start in range(0, len(rows), _FIT_SLICE):
            piece = rows[start : start + _FIT_SLICE]
            self.factors.start(piece, self.served.to_model(self.index.vectors(piece)))

    def apply_space(self, message: VectorSpace | None) -> bool:
        """A record of ``spaces.v1``: the space to serve from now on, None for the model's own; False when ignored.

        The vectors are taken there in the shadow; :meth:`advance_space` cuts over. The newest record counts, whatever
        its version: everyone reads them in the same order.

        Raises:
            ValueError: when it is not a space of our vectors.
        """
        if not self.settings.spaces.whiten or (message is not None and message.space != self.space):
            self.counters["spaces_ignored"] += 1
            return False
        target = ServedSpace(self.space, message)
        if message is not None and message.dimensions != self.index.dimensions:
            raise ValueError(
                f"space {target.name} has {message.dimensions} dimensions, the model {self.index.dimensions}"
            )
        coming = self.served if self._migration is None else self._migration.target
        if target.name == coming.name:
            self.counters["spaces_ignored"] += 1
            return False
        if self._migration is not None:
            self._migration.abandon()
        self._migration = Migration(self.index, self.served, target, self.settings.index)
        self.counters["spaces"] += 1
        return True

    @property
    def migrating(self) -> bool:
        """Whether another space is being made ready."""
        return self._migration is not None

    def advance_space(self, *, wait: bool = False) -> bool:
        """Cut over to the space that was made ready in the shadow, with ``wait`` as soon as it is; whether that was.

        Not to be called while something ranks or saves: vectors of two spaces must not meet.
        """
        while (migration := self._migration) is not None:
            if wait:
                migration.wait()
            index = migration.advance()
            if index is not None:
                self._migration = None
                self.index, self.served = index, migration.target
                return True
            if not wait:
                break
        return False

    def to_space(self, vectors: Mapping[str, NDArray[np.float32]]) -> dict[str, NDArray[np.float32]]:
        """The model's vectors of texts, by text, as vectors of the space served now. Not kept: the space may change."""
        if not vectors:
            return {}
        served = self.served.from_model(np.stack(list(vectors.values())))
        return dict(zip(vectors, served, strict=True))

    def space_due(self) -> bool:
        """Whether the catalogue has so changed in size that a space has to be fitted (again)."""
        settings, items = self.settings.spaces, len(self.index)
        if not settings.whiten or self._migration is not None or items < settings.first_items:
            return False
        fitted = self.served.items
        return items >= settings.refit_growth * fitted or items * settings.refit_growth <= fitted

    def fit_space(self) -> Callable[[], VectorSpace | None]:
        """A fit to the vectors there are now, which the returned function does: in a thread, if its caller likes.

        Vectors that change meanwhile are counted as they were or as they are. The function returns None when the
        message would not fit into ``connection.max_message_bytes``.
        """
        index, served, space, items = self.index, self.served, self.space, len(self.index)
        axes = axes_within(self.settings.connection.max_message_bytes, index.dimensions)
        rows = index.rows()
        # In an order that is the same everywhere, whatever the rows: so is the sample.
        rows = rows[np.argsort(self.catalogue.id_hash[rows], kind="stable")][:_FITTED_ON]

        def fitted() -> VectorSpace | None:
            if axes < 1:
                return None
            statistics = Statistics(index.dimensions)
            for start in range(0, len(rows), _FIT_SLICE):
                vectors = index.vectors(rows[start : start + _FIT_SLICE])
                statistics.add(served.to_model(vectors[vectors.any(axis=1)]))
            return describe(fit(statistics, axes=axes), model=space, version=served.version + 1, items=items)

        return fitted

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
        needed = self.signals.referenced(len(rows)) | self.index.has(rows) | self.factors.learned[: len(rows)]
        self.factors.forget(catalogue.reclaim(needed))
        surplus = catalogue.unknown - int(0.9 * self.settings.replica.unknown_items)
        if surplus <= 0:
            return
        unknown = np.flatnonzero(~catalogue.known & (catalogue.id_hash >= 0)).astype(np.int32)
        order = np.lexsort((catalogue.id_hash[unknown], self.signals.total(unknown)))
        dropped = unknown[order[:surplus]]
        self.signals.forget(dropped)
        self.index.remove(dropped)
        self.factors.forget(dropped)
        kept = np.ones(len(rows), np.bool_)
        kept[dropped] = False
        catalogue.reclaim(kept)
        self.counters["unknown_items_dropped"] += len(dropped)

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
            coming=self._migration.target.message if self._migration is not None else None,
            migrating=self.migrating,
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
        state.index = VectorIndex.load(directory, settings.index)
        try:
            state.served = ServedSpace(space, meta.served)
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
