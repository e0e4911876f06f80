"""From a user's state to a slate: retrieve candidates, score them, pick. And from a choice to a training example.

Everything is an array operation over the requests of a batch and their candidates, or over the pool they are found in
(:mod:`stream_app.retrieval.pool`). Candidates are ordered by id hash before anything is computed, so replicas that
number their rows differently agree. Results depend on what the serving state holds; beyond ``retrieval.whole_below``
vectors also on when neighbours were asked for (:mod:`stream_app.index.neighbours`), and for the place of less known
items on what this process has published (:meth:`Recommender.published`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import groupby, islice
from operator import attrgetter
from typing import Any

import numpy as np
from numpy.typing import NDArray

from schemas.messages import Reason, SlateItem
from stream_app.compiled import compiled
from stream_app.errors import TailraceError
from stream_app.mixing import GOLDEN, below, mixed
from stream_app.ranking.batch import explain_all, order_all, pack_all, prepare_all
from stream_app.ranking.features import (
    CONTEXT,
    context_values,
    feature_names,
    in_steps,
    in_units,
    raw_features,
    scale_features,
)
from stream_app.ranking.reasons import CODES, KINDS, evidence_signs, kind_columns, phrase
from stream_app.ranking.slate import NEW, TAIL, SlateRules, pinned_places, reserved_places
from stream_app.ranking.turns import HELPER, end, finish, new_turns
from stream_app.retrieval.interests import (
    FAST,
    SLOW,
    History,
    Interests,
    InterestsOfAll,
    derive_all,
    derive_interests,
    history_view,
    locate,
)
from stream_app.retrieval.links import Scratch, add_links, clear, lags_of
from stream_app.retrieval.sources import default_sources
from stream_app.retrieval.tables import Tables
from stream_app.rules.book import Cap
from stream_app.serving import ServingState
from stream_app.settings import Settings
from stream_app.users.state import HistoryEntry, Located, UserState, id_hash

__all__ = ["Choice", "Example", "RankRequest", "Ranking", "Recommender", "SeenRanking"]

_CAPPED_RANKS = 10
"""The ranks that the setting ``slate.category_cap`` speaks of."""
_FOUND = 0.5
"""Cosine from which on an item is what a search asked for; a title finds its item, and little else is so near."""
_TAKEN_OUT = 200
"""Neighbours of a search looked at beyond those wanted, because they may be the user's already."""
_SEARCHED = slice(SLOW, FAST + 1)
"""The interest vectors whose neighbours are looked for."""
_TOGETHER = 256
"""Requests ranked by one call; each takes 60 KB until its slate is made."""
_WORTH_SHARING = 8
"""Requests from which on a second thread is called: that takes as long as one of them."""
_KEPT = 10_000
"""Reasons, and combinations of sources by name, that are kept."""
_NOTHING: NDArray[np.int32] = np.zeros(0, np.int32)
_NO_ROWS: NDArray[np.int32] = np.zeros((0, 0), np.int32)
_NO_STARTS: NDArray[np.int64] = np.zeros(0, np.int64)
_NO_CAPS: NDArray[np.int64] = np.zeros((0, 2), np.int64)
_NO_BOOSTS: NDArray[np.float64] = np.zeros(0)
_TIE_RESERVE = 8
"""Neighbours searched beyond those wanted, so that ties at the end are decided by id and not by the index."""


@dataclass(slots=True, kw_only=True)
class RankRequest:
    """A user to rank for.

    Attributes:
        user: the state; it is read during the call only.
        at: event time (seconds since 1970); popularity and transitions are decayed to it.
        now: wall clock (seconds since 1970); decides which items are published and not expired.
        n: items wanted.
        before: only events before this time count (see ``history_view``); None: all.
        extra_vectors: unit vectors of free texts in the history and the prior, by text, in the space that is served
            (``ServingState.to_space``).
        prior: texts of the user's profile; see ``derive_interests``.
        prior_weight: their weight together.
        language: of the reasons; None: the setting ``slate.language``.
        blocked_labels: categories and brands the user wants nothing of (see ``Catalogue.labels``).
    """

    user: UserState
    at: float
    now: float
    n: int
    before: float | None = None
    extra_vectors: Mapping[str, NDArray[np.float32]] = field(default_factory=dict)
    prior: Sequence[str] = ()
    prior_weight: float = 0.0
    language: str | None = None
    blocked_labels: frozenset[str] = frozenset()


@dataclass(slots=True, kw_only=True)
class Choice:
    """What a user took, to learn from.

    Attributes:
        request: the user as known at the choice; ``before`` cuts the basket off.
        row: the taken item.
        seed: decides which negatives are drawn; a hash of the event.
        seen: the ranking the user chose from; None: it is made again.
        shown: rows the user saw and did not take before this one, int32; they come first among the negatives.
        weight: how much the choice says.
    """

    request: RankRequest
    row: int
    seed: int
    seen: SeenRanking | None = None
    shown: NDArray[np.int32] | None = None
    weight: float = 1.0


@dataclass(slots=True)
class SeenRanking:
    """What of a ranking is kept to learn from.

    Attributes:
        candidates: int32 [k], by id hash.
        values: [k, features], scaled: float32, or int16 in the steps of ``features.in_steps``; None: they are computed
            again.
        context: float32 [c].
        slate: int32 [n], the rows that were shown, best first.
        reclaims: of the catalogue when it was made; after another one rows may be those of other items.
    """

    candidates: NDArray[np.int32]
    values: NDArray[np.float32] | NDArray[np.int16] | None
    context: NDArray[np.float32]
    slate: NDArray[np.int32]
    reclaims: int


@dataclass(slots=True, kw_only=True)
class Example:
    """What the ranker learns from a choice.

    Attributes:
        features: float32 [1 + negatives, features], the taken item first.
        context: float32 [c].
    """

    features: NDArray[np.float32]
    context: NDArray[np.float32]


class Ranking:
    """The ranked answer to one request: views of what was made of its batch, taken when they are asked for."""

    __slots__ = ("_batch", "_candidates", "_order", "_places", "request")

    def __init__(self, batch: Batch, request: int, candidates: slice, places: slice) -> None:
        self._batch = batch
        self.request = request
        self._candidates = candidates
        self._places = places
        self._order = batch.order[places]

    @property
    def batch(self) -> Batch:
        """What it was made with."""
        return self._batch

    @property
    def places(self) -> slice:
        """Where its slate is among those of the batch."""
        return self._places

    @property
    def rows(self) -> NDArray[np.int32]:
        """int32 [n], the slate, best first."""
        return self._batch.slates[self._places]

    @property
    def scores(self) -> NDArray[np.float64]:
        """float64 [n], log-odds against each other, boosts included, rounded to 1e-6."""
        return self._batch.scores[self._order]

    @property
    def sources(self) -> NDArray[np.uint32]:
        """uint32 [n], bit ``i`` says that source ``i`` proposed the item, the bit after theirs that a rule did."""
        return self._batch.masks[self._order]

    @property
    def reserved(self) -> NDArray[np.bool_]:
        """bool [n], the place was kept for a new item."""
        return np.equal(self._batch.kept_for[self._places], NEW)

    @property
    def explored(self) -> NDArray[np.bool_]:
        """bool [n], the place was given to a less known item."""
        return np.equal(self._batch.kept_for[self._places], TAIL)

    @property
    def pinned(self) -> NDArray[np.bool_]:
        """bool [n], a rule put the item there."""
        return self._batch.flagged(self._batch.pinned, self._order)

    @property
    def searched(self) -> NDArray[np.bool_]:
        """bool [n], the item is what the user just searched for."""
        return self._batch.flagged(self._batch.searched, self._order)

    @property
    def values(self) -> NDArray[np.float32]:
        """float32 [n, features], scaled."""
        return self._batch.values[self._order]

    @property
    def context(self) -> NDArray[np.float32]:
        """float32 [c], of the request."""
        context: NDArray[np.float32] = self._batch.context[self.request]
        return context

    @property
    def candidates(self) -> NDArray[np.int32]:
        """int32 [k], everything that was scored, by id hash."""
        return self._batch.rows[self._candidates]

    @property
    def candidate_values(self) -> NDArray[np.float32]:
        """float32 [k, features], scaled."""
        return self._batch.values[self._candidates]

    @property
    def candidate_steps(self) -> NDArray[np.int16]:
        """int16 [k, features], see ``features.in_steps``."""
        return self._batch.steps[self._candidates]

    @property
    def found(self) -> NDArray[np.int32]:
        """int32 [sources, ...], what each source proposed, see :attr:`proposed`."""
        return self._batch.found[self.request, :-2]

    @property
    def lengths(self) -> NDArray[np.int64]:
        """int64 [sources], how many each proposed."""
        return self._batch.lengths[self.request, :-2]

    @property
    def proposed(self) -> list[NDArray[np.int32]]:
        """What each source proposed, best first, in the order of the sources; int32."""
        return [rows[:length] for rows, length in zip(self.found, self.lengths.tolist(), strict=True)]

    @property
    def reclaims(self) -> int:
        """Of the catalogue; see :class:`SeenRanking`."""
        return self._batch.reclaims

    @property
    def interests(self) -> Interests:
        """What was derived of the user."""
        return self._batch.interests.of(self.request)

    @property
    def slow_interest(self) -> NDArray[np.float32]:
        """float32 [dimensions], the slow interest vector, a copy; zeros where nothing is known."""
        vector: NDArray[np.float32] = self._batch.interests.queries[self.request, SLOW].copy()
        return vector

    @property
    def language(self) -> str:
        """Of the reasons."""
        return self._batch.languages[self.request]

    def seen(self, *, values: bool = True) -> SeenRanking:
        """What is kept of it to learn from, copies: of the values only if wanted."""
        return SeenRanking(
            self.candidates.copy(),
            self.candidate_steps.copy() if values else None,
            self.context.copy(),
            self.rows.copy(),
            self.reclaims,
        )


@dataclass(slots=True, kw_only=True)
class _Prepared:
    """Requests on their way: what was derived, and their candidates (by id hash).

    ``rows``, ``masks``, ``values`` (scaled or not), ``cold`` and ``closeness`` are those of all candidates; those of
    request ``r`` from ``starts[r]`` on. ``found`` and ``lengths``: what sources proposed, and rules and searches last.
    """

    requests: Sequence[RankRequest]
    histories: Sequence[History]
    interests: InterestsOfAll
    tables: Tables
    at: NDArray[np.float64]
    hashes: NDArray[np.uint64]
    pauses: NDArray[np.float64]
    starts: NDArray[np.int64]
    rows: NDArray[np.int32]
    masks: NDArray[np.uint32]
    values: NDArray[np.float32]
    cold: NDArray[np.bool_]
    closeness: NDArray[np.float64]
    found: NDArray[np.int32]
    lengths: NDArray[np.int64]

    def keep(self, kept: NDArray[np.bool_]) -> None:
        """Leave out candidates: bool [candidates]."""
        self.rows, self.masks, self.values = self.rows[kept], self.masks[kept], self.values[kept]
        self.cold, self.closeness = self.cold[kept], self.closeness[kept]
        self.starts = np.concatenate([[0], np.cumsum(kept)])[self.starts]


@dataclass(kw_only=True)
class Batch:
    """Requests that were ranked together; good until the serving state changes.

    Attributes:
        interests: what was derived of the users.
        histories: as far as they counted.
        at: float64 [requests], event times (seconds).
        tables: what it was ranked with.
        starts: int64 [requests + 1], where the candidates of each begin.
        rows, masks, values, scores: of all candidates, see :class:`Ranking`.
        context: float32 [requests, c].
        found, lengths: [requests, sources + 2, ...], what sources, rules and searches proposed.
        boosts, pinned, searched: [candidates], or empty: none.
        place_starts: int64 [requests + 1], where the places of each begin.
        order, kept_for: [places], candidates of the batch, and for what their places were kept.
        slate_lengths: int64 [requests].
        languages: of the reasons.
        reclaims: of the catalogue.
        reasons: codes and named rows, one for each place, once they are asked for.
    """

    interests: InterestsOfAll
    histories: Sequence[History]
    at: NDArray[np.float64]
    tables: Tables
    starts: NDArray[np.int64]
    rows: NDArray[np.int32]
    masks: NDArray[np.uint32]
    values: NDArray[np.float32]
    scores: NDArray[np.float64]
    context: NDArray[np.float32]
    found: NDArray[np.int32]
    lengths: NDArray[np.int64]
    boosts: NDArray[np.float64]
    pinned: NDArray[np.bool_]
    searched: NDArray[np.bool_]
    place_starts: NDArray[np.int64]
    order: NDArray[np.intp]
    kept_for: NDArray[np.int8]
    slate_lengths: NDArray[np.int64]
    languages: Sequence[str]
    reclaims: int
    reasons: tuple[list[int], list[int]] | None = None

    @cached_property
    def steps(self) -> NDArray[np.int16]:
        """int16 [candidates, features], see ``features.in_steps``."""
        return in_steps(self.values)

    @cached_property
    def slates(self) -> NDArray[np.int32]:
        """int32 [places], the rows of all slates."""
        return self.rows[self.order]

    @cached_property
    def columns(self) -> tuple[list[int], list[float], list[int]]:
        """Rows, scores and sources of all slates: one look into arrays for all of them."""
        return self.slates.tolist(), self.scores[self.order].tolist(), self.masks[self.order].tolist()

    def rankings(self) -> list[Ranking]:
        """One for each request."""
        starts, places = self.starts.tolist(), self.place_starts.tolist()
        return [
            Ranking(self, request, slice(starts[request], starts[request + 1]), slice(first, first + length))
            for request, (first, length) in enumerate(zip(places, self.slate_lengths.tolist(), strict=False))
        ]

    def flagged(self, flags: NDArray[np.bool_], places: NDArray[np.intp]) -> NDArray[np.bool_]:
        """Flags of candidates; none where there are no flags."""
        return flags[places] if len(flags) else np.zeros(len(places), np.bool_)


class Recommender:
    """Ranks over a serving state. Not safe for use from several threads.

    Args:
        settings: bounds of sources, slate, language.
        serving: what is ranked with; read on every call, so it may change in between.

    Attributes:
        threads: that compute a batch, 1 or 2. What they compute does not depend on it.
    """

    def __init__(self, settings: Settings, serving: ServingState) -> None:
        self._settings = settings
        self._serving = serving
        self.sources = default_sources(settings)
        self._wanted = np.array([source.wanted for source in self.sources], np.int64)
        names = [source.name for source in self.sources]
        self._by_text = names.index("text_fast")
        self.feature_names = feature_names(settings.items)
        self._shown: NDArray[np.uint32] = np.zeros(0, np.uint32)
        self._reclaims = serving.catalogue.reclaims
        self._personal = np.uint32(sum(1 << bit for bit, source in enumerate(self.sources) if source.personal))
        self._kinds = kind_columns(self.feature_names)
        self._signs = evidence_signs(self.feature_names)
        self._closeness = np.array([self.feature_names.index(name) for name in ("text_slow", "text_fast")])
        self._lags = lags_of(settings)
        self._scratch, self._scratch_of_helper = Scratch(), Scratch()
        self.threads = settings.retrieval.threads
        self._masks: dict[int, list[str]] = {}
        self._said: dict[tuple[int, int, str], Reason] = {}
        self._said_of = (-1, -1)
        self._reserved_in: dict[int, NDArray[np.bool_]] = {}
        # Of the half-lives the one nearest to a week says what rises.
        days = settings.items.half_lives_days
        self._rising = min(range(len(days)), key=lambda column: abs(days[column] - 7.0))
        self._rising_feature = self.feature_names.index(f"popularity_{days[self._rising]:g}d")

    def rank(self, requests: Sequence[RankRequest]) -> list[Ranking]:
        """Rank a batch. A slate never holds an item that may not be served, is consumed or hidden."""
        return list(self.rank_in_turn(requests))

    def rank_in_turn(self, requests: Sequence[RankRequest]) -> Iterator[Ranking]:
        """:meth:`rank`, some hundreds at a time, so that no more than these are in memory: for any number of requests,
        by callers who keep nothing of a ranking."""
        for now, together in groupby(requests, key=attrgetter("now")):
            while some := list(islice(together, _TOGETHER)):
                yield from self._ranked(self._prepare(some, self._tables(now), now)).rankings()

    def slate_items(self, ranking: Ranking) -> list[SlateItem]:
        """The slate with provenance and reasons, to be made before the serving state changes."""
        rows, scores, bits = ranking.batch.columns
        ids, masks = self._serving.catalogue.item_ids(rows[ranking.places]), self._masks
        sources = [masks.get(mask) or self._named_by(mask) for mask in bits[ranking.places]]
        # By position, which takes half the time that names do.
        return list(
            map(SlateItem, ids, range(1, len(ids) + 1), scores[ranking.places], sources, self._reasons(ranking))
        )

    def _named_by(self, mask: int) -> list[str]:
        """Names of the sources of a mask; one list for all that have it, not to be changed."""
        bits = [*(source.name for source in self.sources), "rules"]
        if len(self._masks) >= _KEPT:
            self._masks.clear()
        names = self._masks[mask] = [name for bit, name in enumerate(bits) if mask >> bit & 1]
        return names

    def examples(self, choices: Sequence[Choice]) -> list[Example | None]:
        """What the ranker learns from each choice.

        Choices of one user at one time are a basket: they are prepared together, and none of what was taken there
        counts as turned down. Only a choice among the candidates teaches: the ranker orders candidates and nothing
        else, and compared with them an item that no source proposed looks bad in every feature, which would teach it
        that evidence speaks against an item (measured: hit rate .007 instead of .058).

        What the user saw above the taken item and passed over comes first among the negatives (Joachims et al. 2005,
        doi 10.1145/1076034.1076063). The others are a uniform sample of the candidates: with the best-ranked among
        them, and no correction for it, weights shrink (measured: .055 instead of .058).

        Returns:
            per choice an example; None when the item was not a candidate, or the only one, or nothing was known of
            the user.
        """
        groups: dict[tuple[Any, ...], list[int]] = {}
        for place, choice in enumerate(choices):
            request = choice.request
            groups.setdefault((request.user.user_id, request.at, request.before), []).append(place)
        examples: list[Example | None] = [None] * len(choices)
        # A choice of which nothing was known teaches what is popular, which the counts say already, and drowns the rest
        # where many users come once.
        for group in groups.values():
            first = choices[group[0]]
            if not _known(first.request):
                continue
            seen = self._seen_by(first)
            taken = np.array([choices[place].row for place in group], np.int32)
            for place in group:
                examples[place] = self._example(choices[place], seen, taken)
        return examples

    def _tables(self, now: float) -> Tables:
        """What is read by row, with room for every row in what is written by row."""
        serving = self._serving
        tables = serving.tables(now, self._rising)
        # No more rows than there are, and no more than the recent items can name.
        rows = max(serving.catalogue.rows, serving.signals.rows)
        links = min(rows, self._settings.retrieval.recent_items * serving.signals.longest)
        self._scratch.reserve(rows, links)
        if self.threads > 1:
            self._scratch_of_helper.reserve(rows, links)
        return tables

    def _prepare(self, requests: Sequence[RankRequest], tables: Tables, now: float) -> _Prepared:
        """Candidates of requests from every source, and what is known of them."""
        serving, settings, scratch = self._serving, self._settings, self._scratch
        count, sources = len(requests), len(self._wanted)
        histories = [history_view(request.user.history, request.before) for request in requests]
        interests = derive_all(
            self._located(requests, histories), serving.index, settings,
            [request.extra_vectors for request in requests],
            [(request.prior, request.prior_weight) for request in requests], serving.factors,
        )  # fmt: skip
        at = np.array([request.at for request in requests])
        last = [history[-1].at if history else request.at for history, request in zip(histories, requests, strict=True)]
        hashes = np.array([id_hash(request.user.user_id) for request in requests], np.uint64)
        excluded, excluded_starts = _joined([self._excluded(request) for request in requests])
        pins = [[pin.row for pin in serving.rules.pins(request.user.user_id)] for request in requests]
        pinned, pinned_starts = _joined(pins)
        searches = [self._searched(request, history) for request, history in zip(requests, histories, strict=True)]
        searched, searched_starts = _joined(searches)
        whole = len(serving.index) <= settings.retrieval.whole_below
        lists, slots, near, near_starts = self._near(requests, interests, whole=whole)
        most = max(int(self._wanted.max()), *map(len, pins), settings.slate.search_places)
        found, lengths = np.empty((count, sources + 2, most), np.int32), np.zeros((count, sources + 2), np.int64)
        room = count * (int(self._wanted.sum()) + settings.slate.search_places + max(map(len, pins), default=0))
        rows, masks = np.empty(room, np.int32), np.empty(room, np.uint32)
        values = np.empty((room, len(self.feature_names)), np.float32)
        cold, closeness = np.empty(room, np.bool_), np.empty(room)
        starts, ends = np.empty(count + 1, np.int64), np.empty(count, np.int64)
        first_request = scratch.request + 1
        scratch.request += count
        before: tuple[Any, ...] = (
            tables, interests.queries, interests.compared, interests.own, interests.own_weights,
            interests.starts, interests.owned, interests.recent_items, interests.factors, lists, slots, near,
            near_starts, whole, self._rising, excluded, excluded_starts, pinned, pinned_starts, searched,
            searched_starts, settings.slate.search_places, self._by_text, at, now, hashes, self._lags, self._wanted,
            settings.retrieval.cold_events,
        )  # fmt: skip
        after: tuple[Any, ...] = first_request, found, lengths, rows, masks, values, cold, closeness, ends
        self._share(count, prepare_all, lambda own: (*before, *own.arrays, *after))
        pack_all(ends, rows, masks, values, cold, closeness, starts)
        end = int(starts[-1])
        prepared = _Prepared(
            requests=requests, histories=histories, interests=interests, tables=tables, at=at, hashes=hashes,
            pauses=at - np.array(last), starts=starts, rows=rows[:end], masks=masks[:end], values=values[:end],
            cold=cold[:end], closeness=closeness[:end], found=found, lengths=lengths,
        )  # fmt: skip
        self._leave_out_refused(prepared)
        return prepared

    def _share(
        self, count: int, function: Callable[..., None], arguments: Callable[[Scratch], tuple[Any, ...]]
    ) -> None:
        """Call a function of ``stream_app.ranking.batch`` for some requests; of many a second thread computes a part.

        Args:
            arguments: all but the first, with the scratch arrays of a thread.
        """
        turns = new_turns()
        try:
            if self.threads > 1 and count >= _WORTH_SHARING:
                HELPER.lend(turns, function, turns, *arguments(self._scratch_of_helper))
            function(turns, *arguments(self._scratch))
            if not finish(turns, count):
                raise TailraceError("a part of a batch failed in the second thread; the log says why")
        except BaseException:
            # The helper must not go on with what changes from now on, and what was left in these arrays is not known.
            end(turns)
            HELPER.wait()
            self._scratch.clean()
            self._scratch_of_helper.clean()
            raise

    def _located(self, requests: Sequence[RankRequest], histories: Sequence[History]) -> list[Located]:
        """The histories by row; kept with the states, whose next event is ranked soon."""
        found = []
        for request, history in zip(requests, histories, strict=True):
            state = request.user
            located = locate(history, self._serving.catalogue, state.located)
            if history is state.history:
                state.located = located
            found.append(located)
        return found

    def _near(
        self, requests: Sequence[RankRequest], interests: InterestsOfAll, *, whole: bool
    ) -> tuple[NDArray[np.int32], NDArray[np.int32], NDArray[np.int32], NDArray[np.int64]]:
        """Rows near to the users' last items: all kept lists, and where among them those of each user are; and further
        ones, int32, that are near to the words that say something of a user, and where those of each begin."""
        count, size = len(requests), self._settings.retrieval.neighbour_items
        if whole:
            return _NO_ROWS, np.zeros((count, 0), np.int32), _NOTHING, np.zeros(count + 1, np.int64)
        last = np.full((count, size), -1, np.int32)
        for place, (start, owned) in enumerate(zip(interests.starts.tolist(), interests.owned.tolist(), strict=False)):
            end = min(owned, size)
            last[place, :end] = interests.own[start : start + end]
        lists, slots = self._serving.index.neighbour_lists(last)
        further = [_NOTHING] * count
        for place, nothing in enumerate(np.all(slots < 0, axis=1).tolist()):
            if nothing or interests.words[place]:
                # Words are not near to an item that has a list.
                queries = interests.queries[place, _SEARCHED]
                asked = queries.any(axis=1)
                if asked.any():
                    further[place] = self._searched_for(requests[place], queries[asked])
        return lists, slots, *_joined(further)

    def _searched_for(self, request: RankRequest, queries: NDArray[np.float32]) -> NDArray[np.int32]:
        """Neighbours of interest vectors in the whole index, int32, some of them twice."""
        retrieval = self._settings.retrieval
        wanted = max(retrieval.slow, retrieval.fast)
        # What the user consumed lies around the interest vectors and is taken out afterwards.
        spare = min(self._taken_out(request), wanted)
        return self._serving.index.search(queries, wanted + spare + _TIE_RESERVE)[0].ravel()

    def _searched(self, request: RankRequest, history: tuple[HistoryEntry, ...]) -> NDArray[np.int32]:
        """Rows close to what the user searched for, nearest first, int32; none unless that was the last thing done.

        Whatever was learned of others' choices, who asks for something by name expects to see it.
        """
        wanted = self._settings.slate.search_places
        last = history[-1] if history else None
        if not wanted or last is None or last.item_id or last.weight <= 0:
            return np.zeros(0, np.int32)
        vector = request.extra_vectors.get(last.text)
        if vector is None:
            return np.zeros(0, np.int32)
        # What may not be shown is taken out afterwards.
        count = wanted + min(self._taken_out(request), _TAKEN_OUT) + _TIE_RESERVE
        rows, similarity = (found[0] for found in self._serving.index.search(vector[None, :], count))
        rows, similarity = rows[similarity >= _FOUND], np.round(similarity[similarity >= _FOUND], 5)
        order = np.lexsort((self._serving.catalogue.id_hash[rows], -similarity))
        found: NDArray[np.int32] = rows[order]
        return found

    def _excluded(self, request: RankRequest) -> NDArray[np.int32]:
        """What the user consumed or hid, and what is the user's own, int32."""
        catalogue = self._serving.catalogue
        excluded = catalogue.rows_of_hashes(request.user.excluded(request.at))
        own = catalogue.attributes.owned_by(request.user.user_id, catalogue.rows)
        return np.concatenate([excluded, own]) if len(own) else excluded

    def _taken_out(self, request: RankRequest) -> int:
        """How many neighbours :meth:`_excluded` may take out at most."""
        catalogue, user = self._serving.catalogue, request.user
        own = len(catalogue.attributes.owned_by(user.user_id, catalogue.rows))
        return len(user.consumed) + len(user.hidden) + own

    def _leave_out_refused(self, prepared: _Prepared) -> None:
        """Leave out what users' profiles, or rules for these users, keep out."""
        kept: NDArray[np.bool_] | None = None
        for place, request in enumerate(prepared.requests):
            of_request = slice(int(prepared.starts[place]), int(prepared.starts[place + 1]))
            permitted = self._permitted(prepared.rows[of_request], request)
            if permitted is None:
                continue
            if kept is None:
                kept = np.ones(len(prepared.rows), np.bool_)
            kept[of_request] = permitted
        if kept is not None:
            prepared.keep(kept)

    def _permitted(self, rows: NDArray[np.int32], request: RankRequest) -> NDArray[np.bool_] | None:
        """Which of ``rows`` neither the user's profile nor a rule for this user keeps out; None: all of them."""
        labels, blocked = self._serving.catalogue.labels, request.blocked_labels
        refused = self._serving.rules.refused(rows, request.user.user_id)
        permitted = None if refused is None else ~refused
        if blocked:
            wanted = np.array([blocked.isdisjoint(labels(row)) for row in rows.tolist()], np.bool_)
            permitted = wanted if permitted is None else permitted & wanted
        return permitted

    def _ranked(self, prepared: _Prepared) -> Batch:
        """Slates of prepared requests, whose values are scaled now."""
        serving, settings = self._serving, self._settings.slate
        requests, interests, tables = prepared.requests, prepared.interests, prepared.tables
        count, candidates = len(requests), len(prepared.rows)
        wanted = np.array([request.n for request in requests], np.int64)
        events = np.array([request.user.events for request in requests], np.int64)
        place_starts = np.zeros(count + 1, np.int64)
        np.cumsum(np.minimum(wanted, np.diff(prepared.starts)), out=place_starts[1:])
        places = int(place_starts[-1])
        held = _Rules.of(prepared, place_starts, self._slate_rules(prepared))
        scores, context = np.empty(candidates), np.empty((count, len(CONTEXT)), np.float32)
        order, kept_for = np.zeros(places, np.intp), np.zeros(places, np.int8)
        lengths = np.empty(count, np.int64)
        arguments = (
            tables, prepared.starts, prepared.rows, prepared.masks, prepared.values, prepared.cold, prepared.closeness,
            interests.events, events, prepared.pauses, context, *serving.ranker.parameters(), held.boosts,
            self._rising_feature, prepared.hashes + events.astype(np.uint64), settings.cold_trials, self._personal,
            self._shown if self._reclaims == serving.catalogue.reclaims else self._shown[:0], settings.explore,
            settings.explore_rank, settings.diversity, held.pins, place_starts, wanted,
            self._reserved(int(wanted.max(initial=0))), held.groups, held.group_starts, held.limits, held.limit_starts,
            held.hard, scores, order, kept_for, lengths,
        )  # fmt: skip
        self._share(count, order_all, lambda _: arguments)
        return Batch(
            interests=interests,
            histories=prepared.histories,
            at=prepared.at,
            tables=tables,
            starts=prepared.starts,
            rows=prepared.rows,
            masks=prepared.masks,
            values=prepared.values,
            scores=scores,
            context=context,
            found=prepared.found,
            lengths=prepared.lengths,
            boosts=held.boosts,
            pinned=held.pinned,
            searched=held.searched,
            place_starts=place_starts,
            order=order,
            kept_for=kept_for,
            slate_lengths=lengths,
            languages=[request.language or settings.language for request in requests],
            reclaims=serving.catalogue.reclaims,
        )

    def published(self, ranking: SeenRanking) -> None:
        """The ranking became somebody's slate: what stands first in it was shown once more.

        Counted in this process only, and from nothing after a restart: it decides who gets the place for less known
        items next, and nothing else.
        """
        if self._reclaims != ranking.reclaims or len(self._shown) < self._serving.catalogue.rows:
            held = self._shown if self._reclaims == ranking.reclaims else self._shown[:0]
            self._shown = np.zeros(2 * self._serving.catalogue.rows, np.uint32)
            self._shown[: len(held)] = held
            self._reclaims = ranking.reclaims
        _count_shown(ranking.slate, self._settings.slate.explore_rank, self._shown)

    def _reserved(self, size: int) -> NDArray[np.bool_]:
        """The places kept for new items in a slate of this size, and in the first places of longer ones; made once."""
        held = self._reserved_in.get(size)
        if held is None:
            held = self._reserved_in[size] = reserved_places(size, self._settings.slate)
        return held

    def _slate_rules(self, prepared: _Prepared) -> dict[int, SlateRules]:
        """Business rules, and what was searched for, as they bear on candidates; by request, where anything does."""
        rules, found = self._serving.rules, dict[int, SlateRules]()
        most = self._settings.slate.category_cap
        searches = prepared.lengths[:, -1].tolist()
        if not rules.active and not most and not any(searches):
            return found
        category = self._serving.catalogue.attributes.category
        for place, request in enumerate(prepared.requests):
            rows = prepared.rows[prepared.starts[place] : prepared.starts[place + 1]]
            preferences = [Cap(category.at(rows), most, _CAPPED_RANKS)] if most else []
            searched = prepared.found[place, -1, : searches[place]].tolist()
            place_of = {row: at for at, row in enumerate(rows.tolist())} if searched or rules.active else {}
            first = [place_of[row] for row in searched if row in place_of]
            of_request = found[place] = SlateRules(preferences=preferences, first=first)
            if rules.active:
                user_id = request.user.user_id
                of_request.boosts = rules.boosts(rows, user_id)
                of_request.pins = [(place_of[pin.row], pin.rank) for pin in rules.pins(user_id) if pin.row in place_of]
                of_request.caps = rules.caps(rows, user_id)
        return found

    def _reasons(self, ranking: Ranking) -> list[Reason]:
        batch = ranking.batch
        if batch.reasons is None:
            batch.reasons = self._explained(batch)
        catalogue = self._serving.catalogue
        of = (catalogue.version, catalogue.reclaims)
        if of != self._said_of or len(self._said) >= _KEPT:
            self._said, self._said_of = {}, of
        said, language, reasons = self._said, ranking.language, []
        codes, named = batch.reasons
        for code, row in zip(codes[ranking.places], named[ranking.places], strict=True):
            # A reason is the same for everybody, and kept as long as no item changes.
            reason = said.get((code, row, language))
            if reason is None:
                reason = said[code, row, language] = phrase(CODES[code], self._named(row), language)
            reasons.append(reason)
        return reasons

    def _explained(self, batch: Batch) -> tuple[list[int], list[int]]:
        """Codes of the reasons of all slates of a batch, and the rows that they name."""
        interests = batch.interests
        codes, named = np.empty(len(batch.order), np.int64), np.empty(len(batch.order), np.int32)
        before: tuple[Any, ...] = (
            batch.tables, batch.starts, batch.rows, batch.values, batch.context, batch.boosts, batch.pinned,
            batch.searched, batch.place_starts, batch.order, batch.kept_for, batch.slate_lengths, interests.starts,
            interests.rows, self._counted(batch), interests.queries, interests.compared, interests.own,
            interests.owned, interests.recent_items, self._rising, self._kinds, self._signs, len(KINDS),
            self._closeness, *self._serving.ranker.parameters(), self._lags, batch.at,
        )  # fmt: skip
        self._share(len(batch.slate_lengths), explain_all, lambda own: (*before, own.slot, codes, named))
        return codes.tolist(), named.tolist()

    def _counted(self, batch: Batch) -> NDArray[np.float64]:
        """What each event of the histories added to the count of its item, where that is in the user's slate: float64
        [entries]."""
        rows, starts = batch.interests.rows, batch.interests.starts
        found, added = np.empty(len(rows), np.int64), np.zeros(len(rows))
        count = _own_entries(
            rows, starts, batch.slates, batch.place_starts, batch.slate_lengths, self._scratch.slot, found
        )
        if count:
            of_user = (np.searchsorted(starts, found[:count], side="right") - 1).tolist()
            types = self._settings.event_types
            for user, entry in zip(of_user, found[:count].tolist(), strict=True):
                # Newest first there, oldest first here.
                event = batch.histories[user][starts[user + 1] - 1 - entry]
                if event.weight > 0 and event.type in types:
                    added[entry] = types[event.type].count * event.share
        return added

    def _named(self, row: int) -> dict[str, Any]:
        """Id and title of an item; nothing for -1."""
        if row < 0:
            return {}
        facts = self._serving.catalogue.facts(row)
        params: dict[str, Any] = {"item_id": self._serving.catalogue.item_id(row)}
        if facts is not None:
            params["title"] = facts.title
        return params

    def _seen_by(self, choice: Choice) -> SeenRanking:
        """The ranking a choice was made from: the one that was kept, or it is made again."""
        seen = choice.seen
        if seen is not None and seen.values is not None:
            return seen
        request = choice.request
        tables, reclaims = self._tables(request.now), self._serving.catalogue.reclaims
        if seen is not None:
            return self._given(request, seen.candidates, tables)
        prepared = self._prepare([request], tables, request.now)
        scale_features(prepared.values)
        context = context_values(
            entries=int(prepared.interests.events[0]),
            events=request.user.events,
            pause_s=float(prepared.pauses[0]),
        )
        return SeenRanking(prepared.rows, prepared.values, context, _NOTHING, reclaims)

    def _given(self, request: RankRequest, rows: NDArray[np.int32], tables: Tables) -> SeenRanking:
        """A request whose candidates are given: those that can still be served, and are not the user's already."""
        serving, scratch = self._serving, self._scratch
        history = history_view(request.user.history, request.before)
        interests = derive_interests(
            history, serving.catalogue, serving.index, self._settings, request.extra_vectors, request.prior,
            request.prior_weight, serving.factors,
        )  # fmt: skip
        links = add_links(
            interests.recent, self._lags, request.at, tables.transition_rate, tables.arena, scratch.link_slot,
            scratch.links, scratch.sums,
        )  # fmt: skip
        try:
            scratch.request += 1
            scratch.blocked[self._excluded(request)] = scratch.request
            rows = rows[tables.servable[rows] & (scratch.blocked[rows] != scratch.request)]
            permitted = self._permitted(rows, request)
            rows = rows if permitted is None else rows[permitted]
            rows = rows[np.argsort(tables.hashes[rows])]
            values = np.empty((len(rows), len(self.feature_names)), np.float32)
            raw_features(
                rows, tables, interests.queries, interests.factors, interests.own, interests.own_weights,
                scratch.link_slot, scratch.sums, scratch.slot, request.at, request.now,
                self._settings.retrieval.cold_events, values, np.empty(len(rows), np.bool_), np.empty(len(rows)),
            )  # fmt: skip
        finally:
            clear(scratch.links[:links], scratch.link_slot)
        scale_features(values)
        context = context_values(
            entries=interests.events,
            events=request.user.events,
            pause_s=request.at - history[-1].at if history else 0.0,
        )
        return SeenRanking(rows, values, context, _NOTHING, serving.catalogue.reclaims)

    def _example(self, choice: Choice, seen: SeenRanking, taken: NDArray[np.int32]) -> Example | None:
        if seen.values is None:
            return None
        places = np.empty(1 + self._settings.ranker.negatives, np.int32)
        shown = _NOTHING if choice.shown is None else choice.shown
        hard = self._settings.ranker.hard_negatives
        if hard and len(seen.slate):
            shown = np.concatenate([shown, seen.slate[:hard]])
        count = _compared(seen.candidates, choice.row, taken, shown, choice.seed & 0x7FFFFFFFFFFFFFFF, places)
        if count < 2:
            return None
        return Example(features=in_units(seen.values, places[:count]), context=seen.context)


@dataclass(slots=True, kw_only=True)
class _Rules:
    """What bears on the candidates of a batch, as ``batch.order_all`` takes it; ``pinned`` and ``searched``: bool
    [candidates], or empty."""

    pins: NDArray[np.intp]
    boosts: NDArray[np.float64]
    pinned: NDArray[np.bool_]
    searched: NDArray[np.bool_]
    groups: NDArray[np.int32]
    group_starts: NDArray[np.int64]
    limits: NDArray[np.int64]
    limit_starts: NDArray[np.int64]
    hard: NDArray[np.int64]

    @classmethod
    def of(cls, prepared: _Prepared, place_starts: NDArray[np.int64], found: Mapping[int, SlateRules]) -> _Rules:
        """Of the rules by request."""
        candidates = len(prepared.rows)
        pins = np.full(int(place_starts[-1]), -1, np.intp)
        if not found:
            flags = np.zeros(0, np.bool_)
            return cls(
                pins=pins, boosts=_NO_BOOSTS, pinned=flags, searched=flags, groups=_NOTHING, group_starts=_NO_STARTS,
                limits=_NO_CAPS, limit_starts=_NO_STARTS, hard=_NO_STARTS,
            )  # fmt: skip
        boosts, pinned, searched = np.zeros(candidates), np.zeros(candidates, np.bool_), np.zeros(candidates, np.bool_)
        groups, limits = list[NDArray[np.int32]](), list[NDArray[np.int64]]()
        hard = np.zeros(len(prepared.requests), np.int64)
        for place in range(len(prepared.requests)):
            rules = found.get(place, SlateRules())
            start, end = int(prepared.starts[place]), int(prepared.starts[place + 1])
            ruled = {candidate for candidate, _ in rules.pins}
            first = [(candidate, 1) for candidate in rules.first if candidate not in ruled]
            if ruled or first:
                of_request = slice(int(place_starts[place]), int(place_starts[place + 1]))
                pins[of_request] = pinned_places([*rules.pins, *first], of_request.stop - of_request.start)
                placed = [candidate for candidate in pins[of_request].tolist() if candidate in ruled]
                pinned[[start + candidate for candidate in placed]] = True
            searched[start:end] = np.isin(
                prepared.rows[start:end], prepared.found[place, -1, : prepared.lengths[place, -1]]
            )
            if rules.boosts is not None:
                boosts[start:end] = rules.boosts
            caps = [*rules.caps, *rules.preferences]
            hard[place] = len(rules.caps)
            groups.append(np.concatenate([cap.groups for cap in caps]).astype(np.int32) if caps else _NOTHING)
            limits.append(np.array([(cap.at_most, cap.first) for cap in caps], np.int64) if caps else _NO_CAPS)
        return cls(
            pins=pins, boosts=boosts, pinned=pinned, searched=searched, groups=np.concatenate(groups),
            group_starts=_starts(groups), limits=np.concatenate(limits), limit_starts=_starts(limits), hard=hard,
        )  # fmt: skip


def _starts(parts: Sequence[Sequence[Any] | NDArray[Any]]) -> NDArray[np.int64]:
    """Where each part begins when they are put one after the other, and where the last ends: int64 [parts + 1]."""
    starts = np.zeros(len(parts) + 1, np.int64)
    np.cumsum([len(part) for part in parts], out=starts[1:])
    return starts


def _joined(parts: Sequence[Sequence[int] | NDArray[np.int32]]) -> tuple[NDArray[np.int32], NDArray[np.int64]]:
    """Rows of all parts, int32, and where those of each begin."""
    if len(parts) == 1:
        only = np.asarray(parts[0], np.int32)
        return only, np.array([0, len(only)], np.int64)
    if not any(map(len, parts)):
        return _NOTHING, np.zeros(len(parts) + 1, np.int64)
    return np.concatenate([np.asarray(part, np.int32) for part in parts]), _starts(parts)


@compiled
def _count_shown(slate: NDArray[np.int32], ranks: int, shown: NDArray[np.uint32]) -> None:
    """Count what stands in the first so many ranks of a slate: ``shown`` is uint32 by row."""
    for row in slate[:ranks]:
        if row < len(shown):
            shown[row] += np.uint32(1)


@compiled
def _own_entries(
    rows: NDArray[np.int32],
    starts: NDArray[np.int64],
    slates: NDArray[np.int32],
    place_starts: NDArray[np.int64],
    lengths: NDArray[np.int64],
    slot: NDArray[np.int32],
    found: NDArray[np.int64],
) -> int:
    """Entries of histories whose items are in the slates of their users; how many there are.

    Args:
        rows, starts: int32 [entries], and where those of each user begin.
        slates, place_starts, lengths: int32 [places], where those of each user begin, and how many are filled.
        slot: int32 by row, -1 everywhere; and again afterwards.
        found: int64 [entries], overwritten.
    """
    count = 0
    for user in range(len(lengths)):
        slate = slates[place_starts[user] : place_starts[user] + lengths[user]]
        for row in slate:
            slot[row] = 0
        for entry in range(starts[user], starts[user + 1]):
            if rows[entry] >= 0 and slot[rows[entry]] == 0:
                found[count] = entry
                count += 1
        for row in slate:
            slot[row] = -1
    return count


@compiled
def _compared(
    candidates: NDArray[np.int32],
    row: int,
    taken: NDArray[np.int32],
    shown: NDArray[np.int32],
    seed: int,
    places: NDArray[np.int32],
) -> int:
    """Places among the candidates of what was taken and of what it is compared with, the same for the same seed
    everywhere; how many there are, 0 when ``row`` is no candidate.

    Args:
        candidates: int32 [k].
        row: what was taken.
        taken: int32, everything that was taken in the basket: it is not compared with.
        shown: int32, what comes first among the negatives, in this order as far as it is a candidate.
        seed: decides what else is drawn, without repetition.
        places: int32 [1 + negatives], overwritten.
    """
    pool = np.empty(len(candidates), np.int32)
    left = 0
    positive = -1
    for place, candidate in enumerate(candidates):
        if candidate == row:
            positive = place
        other = True
        for one in taken:
            other = other and candidate != one
        if other:
            pool[left] = place
            left += 1
    if positive < 0:
        return 0
    places[0] = positive
    count = 1
    for one in shown:
        for at in range(left):
            if count < len(places) and candidates[pool[at]] == one:
                places[count] = pool[at]
                count += 1
                left -= 1
                # In the order they have: what is drawn must not depend on more than it has to.
                for moved in range(at, left):
                    pool[moved] = pool[moved + 1]
                break
    state = mixed(np.uint64(seed))
    while left > 0 and count < len(places):
        state = state + GOLDEN
        drawn = below(mixed(state), left)
        places[count] = pool[drawn]
        count += 1
        left -= 1
        pool[drawn] = pool[left]
    return count


def _known(request: RankRequest) -> bool:
    """Whether anything is known of the user at the time of the request."""
    before = math.inf if request.before is None else request.before
    return bool(request.prior) or any(entry.at < before for entry in request.user.history)
