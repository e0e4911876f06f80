"""What waits leaves in parts: no more per interval, and none of it later, than all at once."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stream_app.agents.pacing import Pace


def leave(pace: Pace, until: float, waiting: int, *, added: int = 0) -> tuple[list[tuple[float, int]], int]:
    """Time and amount of each part up to a time, and what waits then; ``added`` come between any two parts."""
    left = []
    while pace.next_at <= until + 1e-9:
        now = pace.next_at
        amount = pace.share(now, waiting)
        left.append((round(now, 6), amount))
        waiting += added - amount
    return left, waiting


def test_what_waits_is_spread_over_the_interval():
    left, waiting = leave(Pace(1.0, limit=1_000, now=0.0), 1.0, 500)
    assert left == [(0.2, 100), (0.4, 100), (0.6, 100), (0.8, 100), (1.0, 100)]
    assert waiting == 0


def test_what_comes_meanwhile_leaves_with_the_last_part():
    left, _ = leave(Pace(1.0, limit=1_000, now=0.0), 1.0, 0, added=30)
    assert [amount for _, amount in left] == [0, 0, 0, 0, 120]
    left, _ = leave(Pace(1.0, limit=1_000, now=0.0), 1.0, 50, added=10)
    assert [amount for _, amount in left] == [10, 10, 10, 10, 50]


@pytest.mark.parametrize("interval_s", [0.01, 0.05, 0.1, 1.0, 10.0, 60.0])
def test_no_more_leaves_per_interval_than_its_limit(interval_s: float):
    left, waiting = leave(Pace(interval_s, limit=100, now=0.0), 10 * interval_s, 5_000)
    assert sum(amount for _, amount in left) == 1_000
    assert waiting == 4_000
    assert len(left) <= 10 * max(1.0, interval_s / 0.05)


@given(st.integers(1, 50), st.lists(st.integers(0, 40), min_size=10, max_size=60))
def test_within_an_interval_what_waited_has_left_or_the_limit_is_reached(limit: int, arrivals: list[int]):
    pace, waiting, taken = Pace(1.0, limit=limit, now=0.0), 0, 0
    for number, arrived in enumerate(arrivals, start=1):
        waiting += arrived
        amount = pace.share(pace.next_at, waiting)
        assert 0 <= amount <= waiting
        waiting -= amount
        taken += amount
        if number % 5 == 0:
            assert taken <= limit
            assert waiting == 0 or taken == limit
            taken = 0


def test_who_is_late_goes_on_at_once_and_not_faster_than_that():
    pace = Pace(1.0, limit=100, now=0.0)
    pace.share(0.9, 100)
    assert pace.next_at == 0.9
    pace.share(0.95, 80)
    assert pace.next_at == pytest.approx(1.1)
