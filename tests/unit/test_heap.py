"""The best few of many, compared with sorting."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stream_app.heap import best_first, drain, keep_best, largest


@given(
    st.lists(st.tuples(st.integers(0, 4), st.integers(0, 10_000)), unique_by=lambda pair: pair[1]), st.integers(0, 12)
)
def test_a_heap_keeps_the_best_in_whatever_order_they_come(offered: list[tuple[int, int]], wanted: int) -> None:
    kept = []
    for order in (offered, sorted(offered), sorted(offered, reverse=True)):
        rows, scores, ties = np.empty(wanted, np.int32), np.empty(wanted, np.float32), np.empty(wanted, np.int64)
        found = 0
        for score, tie in order:
            found = keep_best(rows, scores, ties, found, tie, np.float32(score), tie)
        drain(rows, scores, ties, found)
        kept.append(rows[:found].tolist())
    best = [tie for _, tie in sorted(offered, key=lambda pair: (-pair[0], pair[1]))[:wanted]]
    assert kept == [best, best, best]


@pytest.mark.parametrize("wild", [np.inf, -np.inf, np.nan, 1e308, -1e308])
def test_numbers_that_are_not_finite_are_left_out_and_extremes_do_no_harm(wild: float) -> None:
    scores, rows = np.array([0.5, wild, 1e308, -1e308, 0.25]), np.empty(5, np.int32)
    found = rows[: largest(scores, 5, rows)].tolist()
    assert found == [place for place in range(5) if np.isfinite(scores[place])]
    assert 2 in rows[: largest(scores, 1, rows)]


@given(st.lists(st.sampled_from([-1e30, -2.0, 0.0, 1.0, 1.0 + 1e-6, 3e30, -np.inf]), max_size=60), st.integers(1, 70))
def test_the_largest_are_among_those_found_by_buckets(values: list[float], wanted: int) -> None:
    scores, rows = np.array(values, np.float32), np.empty(len(values), np.int32)
    found = rows[: largest(scores, wanted, rows)].tolist()
    there = sorted((score for score in scores.tolist() if score > -np.inf), reverse=True)
    assert found == sorted(set(found))
    assert sorted((scores[row] for row in found), reverse=True)[:wanted] == there[:wanted]


@given(
    st.lists(st.sampled_from([-np.inf, -1e15, -3.0, -1.0, 0.0, 1.0, 2.0, 4e6, 1e15, 1e300]), max_size=80),
    st.integers(0, 90),
    st.integers(0, 1_000),
)
def test_the_few_that_are_left_are_put_in_order_and_ties_go_by_hash(steps: list[float], wanted: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    rows, hashes = rng.permutation(200).astype(np.int32), rng.permutation(200) - 100
    places = rng.permutation(200)[: len(steps)].astype(np.int32)
    found = np.empty(wanted, np.int32)
    count = best_first(places, np.array(steps), rows, hashes, found)
    of_places = rows[places]
    bounded = np.clip(np.array(steps), -4e12, 4e12)
    expected = sorted(range(len(steps)), key=lambda at: (-bounded[at], hashes[of_places[at]]))
    assert found[:count].tolist() == of_places[expected][:wanted].tolist()


def test_what_is_no_number_comes_last() -> None:
    rows, found = np.arange(3, dtype=np.int32), np.empty(3, np.int32)
    steps, hashes = np.array([np.nan, -5.0, 7.0]), np.arange(3)
    assert best_first(rows, steps, rows, hashes, found) == 3
    assert found.tolist() == [2, 1, 0]
