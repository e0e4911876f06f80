"""Arrays that nobody counts references to."""

from __future__ import annotations

import sys
from typing import Any, NamedTuple

import numpy as np
import pytest
from numpy.typing import NDArray

from stream_app.compiled import compiled
from stream_app.unowned import STACK_BYTES, borrowed, on_stack


class _Inner(NamedTuple):
    rows: NDArray[np.int32]
    scale: float


class _Outer(NamedTuple):
    table: NDArray[np.float32]
    inner: _Inner


@compiled
def _by_rows(given: _Outer) -> float:
    total = 0.0
    for row in given.inner.rows:
        of_row = given.table[row]
        for column in range(len(of_row)):
            total += of_row[column] * given.inner.scale
    return total


@compiled
def _borrowing(given: _Outer, out: NDArray[np.float64]) -> None:
    given, out = borrowed(given), borrowed(out)
    for place in range(len(out)):
        out[place] = _by_rows(given)


@compiled
def _counted(count: int, width: int, out: NDArray[np.float64]) -> float:
    numbers, square, empty = on_stack(count, np.float64), on_stack((3, width), np.int16), on_stack(0, np.bool_)
    for place in range(count):
        numbers[place] = place
    square[:] = 0
    square[1] = 2
    for place in range(min(count, len(out))):
        out[place] = numbers[place]
    return float(numbers.sum()) + float(square.sum()) + len(empty)


def test_what_is_borrowed_is_read_and_written_and_stays_its_owners() -> None:
    table = np.arange(12, dtype=np.float32).reshape(4, 3)
    rows, out = np.array([0, 3, 3], np.int32), np.zeros(5)
    held = [sys.getrefcount(array) for array in (table, rows, out)]
    for _ in range(1_000):
        _borrowing(_Outer(table, _Inner(rows, 2.0)), out)
    assert out.tolist() == [2.0 * (3 + 30 + 30)] * 5
    assert [sys.getrefcount(array) for array in (table, rows, out)] == held
    assert table.tolist() == np.arange(12).reshape(4, 3).tolist()


@pytest.mark.parametrize("count", [0, 1, 100, STACK_BYTES // 8, STACK_BYTES // 8 + 1, 100_000])
@pytest.mark.parametrize("width", [0, 5, STACK_BYTES // 6, STACK_BYTES])
def test_an_array_on_the_stack_is_as_any_other_and_a_large_one_is_not_on_it(count: int, width: int) -> None:
    out = np.full(100, -1.0)
    for _ in range(200):
        assert _counted(count, width, out) == count * (count - 1) / 2 + 2 * width
    assert out.tolist() == [*range(min(count, 100)), *([-1.0] * (100 - min(count, 100)))]


@compiled
def _nested(depth: int, out: NDArray[np.float64]) -> float:
    total = 0.0
    for turn in range(depth):
        total += _counted(4_000, 5_000, out) + turn
    return total


def test_what_a_called_function_took_is_given_back_when_it_returns() -> None:
    # A hundred thousand times 60 KiB would be 6 GB of stack.
    turns = 100_000
    expected = turns * (4_000 * 3_999 / 2 + 10_000) + turns * (turns - 1) / 2
    assert _nested(turns, np.zeros(1)) == pytest.approx(expected)


def test_neither_takes_what_it_cannot_hold() -> None:
    @compiled
    def of_text(given: Any) -> Any:
        return on_stack(given, np.float64)

    with pytest.raises(Exception, match="on_stack"):
        of_text("three")
