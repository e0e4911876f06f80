"""What ``tailrace bench soak`` calls growth."""

from __future__ import annotations

import pytest

from stream_app.bench.soak import growth


def test_what_fills_at_first_is_not_growth():
    assert growth([*range(100), *[100.0] * 100]) == 0.0


def test_a_leak_is():
    assert growth([100.0 + number for number in range(200)]) == pytest.approx(80 / 209.5)


def test_what_is_given_back_is_negative():
    assert growth([200.0] * 15 + [100.0] * 5) == pytest.approx(-0.5)


def test_too_few_samples_tell_nothing():
    with pytest.raises(ValueError, match="9 samples are too few"):
        growth([1.0] * 9)
