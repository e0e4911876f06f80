"""Features, the softmax that learns, slates, reasons, and the recommender as a whole."""

from __future__ import annotations

import math
from datetime import UTC, datetime
from typing import Any, NamedTuple

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from schemas.arrays import pack_float32, pack_float64, unpack_float64
from schemas.messages import (
    Item,
    ItemSignals,
    ItemVector,
    RankerWeights,
    Rule,
    RuleWhere,
    TrainingExample,
    TrainingExamples,
)
from stream_app.codes import Codes
from stream_app.items.catalogue import label
from stream_app.ranking import recommender as recommender_module
from stream_app.ranking.features import (
    CONTEXT,
    FEATURE_LIMIT,
    _log1p_all,
    context_values,
    feature_names,
    in_steps,
    in_units,
    raw_features,
    scale_features,
    start_weights,
)
from stream_app.ranking.network import contributions, linear_step, network_step, score_network
from stream_app.ranking.reasons import KINDS, evidence_signs, kind_columns, medians, phrase, strongest_kind
from stream_app.ranking.recommender import Choice, Ranking, RankRequest, Recommender, SeenRanking
from stream_app.ranking.slate import NEW, TAIL
from stream_app.ranking.softmax import SoftmaxRanker
from stream_app.serving import ServingState
from stream_app.settings import (
    IndexSettings,
    ItemSettings,
    RankerSettings,
    RetrievalSettings,
    Settings,
    SlateSettings,
)
from stream_app.users.state import HistoryEntry, UserState, id_hash
from tests.slates import choose

DIMENSIONS = 16
SPACE = "test"
DAY = 86_400.0
NAMES = feature_names(ItemSettings())
CONTEXT_VALUES = np.array([0.5, -0.5, 1.0], np.float32)


# Features ---------------------------------------------------------------------------------------------------------


class Features(NamedTuple):
    """What ``raw_features`` fills, scaled."""

    values: NDArray[np.float32]
    cold: NDArray[np.bool_]
    closeness: NDArray[np.float64]


def features(size: int, *, seed: int = 0, **changes: Any) -> Features:
    rng = np.random.default_rng(seed)
    fields: dict[str, Any] = {
        "cosines": rng.normal(size=(size, 10)).astype(np.float32),
        "has_vector": np.ones(size, np.bool_),
        "links": rng.random(size=(7, size)),
        "counts": rng.random(size=(size, 4)) * 20,
        "last_event_at": rng.random(size) * 90 * DAY,
        "factors": rng.normal(size=(2, size)).astype(np.float32),
        "users": np.eye(2, dtype=np.float32),
        "own": rng.random(size),
        "published_at": np.full(size, -np.inf),
        "at": 100 * DAY,
        "now": 100 * DAY,
        "cold_events": 5.0,
    }
    fields |= changes
    # What is known by row, so that the candidates have just these values.
    rows, factors = np.arange(size, dtype=np.int32), fields["factors"]
    known = np.isfinite(factors)
    cosines = fields["cosines"]
    codes = Codes(cosines.shape[1], size)
    codes.take(rows, cosines)
    empty = new_state().tables(0.0, 0)
    tables = empty._replace(
        present=fields["has_vector"],
        codes=codes.values,
        steps=codes.steps,
        counts=fields["counts"],
        rates=np.zeros(fields["counts"].shape[1]),
        arena=empty.arena._replace(stated=fields["last_event_at"], scale=np.ones(size)),
        target=np.ascontiguousarray(np.where(known, factors, 0.0).T, np.float32),
        bias=np.zeros(size, np.float32) if fields["users"].any() else np.arange(size, dtype=np.float32),
        has_factors=known.all(axis=0),
        published_at=fields["published_at"],
    )
    slot = np.full(size, -1, np.int32)
    found = Features(np.full((size, len(NAMES)), 99.0, np.float32), np.zeros(size, np.bool_), np.full(size, 99.0))
    raw_features(
        rows, tables, np.eye(cosines.shape[1], dtype=np.float32), fields["users"], rows, fields["own"], rows,
        np.ascontiguousarray(fields["links"].T ** 2), slot, fields["at"], fields["now"], fields["cold_events"], *found,
    )  # fmt: skip
    scale_features(found.values)
    assert (slot == -1).all()
    return found


def test_features_are_scaled_within_the_request() -> None:
    values = features(300, seed=3).values
    assert values.shape == (300, len(NAMES))
    assert values.dtype == np.float32
    told = [column for column, name in enumerate(NAMES) if name != "recency"]
    assert values[:, told].mean(axis=0) == pytest.approx(0.0, abs=1e-5)
    assert values[:, told].std(axis=0) == pytest.approx(1.0, abs=1e-5)


def test_features_are_what_their_names_say() -> None:
    rng = np.random.default_rng(5)
    cosines = rng.normal(size=(40, 10)).astype(np.float32)
    counts = rng.random(size=(40, 4)) * 20
    found = features(40, cosines=cosines, counts=counts)

    def column(name: str) -> NDArray[np.float32]:
        return found.values[:, NAMES.index(name)]

    def same(name: str, wanted: NDArray[Any]) -> bool:
        return np.corrcoef(column(name), wanted)[0, 1] > (0.999 if name.startswith("text_") else 0.9999)

    assert same("text_slow", cosines[:, 0])
    assert same("text_negative", cosines[:, 3])
    assert same("text_mean", cosines[:, 4])
    assert same("text_best", cosines[:, 5:].max(axis=1))
    assert same("popularity_7d", np.log1p(counts[:, 1]))
    assert same("popularity_all", np.log1p(counts[:, 3]))
    assert found.cold.tolist() == (counts[:, 3] < 5.0).tolist()
    # A code is off by half a step of its row, and these are two.
    assert found.closeness == pytest.approx(cosines[:, 0] + cosines[:, 1], abs=float(np.abs(cosines).max()) / 127)


def test_cosines_that_differ_by_the_rounding_of_codes_alone_are_the_same() -> None:
    same = np.full((30, 10), 0.3, np.float32) + np.random.default_rng(1).normal(0, 2e-4, (30, 10)).astype(np.float32)
    assert not features(30, cosines=same)[0][:, : NAMES.index("links_symmetric")].any()


def test_factors_say_nothing_of_a_user_they_do_not_know_and_of_items_without_any() -> None:
    """What would come of zeros is the items' biases."""
    columns = [NAMES.index(name) for name in ("factors", "factors_fast")]
    scores = np.random.default_rng(2).normal(size=(2, 20)).astype(np.float32)
    scores[:, [4, 9]] = np.nan
    known = features(20, factors=scores).values[:, columns]
    assert not known[[4, 9]].any()
    assert np.count_nonzero(known) == 2 * 18
    unknown = features(20, factors=scores, users=np.zeros((2, 2), np.float32)).values[:, columns]
    assert not unknown.any()


def test_what_is_unknown_of_a_candidate_is_average() -> None:
    has_vector = np.arange(20) % 2 == 0
    published = np.where(np.arange(20) < 5, np.arange(20) * DAY, -np.inf)
    scores = np.stack([np.where(np.arange(20) < 7, np.arange(20), none) for none in (np.nan, -np.inf)])
    scores = scores.astype(np.float32)
    values = features(20, has_vector=has_vector, published_at=published, factors=scores).values
    text = values[:, :6]
    assert not text[~has_vector].any()
    assert text[has_vector].mean(axis=0) == pytest.approx(0.0, abs=1e-6)
    recency = values[:, NAMES.index("recency")]
    assert not recency[5:].any()
    assert (np.diff(recency[:5]) > 0).all(), "younger is larger"
    for name in ("factors", "factors_fast"):
        assert not values[7:, NAMES.index(name)].any()
        assert values[:7, NAMES.index(name)].any()
        assert not features(20, factors=np.full((2, 20), np.nan, np.float32)).values[:, NAMES.index(name)].any()


def test_a_feature_that_is_the_same_for_all_says_nothing() -> None:
    values = features(10, links=np.full((7, 10), 0.25), counts=np.full((10, 4), 3.0)).values
    assert not values[:, 6:17].any()
    assert not features(1).values.any()
    assert features(0).values.shape == (0, len(NAMES))


def test_features_are_bounded() -> None:
    counts = np.zeros((1_000, 4))
    counts[0] = 1e12
    assert np.abs(features(1_000, counts=counts).values).max() <= 6.0


def test_the_context_stays_near_one_whatever_the_user_did() -> None:
    assert len(CONTEXT) == len(context_values(entries=0, events=0, pause_s=0.0))
    for entries, events, pause_s in ((0, 0, 0.0), (50, 10**9, 1e12), (1, 1, -5.0)):
        assert np.abs(context_values(entries=entries, events=events, pause_s=pause_s)).max() <= 2.5


# The softmax ------------------------------------------------------------------------------------------------------


def examples(
    true: NDArray[np.float64], count: int, *, seed: int, start: int = 0, partition: int = 0
) -> TrainingExamples:
    """Choices of somebody who decides by ``true`` weights."""
    rng = np.random.default_rng(seed)
    made = []
    for number in range(count):
        rows = rng.normal(size=(20, len(NAMES)))
        taken = int(np.argmax(rows @ true + rng.gumbel(size=20)))
        order = [taken, *[row for row in range(20) if row != taken]]
        made.append(
            TrainingExample(offset=start + number, at=0.0, weight=1.0, rows=20, features=pack_float32(rows[order]))
        )
    return TrainingExamples(source_topic="t", source_partition=partition, feature_names=list(NAMES), examples=made)


def ranker(**settings: Any) -> SoftmaxRanker:
    return SoftmaxRanker(NAMES, RankerSettings(**settings))


def test_it_learns_the_weights_that_choices_were_made_with() -> None:
    true = np.linspace(-1.0, 1.0, len(NAMES))
    model = ranker(learning_rate=0.2, l2=0.0)
    assert model.learn(examples(true, 2_000, seed=1)) == 2_000
    assert model.weights == pytest.approx(true, abs=0.25)
    assert np.corrcoef(model.weights, true)[0, 1] > 0.98


def _loss(scores: NDArray[np.float64]) -> float:
    return float(np.log(np.exp(scores - scores[0]).sum()))


def test_a_step_of_the_linear_model_goes_down_the_gradient_of_the_loss() -> None:
    rows = np.random.default_rng(2).normal(size=(10, len(NAMES))).astype(np.float32)
    start = start_weights(NAMES)
    weights, sums = start.copy(), np.ones(len(NAMES))
    missed = linear_step(rows, weights, start, sums, 1.0, 1e-3, 0.0, 1e9, 1e9)
    gradient = (start - weights) * np.sqrt(sums) / 1e-3
    rank = 1 + int((rows[1:] @ start > rows[0] @ start).sum())
    assert missed == pytest.approx(1 - 1 / rank)
    for column in range(len(NAMES)):
        nudge = np.zeros(len(NAMES))
        nudge[column] = 1e-5
        slope = (_loss(rows @ (start + nudge)) - _loss(rows @ (start - nudge))) / 2e-5
        assert gradient[column] == pytest.approx(slope, abs=1e-4)


def _network(rows: NDArray[Any], context: NDArray[Any], parts: list[NDArray[Any]]) -> NDArray[np.float64]:
    skip, inner, outer = parts
    inputs = np.concatenate([rows, np.repeat(context[None, :], len(rows), axis=0), np.ones((len(rows), 1))], axis=1)
    scores: NDArray[np.float64] = rows @ skip + np.maximum(inputs @ inner.T, 0.0) @ outer
    return scores


def _parts(seed: int) -> list[NDArray[Any]]:
    rng = np.random.default_rng(seed)
    width = len(NAMES) + len(CONTEXT) + 1
    return [rng.normal(size=len(NAMES)), rng.normal(size=(4, width)), rng.normal(size=4)]


def test_the_network_scores_what_the_formula_says() -> None:
    rng = np.random.default_rng(3)
    rows = rng.normal(size=(30, len(NAMES))).astype(np.float32)
    context = rng.normal(size=len(CONTEXT)).astype(np.float32)
    out = np.empty(30)
    score_network(rows, context, *_parts(4), out)
    assert out == pytest.approx(_network(rows, context, _parts(4)), rel=1e-5, abs=1e-5)


def test_a_step_of_the_network_goes_down_the_gradient_of_the_loss() -> None:
    rng = np.random.default_rng(5)
    rows = rng.normal(size=(10, len(NAMES))).astype(np.float32)
    context = rng.normal(size=len(CONTEXT)).astype(np.float32)
    before, after = _parts(6), _parts(6)
    sums = [np.ones_like(part) for part in after]
    network_step(
        rows, context, after[0], before[0], after[1], after[2], sums[0], sums[1], sums[2], 1.0, 1e-4, 0.0, 1e9, 1e9
    )
    for which, part in enumerate(before):
        gradient = (part - after[which]) * np.sqrt(sums[which]) / 1e-4
        for place in np.ndindex(part.shape):
            slopes = []
            for sign in (1, -1):
                nudged = [other.copy() for other in before]
                nudged[which][place] += sign * 1e-5
                slopes.append(sign * _loss(_network(rows, context, nudged)))
            assert gradient[place] == pytest.approx(sum(slopes) / 2e-5, abs=2e-3)


@given(st.integers(0, 60), st.integers(0, 60))
def test_learning_any_suffix_again_changes_nothing(upto: int, back: int) -> None:
    true = np.linspace(1.0, -1.0, len(NAMES))
    batch = examples(true, 60, seed=3)
    once = ranker()
    once.learn(batch)
    again = ranker()
    again.learn(_slice(batch, 0, upto))
    again.learn(_slice(batch, max(upto - back, 0), 60))
    assert np.array_equal(once.weights, again.weights)
    assert once.examples == again.examples == 60


def _slice(batch: TrainingExamples, start: int, stop: int) -> TrainingExamples:
    return TrainingExamples(
        source_topic=batch.source_topic,
        source_partition=batch.source_partition,
        feature_names=batch.feature_names,
        examples=batch.examples[start:stop],
    )


def test_partitions_are_counted_apart() -> None:
    true = np.zeros(len(NAMES))
    model = ranker()
    assert model.learn(examples(true, 5, seed=4)) == 5
    assert model.learn(examples(true, 5, seed=5, partition=1)) == 5
    assert model.learn(examples(true, 5, seed=4)) == 0
    assert model.weights_message().applied == {"0": 4, "1": 4}


def test_a_burst_of_one_choice_cannot_turn_the_weights_over() -> None:
    model = ranker(learning_rate=0.1)
    wild = np.zeros((2, len(NAMES)), np.float32)
    wild[0], wild[1] = -6.0, 6.0
    start = model.weights.copy()
    for _ in range(100):
        model.step(wild, weight=1e9)
    assert np.isfinite(model.weights).all()
    assert np.abs(model.weights - start).max() < 2.5
    for _ in range(5_000):
        model.step(wild, weight=1e9)
    network = model._network
    for part in (model.weights, network.skip, network.inner, network.outer):
        assert np.abs(part).max() <= 4.0
    model.losses = [1.0, 0.0]
    assert model.model == "network"
    other = np.random.default_rng(1).normal(size=(50, len(NAMES))).astype(np.float32)
    assert np.isfinite(model.score(other, np.zeros(len(CONTEXT), np.float32))).all()


def test_the_model_that_ranks_better_ranks() -> None:
    model = ranker(network_from=10)
    assert model.model == "linear"
    model._network.examples = 10
    model.losses = [0.5, 0.4]
    assert model.model == "network"
    assert model.label == "default.0.network"
    model.losses = [0.4, 0.5]
    assert model.model == "linear"
    model.losses = [0.4, 0.405]
    assert model.model == "both"
    plain = ranker(hidden=0)
    plain.learn(examples(np.ones(len(NAMES)), 20, seed=1))
    assert plain.model == "linear"


def test_what_is_taken_again_weighs_what_it_weighed() -> None:
    rng = np.random.default_rng(4)
    slight, weighty = rng.normal(size=(2, 10, len(NAMES))).astype(np.float32)
    moved = []
    for again in (0, 1):
        model = ranker(replay=again, replay_memory=1)
        model.step(weighty, CONTEXT_VALUES, weight=4.0)
        before = model._network.skip.copy()
        model.step(slight, CONTEXT_VALUES, weight=1e-6)
        moved.append(np.abs(model._network.skip - before).max())
    # The memory holds one: the slight example itself is taken again.
    assert max(moved) < 1e-3
    model = ranker(replay=1, replay_memory=2)
    model.step(slight, CONTEXT_VALUES, weight=1e-6)
    model.step(slight, CONTEXT_VALUES, weight=1e-6)
    assert np.abs(model._network.skip - ranker()._network.skip).max() < 1e-3
    assert model._memory_weights.tolist() == [1e-6, 1e-6]


def test_both_rank_by_the_mean_of_their_scores() -> None:
    model = ranker(network_from=10)
    for _ in range(20):
        model.step(np.random.default_rng(2).normal(size=(10, len(NAMES))).astype(np.float32), CONTEXT_VALUES)
    values = np.random.default_rng(3).normal(size=(30, len(NAMES))).astype(np.float32)
    scores = []
    for losses, name in (([0.4, 0.6], "linear"), ([0.6, 0.4], "network"), ([0.5, 0.5], "both")):
        model.losses = losses
        assert model.model == name
        scores.append(model.score(values, CONTEXT_VALUES))
    assert scores[2] == pytest.approx((scores[0] + scores[1]) / 2)
    assert not np.allclose(scores[0], scores[1])


def test_the_network_learns_what_a_linear_model_cannot() -> None:
    """The sign of a feature's weight depends on the context."""
    rng = np.random.default_rng(1)
    model = ranker(learning_rate=0.1, network_from=100)
    for _ in range(3_000):
        known = rng.choice([-1.0, 1.0])
        rows = rng.normal(size=(20, len(NAMES))).astype(np.float32)
        taken = int(np.argmax(2 * known * rows[:, 0] + 0.3 * rng.gumbel(size=20)))
        rows[[0, taken]] = rows[[taken, 0]]
        model.step(rows, np.array([known, 0.0, 0.0], np.float32))
    assert model.model == "network"
    assert model.losses[1] < model.losses[0] - 0.1


def test_learning_rate_zero_changes_nothing() -> None:
    model = ranker(learning_rate=0.0)
    before = model.weights_message()
    model.learn(examples(np.ones(len(NAMES)), 30, seed=2))
    after = model.weights_message()
    counted = {"version": after.version, "examples": after.examples, "applied": after.applied}
    assert after == msgspec.structs.replace(before, **counted)
    assert after.examples == 30


def test_the_state_travels_in_a_message() -> None:
    model = ranker(network_from=10)
    model.learn(examples(np.ones(len(NAMES)), 50, seed=6))
    model.losses[1] = model.losses[0] - 0.01
    other = ranker(network_from=10)
    assert other.restore(model.weights_message())
    assert other.weights_message() == model.weights_message()
    rows = np.random.default_rng(9).normal(size=(20, len(NAMES))).astype(np.float32)
    context = np.ones(len(CONTEXT), np.float32)
    assert other.model == model.model == "network"
    assert np.array_equal(model.score(rows, context), other.score(rows, context))
    assert not np.array_equal(model.score(rows, context), rows.astype(np.float64) @ model.weights)
    for learner in (model, other):
        learner.learn(examples(np.ones(len(NAMES)), 50, seed=7, start=50))
    assert np.array_equal(other.weights, model.weights)


def _without_network(model: SoftmaxRanker) -> RankerWeights:
    fields = {"context_names": [], "network": "", "network_accumulators": "", "network_examples": 0, "losses": []}
    return msgspec.structs.replace(model.weights_message(), **fields)


def test_after_weights_of_a_release_without_network_it_has_to_learn_before_it_ranks() -> None:
    model = ranker()
    model.learn(examples(np.linspace(-1, 1, len(NAMES)), 200, seed=6))
    for seed in range(5):
        other = ranker(network_from=100)
        assert other.restore(_without_network(model))
        assert np.array_equal(other.weights, model.weights)
        batch = examples(np.linspace(-1, 1, len(NAMES)), 99, seed=100 + seed, start=200)
        for place in range(99):
            other.learn(_slice(batch, place, place + 1))
            assert other.model == "linear"
        assert other._network.examples == 99
        # Both means are over the same examples, whatever the linear model did before.
        assert all(0.0 < loss < 1.0 for loss in other.losses)


def test_a_network_of_another_size_begins_anew() -> None:
    model = ranker()
    model.learn(examples(np.ones(len(NAMES)), 30, seed=1))
    other = ranker(hidden=8)
    other.learn(examples(np.ones(len(NAMES)), 60, seed=2))
    assert model.restore(other.weights_message())
    assert np.array_equal(model.weights, other.weights)
    assert (model.weights_message().network, model._network.examples) == (ranker().weights_message().network, 0)
    assert model.losses == [0.0, 0.0]


@pytest.mark.parametrize(
    "damage",
    [
        {"network": "%%%"},
        {"weights": [1.0]},
        {"weights": [float("nan")] * len(NAMES)},
        {"accumulators": [0.0] * len(NAMES)},
        {"losses": [0.5, float("inf")]},
    ],
)
def test_damaged_weights_change_nothing(damage: dict[str, Any]) -> None:
    model = ranker()
    model.learn(examples(np.ones(len(NAMES)), 30, seed=1))
    other = ranker()
    before = other.weights_message()
    with pytest.raises(ValueError, match=r"."):
        other.restore(msgspec.structs.replace(model.weights_message(), **damage))
    assert other.weights_message() == before


def test_a_network_with_sums_that_are_no_numbers_is_refused() -> None:
    model = ranker()
    model.learn(examples(np.ones(len(NAMES)), 30, seed=1))
    sums = np.full(len(unpack_float64(model.weights_message().network_accumulators)), np.nan)
    other = ranker()
    with pytest.raises(ValueError, match="finite"):
        other.restore(msgspec.structs.replace(model.weights_message(), network_accumulators=pack_float64(sums)))
    assert np.array_equal(other.weights, ranker().weights)


@pytest.mark.parametrize("context", [[1e300, 0.0, 0.0], [float("nan"), 0.0, 0.0], [1.0]])
def test_a_wild_context_or_feature_leaves_the_weights_finite(context: list[float]) -> None:
    model = ranker()
    (example,) = examples(np.ones(len(NAMES)), 1, seed=1).examples
    wild = np.full((2, len(NAMES)), 1e38, np.float32)
    wild[1] = -1e38
    for changes in ({"context": context}, {"features": pack_float32(wild), "rows": 2, "offset": 1}):
        batch = TrainingExamples(
            source_topic="t",
            source_partition=0,
            feature_names=list(NAMES),
            examples=[msgspec.structs.replace(example, **changes)],
        )
        assert model.learn(batch) == 1
        for part in (model.weights, model._network.skip, model._network.inner, model._network.outer):
            assert np.isfinite(part).all()


def test_older_weights_and_other_variants_are_ignored() -> None:
    model = ranker()
    early = model.weights_message()
    model.learn(examples(np.ones(len(NAMES)), 5, seed=8))
    weights = model.weights.copy()
    assert not model.restore(early)
    assert not model.restore(SoftmaxRanker(NAMES, RankerSettings(), variant="b").weights_message())
    assert np.array_equal(model.weights, weights)


def test_features_of_another_release_are_matched_by_name() -> None:
    model = SoftmaxRanker(("text_slow", "brand new"), RankerSettings())
    old = SoftmaxRanker(("gone", "text_slow"), RankerSettings())
    old.weights = np.array([9.0, 0.5])
    old.version = 1
    assert model.restore(old.weights_message())
    assert model.weights.tolist() == [0.5, 0.0]
    rows = np.array([[5.0, 1.0], [5.0, -1.0]])
    example = TrainingExample(offset=1, at=0.0, weight=1.0, rows=2, features=pack_float32(rows))
    batch = TrainingExamples(
        source_topic="t", source_partition=0, feature_names=["gone", "text_slow"], examples=[example]
    )
    model.learn(batch)
    assert model.weights[0] > 0.5
    assert model.weights[1] == 0.0


@pytest.mark.parametrize("rows", [3, 1, 7])
def test_an_example_of_another_shape_is_refused(rows: int) -> None:
    features = np.zeros((2, len(NAMES)))
    example = TrainingExample(offset=1, at=0.0, weight=1.0, rows=rows, features=pack_float32(features))
    batch = TrainingExamples(source_topic="t", source_partition=0, feature_names=list(NAMES), examples=[example])
    with pytest.raises(ValueError, match="offset 1"):
        ranker().learn(batch)


def test_start_weights_favour_what_speaks_for_an_item() -> None:
    weights = dict(zip(NAMES, start_weights(NAMES), strict=True))
    assert weights["factors"] > weights["links_symmetric"] > weights["text_slow"] > 0 > weights["text_negative"]
    assert start_weights(["something else"]).tolist() == [0.0]


# Slates -----------------------------------------------------------------------------------------------------------


def slate(scores: list[float], *, cold: list[int] | None = None, size: int = 20, **settings: Any) -> list[int]:
    """Chosen indices; unit vectors all at right angles."""
    chosen = choose(
        np.array(scores),
        np.eye(len(scores), dtype=np.float32),
        np.array(cold or [], np.intp),
        size=size,
        settings=SlateSettings(**({"diversity": 0.0, "cold_places": 0} | settings)),
    )
    assert len(set(chosen.order.tolist())) == len(chosen.order)
    return [int(index) for index in chosen.order]


def test_a_slate_is_ordered_by_score_and_ties_by_place() -> None:
    assert slate([1.0, 3.0, 2.0, 3.0]) == [1, 3, 2, 0]
    assert slate([1.0, 3.0, 2.0, 3.0], diversity=0.3) == [1, 3, 2, 0]
    assert slate([1.0, 3.0, 2.0, 3.0], size=2) == [1, 3]
    assert slate([]) == []
    assert slate([1.0], diversity=0.5) == [0]


def test_diversity_puts_a_near_copy_behind_something_else() -> None:
    vectors = np.eye(4, dtype=np.float32)
    vectors[1] = vectors[0]
    scores = np.array([3.0, 2.9, 2.0, 0.0])

    def order(diversity: float) -> list[int]:
        settings = SlateSettings(diversity=diversity, cold_places=0)
        return choose(scores, vectors, np.zeros(0, np.intp), size=4, settings=settings).order.tolist()

    assert order(0.0) == [0, 1, 2, 3]
    assert order(0.4) == [0, 2, 1, 3]


def test_new_items_have_their_places() -> None:
    scores = [float(100 - index) for index in range(100)]
    order = slate(scores, cold=[90, 95, 99], cold_places=1, cold_from_rank=8)
    assert order[7] == 90
    assert order[:7] + order[8:] == list(range(19))
    deep = slate(scores, cold=[90, 95, 99], cold_places=1, cold_from_rank=8, size=50)
    assert [deep[7], deep[27], deep[47]] == [90, 95, 99]
    two = slate(scores, cold=[90, 95, 99], cold_places=2, cold_from_rank=8)
    assert [two[7], two[17]] == [90, 95]


def test_a_new_item_that_earned_its_rank_fills_the_place() -> None:
    scores = [float(100 - index) for index in range(100)]
    assert slate(scores, cold=[2, 90], cold_places=1, cold_from_rank=8) == list(range(20))
    assert slate(scores, cold=[12], cold_places=1, cold_from_rank=8)[7] == 12
    assert slate(scores, cold=[], cold_places=1) == list(range(20))
    assert slate(scores[:5], cold=[4], cold_places=1, cold_from_rank=8) == list(range(5))


# Reasons ----------------------------------------------------------------------------------------------------------


def linear_contributions(
    names: tuple[str, ...], values: list[list[float]], middle: list[float], weights: list[float]
) -> NDArray[np.float64]:
    out = np.empty((len(values), len(KINDS)))
    none = np.zeros((0, len(names) + 1))
    contributions(
        np.array(values, np.float32), np.array(middle, np.float32), np.zeros(0, np.float32), kind_columns(names),
        evidence_signs(names), np.array(weights), none, np.zeros(0), out,
    )  # fmt: skip
    return out


def test_the_reason_is_the_largest_contribution_against_the_middle_candidate() -> None:
    names = ("text_slow", "text_fast", "links_symmetric", "popularity_1d", "popularity_30d", "text_negative", "factors")
    weights = [1.0, 1.0, 1.0, 1.0, 1.0, -1.0, 1.0]
    values = [
        [1.0, 1.0, 1.5, 0.0, 0.0, 0.0, 0.0],
        [1.0, 0.0, 1.5, 0.0, 0.0, 0.0, 0.0],
        [0.0, 0.0, 0.0, 2.0, 1.0, 0.0, 0.0],
        [0.0, 0.0, 0.0, 1.0, 2.0, 0.0, 0.0],
        [0.0, 0.0, 0.0, 0.0, 0.0, -3.0, 0.0],
        [0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 2.0],
        [-1.0, -1.0, -1.0, -1.0, -1.0, 1.0, -1.0],
    ]
    codes = strongest_kind(linear_contributions(names, values, [0.0] * 7, weights))
    assert codes == ["similar", "taken_together", "trending", "popular", "unlike", "similar_taste", "recommended"]
    shifted = strongest_kind(linear_contributions(names, values[:1], [1.0, 1.0, 0.0, 0.0, 0.0, 0.0, 0.0], weights))
    assert shifted == ["taken_together"], "what every candidate has is no reason"


def test_what_is_missing_is_no_reason_even_where_it_raises_the_score() -> None:
    names = ("popularity_all", "text_slow")
    codes = strongest_kind(linear_contributions(names, [[-1.0, 0.2]], [0.0, 0.0], [-0.5, 0.1]))
    assert codes == ["similar"], "an item nobody bought is not popular with others"
    alone = strongest_kind(linear_contributions(names[:1], [[-1.0]], [0.0], [-0.5]))
    assert alone == ["recommended"]


@given(st.integers(0, 10_000), st.booleans())
def test_the_named_kind_has_evidence_and_weighs_most(seed: int, bent: bool) -> None:
    rng = np.random.default_rng(seed)
    model = ranker(network_from=0)
    model.weights = rng.normal(size=len(NAMES))
    model._network.skip, model._network.outer = _parts(seed)[0], rng.normal(size=len(model._network.outer))
    model._network.examples = 1
    model.losses = [0.5, 0.4 if bent else 0.6]
    values = rng.normal(size=(5, len(NAMES))).astype(np.float32)
    middle = np.median(values, axis=0).astype(np.float32)
    context = rng.normal(size=len(CONTEXT)).astype(np.float32)
    kinds, signs = kind_columns(NAMES), evidence_signs(NAMES)
    found = model.contributions(values, middle, context, kinds, signs, len(KINDS))
    full = model.score(values, context)
    for item, code in enumerate(strongest_kind(found)):
        for kind in range(len(KINDS)):
            evidence = (kinds == kind) & (signs * (values[item] - middle) > 0)
            without = np.where(evidence, middle, values[item])[None, :].astype(np.float32)
            assert found[item, kind] == pytest.approx(full[item] - model.score(without, context)[0], abs=1e-6)
            if code == KINDS[kind]:
                assert evidence.any()
                assert found[item, kind] == found[item].max() > 0


@given(st.integers(1, 400), st.sampled_from([0, 1, 2, 7, 1_000, 10**7]), st.integers(0, 10_000))
def test_the_middle_candidate_is_the_upper_median_of_each_feature(rows: int, distinct: int, seed: int) -> None:
    """Of values that are spread out, or mostly the same, or at the limits."""
    rng = np.random.default_rng(seed)
    values = rng.uniform(-FEATURE_LIMIT, FEATURE_LIMIT, (rows, 5)).astype(np.float32)
    if distinct:
        values = np.rint(values / FEATURE_LIMIT * distinct) / np.float32(distinct) * np.float32(FEATURE_LIMIT)
    values[:, 4] = np.clip(5.0 * values[:, 4], -FEATURE_LIMIT, FEATURE_LIMIT)
    values[rng.random((rows, 5)) < 0.3] = 0.0
    found = np.full(5, 99.0, np.float32)
    medians(values, found)
    assert found.tolist() == np.sort(values, axis=0)[rows // 2].tolist()
    medians(values[:0], found)
    assert found.tolist() == [0.0] * 5


def test_every_feature_belongs_to_one_kind() -> None:
    assert kind_columns(NAMES).tolist() == [KINDS.index(KINDS[kind]) for kind in kind_columns(NAMES)]
    assert set(np.unique(evidence_signs(NAMES))) == {-1.0, 1.0}


def test_every_reason_has_a_sentence_in_every_language() -> None:
    for code in (*KINDS, "new_for_you", "less_known", "less_known_for_you", "recommended"):
        english = phrase(code, {"title": "A {b}"}, "en-GB").text
        chinese = phrase(code, {"title": "A {b}"}, "zh-Hans").text
        assert english
        assert chinese
        assert english != chinese
        assert ("A {b}" in english) == (code in ("similar", "taken_together", "taken_after"))
    assert phrase("similar", {}, "en").text == "Close to what you have been looking at"
    assert phrase("taken_together", {"item_id": "x"}, "tlh").text == "Recommended for you"


# The recommender --------------------------------------------------------------------------------------------------

Shop = dict[str, Any]


def fill(state: ServingState, order: list[int], *, seed: int = 0) -> None:
    """Sixty items; the first forty have sold and lead to one another. ``order`` is the order of arrival."""
    rng = np.random.default_rng(seed)
    vectors = rng.normal(size=(60, DIMENSIONS)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    counts = rng.uniform(5, 60, size=40)
    links = rng.uniform(0.1, 4, size=(40, 8))
    others = [rng.choice(40, 8, replace=False) for _ in range(40)]
    for number in order:
        name = f"i{number}"
        state.apply_item(name, Item(item_id=name, title=f"Item {number}"))
        state.apply_vector(
            name,
            ItemVector(
                item_id=name, space=SPACE, text_hash="", dimensions=DIMENSIONS, vector=pack_float32(vectors[number])
            ),
        )
        if number < 40:
            state.apply_signals(
                name,
                ItemSignals(
                    item_id=name,
                    at=number * 1_000.0,
                    counts=[float(counts[number])] * 4,
                    neighbours=[f"i{other}" for other in others[number]],
                    symmetric=pack_float64(links[number]),
                    directed=pack_float64(links[number] / 2),
                    applied={"0": number},
                ),
            )


def learn_factors(state: ServingState) -> None:
    """Factors of all sixty; those of the last thirty are the same."""
    rng = np.random.default_rng(8)
    size = state.settings.factors.dimensions
    context, target = rng.normal(size=(2, 60, size)).astype(np.float32)
    context[30:], target[30:] = context[30], target[30]
    bias = np.where(np.arange(60) < 30, 0.0, 3.0).astype(np.float32)
    rows = np.array([state.catalogue.row(f"i{number}") for number in range(60)], np.int32)
    state.factors.apply(rows, context, target, bias)


def new_state(settings: Settings | None = None) -> ServingState:
    return ServingState(settings or Settings(), space=SPACE, dimensions=DIMENSIONS)


def user(*items: int, name: str = "u", weight: float = 4.0, consumed: bool = True) -> UserState:
    entries = tuple(
        HistoryEntry(f"i{number}", "purchase", 1_000.0 * place, weight, place) for place, number in enumerate(items)
    )
    hashes = {id_hash(f"i{number}"): math.inf for number in items} if consumed else {}
    return UserState(name, entries, consumed=hashes, events=len(items))


def request(state: UserState, **changes: Any) -> RankRequest:
    return RankRequest(**({"user": state, "at": 50_000.0, "now": 50_000.0, "n": 20} | changes))


@pytest.fixture(scope="module")
def state() -> ServingState:
    state = new_state()
    fill(state, list(range(60)))
    return state


@pytest.fixture(scope="module")
def recommender(state: ServingState) -> Recommender:
    return Recommender(state.settings, state)


def example(
    recommender: Recommender, asked: RankRequest, candidates: NDArray[np.int32] | None, row: int, *, seed: int
) -> NDArray[np.float32] | None:
    """Features of one choice, among given candidates or those of retrieval."""
    none = np.zeros(0, np.int32)
    context = np.zeros(len(CONTEXT), np.float32)
    seen = None if candidates is None else SeenRanking(candidates, None, context, none, 0)
    found = recommender.examples([Choice(request=asked, row=row, seed=seed, seen=seen)])[0]
    return None if found is None else found.features


def published(recommender: Recommender, ranking: Ranking) -> list[tuple[Any, ...]]:
    return [
        (item.item_id, item.rank, item.score, item.sources, item.reason) for item in recommender.slate_items(ranking)
    ]


def test_a_slate_says_where_its_items_come_from_and_why(recommender: Recommender) -> None:
    items = recommender.slate_items(recommender.rank([request(user(1, 2, 3))])[0])
    assert len(items) == 20
    assert [item.rank for item in items] == list(range(1, 21))
    assert all(item.sources for item in items)
    assert all(item.reason.text for item in items)
    assert {"taken_together", "similar"} & {item.reason.code for item in items}
    for item in items:
        if item.reason.code == "taken_together":
            assert item.reason.params["item_id"] in {"i1", "i2", "i3"}
            assert item.reason.params["title"] in item.reason.text


def test_a_slate_does_not_depend_on_the_order_in_which_the_state_was_filled() -> None:
    slates = []
    for seed in range(3):
        # Fewer candidates by factors than there are items with the same.
        other = new_state(Settings(retrieval=RetrievalSettings(factors=12)))
        fill(other, np.random.default_rng(seed).permutation(60).tolist())
        learn_factors(other)
        own = Recommender(other.settings, other)
        slates.append([published(own, own.rank([request(person)])[0]) for person in (user(1, 2, 3), user(9), user())])
    assert slates[0] == slates[1] == slates[2]


def test_a_slate_does_not_depend_on_who_else_is_in_the_batch(recommender: Recommender) -> None:
    people = [user(*range(start, start + 1 + start % 7), name=f"u{start}") for start in range(33)] + [user(name="new")]
    together = recommender.rank([request(person) for person in people])
    for person, ranking in zip(people, together, strict=True):
        assert published(recommender, ranking) == published(recommender, recommender.rank([request(person)])[0])


@pytest.mark.parametrize("whole_below", [5_000, 0])
def test_users_with_rules_searches_and_blocks_of_their_own_are_ranked_together_as_alone(whole_below: int) -> None:
    state = new_state(Settings(retrieval=RetrievalSettings(whole_below=whole_below)))
    fill(state, list(range(60)))
    for number in range(0, 60, 3):
        state.apply_item(f"i{number}", Item(item_id=f"i{number}", title=f"Item {number}", categories=["third"]))
    one, some = ["u1", "u4"], RuleWhere(item_ids=[f"i{number}" for number in range(30, 40)])
    for rule in (
        Rule(rule_id="pin", kind="pin", where=RuleWhere(item_ids=["i50", "i7"]), rank=2, users=one),
        Rule(rule_id="boost", kind="boost", where=some, boost=2.0, users=["u2"]),
        Rule(rule_id="exclude", kind="exclude", where=some, users=["u4"]),
        Rule(rule_id="cap", kind="cap", per="category", at_most=1, first=10, users=["u3"]),
    ):
        state.apply_rule(rule.rule_id, rule, now=0.0)
    words = {"something": state.index.vectors(np.array([state.catalogue.row("i20")]))[0]}
    search = HistoryEntry("", "search", 40_000.0, 1.0, 99, "something")
    people = [user(*range(start, start + 4), name=f"u{start}") for start in range(8)] + [user(name="new")]
    people[6].history = (*people[6].history, search)
    requests = [
        request(
            person,
            n=(20, 3, 200)[place % 3],
            now=50_000.0 + place // 5,
            extra_vectors=words if place == 6 else {},
            blocked_labels=frozenset(state.catalogue.labels(state.catalogue.row("i0")))
            if place in (5, 8)
            else frozenset(),
        )
        for place, person in enumerate(people)
    ]
    recommender = Recommender(state.settings, state)
    alone = [published(recommender, recommender.rank([asked])[0]) for asked in requests]
    # Again, because lists of neighbours are made when they are asked for.
    alone = [published(recommender, recommender.rank([asked])[0]) for asked in requests]
    together = [published(recommender, ranking) for ranking in recommender.rank(requests)]
    assert together == alone
    assert together[1][1][0] == "i50"
    assert "rules" in together[1][1][3]
    assert together[6][0][0] == "i20"
    assert len({len(slate) for slate in together}) > 2


def test_very_many_requests_are_ranked_in_turn(recommender: Recommender, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is in memory is bounded, however many there are."""
    requests = [request(user(*range(start, start + 3), name=f"u{start}")) for start in range(10)]
    together = [published(recommender, ranking) for ranking in recommender.rank(requests)]
    monkeypatch.setattr(recommender_module, "_TOGETHER", 4)
    rankings = recommender.rank(requests)
    assert len({id(ranking.batch) for ranking in rankings}) == 3
    assert [published(recommender, ranking) for ranking in rankings] == together
    in_turn = recommender.rank_in_turn(requests)
    assert [ranking.batch.starts.size - 1 for ranking in in_turn] == [4] * 8 + [2] * 2


def test_a_user_without_history_gets_what_trends_and_something_new(recommender: Recommender) -> None:
    items = recommender.slate_items(recommender.rank([request(user())])[0])
    assert len(items) == 20
    assert any(source.startswith("trending") for source in items[0].sources)
    reserved = items[SlateSettings().cold_from_rank - 1]
    assert reserved.sources == ["new"]
    assert reserved.reason.code == "new", "of somebody nothing is known of, nothing is close"


@pytest.mark.parametrize("kind", ["reserved", "explored"])
def test_only_what_is_closer_than_the_middle_candidate_is_said_to_be_close(recommender: Recommender, kind: str) -> None:
    near = [recommender.feature_names.index(name) for name in ("text_slow", "text_fast")]
    closer = {"reserved": "new_for_you", "explored": "less_known_for_you"}[kind]
    plain = {"reserved": "new", "explored": "less_known"}[kind]
    told = set()
    for start in range(40):
        (ranking,) = recommender.rank([request(user(start, start + 1, start + 2, name=f"u{start}"))])
        middle = np.sort(ranking.candidate_values, axis=0)[len(ranking.candidates) // 2]
        # Each place in turn, as if it had been given away: what is said must follow from the features alone.
        ranking.batch.kept_for[:] = NEW if kind == "reserved" else TAIL
        for place, item in enumerate(recommender.slate_items(ranking)):
            above = (ranking.values[place, near] - middle[near]).sum() > 0.02
            assert item.reason.code == (closer if above else plain)
            told.add(item.reason.code)
    assert told == {closer, plain}


def test_a_reason_compares_with_the_middle_candidate(recommender: Recommender) -> None:
    names = recommender.feature_names
    said = set()
    for start in range(20):
        (ranking,) = recommender.rank([request(user(start, start + 1, name=f"u{start}"))])
        middle = np.sort(ranking.candidate_values, axis=0)[len(ranking.candidates) // 2]
        found = recommender._serving.ranker.contributions(
            ranking.values, middle, ranking.context, kind_columns(names), evidence_signs(names), len(KINDS)
        )
        codes = strongest_kind(found)
        for place, item in enumerate(recommender.slate_items(ranking)):
            if not (ranking.reserved[place] or ranking.explored[place]):
                assert item.reason.code == codes[place]
                said.add(item.reason.code)
    assert len(said) > 2


def test_no_reason_speaks_of_others_where_there_are_none() -> None:
    """Learned factors start from the text, and a count may be the user's own."""
    of_others = {"taken_together", "taken_after", "similar_taste", "popular", "trending"}
    state = new_state()
    fill(state, list(range(40, 60)))  # that nobody had
    recommender = Recommender(state.settings, state)

    def choose_together(count: float, offset: int) -> None:
        for number in (43, 45, 47):
            others = [f"i{other}" for other in (43, 45, 47) if other != number]
            links = pack_float64(np.full(2, count))
            state.apply_signals(
                f"i{number}",
                ItemSignals(
                    item_id=f"i{number}", at=0.0, counts=[count] * 4, neighbours=others, symmetric=links,
                    directed=links, applied={"0": offset},
                ),
            )  # fmt: skip

    def said() -> dict[str, str]:
        asked = request(user(43, 45, 47, consumed=False))
        return {item.item_id: item.reason.code for item in recommender.slate_items(recommender.rank([asked])[0])}

    choose_together(1.0, 1)
    alone = said()
    assert {"i43", "i45", "i47"} <= set(alone)
    assert not of_others & set(alone.values())
    choose_together(20.0, 2)
    assert of_others & set(said().values())


def test_what_is_similar_is_similar_to_the_nearest_of_the_recent_items(recommender: Recommender) -> None:
    state = recommender._serving
    said = set()
    for start in range(20):
        numbers = range(start, start + 5)
        (ranking,) = recommender.rank([request(user(*numbers, name=f"u{start}"))])
        recent = [f"i{number}" for number in numbers]
        vectors = state.index.vectors(np.array([state.catalogue.row(name) for name in recent]))
        for row, item in zip(ranking.rows.tolist(), recommender.slate_items(ranking), strict=True):
            if item.reason.code == "similar":
                cosines = vectors @ state.index.vectors(np.array([row]))[0]
                named = recent.index(item.reason.params["item_id"])
                assert cosines[named] >= cosines.max() - 0.01, "to the error of codes"
                said.add(named)
    assert len(said) > 2


def test_a_slate_never_holds_what_must_not_be_shown() -> None:
    state = new_state(Settings(retrieval=RetrievalSettings(slow=60, fast=60)))
    fill(state, list(range(60)))
    recommender = Recommender(state.settings, state)
    person = user(1, 2, 3)
    person.hidden[id_hash("i7")] = None
    wide = request(person, n=100)
    before = {item.item_id for item in recommender.slate_items(recommender.rank([wide])[0])}
    assert {"i10", "i11", "i12", "i13"} <= before
    assert not {"i1", "i2", "i3", "i7"} & before
    past, future = datetime.fromtimestamp(49_000, UTC), datetime.fromtimestamp(51_000, UTC)
    state.apply_item("i10", None)
    state.apply_item("i11", Item(item_id="i11", title="x", available=False))
    state.apply_item("i12", Item(item_id="i12", title="x", expires_at=past))
    state.apply_item("i13", Item(item_id="i13", title="x", published_at=future))
    after = {item.item_id for item in recommender.slate_items(recommender.rank([wide])[0])}
    assert after == before - {"i10", "i11", "i12", "i13"}
    later = {
        item.item_id for item in recommender.slate_items(recommender.rank([request(person, n=100, now=52_000.0)])[0])
    }
    assert later == after | {"i13"}


def test_an_empty_catalogue_gives_an_empty_slate() -> None:
    state = new_state()
    recommender = Recommender(state.settings, state)
    rankings = recommender.rank([request(user(1, 2)), request(user())])
    assert [recommender.slate_items(ranking) for ranking in rankings] == [[], []]
    assert recommender.rank([]) == []
    assert example(recommender, request(user(1)), None, 0, seed=1) is None


def test_statistics_without_vectors_and_vectors_without_statistics_are_enough() -> None:
    state = new_state()
    state.apply_item("plain", Item(item_id="plain", title="No vector yet"))
    recommender = Recommender(state.settings, state)
    assert [item.item_id for item in recommender.slate_items(recommender.rank([request(user())])[0])] == ["plain"]


def test_the_graph_gives_nearly_the_slates_of_the_scan(recommender: Recommender) -> None:
    graph = new_state(Settings(index=IndexSettings(exact_below=0)))
    fill(graph, list(range(60)))
    graph.index.maybe_rebuild()
    assert not graph.index.exact
    own = Recommender(graph.settings, graph)
    person = user(1, 2, 3)
    assert published(own, own.rank([request(person)])[0]) == published(
        recommender, recommender.rank([request(person)])[0]
    )


def test_a_free_text_moves_the_slate_towards_it(recommender: Recommender, state: ServingState) -> None:
    row = np.array([state.catalogue.row("i25")])
    person = user(1)
    person.history = (*person.history, HistoryEntry("", "search", 9_000.0, 1.0, 9, "something like 25"))
    plain = recommender.rank([request(person, n=60)])[0]
    guided = recommender.rank(
        [request(person, n=60, extra_vectors={"something like 25": state.index.vectors(row)[0]})]
    )[0]
    place = [ranking.rows.tolist().index(int(row[0])) for ranking in (plain, guided)]
    assert place[1] < place[0]
    assert place[1] < 15 < place[0]


def unmoved_by_text() -> ServingState:
    """A state whose ranker has learned that closeness in text speaks against an item."""
    state = new_state()
    fill(state, list(range(60)))
    names = state.ranker.names
    state.ranker.weights[:] = [-2.0 if name.startswith("text_") else 1.0 for name in names]
    return state


def searching(state: ServingState, *, then: tuple[HistoryEntry, ...] = (), by: Recommender | None = None) -> Ranking:
    """The slate of five after a search that is close to i25, by a user with a long history."""
    entry = HistoryEntry("", "search", 49_000.0, 1.0, 9, "item 25")
    person = user(*range(1, 20))
    person.history = (*person.history, entry, *then)
    vector = state.index.vectors(np.array([state.catalogue.row("i25")]))[0]
    recommender = by or Recommender(state.settings, state)
    return recommender.rank([request(person, n=5, extra_vectors={"item 25": vector})])[0]


def test_what_was_just_searched_for_comes_first_whatever_the_ranker_has_learned() -> None:
    state = unmoved_by_text()
    recommender = Recommender(state.settings, state)
    found = searching(state, by=recommender)
    assert state.catalogue.item_id(int(found.rows[0])) == "i25"
    item = recommender.slate_items(found)[0]
    assert "text_fast" in item.sources
    assert item.reason.code == "similar"
    assert not found.pinned.any()
    assert len(found.rows) == 5


def test_a_search_counts_for_first_places_only_while_it_is_the_last_thing_done() -> None:
    state = unmoved_by_text()
    later = HistoryEntry("i21", "click", 49_500.0, 1.0, 10)
    assert state.catalogue.row("i25") not in searching(state, then=(later,)).rows
    settings = Settings(slate={"search_places": 0})  # type: ignore[arg-type]
    none = ServingState(settings, space=SPACE, dimensions=DIMENSIONS)
    fill(none, list(range(60)))
    none.ranker.weights[:] = state.ranker.weights
    assert none.catalogue.row("i25") not in searching(none).rows


def test_what_was_searched_for_is_not_shown_when_it_may_not_be() -> None:
    state = unmoved_by_text()
    state.apply_item("i25", Item(item_id="i25", title="Item 25", available=False))
    assert state.catalogue.row("i25") not in searching(state).rows
    assert len(searching(state).rows) == 5


def test_a_search_that_nothing_is_close_to_changes_no_order() -> None:
    state = unmoved_by_text()
    vectors = state.index.vectors(state.index.rows())
    rng = np.random.default_rng(3)
    drawn = [unit(rng.normal(size=DIMENSIONS)) for _ in range(500)]
    away = min(drawn, key=lambda one: float((vectors @ one).max()))
    assert (vectors @ away).max() < 0.5
    person = user(1, 2)
    person.history = (*person.history, HistoryEntry("", "search", 9_000.0, 1.0, 9, "x"))
    slates = []
    for places in (0, 3):
        state.settings = Settings(slate={"search_places": places})  # type: ignore[arg-type]
        ranking = Recommender(state.settings, state).rank([request(person, n=5, extra_vectors={"x": away})])[0]
        slates.append(ranking.rows.tolist())
        assert not ranking.searched.any()
    assert slates[0] == slates[1]


def unit(values: NDArray[np.float64]) -> NDArray[np.float32]:
    """The direction of a vector."""
    return (values / np.linalg.norm(values)).astype(np.float32)


class TestExamples:
    def test_the_taken_item_comes_first_and_is_not_among_the_others(
        self, recommender: Recommender, state: ServingState
    ) -> None:
        taken = state.catalogue.row("i5")
        found = example(recommender, request(user(1, 2)), None, taken, seed=3)
        assert found is not None
        assert found.shape == (41, len(recommender.feature_names))
        assert not (found[1:] == found[0]).all(axis=1).any()
        assert np.array_equal(found, example(recommender, request(user(1, 2)), None, taken, seed=3))
        other = example(recommender, request(user(1, 2)), None, taken, seed=4)
        assert other is not None
        assert not np.array_equal(found, other)
        assert np.array_equal(found[0], other[0])

    def test_a_basket_does_not_teach_about_itself(self, recommender: Recommender, state: ServingState) -> None:
        taken = state.catalogue.row("i5")
        known = user(1, 2)
        later = UserState(
            "u", (*known.history, HistoryEntry("i9", "purchase", 7_000.0, 4.0, 9)), consumed=known.consumed
        )
        plain = example(recommender, request(known, at=7_000.0), None, taken, seed=3)
        cut = example(recommender, request(later, at=7_000.0, before=7_000.0), None, taken, seed=3)
        leaking = example(recommender, request(later, at=7_000.0), None, taken, seed=3)
        assert plain is not None
        assert cut is not None
        assert leaking is not None
        assert np.array_equal(plain, cut)
        assert not np.array_equal(plain, leaking)

    def test_what_else_was_taken_is_not_turned_down(self, state: ServingState) -> None:
        settings = state.settings.model_copy(update={"ranker": RankerSettings(negatives=500)})
        recommender = Recommender(settings, state)
        rows = [state.catalogue.row(f"i{number}") for number in (5, 6, 7)]
        alone = example(recommender, request(user(1, 2)), None, rows[0], seed=0)
        together = recommender.examples([Choice(request=request(user(1, 2)), row=row, seed=row) for row in rows])
        assert alone is not None
        assert [len(alone) - len(found.features) for found in together if found is not None] == [2, 2, 2]

    def test_only_candidates_teach(self, recommender: Recommender, state: ServingState) -> None:
        shown = np.array([state.catalogue.row(f"i{number}") for number in (4, 5, 6, 1)], np.int32)
        given_candidates = example(recommender, request(user(1)), shown, int(shown[0]), seed=0)
        assert given_candidates is not None
        assert len(given_candidates) == 3, "what the user has is no candidate any more"
        assert example(recommender, request(user(1)), shown, state.catalogue.row("i30"), seed=0) is None
        assert example(recommender, request(user(1)), shown[:1], int(shown[0]), seed=0) is None

    def test_choices_move_the_ranking_towards_what_was_chosen(self) -> None:
        state = new_state()
        fill(state, list(range(60)))
        recommender = Recommender(state.settings, state)
        learner = SoftmaxRanker(recommender.feature_names, RankerSettings(learning_rate=0.3))
        text = recommender.feature_names.index("text_slow")
        offset = 0
        for start in range(30):
            ask = request(user(start, start + 1, start + 2, name=f"u{start}"))
            ranking = recommender.rank([RankRequest(user=ask.user, at=ask.at, now=ask.now, n=60)])[0]
            nearest = int(ranking.rows[np.argmax(ranking.values[:, text])])
            for _ in range(5):
                found = example(recommender, ask, None, nearest, seed=offset)
                assert found is not None
                learner.step(found)
                offset += 1
        before = state.ranker.weights[text]
        learner.version += 1
        assert state.apply_weights(learner.weights_message())
        assert state.ranker.weights[text] > before + 0.3


class TestWhatTheRequestSaysOfTheUser:
    @pytest.fixture
    def shop(self) -> ServingState:
        state = new_state()
        fill(state, list(range(60)))
        for number in range(0, 60, 2):
            state.apply_item(f"i{number}", Item(item_id=f"i{number}", title="t", categories=["Home", "Lamps "]))
        state.apply_item("i1", Item(item_id="i1", title="t", brand="Nordlys"))
        return state

    def test_nothing_of_blocked_categories_and_brands_is_ranked(self, shop: ServingState) -> None:
        recommender = Recommender(shop.settings, shop)
        blocked = frozenset({label("category", "LAMPS"), label("brand", " nordlys")})
        asked = request(user(3, 5), blocked_labels=blocked)
        free, kept = recommender.rank([request(user(3, 5)), asked])
        names = {shop.catalogue.item_id(row) for row in kept.candidates.tolist()}
        assert names
        assert names == {
            name
            for name in (shop.catalogue.item_id(row) for row in free.candidates.tolist())
            if int(name[1:]) % 2 and name != "i1"
        }
        row = shop.catalogue.row("i7")
        taught = example(recommender, asked, free.candidates, row, seed=1)
        assert taught is not None
        assert len(taught) <= len(kept.candidates)

    def test_reasons_are_in_the_users_language(self, shop: ServingState) -> None:
        recommender = Recommender(shop.settings, shop)
        english, chinese = recommender.rank([request(user(3)), request(user(3), language="zh-Hans")])
        said = [item.reason.text for item in recommender.slate_items(english)]
        other = [item.reason.text for item in recommender.slate_items(chinese)]
        assert all(text.isascii() for text in said)
        assert not any(text.isascii() for text in other)


def test_many_logarithms_at_once_are_those_of_numpy():
    rng = np.random.default_rng(0)
    values = np.concatenate(
        [[0.0, 1e-30, 1e-6, 1.0, 1e30, -3.0], rng.exponential(10.0, 999), 10 ** rng.uniform(-9, 29, 99)]
    )
    found = values.astype(np.float32)
    _log1p_all(found)
    np.testing.assert_allclose(found, np.log1p(np.maximum(values, 0.0)), rtol=3e-7, atol=3e-7)


def test_features_in_steps_come_back_to_half_a_step():
    values = np.linspace(-FEATURE_LIMIT, FEATURE_LIMIT, 4_001, dtype=np.float32).reshape(-1, 1)

    steps = in_steps(values)

    assert steps.dtype == np.int16
    places = np.arange(len(values), dtype=np.int32)[::-1].copy()
    assert np.abs(in_units(steps, places) - values[places]).max() <= FEATURE_LIMIT / 32_767
    assert np.array_equal(in_units(values, places), values[places]), "what is not in steps stays"
