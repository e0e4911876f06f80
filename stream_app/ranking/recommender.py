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
from stream_app.ranking.exploration import explores
from stream_app.ranking.features import candidate_features, context_values, feature_names, in_units
from stream_app.ranking.ordering import order_candidates
from stream_app.ranking.reasons import CODES, KINDS, evidence_signs, explain, kind_columns, phrase
from stream_app.ranking.slate import NEW, TAIL, SlateRules, pinned_places, reserved_places
from stream_app.retrieval.candidates import find_candidates
from stream_app.retrieval.interests import FAST, SLOW, Interests, derive_interests, history_view
from stream_app.retrieval.links import Scratch, add_links, clear, lags_of
from stream_app.retrieval.sources import default_sources
from stream_app.retrieval.tables import Tables
from stream_app.rules.book import Cap
from stream_app.serving import ServingState
from stream_app.settings import Settings
from stream_app.users.state import HistoryEntry, UserState, id_hash

__all__ = ["Choice", "Example", "RankRequest", "Ranking", "Recommender", "SeenRanking"]

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
_NO_ROWS: NDArray[np.int32] = np.zeros((0, 0), np.int32)
_NO_LENGTHS: NDArray[np.int64] = np.zeros(0, np.int64)
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
        found, lengths: what each source proposed, see :attr:`proposed`.
        reclaims: of the catalogue; see :class:`SeenRanking`.
        interests: what was derived of the user.
        user: who was ranked for; not to be changed before :meth:`Recommender.slate_items`.
        at: event time of the request (seconds).
        tables: what it was ranked with; good until the serving state changes.
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
    found: NDArray[np.int32]
    lengths: NDArray[np.int64]
    reclaims: int
    interests: Interests
    user: UserState
    at: float
    tables: Tables
    language: str

    @property
    def proposed(self) -> list[NDArray[np.int32]]:
        """What each source proposed, best first, in the order of the sources; int32."""
        return [rows[:length] for rows, length in zip(self.found, self.lengths.tolist(), strict=True)]


@dataclass(slots=True)
class _Prepared:
    """A request on its way: what was derived, the candidates (by id hash), and their features."""

    request: RankRequest
    interests: Interests
    rows: NDArray[np.int32]
    masks: NDArray[np.uint32]
    values: NDArray[np.float32]
    cold: NDArray[np.bool_]
    closeness: NDArray[np.float64]
    context: NDArray[np.float32]
    found: NDArray[np.int32]
    lengths: NDArray[np.int64]
    searched: NDArray[np.int32]


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
        self._wanted = np.array([source.wanted for source in self.sources], np.int64)
        names = [source.name for source in self.sources]
        self._by_text = names.index("text_fast")
        self._again = np.uint32(1 << names.index("again"))
        self.feature_names = feature_names(settings.items)
        self._shown: NDArray[np.uint32] = np.zeros(0, np.uint32)
        self._reclaims = serving.catalogue.reclaims
        self._personal = np.uint32(sum(1 << bit for bit, source in enumerate(self.sources) if source.personal))
        self._kinds = kind_columns(self.feature_names)
        self._signs = evidence_signs(self.feature_names)
        self._closeness = np.array([self.feature_names.index(name) for name in ("text_slow", "text_fast")])
        self._lags = lags_of(settings)
        self._scratch = Scratch()
        self._masks: dict[int, list[str]] = {}
        self._said: dict[tuple[str, int, str], Reason] = {}
        self._said_of = (-1, -1)
        self._reserved_in: dict[int, NDArray[np.bool_]] = {}
        # Of the half-lives the one nearest to a week says what rises.
        days = settings.items.half_lives_days
        self._rising = min(range(len(days)), key=lambda column: abs(days[column] - 7.0))
        self._rising_feature = self.feature_names.index(f"popularity_{days[self._rising]:g}d")

    def rank(self, requests: Sequence[RankRequest]) -> list[Ranking]:
        """Rank a batch. A slate never holds an item that may not be served, is consumed or hidden."""
        rankings: list[Ranking] = []
        tables: Tables | None = None
        for request in requests:
            if tables is None or request.now != requests[len(rankings) - 1].now:
                tables = self._tables(request.now)
            rankings.append(self._ranking(self._prepare(request, tables), tables))
        return rankings

    def slate_items(self, ranking: Ranking) -> list[SlateItem]:
        """The slate with provenance and reasons, to be made before the serving state changes."""
        ids = map(self._serving.catalogue.item_id, ranking.rows.tolist())
        sources = map(self._named_by, ranking.sources.tolist())
        columns = zip(ids, ranking.scores.tolist(), sources, self._reasons(ranking), strict=True)
        return [
            SlateItem(item_id=item_id, rank=rank, score=score, sources=names, reason=reason)
            for rank, (item_id, score, names, reason) in enumerate(columns, start=1)
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
        return tables

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

    def _prepare(self, request: RankRequest, tables: Tables) -> _Prepared:
        """Candidates of a request from every source, and their features."""
        serving, settings, scratch = self._serving, self._settings, self._scratch
        history = history_view(request.user.history, request.before)
        interests = self._interests(request, history)
        searched = self._searched(request, history)
        pins = serving.rules.pins(request.user.user_id)
        sources = len(self._wanted)
        most = max(int(self._wanted.max()), len(pins), settings.slate.search_places)
        found, lengths = np.empty((sources + 2, most), np.int32), np.zeros(sources + 2, np.int64)
        rows, masks = np.empty(found.size, np.int32), np.empty(found.size, np.uint32)
        whole = len(serving.index) <= settings.retrieval.whole_below
        scratch.request += 1
        count, links = find_candidates(
            tables, interests.queries, interests.recent, interests.own, interests.own_weights, interests.factors,
            _NOTHING if whole else self._near(request, interests), whole, self._rising, self._excluded(request),
            np.array([pin.row for pin in pins], np.int32) if pins else _NOTHING, searched,
            settings.slate.search_places, request.at, _seed(id_hash(request.user.user_id)), self._lags, self._wanted,
            scratch.slot, scratch.link_slot, scratch.links, scratch.sums, scratch.blocked, scratch.request, found,
            lengths, rows, masks,
        )  # fmt: skip
        try:
            # Copies: they are kept longer than what was made for as many as there might have been.
            rows, masks = rows[:count].copy(), masks[:count].copy()
            if lengths[-1]:
                # Closeness in text proposes them, like the neighbours of what the user did of late.
                bit = np.uint32(1 << (sources + 1))
                by_search = (masks & bit).astype(np.bool_)
                masks[by_search] = (masks[by_search] & ~bit) | np.uint32(1 << self._by_text)
            rows, masks = self._permitted(rows, masks, request)
            prepared = self._with_features(request, history, interests, rows, masks, tables)
        finally:
            clear(scratch.links[:links], scratch.link_slot)
        prepared.found, prepared.lengths = found[:sources], lengths[:sources]
        prepared.searched = found[-1, : lengths[-1]]
        return prepared

    def _near(self, request: RankRequest, interests: Interests) -> NDArray[np.int32]:
        """Rows near to the user's last items, or to the words that say something of the user, int32."""
        near: NDArray[np.int32] = self._serving.index.neighbours(
            interests.own[: self._settings.retrieval.neighbour_items]
        ).ravel()
        if interests.words or not len(near):
            # Words are not near to an item that has a list.
            queries = interests.vectors[_SEARCHED]
            asked = queries.any(axis=1)
            if asked.any():
                near = np.concatenate([near, self._searched_for(request, queries[asked])])
        return near

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

    def _with_features(
        self,
        request: RankRequest,
        history: tuple[HistoryEntry, ...],
        interests: Interests,
        rows: NDArray[np.int32],
        masks: NDArray[np.uint32],
        tables: Tables,
    ) -> _Prepared:
        """Features of candidates, while the links that were added for the request are in the scratch arrays."""
        scratch = self._scratch
        values = np.empty((len(rows), len(self.feature_names)), np.float32)
        cold, closeness = np.empty(len(rows), np.bool_), np.empty(len(rows))
        candidate_features(
            rows, tables, interests.queries, interests.factors, interests.own, interests.own_weights,
            scratch.link_slot, scratch.sums, scratch.slot, request.at, request.now,
            self._settings.retrieval.cold_events, values, cold, closeness,
        )  # fmt: skip
        context = context_values(
            entries=interests.events,
            events=request.user.events,
            pause_s=request.at - history[-1].at if history else 0.0,
        )
        return _Prepared(
            request, interests, rows, masks, values, cold, closeness, context, _NO_ROWS, _NO_LENGTHS, _NOTHING
        )

    def _ranking(self, prepared: _Prepared, tables: Tables) -> Ranking:
        serving, request, settings = self._serving, prepared.request, self._settings.slate
        rules = self._slate_rules(prepared)
        rows, count = prepared.rows, len(prepared.rows)
        size = min(request.n, count)
        ruled = {candidate for candidate, _ in rules.pins}
        first = [(candidate, 1) for candidate in rules.first if candidate not in ruled]
        caps = [*rules.caps, *rules.preferences]
        seed = id_hash(request.user.user_id) + request.user.events
        pins = pinned_places([*rules.pins, *first], size)
        scores = np.empty(count)
        order, kept_for = order_candidates(
            rows, prepared.masks, prepared.values, prepared.cold, prepared.closeness, prepared.context, tables,
            *serving.ranker.parameters(), _NO_BOOSTS if rules.boosts is None else rules.boosts, self._rising_feature,
            _seed(seed), settings.cold_trials, self._personal,
            self._shown if self._reclaims == serving.catalogue.reclaims else self._shown[:0],
            request.n >= settings.explore_rank and explores(seed, settings.explore), settings.diversity,
            pins, self._reserved(size), settings.explore_rank - 1,
            np.array([cap.groups for cap in caps], np.int32) if caps else _NO_ROWS[:, :0],
            np.array([(cap.at_most, cap.first) for cap in caps], np.int64) if caps else _NO_CAPS, len(rules.caps),
            scores,
        )  # fmt: skip
        chosen = rows[order]
        none = np.zeros(len(order), np.bool_)
        placed = [candidate for candidate in pins.tolist() if candidate in ruled] if ruled else []
        return Ranking(
            rows=chosen,
            scores=scores[order],
            sources=prepared.masks[order],
            reserved=kept_for == NEW,
            pinned=np.isin(order, placed) if placed else none,
            explored=kept_for == TAIL,
            searched=np.isin(chosen, prepared.searched) if len(prepared.searched) else none,
            boosts=np.zeros(len(order)) if rules.boosts is None else rules.boosts[order],
            values=prepared.values[order],
            context=prepared.context,
            candidates=rows,
            candidate_values=prepared.values,
            found=prepared.found,
            lengths=prepared.lengths,
            reclaims=serving.catalogue.reclaims,
            interests=prepared.interests,
            user=request.user,
            at=request.at,
            tables=tables,
            language=request.language or self._settings.slate.language,
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

    def _reserved(self, size: int) -> NDArray[np.bool_]:
        """The places kept for new items in a slate of this size; made once."""
        held = self._reserved_in.get(size)
        if held is None:
            held = self._reserved_in[size] = reserved_places(size, self._settings.slate)
        return held

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
        codes, near = np.empty(count, np.int64), np.empty(count, np.bool_)
        origins = np.empty((3, count), np.int64)
        interests = ranking.interests
        explain(
            ranking.rows, ranking.values, ranking.candidate_values, ranking.context, ranking.boosts,
            self._mine(ranking), self._rising, self._kinds, self._signs, len(KINDS), self._closeness,
            *self._serving.ranker.parameters(), ranking.tables, interests.recent_vectors, interests.recent, self._lags,
            ranking.at, self._scratch.slot, codes, near, origins,
        )  # fmt: skip
        catalogue = self._serving.catalogue
        of = (catalogue.version, catalogue.reclaims)
        if of != self._said_of or len(self._said) >= _KEPT:
            self._said, self._said_of = {}, of
        said, language, recent = self._said, ranking.language, interests.recent.tolist()
        reasons = []
        told = zip(
            codes.tolist(), near.tolist(), ranking.reserved.tolist(), ranking.pinned.tolist(),
            ranking.searched.tolist(), ranking.explored.tolist(), origins.T.tolist(), strict=True,
        )  # fmt: skip
        for kind, close, reserved, pinned, searched, explored, places in told:
            code, row = CODES[kind], -1
            if pinned:
                code = "pinned"
            elif searched:
                code = "similar"
            elif reserved:
                code = "new_for_you" if close else "new"
            elif explored:
                code = "less_known_for_you" if close else "less_known"
            elif code in _ORIGINS and places[_ORIGINS[code]] >= 0:
                row = recent[places[_ORIGINS[code]]]
            # A reason is the same for everybody, and kept as long as no item changes.
            reason = said.get((code, row, language))
            if reason is None:
                reason = said[code, row, language] = phrase(code, self._named(row), language)
            reasons.append(reason)
        return reasons

    def _mine(self, ranking: Ranking) -> NDArray[np.float64]:
        """What the user's history alone added to the count of each item of a slate, float64 [n]."""
        mine = np.zeros(len(ranking.rows))
        # The user's own items come from one source alone.
        places = np.flatnonzero(ranking.sources & self._again)
        if len(places):
            item_id, types = self._serving.catalogue.item_id, self._settings.event_types
            rows = ranking.rows[places].tolist()
            place_of = {item_id(row): place for row, place in zip(rows, places.tolist(), strict=True)}
            for entry in ranking.user.history:
                place = place_of.get(entry.item_id)
                if place is not None and entry.weight > 0 and entry.type in types:
                    mine[place] += types[entry.type].count * entry.share
        return mine

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
        tables = self._tables(choice.request.now)
        if seen is None:
            prepared = self._prepare(choice.request, tables)
        else:
            prepared = self._given(choice.request, seen.candidates, tables)
        reclaims = self._serving.catalogue.reclaims
        return SeenRanking(prepared.rows, prepared.values, prepared.context, _NOTHING, reclaims)

    def _given(self, request: RankRequest, rows: NDArray[np.int32], tables: Tables) -> _Prepared:
        """A request whose candidates are given: those that can still be served, and are not the user's already."""
        scratch = self._scratch
        history = history_view(request.user.history, request.before)
        interests = self._interests(request, history)
        links = add_links(
            interests.recent, self._lags, request.at, tables.transition_rate, tables.arena, scratch.link_slot,
            scratch.links, scratch.sums,
        )  # fmt: skip
        try:
            scratch.request += 1
            scratch.blocked[self._excluded(request)] = scratch.request
            rows = rows[tables.servable[rows] & (scratch.blocked[rows] != scratch.request)]
            rows, masks = self._permitted(rows, np.zeros(len(rows), np.uint32), request)
            rows = rows[np.argsort(tables.hashes[rows])]
            return self._with_features(request, history, interests, rows, masks, tables)
        finally:
            clear(scratch.links[:links], scratch.link_slot)

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
        return Example(features=in_units(seen.values[places[:count]]), context=seen.context)


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


def _seed(value: int) -> np.uint64:
    return np.uint64(value & 0xFFFFFFFFFFFFFFFF)


def _known(request: RankRequest) -> bool:
    """Whether anything is known of the user at the time of the request."""
    before = math.inf if request.before is None else request.before
    return bool(request.prior) or any(entry.at < before for entry in request.user.history)
