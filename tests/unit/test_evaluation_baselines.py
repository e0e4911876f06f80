"""Baselines: ranks against plain sorting, what each learns, and that a seed decides everything."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stream_app.evaluation.baselines import BASELINES, Told, make_baselines
from stream_app.evaluation.baselines.places import places
from stream_app.evaluation.baselines.text import half_whitened
from stream_app.evaluation.metrics import DEPTH

DAY = 86_400.0
NONE = np.zeros(0, np.int32)


def rows(*numbers: int) -> np.ndarray[tuple[int], np.dtype[np.int32]]:
    return np.array(numbers, np.int32)


@given(st.lists(st.integers(0, 5), min_size=3, max_size=120), st.integers(0, 2**32), st.integers(0, 4))
def test_places_are_those_of_sorting_with_ties_counted_half(values: list[int], seed: int, had_count: int) -> None:
    rng = np.random.default_rng(seed)
    shuffled = rng.permutation(len(values)).astype(np.int32)
    had, tested = shuffled[: min(had_count, len(values) - 1)], shuffled[had_count : had_count + 3]
    ranks, first = places(np.array(values, np.float32), had, tested)
    open_rows = [row for row in range(len(values)) if row not in set(had.tolist())]
    for row, rank in zip(tested.tolist(), ranks.tolist(), strict=True):
        others = [values[other] for other in open_rows if other not in set(tested.tolist())]
        expected = 1 + sum(o > values[row] for o in others) + 0.5 * sum(o == values[row] for o in others)
        assert rank == (expected if expected <= DEPTH else np.inf)
    assert [values[row] for row in first.tolist()] == sorted((values[row] for row in open_rows), reverse=True)[:10]


def test_what_cannot_be_ranked_is_a_miss() -> None:
    ranks, first = places(np.array([1.0, -np.inf, 0.5], np.float32), NONE, rows(1, 2))
    assert ranks.tolist() == [np.inf, 2.0]
    assert first.tolist() == [0, 2]


def test_popularity_forgets_by_half_every_week_and_never_overflows() -> None:
    (popularity,) = make_baselines(["popularity"], np.zeros((4, 1), np.float32), seed=0)
    popularity.learn(Told(0, 0.0, rows(0, 0, 0)))
    popularity.learn(Told(0, 7 * DAY, rows(1)))
    assert popularity.test(1, 7 * DAY, NONE, rows(2))[1].tolist()[:2] == [0, 1]
    popularity.learn(Told(0, 14 * DAY, rows(1)))
    assert popularity.test(1, 14 * DAY, NONE, rows(2))[1].tolist()[:2] == [1, 0]
    for years in (1, 40, 100_000):
        popularity.learn(Told(0, years * 365 * DAY, rows(2)))
        assert popularity.test(1, years * 365 * DAY, NONE, rows(3))[1].tolist()[0] == 2


def test_covisitation_finds_what_goes_together() -> None:
    (together,) = make_baselines(["covisitation"], np.zeros((300, 1), np.float32), seed=0)
    for user in range(20):
        together.learn(Told(user, user * DAY, rows(0, 1)))
        together.learn(Told(user, user * DAY + 1, rows(2)))
    together.learn(Told(50, 20 * DAY, rows(0)))
    ranks, first = together.test(50, 20 * DAY, rows(0), rows(1))
    assert ranks.tolist() == [1.0]
    assert set(first[:2].tolist()) == {1, 2}
    # A row holds the 200 strongest; one bought with everything does not grow beyond.
    for other in range(10, 300):
        together.learn(Told(60, 21 * DAY + other, rows(5, other)))
    assert together.test(60, 22 * DAY, NONE, rows(1))[0].shape == (1,)


def test_text_finds_what_reads_alike() -> None:
    rng = np.random.default_rng(0)
    kinds = rng.normal(size=(5, 16))
    vectors = (np.repeat(kinds, 20, axis=0) + 0.1 * rng.normal(size=(100, 16))).astype(np.float32)
    vectors[99] = 0.0  # no text
    (text,) = make_baselines(["text"], vectors, seed=0)
    text.learn(Told(0, 0.0, rows(0, 1)))
    _, first = text.test(0, 1.0, rows(0, 1), rows(2))
    assert set(first.tolist()) <= set(range(2, 20))
    lengths = np.linalg.norm(half_whitened(vectors), axis=1)
    assert lengths[:99] == pytest.approx(np.ones(99), abs=1e-5)
    assert lengths[99] == 0
    assert np.isfinite(half_whitened(np.ones((3, 4), np.float32))).all()


@pytest.mark.parametrize("name", ["isgd", "bpr"])
def test_factors_find_what_a_taste_shares(name: str) -> None:
    # Two tastes; everybody takes ten of the forty items of theirs.
    rng = np.random.default_rng(0)
    (model,) = make_baselines([name], np.zeros((80, 1), np.float32), seed=1)
    for step in range(30):
        for user in range(60):
            model.learn(Told(user, float(step), (rng.integers(40, size=1) + 40 * (user % 2)).astype(np.int32)))
    own = np.mean([np.mean(model.test(user, 31.0, NONE, rows(79))[1] // 40 == user % 2) for user in range(60)])
    assert own > 0.8


@pytest.mark.parametrize("name", BASELINES)
def test_a_seed_decides_everything_and_an_unknown_user_is_no_error(name: str) -> None:
    vectors = np.random.default_rng(0).normal(size=(50, 8)).astype(np.float32)

    def run() -> list[float]:
        (model,) = make_baselines([name], vectors, seed=3)
        ranks: list[float] = []
        rng = np.random.default_rng(1)
        for step in range(60):
            taken = rng.integers(50, size=3).astype(np.int32)
            ranks += model.test(step % 7, float(step), NONE, np.unique(taken))[0].tolist()
            model.learn(Told(step % 7, float(step), taken))
        return ranks

    assert run() == run()
