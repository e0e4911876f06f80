"""Everything that is compiled, compiled before the first event: a made-up shop goes through the path of an event.

The first use of a compiled function on a machine takes seconds, and the first in a process, from the disk, some
milliseconds (``stream_app.compiled``). In the middle of an event that would stop the process's heartbeats, and its
partitions would be taken away. So processes do it before they join a group, and ``scripts/setup.sh`` does it once for
the machine.
"""

from __future__ import annotations

import time
from datetime import UTC, datetime, timedelta

import numpy as np

from schemas.arrays import pack_float32
from schemas.messages import Interaction, Item, ItemVector, Rule, RuleWhere, TrainingExamples, Transitions
from stream_app.factors.basis import fit_basis
from stream_app.factors.learner import FactorLearner
from stream_app.items.statistics import ItemStatistics
from stream_app.ranking.recommender import Recommender
from stream_app.ranking.softmax import SoftmaxRanker
from stream_app.serving import ServingState
from stream_app.settings import Settings
from stream_app.users.stage import SourcedEvent, UserStage
from stream_app.users.state import UserState

__all__ = ["warm_up"]

_ITEMS = 400
"""More than any source proposes, so that every choice among more than enough is made."""
_DIMENSIONS = 8
_EVENTS = 24
_USERS = 4
_SPACE = "warm-up"
_START = datetime(2026, 1, 1, tzinfo=UTC)


def warm_up(settings: Settings) -> float:
    """Use every compiled function of the event path as events do; returns the seconds it took.

    Args:
        settings: of the process; bounds of sources and slates decide what is used.
    """
    began = time.perf_counter()
    serving, learner = _shop(settings)
    recommender = Recommender(settings, serving)
    stage = UserStage(settings, serving, recommender)
    statistics = ItemStatistics(0, 1, settings.items)
    ranker = SoftmaxRanker(recommender.feature_names, settings.ranker)
    states: dict[str, UserState] = {}
    # Of somebody nothing is known of, in a shop where nothing has happened.
    visit = Interaction(event_id="v", user_id="new", type="visit", occurred_at=_START)
    stage.process([SourcedEvent(visit, 0, 0)], {"new": UserState("new")}, now=_START.timestamp())
    for offset in range(_EVENTS):
        event = _event(offset)
        known = {event.user_id: states.get(event.user_id) or UserState(event.user_id)}
        result = stage.process([SourcedEvent(event, 0, offset)], known, now=event.occurred_at.timestamp())
        states.update(result.states)
        transitions = Transitions(source_topic="t", source_partition=0, rows=result.transitions[0])
        statistics.apply(transitions, offset=offset)
        examples = result.examples[0]
        names = list(recommender.feature_names)
        ranker.learn(TrainingExamples(source_topic="t", source_partition=0, feature_names=names, examples=examples))
        learner.learn(examples, partition=0, offset=offset)
        if offset < _EVENTS // 2:
            serving.apply_statistics(statistics)
        else:
            for item_id, signals in statistics.take(100):
                serving.apply_signals(item_id, signals)
        statistics.taken_are_durable()
        # Both models rank, whichever would.
        message = ranker.weights_message()
        serving.ranker = SoftmaxRanker(recommender.feature_names, settings.ranker)
        serving.apply_weights(message)
    for signals in statistics.stated(statistics.item_ids):
        statistics.restore(signals)
        statistics.forget(signals.item_id)
    _search(serving)
    serving.signals.forget(np.array([1], np.int32))
    serving.signals.referenced(_ITEMS)
    return time.perf_counter() - began


def _search(serving: ServingState) -> None:
    """What is searched for in a large catalogue: the neighbours of items, before and after one of them moved."""
    index, rows = serving.index, np.arange(4, dtype=np.int32)
    index.neighbours(rows)
    index.upsert(rows[:1], index.vectors(rows[1:2]))
    index.neighbours(rows)


def _shop(settings: Settings) -> tuple[ServingState, FactorLearner]:
    """A catalogue with vectors, factors and rules of every kind."""
    serving = ServingState(settings, space=_SPACE, dimensions=_DIMENSIONS)
    vectors = np.random.default_rng(0).normal(size=(_ITEMS, _DIMENSIONS)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    factors = settings.factors
    basis = fit_basis(vectors, space=_SPACE, factors=factors.dimensions, length=factors.start_length)
    serving.factors.basis = basis
    learner = FactorLearner(factors, basis)
    for number, vector in enumerate(vectors):
        item_id = f"i{number}"
        serving.apply_item(item_id, Item(item_id=item_id, title="x", categories=["c"]))
        packed = pack_float32(vector)
        serving.apply_vector(
            item_id,
            ItemVector(item_id=item_id, space=_SPACE, text_hash="", dimensions=_DIMENSIONS, vector=packed),
        )
        learner.put(item_id, vector)
    one = RuleWhere(item_ids=["i1"])
    for rule in (
        Rule(rule_id="pin", kind="pin", where=one, rank=1),
        Rule(rule_id="cap", kind="cap", per="category", at_most=3, first=10),
        Rule(rule_id="boost", kind="boost", where=one, boost=1.0),
    ):
        serving.apply_rule(rule.rule_id, rule, now=_START.timestamp())
    return serving, learner


def _event(number: int) -> Interaction:
    return Interaction(
        event_id=f"e{number}",
        user_id=f"u{number % _USERS}",
        type="click",
        occurred_at=_START + timedelta(hours=number // 2),
        item_id=f"i{number * 7 % 40}",
    )
