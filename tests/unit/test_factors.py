"""Learned factors: what they learn, exactly once per row, whatever is replayed; and where they start."""

from __future__ import annotations

import numpy as np
import pytest
from msgspec.structs import replace
from numpy.typing import NDArray

from schemas.messages import TrainingExample
from stream_app.factors.basis import FactorBasis, fit_basis, without_text
from stream_app.factors.kernels import score_rows, user_factors
from stream_app.factors.learner import FactorLearner
from stream_app.factors.table import Factors
from stream_app.retrieval.pool import best_of_pool
from stream_app.settings import FactorSettings

SETTINGS = FactorSettings(dimensions=8, negatives=10)
IDS = [f"item-{number}" for number in range(40)]


def _vectors(count: int = 40, dimensions: int = 16) -> NDArray[np.float32]:
    vectors = np.random.default_rng(5).normal(size=(count, dimensions)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    return vectors


def _basis() -> FactorBasis:
    return fit_basis(_vectors(), space="s", factors=8, length=1.2)


def _learner() -> FactorLearner:
    learner = FactorLearner(SETTINGS, _basis())
    for item_id, vector in zip(IDS, _vectors(), strict=True):
        learner.put(item_id, vector)
    return learner


def _example(offset: int, item: int, previous: list[int]) -> TrainingExample:
    return TrainingExample(
        offset=offset,
        at=float(offset),
        weight=1.0,
        rows=0,
        features="",
        item_id=IDS[item],
        previous=[IDS[p] for p in previous],
    )


def _pairs(count: int, first: int = 0) -> list[TrainingExample]:
    """Whoever took an even item takes the next odd one."""
    drawn = np.random.default_rng(3).integers(0, 20, count)
    return [_example(first + place, 2 * int(item) + 1, [2 * int(item)]) for place, item in enumerate(drawn)]


def _table(learner: FactorLearner) -> Factors:
    table = Factors(SETTINGS)
    table.basis = learner.basis
    rows = learner.take_rows(1_000)
    ids, context, target, bias = learner.arrays(rows)
    table.start(np.arange(40, dtype=np.int32), _vectors())
    table.apply(np.array([IDS.index(item_id) for item_id in ids], np.int32), context, target, bias)
    return table


def _top(table: Factors, recent: list[int], count: int) -> list[int]:
    users = table.users(np.array(recent, np.int32))
    return _best(table, users, count)[0].tolist()


def _best(table: Factors, users: NDArray[np.float32], count: int) -> NDArray[np.int32]:
    rows = np.empty((2, count), np.int32)
    everything = np.arange(len(table.bias), dtype=np.int32)
    codes = table.codes
    best_of_pool(
        everything,
        users,
        codes.values,
        codes.steps,
        table.bias,
        table.has,
        everything.astype(np.int64),
        table.target,
        rows,
    )
    return rows


def test_what_follows_what_is_learned() -> None:
    learner = _learner()
    learner.learn(_pairs(2_000), partition=0, offset=0)
    table = _table(learner)
    hits = sum(2 * pair + 1 in _top(table, [2 * pair], 1) for pair in range(20))
    assert hits >= 18


def test_replayed_examples_change_nothing() -> None:
    learner = _learner()
    learner.learn(_pairs(50), partition=0, offset=0)
    before = learner.arrays(np.arange(40))
    learner.learn(_pairs(50), partition=0, offset=0)
    for old, new in zip(before[1:], learner.arrays(np.arange(40))[1:], strict=True):
        np.testing.assert_array_equal(old, new)


def test_a_restored_learner_takes_every_offset_once() -> None:
    learner = _learner()
    learner.learn(_pairs(50), partition=3, offset=0)
    restored = _learner()
    for _, message in learner.take(1_000):
        assert message is not None
        assert restored.restore(message)
    restored.learn(_pairs(50), partition=3, offset=0)
    assert restored.waiting == 0
    for old, new in zip(learner.arrays(np.arange(40))[1:], restored.arrays(np.arange(40))[1:], strict=True):
        np.testing.assert_array_equal(old, new)
    learner.learn(_pairs(50, first=50), partition=3, offset=1)
    restored.learn(_pairs(50, first=50), partition=3, offset=1)
    np.testing.assert_allclose(
        learner.arrays(np.arange(40))[1], restored.arrays(np.arange(40))[1], rtol=1e-5, atol=1e-6
    )


def test_examples_of_neighbouring_times_draw_different_negatives() -> None:
    learner = _learner()
    learner.learn([_example(7, 1, [0])], partition=0, offset=0)
    first = set(learner.take_rows(100).tolist())
    learner.learn([_example(8, 1, [0])], partition=0, offset=1)
    second = set(learner.take_rows(100).tolist())
    assert len(first & second) < 9  # ten of forty each, item 0 and 1 among both


def test_only_what_is_durable_may_be_committed() -> None:
    learner = _learner()
    assert learner.commit_offset() is None
    learner.learn(_pairs(1), partition=0, offset=5)
    assert learner.commit_offset() == 5
    taken = learner.take(3)
    assert len(taken) == 3
    assert learner.commit_offset() == 5
    learner.taken_are_lost()
    assert learner.waiting >= 3
    learner.take(1_000)
    learner.taken_are_durable()
    assert learner.commit_offset() == 6


def test_a_removed_item_is_broadcast_as_gone_and_drawn_no_more() -> None:
    learner = _learner()
    learner.learn(_pairs(10), partition=0, offset=0)
    learner.take(1_000)
    learner.taken_are_durable()
    learned = _pairs(1)[0].item_id
    learner.remove(learned)
    assert learner.take(10) == [(learned, None)]
    learner.learn(_pairs(300, first=20), partition=0, offset=1)
    assert learned not in learner.arrays(learner.take_rows(1_000))[0]


def test_rate_zero_learns_nothing() -> None:
    learner = FactorLearner(FactorSettings(dimensions=8, learning_rate=0), _basis())
    learner.put(IDS[0], None)
    learner.put(IDS[1], None)
    assert learner.learn(_pairs(5), partition=0, offset=2) == 0
    assert learner.waiting == 0
    assert learner.commit_offset() == 3


@pytest.mark.parametrize("count", [0, 1, 2, 5])
def test_a_basis_of_few_items_is_finite(count: int) -> None:
    basis = fit_basis(_vectors()[:count], space="s", factors=8, length=1.2)
    started = basis.project(_vectors()[:count])
    assert started.shape == (count, 8)
    assert np.isfinite(started).all()


def test_a_basis_of_equal_items_starts_them_at_zero() -> None:
    basis = fit_basis(np.repeat(_vectors()[:1], 9, axis=0), space="s", factors=8, length=1.2)
    assert not basis.project(_vectors()).any()


def test_items_alike_in_text_start_alike() -> None:
    vectors = _vectors()
    near = (vectors[0] + 0.05 * vectors[1]).astype(np.float32)
    started = _basis().project(np.stack([vectors[0], near, vectors[2]]))
    assert np.linalg.norm(started[0] - started[1]) < 0.3 * np.linalg.norm(started[0] - started[2])


def test_without_text_the_start_depends_on_the_id_alone() -> None:
    np.testing.assert_array_equal(without_text(11, 8, 1.2), without_text(11, 8, 1.2))
    assert (without_text(11, 8, 1.2) != without_text(12, 8, 1.2)).any()


def test_learned_rows_are_not_started_again() -> None:
    learner = _learner()
    learner.learn(_pairs(5), partition=0, offset=0)
    table = _table(learner)
    row = IDS.index(_pairs(1)[0].item_id)
    held = table.target[row].copy()
    table.start(np.array([row], np.int32), _vectors()[:1])
    np.testing.assert_array_equal(table.target[row], held)
    table.forget(np.array([row], np.int32))
    assert not table.has[row]


def _full(size: int, *, seed: int) -> Factors:
    rng = np.random.default_rng(seed)
    table = Factors(FactorSettings(dimensions=12))
    target, bias = rng.normal(size=(size, 12)).astype(np.float32), rng.normal(size=size).astype(np.float32)
    table.apply(np.arange(size, dtype=np.int32), target, target, bias)
    return table


def test_scores_of_rows_are_products_and_biases() -> None:
    table = _full(500, seed=1)
    users = np.random.default_rng(1).normal(size=(2, 12)).astype(np.float32)
    rows = np.array([3, 7, 499, 9, 0], np.int32)
    scores = np.empty((2, 5), np.float32)
    score_rows(users, table.target, table.bias, rows, scores)
    np.testing.assert_allclose(scores, users @ table.target[rows].T + table.bias[rows], rtol=1e-4, atol=1e-5)


def test_a_table_finds_what_changed_since() -> None:
    """Codes of the targets follow every way in which a target changes."""
    table = _full(300, seed=2)
    users = np.zeros((2, 12), np.float32)
    users[:, 0] = 1.0
    far = np.zeros(12, np.float32)

    def top() -> int:
        return int(_best(table, users, 1)[0, 0])

    far[0] = 100.0
    table.put(17, far, far, 0.0)
    assert top() == 17
    table.apply(np.array([18], np.int32), 2 * far[None, :], 2 * far[None, :], np.zeros(1, np.float32))
    assert top() == 18
    table.reserve(5_000)
    assert top() == 18
    learner = _full(300, seed=3)
    table.share(learner.context, learner.target, learner.bias, 300)
    learner.target[42] = 3 * far
    table.changed(np.array([42]))
    assert top() == 42


def test_draws_depend_on_what_was_taken_when_and_not_on_its_place_in_a_topic() -> None:
    drawn = []
    for partition, offset in ((0, 3), (5, 700)):
        learner = _learner()
        learner.learn([replace(_example(offset, 1, [0]), at=60.0)], partition=partition, offset=offset)
        drawn.append(learner.take_rows(100).tolist())
    assert drawn[0] == drawn[1]


def test_what_examples_name_can_be_broadcast_before_what_it_was_compared_with() -> None:
    learner = _learner()
    learner.learn([_example(0, 7, [2, 4])], partition=0, offset=0)
    changed = learner.waiting
    assert {item_id for item_id, _ in learner.take(100, named=True)} == {"item-7", "item-2", "item-4"}
    assert learner.commit_offset() == 0, "the others are not broadcast yet"
    learner.taken_are_durable()
    assert learner.take(100, named=True) == []
    assert len(learner.take(100)) == changed - 3


def test_what_examples_named_is_named_still_when_its_broadcast_was_lost() -> None:
    learner = _learner()
    learner.learn([_example(0, 7, [2])], partition=0, offset=0)
    learner.take(100, named=True)
    learner.taken_are_lost()
    assert {item_id for item_id, _ in learner.take(100, named=True)} == {"item-7", "item-2"}


def test_the_short_memory_is_of_the_newest_items() -> None:
    table = _table(_learner())
    long, short = table.users(np.array([5, *range(6, 30)], np.int32))
    newest = table.context[5] / np.linalg.norm(table.context[5])
    assert short @ newest / np.linalg.norm(short) > long @ newest / np.linalg.norm(long)
    assert not table.users(np.zeros(0, np.int32)).any()


def test_user_factors_are_the_decayed_sum() -> None:
    context = np.random.default_rng(2).normal(size=(5, 8)).astype(np.float32)
    out = np.empty(8, np.float32)
    user_factors(np.array([3, -1, 1], np.int32), context, 0.9, 0.5, out)
    np.testing.assert_allclose(out, (context[3] + 0.81 * context[1]) / 1.81**0.5, rtol=1e-5)
