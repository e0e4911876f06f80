"""Metrics: by their definitions, and against the library ranx on the same rankings."""

from __future__ import annotations

import warnings
from math import log2

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stream_app.evaluation.metrics import DEPTH, Ranks, RanksBySource, gains, hit_rate, mean, wilson

INF = float("inf")


def test_metrics_are_those_of_their_definitions() -> None:
    ranks = np.array([1, 3, 11, 50, INF, INF], np.float32)
    assert hit_rate(ranks, 10).value == pytest.approx(2 / 6)
    assert hit_rate(ranks, 50).value == pytest.approx(4 / 6)
    assert mean(gains(ranks, 10)).value == pytest.approx((1 / log2(2) + 1 / log2(4)) / 6)
    assert mean(1.0 / ranks).value == pytest.approx((1 + 1 / 3 + 1 / 11 + 1 / 50) / 6)


def test_no_tests_are_no_figures() -> None:
    none = np.zeros(0, np.float32)
    assert hit_rate(none, 10).value is hit_rate(none, 10).low is mean(gains(none, 10)).value is None


def test_wilson_intervals_are_those_of_the_literature() -> None:
    # Newcombe 1998 (doi 10.1002/(SICI)1097-0258(19980430)17:8<857::AID-SIM777>3.0.CO;2-E), table I, method 3.
    for hits, tests, low, high in ((81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611)):
        found = wilson(hits, tests)
        assert (found.low, found.high) == (pytest.approx(low, abs=1e-4), pytest.approx(high, abs=1e-4))
    assert wilson(20, 20).high == 1.0


@given(st.integers(1, 10_000).flatmap(lambda tests: st.tuples(st.integers(0, tests), st.just(tests))))
def test_an_interval_holds_its_share(case: tuple[int, int]) -> None:
    found = wilson(*case)
    assert found.low is not None
    assert found.value is not None
    assert found.high is not None
    assert 0 <= found.low <= found.value <= found.high <= 1


def test_a_slate_ranks_an_item_without_the_other_tested_ones() -> None:
    ranks = Ranks(100)
    ranks.add_slate(np.array([7, 3, 9, 5], np.int32), np.array([5, 8, 7, 9], np.int32))
    assert ranks.values.tolist() == [2.0, INF, 1.0, 2.0]
    assert ranks.shown == 4


def test_only_the_first_places_count() -> None:
    ranks = Ranks(100)
    ranks.add_slate(np.arange(100, dtype=np.int32), np.array([DEPTH - 1], np.int32))
    ranks.add_slate(np.arange(100, dtype=np.int32), np.array([DEPTH], np.int32))
    assert ranks.values.tolist() == [DEPTH, INF]
    assert ranks.shown == 10


@pytest.mark.parametrize("seed", range(4))
def test_figures_equal_those_of_ranx_on_the_same_rankings(seed: int) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # its own, on import and while it compiles
        from ranx import Qrels, Run, evaluate

        rng = np.random.default_rng(seed)
        ranks = Ranks(80)
        qrels, run = {}, {}
        for number in range(200):
            slate = rng.permutation(60)[: rng.integers(1, 61)].astype(np.int32)
            # Rows from 60 on are never in a slate; low numbers are near the front, so that there are hits to compare.
            slate = slate[np.argsort(slate + rng.normal(0, 20, len(slate)))]
            wanted = int(min(rng.integers(80), rng.integers(80)))
            ranks.add_slate(slate, np.array([wanted], np.int32))
            qrels[f"q{number}"] = {f"i{wanted}": 1}
            run[f"q{number}"] = {f"i{row}": 1.0 - place / 100 for place, row in enumerate(slate[:DEPTH].tolist())}
        theirs = evaluate(Qrels(qrels), Run(run), ["hit_rate@10", "hit_rate@50", "ndcg@10", "mrr"])
    ours = {
        "hit_rate@10": hit_rate(ranks.values, 10).value,
        "hit_rate@50": hit_rate(ranks.values, 50).value,
        "ndcg@10": mean(gains(ranks.values, 10)).value,
        "mrr": mean(1.0 / ranks.values.astype(np.float64)).value,
    }
    assert ours == pytest.approx(theirs, abs=1e-6)
    assert 0 < (ours["hit_rate@10"] or 0) < 1


def test_what_the_user_had_takes_no_place_in_a_slate():
    ranks, had = Ranks(60), np.zeros(60, np.bool_)
    had[[7, 3]] = True

    ranks.add_slate(np.array([7, 3, 9, 5, 3], np.int32), np.array([5, 8], np.int32), had)
    ranks.add_slate(np.arange(60, dtype=np.int32), np.array([51, 52], np.int32), had)

    assert ranks.values.tolist() == [2.0, np.inf, 50.0, np.inf]
    assert ranks.shown == 10, "9 and 5 of the first, and 0 to 11 without 3 and 7 of the second"


def test_several_rankings_together_are_ranked_as_each_alone() -> None:
    rng = np.random.default_rng(3)
    together, alone = RanksBySource(["a", "b", "c"], 60), {name: Ranks(60) for name in "abc"}
    for _ in range(50):
        had = rng.random(60) < 0.1
        tested = rng.permutation(60)[:3].astype(np.int32)
        slates = np.stack([rng.permutation(60) for _ in range(3)]).astype(np.int32)
        lengths = rng.integers(0, 61, 3)
        together.add(slates, lengths, tested, had)
        for ranks, slate, length in zip(alone.values(), slates, lengths.tolist(), strict=True):
            ranks.add_slate(slate[:length], tested, had)
    for name, ranks in alone.items():
        assert together.by_name[name].values.tolist() == ranks.values.tolist()
        assert together.by_name[name].shown == ranks.shown > 0
