"""What an event costs in an interactions process, by stage: everything but the broker and Redis.

Batches go through :class:`stream_app.users.stage.UserStage` as live. The stages are timed from outside: the functions
and methods that make them up are replaced by ones that note how long they took, what they called apart left out. That
costs a microsecond per call, so the sum is measured without it, in alternation. Time is that of the processor: what
other programs take is left out.

Finding the candidates of all requests of a batch, and ordering them, are one compiled call each. What their parts take
is measured afterwards: some of these calls are made again, request by request and part by part. To hand a part its
arguments takes longer than some parts do (10 us and more for all that a source sees), so what a call takes that finds
nothing to do is subtracted from each. What is left of the whole call is what one part or another takes less of alone,
with what it reads still at hand.
"""

from __future__ import annotations

import inspect
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime
from itertools import count, islice
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import numpy as np
from numpy.typing import NDArray

from schemas.decode import decode_interaction, encode
from schemas.messages import Slate, TrainingExamples, Transitions, Trigger
from stream_app.bench.parts import in_parts
from stream_app.bench.shop import MadeUpShop
from stream_app.codes import code_products, scan_codes
from stream_app.items.signals import decayed_column
from stream_app.memory import settle
from stream_app.ranking import recommender as ranking
from stream_app.ranking.batch import order_all, prepare_all
from stream_app.ranking.exploration import explores
from stream_app.ranking.features import in_steps, raw_features, scale_features
from stream_app.ranking.network import score_network
from stream_app.ranking.ordering import _less_known, _new_items
from stream_app.ranking.recommender import Recommender
from stream_app.ranking.slate import compose
from stream_app.retrieval.again import again
from stream_app.retrieval.ann import near_interest
from stream_app.retrieval.candidates import _look, _merge, _strongest, take_own
from stream_app.retrieval.cold import new_items
from stream_app.retrieval.factors import similar_taste
from stream_app.retrieval.interests import FAST, SLOW, VECTORS
from stream_app.retrieval.links import add_links, clear
from stream_app.retrieval.source import Context, first_open
from stream_app.retrieval.sources import FACTORS, FACTORS_FAST, TEXT_FAST, TEXT_SLOW
from stream_app.retrieval.transitions import score_links, taken_together
from stream_app.retrieval.trending import trending
from stream_app.users.stage import NewSlate, SourcedEvent, StageResult, UserStage
from stream_app.users.state import encode_state

__all__ = ["PARTS", "STAGES", "decoded", "encoded", "rank_everybody", "ranking_figures", "staged"]

STAGES = {
    "decode": "JSON to an event, checked",
    "fold": "the event into the user's state",
    "examples": "what the ranker learns from a choice",
    "tables": "what is known by row, for compiled functions",
    "interests": "vectors and factors of the user",
    "neighbours": "lists of what is near to the last items",
    "search": "of the whole index: lists of neighbours, and what is near to words",
    "candidates": "from every source, and their features",
    "order": "from features to a slate",
    "reasons": "reasons and sources of the slate",
    "encode slate": "slate to JSON",
    "encode state": "state to bytes",
    "encode notes": "transitions and examples to JSON",
    "other": "everything between, and the clock: a microsecond per call of a stage",
}
"""Stages, and what they do."""

PARTS = {
    "links": "what was taken together with the last items",
    "order of links": "the strongest of them",
    "pool and nearest": "rows that are looked at, the nearest of them, and the best by factors",
    "counts": "what of the new items was taken of late",
    "nearness of new items": "to the user, of one request alone",
    "merge": "distinct candidates of all sources",
    "cosines": "of candidates with what the user took",
    "features": "all that is known of candidates besides",
    "scaled": "features within the request",
    "scores": "of all candidates",
    "new items": "the order in which they may take a place",
    "less known": "the same of less known items",
    "places": "diversity, rules, reserved places",
}
"""Parts of stages, and what they do; besides, ``candidates`` has one per source."""

_FUNCTIONS = {
    "derive_all": "interests",
    "prepare_all": "candidates",
    "order_all": "order",
}
"""Functions as the module ``stream_app.ranking.recommender`` calls them."""
_requests = count(-1, -1)
"""Numbers of requests that no other has: what one has blocked stays so."""
_LISTS_AT_ONCE = 256
"""Kept neighbours made by one search."""
_CYCLE, _WARM = 8, 2
FEWEST_BATCHES = _WARM + _CYCLE
"""Of which some are timed in every way."""
_AGAIN = 300
"""Calls that are made again, part by part."""


class _Stopwatch:
    """Seconds by stage, what was timed inside left out."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = defaultdict(float)
        self._inside: list[float] = []

    def timed(self, stage: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """``function``, and what it takes is noted."""
        inside, seconds, clock = self._inside, self.seconds, time.thread_time

        def call(*args: Any, **kwargs: Any) -> Any:
            inside.append(0.0)
            began = clock()
            try:
                return function(*args, **kwargs)
            finally:
                took = clock() - began
                seconds[stage] += took - inside.pop()
                if inside:
                    inside[-1] += took

        return call


class _Calls:
    """Calls of a function for the requests of a batch: how many requests, and the arguments that some of them alone
    would be computed with, by name; what they point to is not copied, because nothing here changes the shop.

    Args:
        function: with the requests of a batch.
        split: its arguments to those of each request.
    """

    def __init__(
        self, function: Callable[..., Any], split: Callable[[SimpleNamespace], Iterable[SimpleNamespace]]
    ) -> None:
        self.count = 0
        self.kept: list[SimpleNamespace] = []
        self._signature = inspect.signature(function)
        self._split = split

    def noted(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """``function``, and its calls are noted."""

        def call(*args: Any) -> Any:
            named = SimpleNamespace(**self._signature.bind(*args).arguments)
            found = function(*args)
            # Afterwards: what is left in the arrays is what the call made.
            self.count += len(named.seeds)
            self.kept += islice(self._split(named), max(_AGAIN - len(self.kept), 0))
            return found

        return call

    def seconds(self, parts: Callable[[_Parts, SimpleNamespace], Any]) -> dict[str, float]:
        """What the parts of all requests take together, going by those that were kept."""
        for call in self.kept[:1]:
            parts(_Parts(), call)  # the first time compiles, or reads what was compiled
        timed = _Parts()
        for call in self.kept:
            parts(timed, call)
        return {name: max(took, 0.0) * self.count / len(self.kept) for name, took in timed.seconds.items()}


def _candidate_calls(batch: SimpleNamespace) -> Iterator[SimpleNamespace]:
    """What ``find_candidates`` and ``raw_features`` are called with for each request of ``prepare_all``."""
    for request in range(len(batch.at)):
        entry, owned = int(batch.entries[request]), int(batch.owned[request])
        own, own_weights = batch.own[entry : entry + owned], batch.own_weights[entry : entry + owned]
        slots = batch.slots[request]
        more = batch.near[batch.near_starts[request] : batch.near_starts[request + 1]]
        around = np.concatenate([*batch.lists[slots[slots >= 0]], more]).astype(np.int32)
        start = request * (len(batch.rows) // len(batch.at))
        end = int(batch.ends[request])
        find = SimpleNamespace(
            tables=batch.tables,
            queries=batch.queries[request, : VECTORS + int(batch.compared[request])],
            recent=own[: batch.recent_items],
            own=own,
            own_weights=own_weights,
            factors=batch.factors[request],
            neighbours=around[:0] if batch.whole else around,
            whole=batch.whole,
            rising=batch.rising,
            excluded=batch.excluded[batch.excluded_starts[request] : batch.excluded_starts[request + 1]],
            pinned=batch.pinned[batch.pinned_starts[request] : batch.pinned_starts[request + 1]],
            searched=batch.searched[batch.searched_starts[request] : batch.searched_starts[request + 1]],
            search_places=batch.search_places,
            at=float(batch.at[request]),
            seed=batch.seeds[request],
            lags=batch.lags,
            wanted=batch.wanted,
            cold_closeness=np.empty(len(batch.tables.cold), np.float32),
            slot=batch.slot,
            link_slot=batch.link_slot,
            links=batch.links,
            sums=batch.sums,
            blocked=batch.blocked,
            request=next(_requests),
            found=np.empty_like(batch.found[request]),
            lengths=np.zeros_like(batch.lengths[request]),
            rows=np.empty(batch.found[request].size, np.int32),
            masks=np.empty(batch.found[request].size, np.uint32),
        )
        yield SimpleNamespace(
            find=find, rows=batch.rows[start:end].copy(), now=batch.now, cold_events=batch.cold_events,
            features=batch.values.shape[1],
        )  # fmt: skip


def _order_calls(batch: SimpleNamespace) -> Iterator[SimpleNamespace]:
    """What ``order_candidates`` is called with for each request of ``order_all``; without rules."""
    for request in range(len(batch.seeds)):
        of_request = slice(int(batch.starts[request]), int(batch.starts[request + 1]))
        places = slice(int(batch.place_starts[request]), int(batch.place_starts[request + 1]))
        yield SimpleNamespace(
            rows=batch.rows[of_request],
            masks=batch.masks[of_request],
            values=batch.values[of_request],
            cold=batch.cold[of_request],
            closeness=batch.closeness[of_request],
            context=batch.context[request],
            tables=batch.tables,
            skip=batch.skip,
            inner=batch.inner,
            outer=batch.outer,
            boosts=batch.boosts,
            rising=batch.rising,
            seed=batch.seeds[request],
            trials=batch.trials,
            personal=batch.personal,
            in_first_ranks=batch.in_first_ranks,
            explores=bool(
                batch.wanted[request] >= batch.explore_rank and explores(batch.seeds[request], batch.explore)
            ),
            diversity=batch.diversity,
            pins=batch.pins[places],
            reserved=batch.reserved[: places.stop - places.start],
            tail_place=batch.explore_rank - 1,
            groups=np.zeros((0, 0), np.int32),
            limits=np.zeros((0, 2), np.int64),
            hard=0,
            scores=batch.scores[of_request],
            order=np.empty(places.stop - places.start, np.intp),
            kept_for=np.empty(places.stop - places.start, np.int8),
        )


class _Parts:
    """Seconds by part, without those of handing over the arguments."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = defaultdict(float)

    def __call__(self, part: str, call: tuple[Any, ...], idle: tuple[Any, ...]) -> Any:
        """What ``call`` (a function and its arguments) returns; ``idle`` is one of the same kind with nothing to do."""
        (function, *args), (idling, *nothing), clock = call, idle, time.thread_time
        idling(*nothing)  # the first to touch the objects that are handed over waits for memory
        began = clock()
        found = function(*args)
        between = clock()
        idling(*nothing)
        self.seconds[part] += (between - began) - (clock() - between)
        return found


def _candidate_parts(time_part: _Parts, call: SimpleNamespace, names: Sequence[str]) -> NDArray[np.int32]:
    """``find_candidates`` and ``raw_features`` part by part; returns the candidates.

    Args:
        time_part: takes the times.
        call: see :func:`_candidate_calls`.
        names: of the sources.
    """
    candidates, now, cold_events, features = call.rows, call.now, call.cold_events, call.features
    call = call.find
    tables, wanted, none, request = call.tables, call.wanted, call.recent[:0], next(_requests)
    found, lengths, rows, masks = call.found, call.lengths, call.rows, call.masks
    call.blocked[call.excluded] = request
    allowed = tables.servable, call.blocked, request
    lengths[-2] = first_open(call.pinned, *allowed, len(call.pinned), found[-2])
    lengths[-1] = first_open(call.searched, *allowed, call.search_places, found[-1])
    own, own_weights = take_own(call.own, call.own_weights, *allowed)

    filled = call.link_slot, call.links, call.sums
    rest: tuple[Any, ...] = call.lags, call.at, tables.transition_rate, tables.arena, *filled
    count = time_part("links", (add_links, call.recent, *rest), (add_links, none, *rest))
    links, sums = call.links[:count], call.sums[:count]

    by_links = np.empty(count)
    rest = tables.arena.scale, *allowed
    time_part(
        "order of links",
        (score_links, links, sums, *rest, by_links),
        (score_links, none, sums[:0], *rest, by_links[:0]),
    )
    strongest = np.empty(count, np.int32)
    strongest = strongest[: _strongest(by_links, wanted, strongest)]
    strong, by_links = links[strongest], by_links[strongest]

    asked = call.queries, call.factors
    end = call.blocked, request, call.slot
    without = tables._replace(top_counts=np.zeros_like(tables.top_counts))
    near = np.empty((2, wanted[[TEXT_SLOW, TEXT_FAST]].max()), np.int32)
    by_factors = np.empty((2, wanted[[FACTORS, FACTORS_FAST]].max()), np.int32)
    nobody = np.empty((2, 0), np.int32)
    time_part(
        "pool and nearest",
        (_look, tables, *asked, call.neighbours, call.whole, call.rising, strong, *end, near, by_factors),
        (_look, without, *asked, none, False, call.rising, none, *end, nobody, nobody),
    )

    cold_counts = np.empty(len(tables.cold))
    rest = tables.counts, tables.arena.stated, call.rising, tables.rates[call.rising]
    time_part(
        "counts",
        (decayed_column, call.at, tables.cold, *rest, cold_counts),
        (decayed_column, call.at, tables.cold[:0], *rest, cold_counts),
    )

    # The codes of new items are read once for some requests together; here for one.
    products, slow = call.cold_closeness.reshape(1, -1), call.queries[SLOW : SLOW + 1]
    rest = tables.cold_codes, tables.cold_steps
    time_part("nearness of new items", (scan_codes, slow, *rest, products), (scan_codes, slow, *rest, products[:, :0]))

    context = Context(
        tables, call.queries, own, own_weights, strong, by_links, near, by_factors, cold_counts,
        call.cold_closeness, call.blocked, request, call.seed,
    )  # fmt: skip
    sources: list[tuple[Any, ...]] = [
        (near_interest, context, SLOW),
        (near_interest, context, FAST),
        (taken_together, context),
        (similar_taste, context, SLOW),
        (similar_taste, context, FAST),
        *((trending, context, column) for column in range(len(tables.top_counts))),
        (again, context),
        (new_items, context),
    ]
    for place, (name, source) in enumerate(zip(names, sources, strict=True)):
        lengths[place] = time_part(
            f"source {name}", (*source, wanted[place], found[place]), (trending, context, 0, 0, found[place])
        )

    rest = call.slot, tables.hashes, rows, masks
    distinct: int = time_part("merge", (_merge, found, lengths, *rest), (_merge, found, np.zeros_like(lengths), *rest))

    count = len(candidates)
    compared = tables.codes, tables.steps, call.queries
    products = np.empty((count, len(call.queries)), np.float32)
    time_part(
        "cosines", (code_products, candidates, *compared, products), (code_products, none, *compared, products[:0])
    )
    values, cold, closeness = np.empty((count, features), np.float32), np.empty(count, np.bool_), np.empty(count)
    before: tuple[Any, ...] = tables, call.queries[:1], call.factors, call.own, call.own_weights, call.link_slot
    rest = call.sums, call.slot, call.at, now, cold_events
    time_part(
        "features",
        (raw_features, candidates, *before, *rest, values, cold, closeness),
        (raw_features, none, *before, *rest, values[:0], cold[:0], closeness[:0]),
    )
    time_part("scaled", (scale_features, values), (scale_features, values[:0]))
    clear(links, call.link_slot)
    kept: NDArray[np.int32] = rows[:distinct]
    return kept


def _order_parts(time_part: _Parts, call: SimpleNamespace) -> NDArray[np.intp]:
    """``order_candidates`` part by part, on the scores that it left; returns the slate."""
    rows, values, cold, tables = call.rows, call.values, call.cold, call.tables
    scores, none = np.empty_like(call.scores), np.zeros(0, np.intp)
    new, tail, shown = np.empty(len(rows), np.int64), np.empty(len(rows), np.int32), np.empty(len(rows), np.uint32)

    rest: tuple[Any, ...] = call.context, call.skip, call.inner, call.outer
    time_part("scores", (score_network, values, *rest, scores), (score_network, values[:0], *rest, scores[:0]))

    scores = call.scores
    rest = call.closeness, tables, call.rising, call.seed, call.trials, int(call.reserved.sum())
    of_new = time_part(
        "new items", (_new_items, rows, values, cold, *rest, new), (_new_items, rows[:0], values, cold[:0], *rest, new)
    )

    of_tail = 0
    rest = call.masks, call.personal, call.in_first_ranks, tail, shown
    if call.explores:
        of_tail = time_part("less known", (_less_known, rows, *rest), (_less_known, rows[:0], *rest))

    rest = call.reserved, tail[:of_tail], shown[:of_tail], call.tail_place, call.groups, call.limits, call.hard
    codes = tables.codes, tables.steps, call.diversity
    rest = *rest, call.order, call.kept_for
    found: int = time_part(
        "places",
        (compose, scores, rows, *codes, call.pins, new[:of_new], *rest),
        (compose, scores[:0], rows, *codes, call.pins[:0], none, *rest),
    )
    order: NDArray[np.intp] = call.order[:found]
    return order


def ranking_figures(
    shop: MadeUpShop, *, batch: int = 64, on_progress: Callable[[int, int], None] = lambda _done, _total: None
) -> dict[str, Any]:
    """Microseconds per event, in all and by stage, over the shop's records.

    Of eight batches two are timed by stage, then three as a whole, all in one thread, whose processor's time it is. Of
    the others it is the time that passes with a second thread, which takes a part where a core is free. Some of a kind
    follow one another, as in a process: timing by stage leaves other things in the processor's caches. Before,
    :func:`rank_everybody` and a tenth of the records: what is made once per item or user is there.

    Args:
        shop: with some thousand records; its states move on.
        batch: events per batch.
        on_progress: told how many records are done, and of how many.

    Returns:
        ``us_per_event`` by stage (exclusive), of ``candidates`` and ``order`` also by part (``us_of_candidates``,
        ``us_of_order``, per event too), ``us_per_event_in_all``, ``p50`` and ``p99`` of batches per event,
        ``us_elapsed_with_two_threads``,
        ``slates_per_event``.
    """
    recommender = Recommender(shop.settings, shop.serving)
    recommender.threads = 1
    stage = UserStage(shop.settings, shop.serving, recommender)
    watch = _Stopwatch()
    found, ordered = _Calls(prepare_all, _candidate_calls), _Calls(order_all, _order_calls)
    batches = [shop.records[start : start + batch] for start in range(0, len(shop.records) - batch + 1, batch)]
    if len(batches) < FEWEST_BATCHES:
        fewest = FEWEST_BATCHES * batch
        raise ValueError(
            f"{len(shop.records)} records are too few to measure batches of {batch}: make at least {fewest}"
        )
    warm = max(_WARM, len(batches) // 10)
    rank_everybody(shop, stage, batch)
    settle()
    whole: list[float] = []
    elapsed: list[float] = []
    staged = slates = 0
    for number, records in enumerate(batches):
        first = number * batch
        if number < warm:
            _process(shop, stage, records, first, _Stopwatch())
        elif (number - warm) % _CYCLE > 4:
            recommender.threads = 2
            began = time.perf_counter()
            _process(shop, stage, records, first, None)
            elapsed.append((time.perf_counter() - began) / len(records))
            recommender.threads = 1
        elif (number - warm) % _CYCLE > 1:
            began = time.thread_time()
            result = _process(shop, stage, records, first, None)
            whole.append((time.thread_time() - began) / len(records))
            slates += len(result.slates)
        else:
            with _watched(recommender, stage, watch, {"prepare_all": found, "order_all": ordered}):
                watch.timed("other", _process)(shop, stage, records, first, watch)
            staged += len(records)
        on_progress((number + 1) * batch, len(batches) * batch)
    names = [source.name for source in recommender.sources]

    def per_event(seconds: dict[str, float]) -> dict[str, float]:
        """Microseconds, the most first; what takes less than handing over the arguments varies may come out below 0."""
        ordered = sorted(seconds.items(), key=lambda pair: -pair[1])
        return {name: round(max(1e6 * took / staged, 0.0), 1) for name, took in ordered}

    return {
        "benchmark": "ranking",
        "items": len(shop.serving.index),
        "users": len(shop.states),
        "batch": batch,
        "events": batch * len(whole),
        "slates_per_event": round(slates / (batch * len(whole)), 3),
        "us_per_event_in_all": round(1e6 * float(np.mean(whole)), 1),
        "p50_us": round(1e6 * float(np.percentile(whole, 50)), 1),
        "p99_us": round(1e6 * float(np.percentile(whole, 99)), 1),
        "us_elapsed_with_two_threads": round(1e6 * float(np.mean(elapsed)), 1),
        "us_per_event": per_event(watch.seconds),
        "us_of_candidates": per_event(found.seconds(lambda timed, call: _candidate_parts(timed, call, names))),
        "us_of_order": per_event(ordered.seconds(_order_parts)),
    }


def rank_everybody(shop: MadeUpShop, stage: UserStage, batch: int) -> None:
    """What is made once per user or item is there afterwards, as in a process that has run for a while: the last
    ranking of every user, and the kept neighbours of what users took and will take. (A restart finds these in the
    snapshot; ``bench index`` says what making one takes.)"""
    users = list(shop.states)
    taken = {entry.item_id for state in shop.states.values() for entry in state.history}
    taken.update(sourced.event.item_id or "" for sourced in decoded(shop, shop.records, 0))
    rows = np.unique(np.array(shop.serving.catalogue.rows_of(taken), np.int32))
    rows = rows[rows >= 0]
    for start in range(0, len(rows), _LISTS_AT_ONCE):
        part = np.full(_LISTS_AT_ONCE, -1, np.int32)
        part[: len(rows) - start] = rows[start : start + _LISTS_AT_ONCE]
        shop.serving.index.neighbour_lists(part.reshape(-1, 4))
    for start in range(0, len(users), batch):
        slates = stage.rerank({user: shop.states[user] for user in users[start : start + batch]}, now=shop.now)
        stage.shown([(slate, f"first-{slate.user_id}") for slate in slates])


@contextmanager
def _watched(recommender: Recommender, stage: UserStage, watch: _Stopwatch, calls: dict[str, _Calls]) -> Iterator[None]:
    """The stages timed while inside, and ``calls`` noted, by function."""
    serving = stage._serving
    with ExitStack() as stack:
        for name, of_stage in _FUNCTIONS.items():
            timed = watch.timed(of_stage, getattr(ranking, name))
            stack.enter_context(patch.object(ranking, name, calls[name].noted(timed) if name in calls else timed))
        for held, name, of_stage in (
            (recommender, "examples", "examples"),
            (recommender, "slate_items", "reasons"),
            (recommender, "_tables", "tables"),
            (serving.index, "neighbour_lists", "neighbours"),
            (serving.index, "search", "search"),
        ):
            stack.enter_context(patch.object(held, name, watch.timed(of_stage, getattr(held, name))))
        stack.enter_context(patch.object(stage, "_fold", watch.timed("fold", stage._fold)))
        stack.enter_context(patch.object(ranking, "in_steps", watch.timed("examples", in_steps)))
        yield


def _process(
    shop: MadeUpShop, stage: UserStage, records: Sequence[tuple[bytes, bytes]], first: int, watch: _Stopwatch | None
) -> StageResult:
    """One batch from bytes to bytes, as the interactions agent does it."""
    if watch is None:
        return encoded(shop, staged(shop, stage, decoded(shop, records, first)))
    result = staged(shop, stage, watch.timed("decode", decoded)(shop, records, first))
    for name, write in (("slate", _slates), ("state", _states), ("notes", _notes)):
        watch.timed(f"encode {name}", write)(shop, result)
    return result


def decoded(shop: MadeUpShop, records: Sequence[tuple[bytes, bytes]], first: int) -> list[SourcedEvent]:
    """The records as events, checked; ``first``: how many came before."""
    limits = {"event_types": shop.settings.event_types, "now": shop.now, "oldest": 0.0, "future_tolerance_s": 300.0}
    return [
        SourcedEvent(decode_interaction(key, value, **limits), 0, offset, shop.now)  # type: ignore[arg-type]
        for offset, (key, value) in enumerate(records, start=1_000_000_000 + first)
    ]


def staged(shop: MadeUpShop, stage: UserStage, events: Sequence[SourcedEvent]) -> StageResult:
    """What the events amount to; the shop's states move on."""
    result = in_parts(stage, events, shop.states, now=shop.now, size=shop.settings.delivery.batch)
    shop.states.update(result.states)
    return result


def encoded(shop: MadeUpShop, result: StageResult) -> StageResult:
    """The result, after everything that leaves the process was made bytes."""
    for write in (_slates, _states, _notes):
        write(shop, result)
    return result


def _slates(shop: MadeUpShop, result: StageResult) -> list[bytes]:
    at = datetime.fromtimestamp(shop.now, UTC)
    return [encode(_slate(shop, slate, at)) for slate in result.slates]


def _slate(shop: MadeUpShop, slate: NewSlate, at: datetime) -> Slate:
    sourced = slate.trigger
    if not isinstance(sourced, SourcedEvent):
        raise TypeError("every slate here is caused by an event")
    return Slate(
        slate_id=sourced.slate_id,
        user_id=slate.user_id,
        generated_at=at,
        items=slate.items,
        trigger=Trigger(
            topic="interactions",
            partition=sourced.partition,
            offset=sourced.offset,
            event_id=sourced.event.event_id,
            occurred_at=sourced.event.occurred_at,
        ),
        versions=slate.versions or shop.serving.versions,
    )


def _states(_shop: MadeUpShop, result: StageResult) -> list[bytes]:
    return [encode_state(state) for state in result.states.values()]


def _notes(shop: MadeUpShop, result: StageResult) -> list[bytes]:
    names = list(shop.serving.ranker.names)
    made = [
        encode(Transitions(source_topic="t", source_partition=0, rows=rows)) for rows in result.transitions.values()
    ]
    return made + [
        encode(TrainingExamples(source_topic="t", source_partition=0, feature_names=names, examples=examples))
        for examples in result.examples.values()
    ]
