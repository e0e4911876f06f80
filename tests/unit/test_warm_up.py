"""After the warm-up nothing is compiled or read from the disk any more, whatever events bring."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from pathlib import Path

import pytest

import stream_app.app
from stream_app.app import _warm_up
from stream_app.settings import Settings, load_settings
from stream_app.warm_up import warm_up
from tests.waiting import eventually

_A_REAL_SHOP = """
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np

from schemas.arrays import pack_float32
from schemas.decode import (
    decode_interaction, decode_item_signals, decode_ranker_weights, decode_training_examples, decode_transitions, encode
)
from schemas.messages import Interaction, Item, ItemVector, TrainingExamples, Transitions
from stream_app import compiled
from stream_app.factors.basis import fit_basis
from stream_app.factors.learner import FactorLearner
from stream_app.items.statistics import ItemStatistics
from stream_app.ranking.recommender import Recommender
from stream_app.ranking.softmax import SoftmaxRanker
from stream_app.serving import ServingState
from stream_app.settings import load_settings
from stream_app.users.stage import SourcedEvent, SourcedProfile, UserStage
from stream_app.users.state import Profile, UserState
from stream_app.warm_up import warm_up

settings = load_settings()
warm_up(settings)
# The shop is large to these settings; before, it was small.
settings = settings.model_copy(update={"retrieval": settings.retrieval.model_copy(update={"whole_below": 50})})


def known():
    return {(f.py_func.__module__, f.py_func.__name__, str(s)) for f in compiled._functions for s in f.signatures}


before, count = known(), compiled.signatures()
assert count > 20
start, rng = datetime(2026, 3, 1, tzinfo=UTC), np.random.default_rng(1)
serving = ServingState(settings, space="s", dimensions=48)
vectors = rng.normal(size=(120, 48)).astype(np.float32)
vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
basis = fit_basis(vectors, space="s", factors=settings.factors.dimensions, length=settings.factors.start_length)
learner = FactorLearner(settings.factors, basis)
serving.factors.basis = basis
for number, vector in enumerate(vectors):
    name = f"i{number}"
    serving.apply_item(name, Item(item_id=name, title=name, brand="b", categories=["c", "d"], owner_id="u1"))
    vector = pack_float32(vector)
    serving.apply_vector(name, ItemVector(item_id=name, space="s", text_hash="", dimensions=48, vector=vector))
    learner.put(name, vectors[number])
serving.apply_space(serving.fit_space()())
serving.advance_space(wait=True)
statistics = ItemStatistics(0, 1, settings.items)
recommender = Recommender(settings, serving)
ranker = SoftmaxRanker(recommender.feature_names, settings.ranker)
stage, states = UserStage(settings, serving, recommender), {}
texts = {"lamp": vectors[5]}
kinds = ["click", "purchase", "search", "impression", "visit", "rating", "hide", "cart"]
for offset in range(240):
    kind, user = kinds[offset * 5 % 8], f"u{offset % 9}"
    fields = {}
    if kind == "search":
        fields["text"] = "lamp"
    elif kind == "impression":
        fields["items"] = [f"i{number}" for number in rng.integers(130, size=9)]
    elif kind != "visit":
        fields |= {"item_id": f"i{int(rng.integers(130))}", "value": 1.0 + offset % 5}
    at = start + timedelta(minutes=offset)
    event = Interaction(event_id=str(offset), user_id=user, type=kind, occurred_at=at, **fields)
    event = decode_interaction(
        user.encode(), encode(event), event_types=settings.event_types, now=at.timestamp(), oldest=0.0,
        future_tolerance_s=1.0,
    )
    known_state = {user: states.get(user) or UserState(user)}
    result = stage.process([SourcedEvent(event, 0, offset)], known_state, now=at.timestamp(), text_vectors=texts)
    states.update(result.states)
    if result.transitions[0]:
        message = Transitions(source_topic="t", source_partition=0, rows=result.transitions[0])
        statistics.apply(decode_transitions(encode(message)), offset=offset)
    if result.examples[0]:
        names = list(recommender.feature_names)
        made = result.examples[0]
        message = TrainingExamples(source_topic="t", source_partition=0, feature_names=names, examples=made)
        message = decode_training_examples(encode(message))
        ranker.learn(message)
        learner.learn(message.examples, partition=0, offset=offset)
    if offset % 60 == 59:
        moved = vectors[offset % 100] + vectors[offset % 7]
        moved /= np.linalg.norm(moved)
        vector = ItemVector(item_id="i3", space="s", text_hash="", dimensions=48, vector=pack_float32(moved))
        serving.apply_vector("i3", vector)
    if offset % 20 == 19:
        for item_id, signals in statistics.take(100):
            serving.apply_signals(item_id, decode_item_signals(item_id.encode(), encode(signals))[1])
        statistics.taken_are_durable()
        weights = ranker.weights_message()
        serving.apply_weights(decode_ranker_weights(weights.variant.encode(), encode(weights))[1])
        for item_id, factors in learner.take(50):
            serving.apply_factors(item_id, factors)
profile = SourcedProfile("u2", Profile(texts=("lamp",), liked=("i7",), blocked=(8,), language="zh"), 0, 1)
stage.process_profiles([profile], {"u2": states["u2"]}, now=at.timestamp(), text_vectors=texts)
stage.rerank(states, now=at.timestamp(), text_vectors=texts)
folder = Path(sys.argv[1])
serving.save(folder)
loaded = ServingState.load(folder, settings, space="s", dimensions=48)
UserStage(settings, loaded, Recommender(settings, loaded)).rerank(states, now=at.timestamp(), text_vectors=texts)
owner = ItemStatistics(0, 1, settings.items)
for signals in statistics.stated(statistics.item_ids):
    owner.restore(signals)
loaded.apply_item("i3", None)
print(sorted(known() - before), compiled.signatures() - count)
"""


def test_after_it_no_event_waits_for_a_compiler(tmp_path: Path) -> None:
    """In a process of its own: in this one other tests may have compiled what is missing."""
    command = [sys.executable, "-c", _A_REAL_SHOP, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.stdout == "[] 0\n", done.stderr


@pytest.mark.parametrize(
    "overrides",
    [
        {"slate": {"size": 1, "cold_places": 0, "cold_from_rank": 9}},
        {"ranker": {"hidden": 0, "remembered": 0, "replay": 0, "replay_memory": 0}},
        {"users": {"history": 1, "item_influence": 0.01, "consumed": 0}},
        {"retrieval": {"slow": 0, "fast": 0, "cold": 0, "factors": 0, "transitions": 0, "trending": 0}},
        {"event_types": {"click": {"weight": 0, "count": 0}}},
        {"items": {"half_lives_days": [3.0], "neighbours": 1, "transition_history": 1}, "factors": {"dimensions": 4}},
    ],
    ids=lambda overrides: ",".join(overrides),
)
def test_it_works_with_settings_at_their_ends(overrides: dict[str, object]) -> None:
    assert warm_up(load_settings(**overrides)) > 0.0


async def test_a_failure_costs_only_time(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    def fails(_: Settings) -> float:
        raise ValueError("no such thing")

    monkeypatch.setattr(stream_app.app, "warm_up", fails)
    await _warm_up(load_settings())


async def test_a_process_told_to_stop_does_not_wait_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    import threading

    begun, go_on = threading.Event(), threading.Event()

    def waits(_: Settings) -> float:
        begun.set()
        go_on.wait(30)
        return 1.0

    monkeypatch.setattr(stream_app.app, "warm_up", waits)
    warming = asyncio.create_task(_warm_up(load_settings()))
    try:
        await eventually(begun.is_set, what="it began")
        warming.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asyncio.wait_for(warming, 5)
    finally:
        go_on.set()
