"""What a user wants, derived from the event history when it is needed: vectors and recent items.

Interests are exponentially weighted sums of item vectors, newest first, signed by the polarity of the event. They
are never stored: an item whose vector arrives after its events counts from then on, and a new vector space needs no
migration.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from stream_app.compiled import compiled, compiled_sums
from stream_app.factors.kernels import both_memories
from stream_app.factors.table import Factors
from stream_app.index.hnsw import VectorIndex
from stream_app.items.catalogue import Catalogue
from stream_app.prefetch import prefetch_row
from stream_app.settings import Settings
from stream_app.unowned import borrowed
from stream_app.users.state import HistoryEntry, Located, appended

__all__ = [
    "FAST",
    "LAST",
    "MEAN",
    "NEGATIVE",
    "SLOW",
    "VECTORS",
    "History",
    "Interests",
    "InterestsOfAll",
    "derive_all",
    "derive_interests",
    "history_view",
    "locate",
]

SLOW, FAST, LAST, NEGATIVE, MEAN = range(5)
"""Rows of :attr:`Interests.vectors`; the first two also of :attr:`Interests.factors`."""
VECTORS = 5

_WORDS = 10
"""Events that words are heard over: what was said before them is a small part of what the vectors say by now."""
_SINGLE = 7
"""Recent items a candidate is compared with one by one."""
_NO_FACTORS: NDArray[np.float32] = np.zeros((0, 0), np.float32)
_NO_ROWS: NDArray[np.bool_] = np.zeros(0, np.bool_)
_NO_PLACES: NDArray[np.int32] = np.zeros(0, np.int32)

History: TypeAlias = tuple[HistoryEntry, ...]
"""Oldest first."""


@dataclass(slots=True)
class Interests:
    """A user's interests at one time.

    Attributes:
        queries: float32 [5 + up to 7, dimensions], ``vectors`` and ``recent_vectors``: what candidates are compared
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
        """float32 [up to 7, dimensions], vectors of the newest of ``recent``; zeros where there is none."""
        return self.queries[VECTORS:]


def history_view(history: History, before: float | None) -> History:
    """The history as it was before event time ``before`` (seconds); all of it for None.

    Events of one user with the same time are one basket: items of a basket must not teach the ranker about each
    other, so an example for an event at ``t`` is made from what happened strictly before ``t``.
    """
    if before is None:
        return history
    return tuple(entry for entry in history if entry.at < before)


@dataclass(slots=True)
class InterestsOfAll:
    """The :class:`Interests` of the users of a batch, one after the other.

    Attributes:
        queries: float32 [users, 5 + 7, dimensions]; beyond those that a user has, anything.
        compared: int64 [users], recent items among each user's queries.
        rows: int32 [entries], of the items of all histories, newest first; -1 where there is none.
        starts: int64 [users + 1], where the entries of each begin.
        own, own_weights: int32, float64 [entries], filled from each start on.
        owned: int64 [users], how many of them.
        events: int64 [users].
        factors: float32 [users, 2, k].
        words: of each user.
        recent_items: how many of a user's own items are recent at most.
    """

    queries: NDArray[np.float32]
    compared: NDArray[np.int64]
    rows: NDArray[np.int32]
    starts: NDArray[np.int64]
    own: NDArray[np.int32]
    own_weights: NDArray[np.float64]
    owned: NDArray[np.int64]
    events: NDArray[np.int64]
    factors: NDArray[np.float32]
    words: Sequence[bool]
    recent_items: int

    def of(self, place: int) -> Interests:
        """Those of one user, views."""
        start, owned = int(self.starts[place]), int(self.owned[place])
        own = self.own[start : start + owned]
        return Interests(
            self.queries[place, : VECTORS + int(self.compared[place])],
            own[: self.recent_items],
            int(self.events[place]),
            own,
            self.own_weights[start : start + owned],
            self.factors[place],
            self.words[place],
        )


def derive_interests(
    history: History,
    catalogue: Catalogue,
    index: VectorIndex,
    settings: Settings,
    text_vectors: Mapping[str, NDArray[np.float32]],
    prior: Sequence[str] = (),
    prior_weight: float = 0.0,
    factors: Factors | None = None,
) -> Interests:
    """Interests of one history; see :func:`derive_all`."""
    return derive_all(
        [locate(history, catalogue)], index, settings, [text_vectors], [(prior, prior_weight)], factors
    ).of(0)


def locate(history: History, catalogue: Catalogue, before: Located | None = None) -> Located:
    """The rows and weights of a history.

    Args:
        history: oldest first.
        catalogue: rows of the items.
        before: what this returned for the history as it was before some events; then only these are looked up (fifty
            lookups all over memory are a twentieth of what ranking takes).
    """
    more = -1
    if before is not None and before.numbering == catalogue.numbering:
        if before.history is history:
            return before
        more = appended(before.history, history)
    newest_first = history[::-1] if more < 0 else history[: len(history) - more - 1 : -1]
    rows = np.array(catalogue.rows_of([entry.item_id for entry in newest_first]), np.int32)
    weights = np.array([entry.weight for entry in newest_first], np.float64)
    if before is not None and more >= 0:
        kept = len(history) - more
        rows = np.concatenate([rows, before.rows[:kept]])
        weights = np.concatenate([weights, before.weights[:kept]])
    return Located(history, catalogue.numbering, rows, weights)


def derive_all(
    located: Sequence[Located],
    index: VectorIndex,
    settings: Settings,
    texts: Sequence[Mapping[str, NDArray[np.float32]]],
    priors: Sequence[tuple[Sequence[str], float]],
    factors: Factors | None = None,
) -> InterestsOfAll:
    """Interests of some histories (each oldest first).

    An entry with a text and no item counts with the text's vector, any other with its item's; entries without a
    vector contribute nothing to the vectors. The prior counts like an event older than all of the history, so it is
    all there is at first and fades with every event.

    Args:
        located: views of the users' histories, see :func:`locate`.
        index: vectors of the items.
        settings: decays, and how many recent items are looked at.
        texts: for each, unit vectors of free texts, by text.
        priors: for each, texts that say what the user likes whatever happened (those without a vector count nothing),
            and the weight of all of them together, of the size of an event's.
        factors: learned factors of the items.
    """
    histories = [held.history for held in located]
    count, dimensions = len(histories), index.dimensions
    starts = np.zeros(count + 1, np.int64)
    np.cumsum([len(history) for history in histories], out=starts[1:])
    rows = np.concatenate([held.rows for held in located])
    weights = np.concatenate([held.weights for held in located])
    words = [False] * count
    events = np.diff(starts)
    said_at, said = _NO_PLACES, _NO_FACTORS
    if any(texts) and rows.min(initial=0) < 0:
        said_at, said = _said(histories, rows, starts, texts, words, dimensions)
    before = np.zeros((1, dimensions), np.float32)
    prior_weights = np.zeros(count)
    if any(prior for prior, _ in priors):
        before = np.zeros((count, dimensions), np.float32)
        for place, (prior, weight) in enumerate(priors):
            prior_weights[place] = weight
            before[place] = _mean([texts[place][text] for text in prior if text in texts[place]], dimensions)
            if prior and before[place].any():
                words[place] = words[place] or (weight > 0 and len(histories[place]) <= _WORDS)
                events[place] += round(weight)
    top = int(rows.max(initial=-1)) + 1
    users, learned = settings.users, settings.factors
    if factors is None:
        context, has, norm = _NO_FACTORS, _NO_ROWS, 1.0
    else:
        factors.reserve(top)
        context, has, norm = factors.context, factors.has, learned.norm
    found = InterestsOfAll(
        queries=np.empty((count, VECTORS + _SINGLE, dimensions), np.float32),
        compared=np.zeros(count, np.int64),
        rows=rows,
        starts=starts,
        own=np.empty(len(rows), np.int32),
        own_weights=np.empty(len(rows)),
        owned=np.zeros(count, np.int64),
        events=events,
        factors=np.zeros((count, 2, context.shape[1]), np.float32),
        words=words,
        recent_items=settings.retrieval.recent_items,
    )
    _derive_all(
        starts, rows, weights, said_at, said, index.table(top), users.slow_decay,
        users.fast_decay, before, prior_weights, context, has, learned.decay, learned.fast_decay, norm,
        learned.history, min(_SINGLE, found.recent_items), found.queries, found.compared, found.own,
        found.own_weights, found.owned, found.factors,
    )  # fmt: skip
    return found


def _said(
    histories: Sequence[History],
    rows: NDArray[np.int32],
    starts: NDArray[np.int64],
    texts: Sequence[Mapping[str, NDArray[np.float32]]],
    words: list[bool],
    dimensions: int,
) -> tuple[NDArray[np.int32], NDArray[np.float32]]:
    """Vectors of what entries without an item say: for each entry its place among them, int32, -1 for none, and float32
    [any, dimensions]. In ``words`` is noted for whom the last ten say something."""
    vectors: list[NDArray[np.float32]] = []
    said_at = np.full(len(rows), -1, np.int32)
    for user, history in enumerate(histories):
        if not texts[user]:
            continue
        start = int(starts[user])
        for place, entry in enumerate(history[::-1]):
            vector = texts[user].get(entry.text) if entry.text and rows[start + place] < 0 else None
            if vector is not None:
                said_at[start + place] = len(vectors)
                vectors.append(vector)
                words[user] = words[user] or (place < _WORDS and bool(vector.any()))
    return said_at, np.array(vectors, np.float32).reshape(-1, dimensions)


_ROWS_AHEAD = 2


@compiled
def _derive_all(
    starts: NDArray[np.int64],
    rows: NDArray[np.int32],
    weights: NDArray[np.float64],
    said_at: NDArray[np.int32],
    said: NDArray[np.float32],
    table: NDArray[np.float32],
    slow: float,
    fast: float,
    before: NDArray[np.float32],
    prior_weights: NDArray[np.float64],
    context: NDArray[np.float32],
    has: NDArray[np.bool_],
    decay: float,
    fast_decay: float,
    norm: float,
    reach: int,
    most_compared: int,
    queries: NDArray[np.float32],
    compared: NDArray[np.int64],
    own: NDArray[np.int32],
    own_weights: NDArray[np.float64],
    owned: NDArray[np.int64],
    factors: NDArray[np.float32],
) -> None:
    """Fill ``queries``, ``compared``, ``own``, ``own_weights``, ``owned`` and ``factors`` (zeros before) of
    :class:`InterestsOfAll`.

    Args:
        starts: int64 [users + 1], where the entries of each begin.
        rows, weights, table, slow, fast: as in :func:`_fold`.
        said_at, said: see :func:`_said`; without anything both may be empty.
        before: float32 [users or 1, dimensions], the priors, or what is the same for all.
        prior_weights: float64 [users].
        context, has, decay, fast_decay, norm, reach: of the learned factors, see ``Factors.users``.
        most_compared: how many recent items are among the queries at most.
    """
    starts, rows, weights, said_at = borrowed(starts), borrowed(rows), borrowed(weights), borrowed(said_at)
    said, table, before, context = borrowed(said), borrowed(table), borrowed(before), borrowed(context)
    has, queries, own, factors = borrowed(has), borrowed(queries), borrowed(own), borrowed(factors)
    none = said_at[:0]
    for user in range(len(owned)):
        start, end = starts[user], starts[user + 1]
        prior = before[min(user, len(before) - 1)]
        of_user = queries[user]
        of_user[:VECTORS] = 0.0
        _fold(
            rows[start:end], weights[start:end], said_at[start:end] if len(said_at) else none, said, table, slow, fast,
            prior, prior_weights[user], of_user,
        )  # fmt: skip
        if start == end:
            # All there is, whatever it weighs against events.
            of_user[SLOW], of_user[FAST] = prior, prior
        distinct = start
        share = 1.0
        for entry in range(start, end):
            row = rows[entry]
            if row >= 0 and weights[entry] > 0.0:
                place = start
                while place < distinct and own[place] != row:
                    place += 1
                if place == distinct:
                    own[place], own_weights[place] = row, 0.0
                    distinct += 1
                own_weights[place] += share
            share *= slow
        owned[user] = distinct - start
        compared[user] = min(owned[user], most_compared)
        for place in range(compared[user]):
            of_user[VECTORS + place] = table[own[start + place]]
        if context.shape[1]:
            both_memories(own[start:distinct], context, has, reach, decay, fast_decay, norm, factors[user])


@compiled_sums
def _fold(
    rows: NDArray[np.int32],
    weights: NDArray[np.float64],
    said_at: NDArray[np.int32],
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
        said_at: int32 [n or 0], the text of an entry without an item among those of ``said``, -1 for none.
        said: float32 [any, dimensions], vectors of texts.
        table: float32 [more than the largest row, dimensions].
        before: float32 [dimensions], the prior.
    """
    dimensions = table.shape[1]
    slow_share = fast_share = 1.0
    latest = False
    for place, row in enumerate(rows):
        # Rows of the whole table: memory is asked for some of them ahead of the one that is added.
        prefetch_row(table, max(rows[min(place + _ROWS_AHEAD, len(rows) - 1)], 0))
        weight = weights[place]
        text = said_at[place] if row < 0 and len(said_at) else -1
        if row >= 0 or text >= 0:
            vector = table[row] if row >= 0 else said[text]
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
