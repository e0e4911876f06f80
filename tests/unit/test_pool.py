"""What is looked at for a request, compared with sorting everything."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from stream_app.codes import Codes, code_products
from stream_app.retrieval.pool import best_of_pool, gather


def test_a_pool_holds_what_may_be_recommended_once_and_what_is_near_first() -> None:
    allowed, blocked = np.ones(50, np.bool_), np.zeros(50, np.int64)
    allowed[3], blocked[4], blocked[5] = False, 7, 6
    slot, pool = np.full(50, -1, np.int32), np.zeros(12, np.int32)
    near, others = np.array([9, 3, 9, 5, -1, 4, 1], np.int32), np.array([1, 3, 30, 30, 2], np.int32)
    assert gather(near, others, allowed, blocked, 7, slot, pool) == (3, 5)
    assert pool[:5].tolist() == [9, 5, 1, 30, 2]
    assert (slot == -1).all()
    nothing = np.zeros(0, np.int32)
    assert gather(nothing, nothing, allowed, blocked, 7, slot, pool) == (0, 0)


def _made(
    *, biased: bool, seed: int
) -> tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.float32], Codes, NDArray[np.bool_], NDArray[np.int64]]:
    rng = np.random.default_rng(seed)
    vectors, queries = rng.normal(size=(200, 40)).astype(np.float32), rng.normal(size=(2, 40)).astype(np.float32)
    vectors[100:140] = vectors[100]
    bias = rng.normal(size=200).astype(np.float32) if biased else np.zeros(0, np.float32)
    if biased:
        bias[100:140] = bias[100]
    has, hashes = rng.random(200) < 0.9, rng.permutation(200).astype(np.int64)
    codes = Codes(40, 200)
    codes.take(np.arange(200), vectors)
    return vectors, queries, bias, codes, has, hashes


def _best(
    pool: NDArray[np.int32], count: int, *, biased: bool, seed: int, exactly: bool = False
) -> tuple[NDArray[np.int32], NDArray[np.float32], NDArray[np.bool_], NDArray[np.int64]]:
    vectors, queries, bias, codes, has, hashes = _made(biased=biased, seed=seed)
    rows = np.empty((2, count), np.int32)
    table = vectors if exactly else vectors[:0]
    best_of_pool(pool, queries, codes.values, codes.steps, bias, has, hashes, table, rows)
    exact = queries @ vectors.T + (bias if biased else 0.0)
    return rows, exact, has, hashes


def _by_codes(*, biased: bool, seed: int) -> NDArray[np.float64]:
    """The scores of :func:`_best` by codes, in steps of 1e-6: float64 [2, rows]."""
    vectors, queries, bias, codes, _, _ = _made(biased=biased, seed=seed)
    products = np.empty((len(vectors), 2), np.float32)
    code_products(np.arange(len(vectors), dtype=np.int32), codes.values, codes.steps, queries, products)
    return np.rint((products.T + (bias if biased else np.float32(0.0))).astype(np.float64) * 1e6) / 1e6


@pytest.mark.parametrize("biased", [False, True])
def test_the_best_of_a_pool_are_those_of_sorting_it(biased: bool) -> None:
    pool = np.random.default_rng(5).permutation(200)[:150].astype(np.int32)
    rows, exact, has, _ = _best(pool, 30, biased=biased, seed=6)
    by_codes = _by_codes(biased=biased, seed=6)
    there = pool[has[pool]]
    for query in range(2):
        assert set(rows[query].tolist()) <= set(there.tolist())
        # In the order of their codes, and to the error of these nothing better was left out.
        scores = exact[query, rows[query]]
        assert rows[query].tolist() == rows[query][np.argsort(-by_codes[query, rows[query]], kind="stable")].tolist()
        np.testing.assert_allclose(by_codes[query, rows[query]], scores, atol=0.4)
        left = np.setdiff1d(there, rows[query])
        assert exact[query, left].max() <= scores.min() + 0.4


@pytest.mark.parametrize("biased", [False, True])
def test_in_full_precision_they_are_exactly_those_of_sorting_it(biased: bool) -> None:
    pool = np.setdiff1d(np.arange(200), np.arange(101, 140)).astype(np.int32)
    rows, exact, has, _ = _best(pool, 30, biased=biased, seed=7, exactly=True)
    there = pool[has[pool]]
    for query in range(2):
        assert rows[query].tolist() == there[np.argsort(-exact[query, there])][:30].tolist()


def test_of_equal_ones_the_smaller_hashes_are_taken_whatever_their_order() -> None:
    pool = np.arange(100, 140, dtype=np.int32)
    first, _, has, hashes = _best(pool, 10, biased=True, seed=8)
    second, _, _, _ = _best(pool[::-1].copy(), 10, biased=True, seed=8)
    there = pool[has[pool]]
    assert first.tolist() == second.tolist() == [there[np.argsort(hashes[there])][:10].tolist()] * 2


def test_places_that_stay_empty_say_so() -> None:
    pool = np.array([3, 4, 5], np.int32)
    rows, _, has, _ = _best(pool, 6, biased=False, seed=9)
    count = int(has[pool].sum())
    assert (rows[:, count:] == -1).all()
    assert sorted(rows[0, :count].tolist()) == pool[has[pool]].tolist()
