"""Two threads that share the requests of a batch."""

from __future__ import annotations

import os
import threading
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from stream_app.bench.shop import MadeUpShop, made_up_shop
from stream_app.compiled import compiled
from stream_app.errors import TailraceError
from stream_app.ranking import recommender as module
from stream_app.ranking.recommender import RankRequest, Recommender
from stream_app.ranking.turns import _DONE, AT_ONCE, HELPER, Helper, done, end, finish, new_turns, take
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


def test_of_turns_that_have_ended_nothing_is_taken() -> None:
    turns, marks = new_turns(), np.zeros(10, np.int64)
    end(turns)
    assert _mark(turns, 1, marks, 1) == 0


def test_a_helper_takes_one_thing_at_a_time_and_forgets_it() -> None:
    helper, began, may_end, called = Helper(), threading.Event(), threading.Event(), []
    helper.cores = 2

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
    helper.cores = 1
    assert not helper.lend(new_turns(), slow, "fourth"), "there is no core for it"


@pytest.mark.parametrize("error", [ArithmeticError("made up"), SystemExit(1)])
def test_what_fails_in_the_helper_is_not_waited_for(error: BaseException) -> None:
    helper, turns = Helper(), new_turns()
    helper.cores = 2

    def fail() -> None:
        assert take(turns, 8) == 0
        raise error

    assert helper.lend(turns, fail)
    with helper._busy:
        assert take(turns, 8) == AT_ONCE
        done(turns)
    assert not finish(turns, 8)
    called = threading.Event()
    assert helper.lend(new_turns(), called.set)
    assert called.wait(10), "it goes on with the next"


@pytest.fixture(scope="module", params=[True, False])
def shop(request: pytest.FixtureRequest) -> MadeUpShop:
    settings = Settings() if request.param else Settings(retrieval=RetrievalSettings(whole_below=0))
    return made_up_shop(settings, items=400, users=60, events=400, seed=3)


def _surely_lent(monkeypatch: pytest.MonkeyPatch) -> None:
    """The second thread takes a part of every batch, wherever the test runs."""
    lend = HELPER.lend

    def surely_lent(*args: Any) -> bool:
        HELPER.wait()  # It may be on its way back from the call before.
        return lend(*args)

    monkeypatch.setattr(HELPER, "cores", 2)
    monkeypatch.setattr(HELPER, "lend", surely_lent)


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
    alone = _slates(shop, 1)
    by_helper = dict.fromkeys(("prepare_all", "order_all", "explain_all"), 0)

    def watched(name: str) -> Any:
        compute = getattr(module, name)

        def call(turns: NDArray[np.int64], *args: Any) -> None:
            if threading.current_thread().name == "ranking-helper":
                before = int(turns[_DONE])
                began.set()
                compute(turns, *args)
                by_helper[name] += int(turns[_DONE]) - before
            else:
                # What this thread would do alone before the other one has begun.
                assert began.wait(10)
                began.clear()
                compute(turns, *args)

        return call

    began = threading.Event()
    for name in by_helper:
        monkeypatch.setattr(module, name, watched(name))
    _surely_lent(monkeypatch)
    for _ in range(20):
        assert _slates(shop, 2) == alone
    assert min(by_helper.values()) > 0


def _requests(shop: MadeUpShop) -> list[RankRequest]:
    return [RankRequest(user=state, at=shop.now, now=shop.now, n=20) for state in shop.states.values()]


@pytest.mark.parametrize("fails", ["helper", "own"])
def test_a_batch_of_which_a_part_fails_fails_and_the_next_is_as_ever(
    shop: MadeUpShop, monkeypatch: pytest.MonkeyPatch, fails: str
) -> None:
    """Whatever it has left in the arrays that both threads use."""
    expected = _slates(shop, 1)
    recommender = Recommender(shop.settings, shop.serving)
    recommender.threads = 2
    _surely_lent(monkeypatch)
    failed, ended = threading.Event(), []

    def failing(turns: NDArray[np.int64], *args: Any) -> None:
        helps = threading.current_thread().name == "ranking-helper"
        for scratch in (recommender._scratch, recommender._scratch_of_helper):
            scratch.slot[:] = 3
            scratch.blocked[:] = scratch.request + 7
        if helps == (fails == "helper"):
            take(turns, len(shop.states))
            failed.set()
            raise ArithmeticError("made up")
        assert failed.wait(10)
        while take(turns, len(shop.states)) >= 0:
            done(turns)
        ended.append(helps)

    before = recommender.rank(_requests(shop))
    with monkeypatch.context() as broken:
        broken.setattr(module, "prepare_all", failing)
        with pytest.raises((TailraceError, ArithmeticError), match="made up" if fails == "own" else "second thread"):
            recommender.rank(_requests(shop))
        # Nobody goes on with what the caller may change from now on.
        assert HELPER._busy.acquire(blocking=False)
        HELPER._busy.release()
    assert ended == [fails == "own"]
    # What was ranked before is explained when it is asked for, and needs the room that there was.
    assert [recommender.slate_items(ranking) for ranking in before] == [slate for slate, _, _ in expected]
    rankings = recommender.rank(_requests(shop))
    assert [recommender.slate_items(ranking) for ranking in rankings] == [slate for slate, _, _ in expected]


def test_where_no_thread_can_be_started_a_batch_is_computed_in_one(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    helper = Helper()
    helper.cores = 2
    with monkeypatch.context() as without:
        without.setattr(threading.Thread, "start", refuse)
        assert not helper.lend(new_turns(), print)
    helper.wait()
    assert not helper.lend(new_turns(), print), "it is not tried again"


def test_a_forked_process_has_a_helper_of_its_own() -> None:
    helper, may_end, began = Helper(), threading.Event(), threading.Event()
    helper.cores = 2

    def busy() -> None:
        began.set()
        assert may_end.wait(30)

    assert helper.lend(new_turns(), busy)
    assert began.wait(10)
    child = os.fork()
    if not child:
        called = threading.Event()
        ok = helper.lend(new_turns(), called.set) and called.wait(10)
        os._exit(0 if ok else 1)
    may_end.set()
    assert os.waitpid(child, 0)[1] == 0
