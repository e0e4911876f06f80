"""From a user's state to a slate: retrieve candidates, score them, pick. And from a choice to a training example.

Everything is an array operation over one request's candidates, or over the pool they are found in
(:mod:`stream_app.retrieval.pool`). Candidates are ordered by id hash before anything is computed, so replicas that
number their rows differently agree. Results depend on what the serving state holds; beyond ``retrieval.whole_below``
vectors also on when neighbours were asked for (:mod:`stream_app.index.neighbours`), and for the place of less known
items on what this process has published (:meth:`Recommender.published`).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from schemas.messages import Reason, SlateItem
from stream_app.compiled import compiled
from stream_app.mixing import GOLDEN, below, mixed
from stream_app.ranking.exploration import explores, least_shown, thompson_order
from stream_app.ranking.features import Features, candidate_features, context_values, feature_names, in_units
from stream_app.ranking.reasons import CODES, KINDS, evidence_signs, explain, kind_columns, phrase
from stream_app.ranking.slate import SlateRules, choose
from stream_app.retrieval.cold import promise
from stream_app.retrieval.interests import FAST, SLOW, Interests, derive_interests, history_view
from stream_app.retrieval.links import Links, Scratch, link_scores
from stream_app.retrieval.pool import best_of_pool, gather
from stream_app.retrieval.source import Context, Near
from stream_app.retrieval.sources import default_sources
from stream_app.retrieval.trending import Trending
from stream_app.rules.book import Cap
from stream_app.serving import ServingState
from stream_app.settings import Settings
from stream_app.users.state import HistoryEntry, UserState, id_hash

__all__ = ["Choice", "Example", "RankRequest", "Ranking", "Recommender", "SeenRanking"]

_CHUNK = 32
"""Requests computed together: enough to share the overhead, few enough to stay in the processor's cache."""
_CAPPED_RANKS = 10
"""The ranks that the setting ``slate.category_cap`` speaks of."""
_FOUND = 0.5
"""Cosine from which on an item is what a search asked for; a title finds its item, and little else is so near."""
_TAKEN_OUT = 200
"""Neighbours of a search looked at beyond those wanted, because they may be the user's already."""
_SEARCHED = slice(SLOW, FAST + 1)
"""The interest vectors whose neighbours are looked for."""
_KEPT = 10_000
"""Reasons, and combinations of sources by name, that are kept."""
_ORIGINS = {"taken_together": 0, "taken_after": 1, "similar": 2}
"""Reasons that name a recent item, and which of the three it may go back to."""
_NOTHING: NDArray[np.int32] = np.zeros(0, np.int32)
_NO_BIAS: NDArray[np.float32] = np.zeros(0, np.float32)
_NO_TABLE: NDArray[np.float32] = np.zeros((0, 1), np.float32)
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


@dataclass(slots=True, kw_only=True)
class Ranking:
    """The ranked answer to one request.

    Attributes:
        rows: int32 [n], the slate, best first.
        scores: float64 [n], log-odds against each other, boosts included, rounded to 1e-6.
        sources: uint32 [n], bit ``i`` says that source ``i`` proposed the item, the bit after theirs that a rule did.
        reserved: bool [n], the place was kept for a new item.
        pinned: bool [n], a rule put the item there.
        explored: bool [n], the place was given to a less known item.
        searched: bool [n], the item is what the user just searched for.
        boosts: float64 [n], what rules added to the score.
        values: float32 [n, features], scaled.
        context: float32 [c], of the request.
        candidates: int32 [k], everything that was scored, by id hash.
        candidate_values: float32 [k, features].
        proposed: what each source proposed, best first, in the order of the sources.
        reclaims: of the catalogue; see :class:`SeenRanking`.
        interests: what was derived of the user.
        history: the history it was derived from.
        links: transition scores.
        language: of the reasons.
    """

    rows: NDArray[np.int32]
    scores: NDArray[np.float64]
    sources: NDArray[np.uint32]
    reserved: NDArray[np.bool_]
    pinned: NDArray[np.bool_]
    explored: NDArray[np.bool_]
    searched: NDArray[np.bool_]
    boosts: NDArray[np.float64]
    values: NDArray[np.float32]
    context: NDArray[np.float32]
    candidates: NDArray[np.int32]
    candidate_values: NDArray[np.float32]
    proposed: Sequence[NDArray[np.int32]]
    reclaims: int
    interests: Interests
    history: tuple[HistoryEntry, ...]
    links: Links
    language: str


@dataclass(slots=True)
class _Prepared:
    """A request on its way: what was derived, and the candidates (by id hash)."""

    request: RankRequest
    history: tuple[HistoryEntry, ...]
    interests: Interests
    links: Links
    rows: NDArray[np.int32]
    sources: NDArray[np.uint32]
    features: Features
    context: NDArray[np.float32]
    proposed: Sequence[NDArray[np.int32]] = ()
    searched: NDArray[np.int32] = field(default_factory=lambda: np.zeros(0, np.int32))


class Recommender:
    """Ranks over a serving state. Not safe for use from several threads.

    Args:
        settings: bounds of sources, slate, language.
        serving: what is ranked with; read on every call, so it may change in between.
    """

    def __init__(self, settings: Settings, serving: ServingState) -> None:
        self._settings = settings
        self._serving = serving
        self.sources = default_sources(settings)
        self._by_text = [source.name for source in self.sources].index("text_fast")
        self.feature_names = feature_names(settings.items)
        self._shown: NDArray[np.uint32] = np.zeros(0, np.uint32)
        self._reclaims = serving.catalogue.reclaims
        # Sources that look at this user, and not only at what is popular.
        personal = [not isinstance(source, Trending) for source in self.sources]
        self._personal = np.uint32(sum(1 << bit for bit, own in enumerate(personal) if own))
        self._kinds = kind_columns(self.feature_names)
        self._signs = evidence_signs(self.feature_names)
        self._closeness = np.array([self.feature_names.index(name) for name in ("text_slow", "text_fast")])
        self._scratch = Scratch()
        self._masks: dict[int, list[str]] = {}
        self._said: dict[tuple[str, int, str], Reason] = {}
        self._said_of = (-1, -1)
        # Of the half-lives the one nearest to a week says what rises.
        days = settings.items.half_lives_days
        self._rising = min(range(len(days)), key=lambda column: abs(days[column] - 7.0))
        self._rising_feature = self.feature_names.index(f"popularity_{days[self._rising]:g}d")

    def rank(self, requests: Sequence[RankRequest]) -> list[Ranking]:
        """Rank a batch. A slate never holds an item that may not be served, is consumed or hidden."""
        rankings: list[Ranking] = []
        for start in range(0, len(requests), _CHUNK):
            rankings += [self._ranking(prepared) for prepared in self._retrieve(requests[start : start + _CHUNK])]
        return rankings

    def slate_items(self, ranking: Ranking) -> list[SlateItem]:
        """The slate with provenance and reasons, to be made before the serving state changes."""
        catalogue = self._serving.catalogue
        reasons = self._reasons(ranking)
        return [
            SlateItem(
                item_id=catalogue.item_id(row),
                rank=rank,
                score=score,
                sources=self._named_by(mask),
                reason=reason,
            )
            for rank, (row, score, mask, reason) in enumerate(
                zip(ranking.rows.tolist(), ranking.scores.tolist(), ranking.sources.tolist(), reasons, strict=True),
                start=1,
            )
        ]

    def _named_by(self, mask: int) -> list[str]:
        """Names of the sources of a mask; one list for all that have it, not to be changed."""
        names = self._masks.get(mask)
        if names is None:
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
        members = [group for group in groups.values() if _known(choices[group[0]].request)]
        for start in range(0, len(members), _CHUNK):
            part = members[start : start + _CHUNK]
            seen = self._seen_by([choices[group[0]] for group in part])
            for group, ranking in zip(part, seen, strict=True):
                taken = np.array([choices[place].row for place in group], np.int32)
                for place in group:
                    examples[place] = self._example(choices[place], ranking, taken)
        return examples

    def _retrieve(self, requests: Sequence[RankRequest]) -> list[_Prepared]:
        """Candidates of each request from every source."""
        if not requests:
            return []
        serving = self._serving
        self._scratch.reserve(serving.catalogue.rows)
        views = [history_view(request.user.history, request.before) for request in requests]
        interests = [self._interests(request, view) for request, view in zip(requests, views, strict=True)]
        searched = [self._searched(request, view) for request, view in zip(requests, views, strict=True)]
        cold_rows = serving.cold.rows(serving.catalogue, serving.signals.momentum(self._rising))
        return [self._candidates(*parts, cold_rows) for parts in zip(requests, views, interests, searched, strict=True)]

    def _interests(self, request: RankRequest, history: tuple[HistoryEntry, ...]) -> Interests:
        return derive_interests(
            history,
            self._serving.catalogue,
            self._serving.index,
            self._settings,
            request.extra_vectors,
            request.prior,
            request.prior_weight,
            self._serving.factors,
        )

    def _looked_at(
        self, request: RankRequest, interests: Interests, links: Links, servable: NDArray[np.bool_]
    ) -> tuple[Near, NDArray[np.int32]]:
        """What of the pool (:mod:`stream_app.retrieval.pool`) is nearest to the interest vectors, and what has the
        largest scores by learned factors; see :class:`Context`."""
        retrieval, scratch, serving = self._settings.retrieval, self._scratch, self._serving
        index, factors, hashes = serving.index, serving.factors, serving.catalogue.id_hash
        queries = interests.vectors[_SEARCHED]
        asked = queries.any(axis=1)
        if len(index) <= retrieval.whole_below:
            near, others = np.arange(len(servable), dtype=np.int32), _NOTHING
        else:
            near = index.neighbours(interests.own[: retrieval.neighbour_items]).ravel()
            if asked.any() and (interests.words or not len(near)):
                # Words are not near to an item that has a list.
                near = np.concatenate([near, self._searched_for(request, queries[asked])])
            others = np.concatenate([links.rows, *self._popular()])
        pool = np.empty(len(near) + len(others), np.int32)
        first, count = gather(near, others, servable, scratch.blocked, scratch.request, scratch.slot, pool)
        found = max(retrieval.slow, retrieval.fast) + _TIE_RESERVE
        rows, scores = np.empty((2, found), np.int32), np.empty((2, found))
        codes = index.codes
        best_of_pool(
            pool[:first], queries, codes.values, codes.steps, _NO_BIAS, index.present, hashes, _NO_TABLE, rows, scores
        )
        rows[~asked] = -1
        by_factors = np.full((2, max(retrieval.factors, retrieval.factors_fast)), -1, np.int32)
        # Without a user's factors they say nothing: what comes of zeros is the items' biases.
        if by_factors.size and interests.factors.any():
            factors.reserve(len(servable))
            codes = factors.codes
            best_of_pool(
                pool[:count], interests.factors, codes.values, codes.steps, factors.bias, factors.has, hashes,
                factors.target, by_factors, np.empty(by_factors.shape),
            )  # fmt: skip
        return Near(rows, scores), by_factors

    def _searched_for(self, request: RankRequest, queries: NDArray[np.float32]) -> NDArray[np.int32]:
        """Neighbours of interest vectors in the whole index, int32, some of them twice."""
        retrieval = self._settings.retrieval
        wanted = max(retrieval.slow, retrieval.fast)
        # What the user consumed lies around the interest vectors and is taken out afterwards.
        spare = min(self._taken_out(request), wanted)
        return self._serving.index.search(queries, wanted + spare + _TIE_RESERVE)[0].ravel()

    def _popular(self) -> list[NDArray[np.int32]]:
        """What is taken most lately, and of all time."""
        signals, hashes = self._serving.signals, self._serving.catalogue.id_hash
        return [signals.trending(column, hashes) for column in (self._rising, signals.columns - 1)]

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

    def _candidates(
        self,
        request: RankRequest,
        history: tuple[HistoryEntry, ...],
        interests: Interests,
        searched: NDArray[np.int32],
        cold_rows: NDArray[np.int32],
    ) -> _Prepared:
        serving, settings, scratch = self._serving, self._settings, self._scratch
        catalogue = serving.catalogue
        self._block(request)
        links = link_scores(interests, serving.signals, settings, at=request.at, scratch=scratch)
        servable = serving.servable(request.now)
        # There is room for every row of the catalogue from here on.
        serving.index.table(catalogue.rows)
        near, by_factors = self._looked_at(request, interests, links, servable)
        context = Context(
            interests=interests,
            links=links,
            near=near,
            cold_rows=cold_rows,
            cold_counts=serving.signals.decayed(request.at, cold_rows, self._rising),
            codes=serving.index.codes,
            catalogue=catalogue,
            signals=serving.signals,
            by_factors=by_factors,
            settings=settings.retrieval,
            servable=servable,
            scratch=scratch,
            request=scratch.request,
            seed=id_hash(request.user.user_id),
        )
        proposed = [source.propose(context) for source in self.sources]
        searched = context.first_allowed(searched, settings.slate.search_places)
        pinned = np.array([pin.row for pin in serving.rules.pins(request.user.user_id)], np.int32)
        parts = [*proposed, context.first_allowed(pinned, len(pinned)), searched]
        rows = np.concatenate(parts)
        lengths = np.array([len(part) for part in parts])
        distinct, sources = np.empty(len(rows), np.int32), np.empty(len(rows), np.uint32)
        count = _merge(rows, lengths, scratch.slot, catalogue.id_hash, distinct, sources)
        if len(searched):
            # Closeness in text proposes them, like the neighbours of what the user did of late.
            bit = np.uint32(1 << (len(parts) - 1))
            found = (sources & bit).astype(np.bool_)
            sources[found] = (sources[found] & ~bit) | np.uint32(1 << self._by_text)
        distinct, sources = self._permitted(distinct[:count], sources[:count], request)
        prepared = self._prepared(request, history, interests, links, distinct, sources)
        prepared.proposed, prepared.searched = proposed, searched
        return prepared

    def _block(self, request: RankRequest) -> None:
        """Number the request and mark what the user consumed or hid, and what is the user's own."""
        scratch, catalogue = self._scratch, self._serving.catalogue
        scratch.request += 1
        scratch.blocked[catalogue.rows_of_hashes(request.user.excluded(request.at))] = scratch.request
        own = catalogue.attributes.owned_by(request.user.user_id, catalogue.rows)
        if len(own):
            scratch.blocked[own] = scratch.request

    def _taken_out(self, request: RankRequest) -> int:
        """How many neighbours :meth:`_block` may take out at most."""
        catalogue, user = self._serving.catalogue, request.user
        own = len(catalogue.attributes.owned_by(user.user_id, catalogue.rows))
        return len(user.consumed) + len(user.hidden) + own

    def _permitted(
        self, rows: NDArray[np.int32], sources: NDArray[np.uint32], request: RankRequest
    ) -> tuple[NDArray[np.int32], NDArray[np.uint32]]:
        """Those of ``rows``, and their sources, that neither the user's profile nor a rule for this user keeps out."""
        blocked = request.blocked_labels
        if blocked:
            labels = self._serving.catalogue.labels
            wanted = np.array([blocked.isdisjoint(labels(row)) for row in rows.tolist()], np.bool_)
            rows, sources = rows[wanted], sources[wanted]
        refused = self._serving.rules.refused(rows, request.user.user_id)
        return (rows, sources) if refused is None else (rows[~refused], sources[~refused])

    def _prepared(
        self,
        request: RankRequest,
        history: tuple[HistoryEntry, ...],
        interests: Interests,
        links: Links,
        rows: NDArray[np.int32],
        sources: NDArray[np.uint32],
    ) -> _Prepared:
        serving = self._serving
        user = request.user
        # There is room for every row of the catalogue in what is read by row.
        signals, factors, count = serving.signals, serving.factors, serving.catalogue.rows
        signals.reserve(count)
        factors.reserve(count)
        features = candidate_features(
            rows,
            table=serving.index.table(count),
            has_vector=serving.index.present,
            queries=interests.queries,
            links=links,
            counts=signals.counts,
            stated=signals.arena.stated,
            rates=signals.rates,
            users=interests.factors,
            target=factors.target,
            bias=factors.bias,
            has_factors=factors.has,
            own=interests.own,
            own_weights=interests.own_weights,
            published_at=serving.catalogue.published_at,
            slot=self._scratch.slot,
            at=request.at,
            now=request.now,
            cold_events=self._settings.retrieval.cold_events,
        )
        context = context_values(
            entries=interests.events,
            events=user.events,
            pause_s=request.at - history[-1].at if history else 0.0,
        )
        return _Prepared(request, history, interests, links, rows, sources, features, context)

    def _ranking(self, prepared: _Prepared) -> Ranking:
        serving, features, user = self._serving, prepared.features, prepared.request.user
        scores = np.round(serving.ranker.score(features.values, prepared.context), 6)
        cold = np.flatnonzero(features.cold)
        taken = serving.signals.total(prepared.rows[cold])
        cold_order = cold[
            thompson_order(
                promise(features.closeness[cold], features.values[cold, self._rising_feature]),
                taken,
                np.maximum(serving.signals.shown(prepared.rows[cold]) - taken, 0.0),
                serving.catalogue.id_hash[prepared.rows[cold]],
                seed=id_hash(user.user_id) + user.events,
                trials=self._settings.slate.cold_trials,
            )
        ]
        rules = self._slate_rules(prepared)
        if rules.boosts is not None:
            scores = np.round(scores + rules.boosts, 6)
        chosen = choose(
            scores,
            serving.index.table(int(prepared.rows.max(initial=0)) + 1),
            cold_order,
            size=prepared.request.n,
            settings=self._settings.slate,
            rules=rules,
            rows=prepared.rows,
            tail_order=self._tail(prepared, scores),
        )
        rows = prepared.rows[chosen.order]
        return Ranking(
            rows=rows,
            scores=scores[chosen.order],
            sources=prepared.sources[chosen.order],
            reserved=chosen.reserved,
            pinned=chosen.pinned,
            explored=chosen.explored,
            searched=np.isin(rows, prepared.searched) if len(prepared.searched) else np.zeros(len(rows), np.bool_),
            boosts=np.zeros(len(chosen.order)) if rules.boosts is None else rules.boosts[chosen.order],
            values=features.values[chosen.order],
            context=prepared.context,
            candidates=prepared.rows,
            candidate_values=features.values,
            proposed=prepared.proposed,
            reclaims=serving.catalogue.reclaims,
            interests=prepared.interests,
            history=prepared.history,
            links=prepared.links,
            language=prepared.request.language or self._settings.slate.language,
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
        self._shown[ranking.slate[: self._settings.slate.explore_rank]] += np.uint32(1)

    def _tail(self, prepared: _Prepared, scores: NDArray[np.float64]) -> NDArray[np.intp]:
        """Candidates of the user's own interests, in the order in which one may take the place of a less known item."""
        user, settings = prepared.request.user, self._settings.slate
        if prepared.request.n < settings.explore_rank or not explores(
            id_hash(user.user_id) + user.events, settings.explore
        ):
            return np.zeros(0, np.intp)
        own = np.flatnonzero(prepared.sources & self._personal)
        rows = prepared.rows[own]
        shown = np.zeros(len(rows), np.uint32)
        if self._reclaims == self._serving.catalogue.reclaims:
            counted = rows < len(self._shown)
            shown[counted] = self._shown[rows[counted]]
        return own[least_shown(shown, scores[own], self._serving.catalogue.id_hash[rows])]

    def _slate_rules(self, prepared: _Prepared) -> SlateRules:
        """Business rules as they bear on the candidates."""
        rules, rows, user_id = self._serving.rules, prepared.rows, prepared.request.user.user_id
        most = self._settings.slate.category_cap
        category = self._serving.catalogue.attributes.category
        preferences = [Cap(category.at(rows), most, _CAPPED_RANKS)] if most else []
        searched = prepared.searched.tolist()
        place_of = {row: place for place, row in enumerate(rows.tolist())} if searched or rules.active else {}
        first = [place_of[row] for row in searched if row in place_of]
        if not rules.active:
            return SlateRules(preferences=preferences, first=first)
        return SlateRules(
            first=first,
            boosts=rules.boosts(rows, user_id),
            pins=[(place_of[pin.row], pin.rank) for pin in rules.pins(user_id) if pin.row in place_of],
            caps=rules.caps(rows, user_id),
            preferences=preferences,
        )

    def _reasons(self, ranking: Ranking) -> list[Reason]:
        count = len(ranking.rows)
        if not count:
            return []
        links, serving = ranking.links, self._serving
        codes, near = np.empty(count, np.int64), np.empty(count, np.bool_)
        origins = np.empty((3, count), np.int64)
        explain(
            ranking.rows, ranking.values, ranking.candidate_values, ranking.context, ranking.boosts, self._kinds,
            self._signs, len(KINDS), self._closeness, *serving.ranker.parameters(),
            serving.index.table(int(ranking.rows.max()) + 1), ranking.interests.recent_vectors, links.recent,
            links.symmetric_weights, links.directed_weights, links.requested_at, links.signals.transition_rate,
            links.signals.arena, self._scratch.slot, codes, near, origins,
        )  # fmt: skip
        reasons = []
        language, recent = ranking.language, ranking.interests.recent
        told = zip(
            codes.tolist(), near.tolist(), ranking.reserved.tolist(), ranking.pinned.tolist(),
            ranking.searched.tolist(), ranking.explored.tolist(), strict=True,
        )  # fmt: skip
        for place, (kind, close, reserved, pinned, searched, explored) in enumerate(told):
            code = CODES[kind]
            if pinned:
                code = "pinned"
            elif searched:
                code = "similar"
            elif reserved:
                code = "new_for_you" if close else "new"
            elif explored:
                code = "less_known_for_you" if close else "less_known"
            column = _ORIGINS.get(code)
            origin = -1 if column is None or searched else int(origins[column, place])
            reasons.append(self._reason(code, int(recent[origin]) if origin >= 0 else -1, language))
        return reasons

    def _reason(self, code: str, row: int, language: str) -> Reason:
        """A reason that names an item (-1: none), kept as long as no item changes."""
        catalogue = self._serving.catalogue
        of = (catalogue.version, catalogue.reclaims)
        if of != self._said_of or len(self._said) >= _KEPT:
            self._said, self._said_of = {}, of
        key = (code, row, language)
        reason = self._said.get(key)
        if reason is None:
            reason = self._said[key] = phrase(code, self._named(row), language)
        return reason

    def _named(self, row: int) -> dict[str, Any]:
        """Id and title of an item; nothing for -1."""
        if row < 0:
            return {}
        facts = self._serving.catalogue.facts(row)
        params: dict[str, Any] = {"item_id": self._serving.catalogue.item_id(row)}
        if facts is not None:
            params["title"] = facts.title
        return params

    def _seen_by(self, choices: Sequence[Choice]) -> list[SeenRanking]:
        """The rankings of choices: those that were kept, the others made again."""
        # The catalogue may have grown since anything was ranked.
        self._scratch.reserve(self._serving.catalogue.rows)
        unseen = [place for place, choice in enumerate(choices) if choice.seen is None]
        made = dict(zip(unseen, self._retrieve([choices[place].request for place in unseen]), strict=True))
        found = []
        for place, choice in enumerate(choices):
            seen = choice.seen
            if seen is not None and seen.values is not None:
                found.append(seen)
                continue
            prepared = made[place] if seen is None else self._given(choice, seen.candidates)
            slate, reclaims = np.zeros(0, np.int32), self._serving.catalogue.reclaims
            found.append(SeenRanking(prepared.rows, prepared.features.values, prepared.context, slate, reclaims))
        return found

    def _given(self, choice: Choice, rows: NDArray[np.int32]) -> _Prepared:
        """A request whose candidates are given: those that can still be served, and are not the user's already."""
        serving, request = self._serving, choice.request
        history = history_view(request.user.history, request.before)
        interests = self._interests(request, history)
        links = link_scores(interests, serving.signals, self._settings, at=request.at, scratch=self._scratch)
        self._block(request)
        rows = rows[serving.servable(request.now)[rows] & (self._scratch.blocked[rows] != self._scratch.request)]
        rows, _ = self._permitted(rows, np.zeros(len(rows), np.uint32), request)
        rows = rows[np.argsort(serving.catalogue.id_hash[rows])]
        return self._prepared(request, history, interests, links, rows, np.zeros(len(rows), np.uint32))

    def _example(self, choice: Choice, seen: SeenRanking, taken: NDArray[np.int32]) -> Example | None:
        if seen.values is None:
            return None
        places = np.empty(1 + self._settings.ranker.negatives, np.int32)
        shown = _NOTHING if choice.shown is None else choice.shown
        count = _compared(seen.candidates, choice.row, taken, shown, choice.seed & 0x7FFFFFFFFFFFFFFF, places)
        if count < 2:
            return None
        return Example(features=in_units(seen.values[places[:count]]), context=seen.context)


@compiled
def _merge(
    rows: NDArray[np.int32],
    lengths: NDArray[np.int64],
    slot: NDArray[np.int32],
    hashes: NDArray[np.int64],
    distinct: NDArray[np.int32],
    sources: NDArray[np.uint32],
) -> int:
    """Distinct rows of several sources, by id hash, and which sources each is from; how many there are.

    Args:
        rows: int32 [n], of one source after the other.
        lengths: int64 [sources].
        slot: int32 by row, -1 everywhere; and again afterwards.
        hashes: int64 by row.
        distinct, sources: int32, uint32 [n], overwritten; bit ``i`` stands for source ``i``.
    """
    met = np.empty(len(rows), np.int32)
    bits = np.zeros(len(rows), np.uint32)
    keys = np.empty(len(rows), np.int64)
    count = 0
    end = 0
    for source, length in enumerate(lengths):
        start, end = end, end + length
        for row in rows[start:end]:
            place = slot[row]
            if place < 0:
                place = count
                slot[row] = place
                met[place] = row
                keys[place] = hashes[row]
                count += 1
            bits[place] |= np.uint32(1) << np.uint32(source)
    for place, held in enumerate(np.argsort(keys[:count])):
        distinct[place] = met[held]
        sources[place] = bits[held]
        slot[met[held]] = -1
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
