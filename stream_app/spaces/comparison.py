"""Two spaces of the same items compared: what is near to what in each, and which is nearer to what people do. Pure."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

__all__ = ["mean_cosine", "nearest", "overlap", "taken_near"]

_SLICE = 512


def nearest(vectors: NDArray[np.float32], count: int) -> NDArray[np.int64]:
    """The ``count`` items nearest to each by cosine, itself left out, nearest first: int64 [n, count].

    Args:
        vectors: float32 [n, dimensions], unit length; more than ``count`` of them.

    Raises:
        ValueError: when there are too few.
    """
    if len(vectors) <= count:
        raise ValueError(f"{count} neighbours among {len(vectors)} items")
    found = np.empty((len(vectors), count), np.int64)
    for start in range(0, len(vectors), _SLICE):
        cosines = vectors[start : start + _SLICE] @ vectors.T
        rows = np.arange(len(cosines))
        cosines[rows, start + rows] = -np.inf
        best = np.argpartition(-cosines, count - 1, axis=1)[:, :count]
        order = np.argsort(-np.take_along_axis(cosines, best, axis=1), axis=1, kind="stable")
        found[start : start + _SLICE] = np.take_along_axis(best, order, axis=1)
    return found


def overlap(one: NDArray[np.int64], other: NDArray[np.int64]) -> float:
    """Of each item's neighbours in one space, the share that are neighbours in the other: mean of [n, k] and [n, k]."""
    same = [np.intersect1d(left, right, assume_unique=True).size for left, right in zip(one, other, strict=True)]
    return float(np.mean(same) / one.shape[1]) if len(one) else 0.0


def mean_cosine(vectors: NDArray[np.float32]) -> float:
    """Of two different items drawn at random; vectors float32 [n, dimensions], unit length, two at least."""
    total = vectors.sum(axis=0, dtype=np.float64)
    count = len(vectors)
    return float((total @ total - count) / (count * (count - 1)))


def taken_near(neighbours: NDArray[np.int64], taken: dict[int, list[int]]) -> float:
    """Of the items that people take together with an item, the share that are among its neighbours: recall, averaged
    over items.

    Args:
        neighbours: int64 [n, k].
        taken: items by item, none empty.
    """
    shares = [np.isin(others, neighbours[item]).mean() for item, others in taken.items()]
    return float(np.mean(shares)) if shares else 0.0
