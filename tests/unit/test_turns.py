"""Two threads that share the requests of a batch."""

from __future__ import annotations

import threading
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from stream_app.bench.shop import MadeUpShop, made_up_shop
from stream_app.compiled import compiled
from stream_app.errors import TailraceError
from stream_app.ranking import recommender as module
from stream_app.ranking.recommender import RankRequest, Recommender
from stream_app.ranking.turns import AT_ONCE, HELPER, Helper, done, finish, new_turns, take
from stream_app.settings import RetrievalSettings, Settings


@compiled
def _mark(turns: NDArray[np.int64], who: int, marks: NDArray[np.int64], rounds: int) -> int:
    taken = 0
    while True:
        first = take(turns, len(marks))
        if first < 0:
            return taken
        for request in range(first, min(first + AT_ONCE, len(marks))):
            number = np.uint64(request)
            for _ in range(rounds):
                number = number * np.uint64(6364136223846793005) + np.uint64(1442695040888963407)
            # Never so, and the compiler does not know it.
            marks[request] += who if number != np.uint64(12345) else 0
            taken += 1
        done(turns)


@pytest.mark.parametrize("count", [0, 1, AT_ONCE - 1, AT_ONCE, AT_ONCE + 1, 64, 1_001])
def test_every_request_is_computed_once_by_one_of_two_threads(count: int) -> None:
    for _ in range(50):
        turns, marks = new_turns(), np.zeros(count, np.int64)
        other = threading.Thread(target=_mark, args=(turns, 1, marks, 200))
        other.start()
        _mark(turns, 1, marks, 200)
        assert finish(turns, count)
        assert (marks == 1).all()
        other.join()


def test_who_computes_alone_computes_all() -> None:
    turns, marks = new_turns(), np.zeros(10, np.int64)
    assert _mark(turns, 1, marks, 1) == 10
    assert finish(turns, 10)
    # One that comes late finds nothing to do.
    assert _mark(turns, 1, marks, 1) == 0
    assert marks.tolist() == [1] * 10


def test_a_helper_takes_one_thing_at_a_time_and_forgets_it() -> None:
    helper, began, may_end, called = Helper(), threading.Event(), threading.Event(), []
    helper._cores = 2

    def slow(name: str) -> None:
        called.append(name)
        began.set()
        assert may_end.wait(10)

    assert helper.lend(new_turns(), slow, "first")
    assert began.wait(10)
    assert not helper.lend(new_turns(), slow, "second"), "it is at the first one still"
    may_end.set()
    with helper._busy:
        assert called == ["first"]
    assert helper.lend(new_turns(), slow, "third")
    with helper._busy:
        assert called == ["first", "third"]
    helper._cores = 1
    assert not helper.lend(new_turns(), slow, "fourth"), "there is no core for it"


def test_what_fails_in_the_helper_is_not_waited_for() -> None:
    helper, turns = Helper(), new_turns()
    helper._cores = 2

    def fail() -> None:
        assert take(turns, 8) == 0
        raise ArithmeticError("made up")

    assert helper.lend(turns, fail)
    with helper._busy:
        assert take(turns, 8) == AT_ONCE
        done(turns)
    assert not finish(turns, 8)


@pytest.fixture(scope="module", params=[True, False])
def shop(request: pytest.FixtureRequest) -> MadeUpShop:
    settings = Settings() if request.param else Settings(retrieval=RetrievalSettings(whole_below=0))
    return made_up_shop(settings, items=400, users=60, events=400, seed=3)


def _slates(shop: MadeUpShop, threads: int) -> list[Any]:
    recommender = Recommender(shop.settings, shop.serving)
    recommender.threads = threads
    requests = [RankRequest(user=state, at=shop.now, now=shop.now, n=20) for state in shop.states.values()]
    rankings = recommender.rank(requests)
    return [
        (recommender.slate_items(ranking), ranking.candidates.tolist(), ranking.candidate_values.tolist())
        for ranking in rankings
    ]


def test_slates_do_not_depend_on_how_many_threads_compute_them(
    shop: MadeUpShop, monkeypatch: pytest.MonkeyPatch
) -> None:
    alone, lent = _slates(shop, 1), []
    lend = HELPER.lend
    monkeypatch.setattr(HELPER, "_cores", 2)
    monkeypatch.setattr(HELPER, "lend", lambda *args: lent.append(lend(*args)))
    for _ in range(20):
        assert _slates(shop, 2) == alone
    assert sum(lent) > 20


def test_a_batch_whose_part_fails_in_the_second_thread_fails(shop: MadeUpShop, monkeypatch: pytest.MonkeyPatch) -> None:
    def failing(turns: NDArray[np.int64], *_args: object) -> None:
        turns[16] = 1

    recommender = Recommender(shop.settings, shop.serving)
    monkeypatch.setattr(module, "prepare_all", failing)
    requests = [RankRequest(user=state, at=shop.now, now=shop.now, n=20) for state in shop.states.values()]
    with pytest.raises(TailraceError, match="second thread"):
        recommender.rank([replace(request, n=5) for request in requests])
