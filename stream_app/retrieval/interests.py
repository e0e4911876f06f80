"""What a user wants, derived from the event history when it is needed: vectors and recent items.

Interests are exponentially weighted sums of item vectors, newest first, signed by the polarity of the event. They
are never stored: an item whose vector arrives after its events counts from then on, and a new vector space needs no
migration.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from stream_app.compiled import compiled, compiled_sums
from stream_app.factors.kernels import both_memories
from stream_app.factors.table import Factors
from stream_app.index.hnsw import VectorIndex
from stream_app.items.catalogue import Catalogue
from stream_app.settings import Settings
from stream_app.users.state import HistoryEntry

__all__ = ["FAST", "LAST", "MEAN", "NEGATIVE", "SLOW", "VECTORS", "Interests", "derive_interests", "history_view"]

SLOW, FAST, LAST, NEGATIVE, MEAN = range(5)
"""Rows of :attr:`Interests.vectors`; the first two also of :attr:`Interests.factors`."""
VECTORS = 5

_WORDS = 10
"""Events that words are heard over: what was said before them is a small part of what the vectors say by now."""
_SINGLE = 15
"""Recent items a candidate is compared with one by one."""
_NO_FACTORS: NDArray[np.float32] = np.zeros((0, 0), np.float32)
_NO_ROWS: NDArray[np.bool_] = np.zeros(0, np.bool_)


@dataclass(slots=True)
class Interests:
    """A user's interests at one time.

    Attributes:
        queries: float32 [5 + up to 15, dimensions], ``vectors`` and ``recent_vectors``: what candidates are compared
            with.
        recent: int32 [r], distinct rows of the last items with a positive event, newest first.
        events: entries in the history, and the weight of the prior where there is one.
        own: int32 [o], distinct rows of the items of positive events, newest first.
        own_weights: float64 [o], how much was done with each: ``slow_decay`` per event since, summed up.
        factors: float32 [2, k], the user's learned factors by a long and a short memory; zeros where nothing is known.
        words: whether texts say something of note of the vectors, and not items alone: one of the last ten events, or
            the prior while there are no more events than that.
    """

    queries: NDArray[np.float32]
    recent: NDArray[np.int32]
    events: int
    own: NDArray[np.int32]
    own_weights: NDArray[np.float64]
    factors: NDArray[np.float32]
    words: bool

    @property
    def vectors(self) -> NDArray[np.float32]:
        """float32 [5, dimensions]: slow, fast, last item, negative, and the mean of all that was liked; unit length, or
        zeros where the history says nothing."""
        return self.queries[:VECTORS]

    @property
    def recent_vectors(self) -> NDArray[np.float32]:
        """float32 [up to 15, dimensions], vectors of the newest of ``recent``; zeros where there is none."""
        return self.queries[VECTORS:]


def history_view(history: tuple[HistoryEntry, ...], before: float | None) -> tuple[HistoryEntry, ...]:
    """The history as it was before event time ``before`` (seconds); all of it for None.

    Events of one user with the same time are one basket: items of a basket must not teach the ranker about each
    other, so an example for an event at ``t`` is made from what happened strictly before ``t``.
    """
    if before is None:
        return history
    return tuple(entry for entry in history if entry.at < before)


def derive_interests(
    history: tuple[HistoryEntry, ...],
    catalogue: Catalogue,
    index: VectorIndex,
    settings: Settings,
    text_vectors: Mapping[str, NDArray[np.float32]],
    prior: Sequence[str] = (),
    prior_weight: float = 0.0,
    factors: Factors | None = None,
) -> Interests:
    """Interests of a history (oldest first).

    An entry with a text and no item counts with the text's vector, any other with its item's; entries without a
    vector contribute nothing to the vectors. The prior counts like an event older than all of the history, so it is
    all there is at first and fades with every event.

    Args:
        history: a view of the user's history.
        catalogue: rows of the items.
        index: their vectors.
        settings: decays, and how many recent items are looked at.
        text_vectors: unit vectors of free texts, by text.
        prior: texts that say what the user likes whatever happened; those without a vector count nothing.
        prior_weight: weight of all of them together, of the size of an event's.
        factors: learned factors of the items.
    """
    count = len(history)
    before = _mean([text_vectors[text] for text in prior if text in text_vectors], index.dimensions)
    spoken = bool(prior) and bool(before.any())
    known = round(prior_weight) if spoken else 0
    newest_first = history[::-1]
    entry_rows = catalogue.rows_of([entry.item_id for entry in newest_first])
    said = np.zeros((0, index.dimensions), np.float32)
    if text_vectors and min(entry_rows, default=0) < 0:
        said = np.zeros((count, index.dimensions), np.float32)
        for place, (row, entry) in enumerate(zip(entry_rows, newest_first, strict=True)):
            if row < 0 and entry.text and entry.text in text_vectors:
                said[place] = text_vectors[entry.text]
    top = max(entry_rows, default=-1) + 1
    users, learned = settings.users, settings.factors
    if factors is None:
        context, has, norm = _NO_FACTORS, _NO_ROWS, 1.0
    else:
        factors.reserve(top)
        context, has, norm = factors.context, factors.has, learned.norm
    queries = np.zeros((VECTORS + _SINGLE, index.dimensions), np.float32)
    own, own_weights = np.empty(count, np.int32), np.empty(count)
    by_factors = np.zeros((2, context.shape[1]), np.float32)
    distinct, single = _derive(
        np.array(entry_rows, np.int32), np.array([entry.weight for entry in newest_first], np.float64), said,
        index.table(top), users.slow_decay, users.fast_decay, before, prior_weight, context, has, learned.decay,
        learned.fast_decay, norm, learned.history, min(_SINGLE, settings.retrieval.recent_items), queries, own,
        own_weights, by_factors,
    )  # fmt: skip
    own = own[:distinct]
    return Interests(
        queries[: VECTORS + single],
        own[: settings.retrieval.recent_items],
        count + known,
        own,
        own_weights[:distinct],
        by_factors,
        (prior_weight > 0 and count <= _WORDS and spoken) or (len(said) > 0 and bool(said[:_WORDS].any())),
    )


@compiled
def _derive(
    rows: NDArray[np.int32],
    weights: NDArray[np.float64],
    said: NDArray[np.float32],
    table: NDArray[np.float32],
    slow: float,
    fast: float,
    before: NDArray[np.float32],
    prior_weight: float,
    context: NDArray[np.float32],
    has: NDArray[np.bool_],
    decay: float,
    fast_decay: float,
    norm: float,
    reach: int,
    compared: int,
    queries: NDArray[np.float32],
    own: NDArray[np.int32],
    own_weights: NDArray[np.float64],
    factors: NDArray[np.float32],
) -> tuple[int, int]:
    """Fill ``queries`` (zeros before), ``own``, ``own_weights`` and ``factors`` of :class:`Interests`.

    Args:
        rows, weights, said, table, slow, fast, before, prior_weight: as in :func:`_fold`.
        context, has, decay, fast_decay, norm, reach: of the learned factors, see ``Factors.users``.
        compared: how many recent items are among the queries at most.

    Returns:
        how many items are the user's own, and how many of them are among the queries.
    """
    _fold(rows, weights, said, table, slow, fast, before, prior_weight, queries)
    if not len(rows):
        # All there is, whatever it weighs against events.
        queries[SLOW], queries[FAST] = before, before
    distinct = 0
    share = 1.0
    for entry, row in enumerate(rows):
        if row >= 0 and weights[entry] > 0.0:
            place = 0
            while place < distinct and own[place] != row:
                place += 1
            if place == distinct:
                own[place], own_weights[place] = row, 0.0
                distinct += 1
            own_weights[place] += share
        share *= slow
    single = min(distinct, compared)
    for place in range(single):
        queries[VECTORS + place] = table[own[place]]
    if context.shape[1]:
        both_memories(own[:distinct], context, has, reach, decay, fast_decay, norm, factors)
    return distinct, single


@compiled_sums
def _fold(
    rows: NDArray[np.int32],
    weights: NDArray[np.float64],
    said: NDArray[np.float32],
    table: NDArray[np.float32],
    slow: float,
    fast: float,
    before: NDArray[np.float32],
    prior_weight: float,
    sums: NDArray[np.float32],
) -> None:
    """The interest vectors of a history, newest first: ``sums`` float32 [5 or more, dimensions], zeros before.

    Args:
        rows: int32 [n], -1 where an entry has no item.
        weights: float64 [n], signed.
        said: float32 [n or 0, dimensions], vectors of the texts of entries without an item.
        table: float32 [more than the largest row, dimensions].
        before: float32 [dimensions], the prior.
    """
    dimensions = table.shape[1]
    slow_share = fast_share = 1.0
    latest = False
    for place, row in enumerate(rows):
        weight = weights[place]
        if row >= 0 or len(said):
            vector = table[row] if row >= 0 else said[place]
            by_slow, by_fast = np.float32(weight * slow_share), np.float32(weight * fast_share)
            turned_down = np.float32(max(-weight, 0.0) * slow_share)
            liked = np.float32(1.0) if weight > 0.0 else np.float32(0.0)
            for column in range(dimensions):
                value = vector[column]
                sums[SLOW, column] += by_slow * value
                sums[FAST, column] += by_fast * value
                sums[NEGATIVE, column] += turned_down * value
                sums[MEAN, column] += liked * value
            if weight > 0.0 and not latest:
                for column in range(dimensions):
                    latest = latest or vector[column] != 0.0
                if latest:
                    sums[LAST] = vector
        slow_share *= slow
        fast_share *= fast
    if not latest:
        sums[LAST] = before
        sums[MEAN] = before
    for column in range(dimensions):
        sums[SLOW, column] += np.float32(prior_weight * slow_share) * before[column]
        sums[FAST, column] += np.float32(prior_weight * fast_share) * before[column]
    for kind in range(VECTORS):
        squares = np.float32(0.0)
        for column in range(dimensions):
            squares += sums[kind, column] * sums[kind, column]
        length = np.sqrt(squares)
        scale = np.float32(1.0) / length if length > 1e-6 else np.float32(0.0)
        for column in range(dimensions):
            sums[kind, column] *= scale


def _mean(vectors: Sequence[NDArray[np.float32]], dimensions: int) -> NDArray[np.float32]:
    """The direction of the sum of unit vectors, float32 [dimensions]; zeros when there are none."""
    if not vectors:
        return np.zeros(dimensions, np.float32)
    direction: NDArray[np.float32] = np.sum(vectors, axis=0, dtype=np.float32)
    length = float(np.linalg.norm(direction))
    direction /= np.float32(length if length > 1e-6 else np.inf)
    return direction
