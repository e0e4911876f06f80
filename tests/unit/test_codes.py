"""Vectors in 8-bit whole numbers, compared with float32."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from stream_app.codes import WORD, ZERO, Codes, code_products, four_products, in_words, scan_codes, two_products
from stream_app.compiled import compiled


@pytest.mark.parametrize("columns", [1, 15, 16, 17, 64, 384])
def test_products_of_codes_are_those_of_the_vectors_to_a_part_of_their_lengths(columns: int) -> None:
    rng = np.random.default_rng(columns)
    vectors = rng.normal(size=(200, columns)).astype(np.float32)
    vectors *= rng.uniform(0.01, 100.0, size=(200, 1)).astype(np.float32)
    queries = rng.normal(size=(2, columns)).astype(np.float32)
    codes = Codes(columns, 200)
    codes.take(np.arange(200), vectors)
    products = np.empty((2, 200), np.float32)
    scan_codes(queries, codes.values, codes.steps, products)
    lengths = np.linalg.norm(queries, axis=1)[:, None] * np.linalg.norm(vectors, axis=1)
    assert np.abs(products - queries @ vectors.T).max() <= (0.02 * lengths).max()
    off = np.abs(products - queries @ vectors.T) / lengths
    assert off.max() < 0.02
    assert off.mean() < 0.005


def test_the_largest_codes_do_not_overflow() -> None:
    """Everything at the edge of 8 bits, and long: sums of 32 bits hold it."""
    columns = 4_096
    vectors = np.ones((3, columns), np.float32)
    vectors[1] = -1.0
    vectors[2] = 0.0
    codes = Codes(columns, 3)
    codes.take(np.arange(3), vectors)
    products = np.empty((2, 3), np.float32)
    scan_codes(vectors[:2], codes.values, codes.steps, products)
    np.testing.assert_allclose(products, vectors[:2] @ vectors.T, rtol=1e-5)


@compiled
def _both(codes: NDArray[np.int8], words: NDArray[Any], found: NDArray[np.int64]) -> None:
    """Products of four queries with each row by twos and by fours: int64 [2, rows, 4], overwritten."""
    one, two, three, four = words[0], words[1], words[2], words[3]
    for row in range(len(codes)):
        found[0, row, 0], found[0, row, 1] = two_products(codes, row, one, two)
        found[0, row, 2], found[0, row, 3] = two_products(codes, row, three, four)
        products = four_products(codes, row, one, two, three, four)
        for query in range(4):
            found[1, row, query] = products[query]


@pytest.mark.parametrize("width", [64, 384, 4_096, 64_000])
def test_by_twos_and_by_fours_products_are_exactly_those_of_whole_numbers(width: int) -> None:
    rng = np.random.default_rng(width)
    codes = rng.integers(-127, 128, size=(7, width)).astype(np.int8)
    words = rng.integers(-127, 128, size=(4, width)).astype(np.int16)
    codes[0], words[0], words[3] = 127, 127, -127
    found = np.zeros((2, 7, 4), np.int64)
    _both(codes, (words + ZERO).astype(WORD), found)
    assert found.tolist() == [(codes.astype(np.int64) @ words.astype(np.int64).T).tolist()] * 2


@pytest.mark.parametrize("asked", range(10))
@pytest.mark.parametrize("looked_at", [0, 1, 2, 7, 33])
def test_products_of_some_rows_are_exactly_those_of_their_codes(asked: int, looked_at: int) -> None:
    rng = np.random.default_rng(asked)
    table = rng.normal(size=(50, 40)).astype(np.float32)
    queries = rng.normal(size=(asked, 40)).astype(np.float32)
    codes = Codes(40, 50)
    codes.take(np.arange(50), table)
    rows = rng.permutation(50)[:looked_at].astype(np.int32)
    products = np.full((looked_at, asked), np.nan, np.float32)
    code_products(rows, codes.values, codes.steps, queries, products)
    words, steps = np.empty((asked, codes.values.shape[1]), WORD), np.empty(asked, np.float32)
    in_words(queries, words, steps)
    whole = codes.values[rows].astype(np.int64) @ (words.astype(np.int64) - ZERO).T
    assert np.array_equal(products, whole.astype(np.float32) * codes.steps[rows, None] * steps)
    assert np.abs(products - table[rows] @ queries.T).max(initial=0.0) < 0.02 * 40


def test_rows_are_taken_and_kept_when_there_is_more_room() -> None:
    rng = np.random.default_rng(0)
    table = rng.normal(size=(10, 20)).astype(np.float32)
    codes, other = Codes(20, 4), Codes(20, 10)
    codes.take(np.array([3, 1]), table)
    codes.reserve(10)
    codes.take(np.array([7]), table)
    other.take(np.array([1, 3, 7]), table)
    assert np.array_equal(codes.values, other.values)
    assert np.array_equal(codes.steps, other.steps)
    codes.reserve(5)
    assert len(codes.steps) == 10


@pytest.mark.parametrize(
    "compiled_for",
    [
        {"NUMBA_CPU_NAME": "generic", "NUMBA_CPU_FEATURES": ""},
        {"NUMBA_CPU_NAME": "generic", "NUMBA_CPU_FEATURES": "+avx2,+fma"},
        {"NUMBA_ENABLE_AVX": "0"},
    ],
)
def test_products_are_the_same_on_a_processor_with_fewer_instructions(
    tmp_path: Path, compiled_for: dict[str, str]
) -> None:
    """In a process that compiles for one; without the instructions that this processor may have."""
    tests = [f"{__file__}::{name}" for name in globals() if name.startswith("test_") and "fewer" not in name]
    environment = {**compiled_for, "NUMBA_CACHE_DIR": str(tmp_path)}
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *tests]
    done = subprocess.run(
        command, env={**os.environ, **environment}, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
