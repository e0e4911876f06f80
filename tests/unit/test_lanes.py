"""Steps over several numbers at once, compared with numpy."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from stream_app.compiled import compiled
from stream_app.lanes import LANES, add_scaled, count_up_to, finite_range, least_above


@compiled
def _by_columns(
    values: NDArray[np.float32], limits: NDArray[np.float32], counts: NDArray[np.int32], least: NDArray[np.float32]
) -> None:
    count_up_to(values, limits, counts)
    least_above(values, limits, least)


@pytest.mark.parametrize("rows", [0, 1, 7, 200])
@pytest.mark.parametrize("blocks", [1, 3])
def test_columns_are_counted_and_searched_as_by_numpy(rows: int, blocks: int) -> None:
    rng = np.random.default_rng(rows)
    values = np.round(rng.normal(size=(rows, blocks * LANES)), 1).astype(np.float32)
    values[: rows // 3, 0] = np.nan
    limits = np.round(rng.normal(size=blocks * LANES), 1).astype(np.float32)
    limits[1] = 99.0
    counts, least = np.full(blocks * LANES, -1, np.int32), np.empty(blocks * LANES, np.float32)
    _by_columns(values, limits, counts, least)
    assert counts.tolist() == (values <= limits).sum(axis=0).tolist()
    assert least.tolist() == np.where(values > limits, values, np.inf).min(axis=0, initial=np.inf).tolist()


@compiled
def _add(
    sums: NDArray[np.float32], rows: NDArray[np.int64], fresh: NDArray[np.bool_], by: NDArray[np.float32],
    ones: NDArray[np.float32], twos: NDArray[np.float32],
) -> None:  # fmt: skip
    for place, row in enumerate(rows):
        add_scaled(sums, row, fresh[place], by, ones[place], twos[place])


def test_scaled_numbers_are_added_or_the_largest_is_kept() -> None:
    rng = np.random.default_rng(0)
    rows, by = rng.integers(0, 5, 40), rng.normal(size=(4, LANES)).astype(np.float32)
    by[3] = 0.0
    by[3, 2] = 1.0
    ones, twos = rng.normal(size=(2, 40)).astype(np.float32)
    fresh = np.array([row not in rows[:place] for place, row in enumerate(rows)])
    sums, expected = np.full((5, LANES), 7.0, np.float32), np.zeros((5, LANES), np.float32)
    _add(sums, rows, fresh, by, ones, twos)
    for row, one, two in zip(rows, ones, twos, strict=True):
        largest = max(expected[row, 2], one)
        expected[row] += by[0] * one + by[1] * two + by[2]
        expected[row, 2] = largest
    np.testing.assert_array_equal(sums, expected)


@compiled
def _range(values: NDArray[Any]) -> tuple[float, float]:
    low, high = finite_range(values)
    return float(low), float(high)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("blocks", [0, 1, 9])
def test_the_range_of_what_is_finite_is_that_by_numpy(dtype: type, blocks: int) -> None:
    rng = np.random.default_rng(blocks)
    for bad in (0.0, 0.3, 1.0):
        values = rng.normal(size=blocks * LANES + 3).astype(dtype)
        values[rng.random(len(values)) < bad] = rng.choice([np.nan, np.inf, -np.inf])
        looked_at = values[: blocks * LANES]
        finite = looked_at[np.isfinite(looked_at)]
        expected = (finite.min(), finite.max()) if len(finite) else (np.inf, -np.inf)
        assert _range(values) == expected
