"""The limit of one process: the domain functions in a plain loop, with nothing to wait for."""

from __future__ import annotations

import time
from typing import Any

from schemas.messages import TrainingExamples
from stream_app.bench.child import Progress
from stream_app.bench.ranking import decoded, encoded, rank_everybody, staged
from stream_app.bench.shop import MadeUpShop
from stream_app.memory import settle
from stream_app.ranking.recommender import Recommender
from stream_app.ranking.softmax import SoftmaxRanker
from stream_app.users.stage import StageResult, UserStage

__all__ = ["in_process_floor"]


def in_process_floor(
    shop: MadeUpShop, *, warm: int, on_progress: Progress = lambda _what, _done, _total: None
) -> dict[str, Any]:
    """Events per second from JSON to JSON, in batches as large as those of a saturated process may be.

    Args:
        shop: with more than ``warm`` records; its states move on.
        warm: records that go through before, and teach the ranker. Before those, every user is ranked once.
        on_progress: told what is being done, how much of it is done, and of how much.

    Returns:
        ``floor_events_per_s``, wall clock, and ``us_per_event`` by step.

    Raises:
        ValueError: when no record is left to be measured.
    """
    total = len(shop.records) - warm
    if total < 1:
        raise ValueError(f"{len(shop.records)} records are too few: {warm} go through before anything is measured")
    batch = shop.settings.delivery.catch_up
    recommender = Recommender(shop.settings, shop.serving)
    stage = UserStage(shop.settings, shop.serving, recommender)
    ranker = SoftmaxRanker(recommender.feature_names, shop.settings.ranker)
    rank_everybody(shop, stage, batch)
    for start in range(0, warm, batch):
        end = min(start + batch, warm)
        _learn(ranker, staged(shop, stage, decoded(shop, shop.records[start:end], start)))
        on_progress("warm events in a plain loop", end, warm)
    if warm:
        shop.serving.apply_weights(ranker.weights_message())
    settle()
    steps = dict.fromkeys(("decode", "compute", "encode"), 0.0)
    clock, slates = time.perf_counter, 0
    began = clock()
    for start in range(warm, len(shop.records), batch):
        t0 = clock()
        events = decoded(shop, shop.records[start : start + batch], start)
        t1 = clock()
        result = staged(shop, stage, events)
        t2 = clock()
        encoded(shop, result)
        t3 = clock()
        for step, took in zip(steps, (t1 - t0, t2 - t1, t3 - t2), strict=True):
            steps[step] += took
        slates += len(result.slates)
        on_progress("events in a plain loop", start - warm + len(events), total)
    seconds = clock() - began
    return {
        "benchmark": "floor",
        "loop": "in process",
        "items": len(shop.serving.index),
        "users": len(shop.states),
        "warm": warm,
        "batch": batch,
        "events": total,
        "floor_events_per_s": round(total / seconds, 1),
        "slates": slates,
        "us_per_event": {step: round(1e6 * took / total, 1) for step, took in steps.items()},
    }


def _learn(ranker: SoftmaxRanker, result: StageResult) -> None:
    """What the ranker role does with a batch's examples."""
    for examples in result.examples.values():
        ranker.learn(
            TrainingExamples(source_topic="t", source_partition=0, feature_names=list(ranker.names), examples=examples)
        )
