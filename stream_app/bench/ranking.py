"""What an event costs in an interactions process, by stage: everything but the broker and Redis.

Batches go through :class:`stream_app.users.stage.UserStage` as live. The stages are timed from outside: the functions
and methods that make them up are replaced by ones that note how long they took, what they called apart left out. That
costs a microsecond per call, so the sum is measured without it, in alternation. Time is that of the processor: what
other programs take is left out.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime
from typing import Any
from unittest.mock import patch

import numpy as np
from numpy.typing import NDArray

from schemas.decode import decode_interaction, encode
from schemas.messages import Slate, TrainingExamples, Transitions, Trigger
from stream_app.bench.shop import MadeUpShop
from stream_app.ranking import recommender as ranking
from stream_app.ranking.features import in_steps
from stream_app.ranking.recommender import Recommender
from stream_app.retrieval.source import Context, Source
from stream_app.users import stage as user_stage
from stream_app.users.stage import NewSlate, SourcedEvent, StageResult, UserStage
from stream_app.users.state import encode_state

__all__ = ["STAGES", "ranking_figures"]

STAGES = {
    "decode": "JSON to an event, checked",
    "fold": "the event into the user's state",
    "examples": "what the ranker learns from a choice",
    "interests": "vectors and factors of the user",
    "links": "what was taken together with the last items",
    "pool": "rows that are looked at",
    "nearest": "the nearest of them, and the best by factors",
    "search": "of the whole index: lists of neighbours, and what is near to words",
    "cold rows": "which new items are looked at",
    "merge": "distinct candidates of all sources",
    "features": "features of all candidates",
    "score": "scores",
    "new items": "the order in which new items may take a place",
    "choose": "diversity, rules, reserved places",
    "reasons": "reasons and sources of the slate",
    "encode slate": "slate to JSON",
    "encode state": "state to bytes",
    "encode notes": "transitions and examples to JSON",
    "other": "everything between, and the clock: a microsecond per call of a stage",
}
"""Stages, and what they do; besides there is one per candidate source."""

_FUNCTIONS = {
    "derive_interests": "interests",
    "link_scores": "links",
    "gather": "pool",
    "best_of_pool": "nearest",
    "_merge": "merge",
    "candidate_features": "features",
    "thompson_order": "new items",
    "choose": "choose",
}
"""Functions as the module ``stream_app.ranking.recommender`` calls them."""


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


class _TimedSource:
    def __init__(self, source: Source, watch: _Stopwatch) -> None:
        self.name = source.name
        self.propose: Callable[[Context], NDArray[np.int32]] = watch.timed(f"source {source.name}", source.propose)


def ranking_figures(
    shop: MadeUpShop, *, batch: int = 64, on_progress: Callable[[int, int], None] = lambda _done, _total: None
) -> dict[str, Any]:
    """Microseconds per event, in all and by stage, over the shop's records.

    Every second batch is timed as a whole, the others by stage. Before, every user is ranked once and a tenth of the
    records goes through: what is made once per item or user is there, as in a process that has run for a while.

    Args:
        shop: with some thousand records; its states move on.
        batch: events per batch.
        on_progress: told how many records are done, and of how many.

    Returns:
        ``us_per_event`` by stage (exclusive), ``us_per_event_in_all``, ``p50`` and ``p99`` of batches per event,
        ``slates_per_event``.
    """
    recommender = Recommender(shop.settings, shop.serving)
    stage = UserStage(shop.settings, shop.serving, recommender)
    watch = _Stopwatch()
    batches = [shop.records[start : start + batch] for start in range(0, len(shop.records) - batch + 1, batch)]
    if len(batches) < 4:
        raise ValueError(
            f"{len(shop.records)} records are too few to measure batches of {batch}: make at least {4 * batch}"
        )
    warm = max(2, len(batches) // 10)
    _rank_everybody(shop, stage, batch)
    whole: list[float] = []
    staged = slates = 0
    for number, records in enumerate(batches):
        first = number * batch
        if number < warm:
            _process(shop, stage, records, first, _Stopwatch())
        elif number % 2:
            began = time.thread_time()
            result = _process(shop, stage, records, first, None)
            whole.append((time.thread_time() - began) / len(records))
            slates += len(result.slates)
        else:
            with _watched(recommender, stage, watch):
                watch.timed("other", _process)(shop, stage, records, first, watch)
            staged += len(records)
        on_progress((number + 1) * batch, len(batches) * batch)
    named = {name: 1e6 * seconds / staged for name, seconds in watch.seconds.items()}
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
        "us_per_event": {name: round(took, 1) for name, took in sorted(named.items(), key=lambda pair: -pair[1])},
    }


def _rank_everybody(shop: MadeUpShop, stage: UserStage, batch: int) -> None:
    users = list(shop.states)
    for start in range(0, len(users), batch):
        slates = stage.rerank({user: shop.states[user] for user in users[start : start + batch]}, now=shop.now)
        stage.shown([(slate, f"first-{slate.user_id}") for slate in slates])


@contextmanager
def _watched(recommender: Recommender, stage: UserStage, watch: _Stopwatch) -> Iterator[None]:
    """The stages timed while inside."""
    serving = stage._serving
    with ExitStack() as stack:
        for name, of_stage in _FUNCTIONS.items():
            stack.enter_context(patch.object(ranking, name, watch.timed(of_stage, getattr(ranking, name))))
        for held, name, of_stage in (
            (recommender, "examples", "examples"),
            (recommender, "slate_items", "reasons"),
            (serving.ranker, "score", "score"),
            (serving.index, "neighbours", "pool"),
            (serving.index, "search", "search"),
            (serving.cold, "rows", "cold rows"),
        ):
            stack.enter_context(patch.object(held, name, watch.timed(of_stage, getattr(held, name))))
        stack.enter_context(patch.object(stage, "_fold", watch.timed("fold", stage._fold)))
        stack.enter_context(
            patch.object(recommender, "sources", tuple(_TimedSource(one, watch) for one in recommender.sources))
        )
        stack.enter_context(patch.object(user_stage, "in_steps", watch.timed("examples", in_steps)))
        yield


def _process(
    shop: MadeUpShop, stage: UserStage, records: Sequence[tuple[bytes, bytes]], first: int, watch: _Stopwatch | None
) -> StageResult:
    """One batch from bytes to bytes, as the interactions agent does it."""
    if watch is None:
        return _encoded(shop, _staged(shop, stage, _decoded(shop, records, first)))
    result = _staged(shop, stage, watch.timed("decode", _decoded)(shop, records, first))
    for name, write in (("slate", _slates), ("state", _states), ("notes", _notes)):
        watch.timed(f"encode {name}", write)(shop, result)
    return result


def _decoded(shop: MadeUpShop, records: Sequence[tuple[bytes, bytes]], first: int) -> list[SourcedEvent]:
    limits = {"event_types": shop.settings.event_types, "now": shop.now, "oldest": 0.0, "future_tolerance_s": 300.0}
    return [
        SourcedEvent(decode_interaction(key, value, **limits), 0, offset, shop.now)  # type: ignore[arg-type]
        for offset, (key, value) in enumerate(records, start=1_000_000_000 + first)
    ]


def _staged(shop: MadeUpShop, stage: UserStage, events: Sequence[SourcedEvent]) -> StageResult:
    result = stage.process(events, shop.states, now=shop.now)
    shop.states.update(result.states)
    return result


def _encoded(shop: MadeUpShop, result: StageResult) -> StageResult:
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
