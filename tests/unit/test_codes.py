"""Vectors in 8-bit whole numbers, compared with float32."""

from __future__ import annotations

import numpy as np
import pytest

from stream_app.codes import Codes, scan_codes


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
