"""Half-whitening: a vector space fitted to a catalogue, in which its items lie further apart.

Embeddings of one catalogue share most of what they say ("this is a gift", "this is a film"): they have a large common
part and vary mainly along few axes, so cosines are all high and differ little. Centring and dividing every principal
axis by the fourth root of its variance (the square root of what full whitening divides by) evens that out without
blowing up the axes that hold only noise. After Su et al. 2021 (arXiv:2103.15316, whitening of sentence embeddings) and
Mu and Viswanath 2018 (arXiv:1702.01417, removal of the mean and the strongest directions).

The transform rotates to the principal axes, scales, and rotates back: cosines are those of half-whitening, vectors keep
their number of dimensions, and with little data or equal variances it becomes the identity. It can be inverted for
vectors of unit length, so that the vectors of one space can be taken to another without the raw ones being kept.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

__all__ = ["Statistics", "Whitening", "fit"]

_EPSILON = 0.005
"""Variance added to every axis, as a share of the largest. Of 0 to 1 the smallest were the best on two data sets;
above 0, so that an axis without any variance stays bounded."""
_MEAN_PRIOR = 20.0
"""With this many vectors half of their mean is subtracted. Measured on catalogues of 12 to 1,000 items: with none, the
smallest lose."""
_COVARIANCE_PRIOR = 0.5
"""With this many vectors per dimension, half of each axis' variance is replaced by the mean variance."""
_LEAST_VARIANCE = 1e-4
"""Total variance (1 at most) at which vectors count as half equal: what they share is then what they are."""
_BLOCK = 1_024


class Statistics:
    """Count, sum and sum of outer products of vectors; what a whitening is fitted from.

    Args:
        dimensions: length of the vectors.

    Attributes:
        count: vectors added.
        total: float64 [dimensions], their sum.
        outer: float64 [dimensions, dimensions], the sum of their outer products.
    """

    def __init__(self, dimensions: int) -> None:
        self.count = 0
        self.total: NDArray[np.float64] = np.zeros(dimensions)
        self.outer: NDArray[np.float64] = np.zeros((dimensions, dimensions))

    def add(self, vectors: NDArray[np.float32]) -> None:
        """Count vectors, [n, dimensions], in."""
        for start in range(0, len(vectors), _BLOCK):
            block = vectors[start : start + _BLOCK].astype(np.float64)
            self.count += len(block)
            self.total += block.sum(axis=0)
            self.outer += block.T @ block


@dataclass(frozen=True, eq=False)
class Whitening:
    """An invertible map of unit vectors to unit vectors.

    Attributes:
        mean: float32 [dimensions], what is subtracted (the vectors' mean, shrunk towards 0).
        axes: float16 [r, dimensions], orthonormal up to rounding: the principal axes, largest variance first.
        scales: float32 [r], by which each is multiplied, relative to all directions outside of the axes.
    """

    mean: NDArray[np.float32]
    axes: NDArray[np.float16]
    scales: NDArray[np.float32]

    @property
    def dimensions(self) -> int:
        """Length of the vectors."""
        return len(self.mean)

    @cached_property
    def _matrix(self) -> NDArray[np.float64]:
        """[dimensions, dimensions], symmetric: rotate, scale, rotate back."""
        axes = self.axes.astype(np.float64)
        return np.eye(self.dimensions) + (axes.T * (self.scales.astype(np.float64) - 1.0)) @ axes

    @cached_property
    def _forward(self) -> NDArray[np.float32]:
        return self._matrix.astype(np.float32)

    @cached_property
    def _backward(self) -> NDArray[np.float32]:
        return np.linalg.inv(self._matrix).astype(np.float32)

    def apply(self, vectors: NDArray[np.float32]) -> NDArray[np.float32]:
        """Vectors of this space for raw ones, float32 [n, dimensions], unit length; zeros stay zeros."""
        raw = _unit(vectors)
        # What cannot be told from the mean has no direction of its own left; it keeps the raw one.
        moved = np.asarray((raw - self.mean) @ self._forward, np.float32)
        lost = np.einsum("nd,nd->n", moved, moved) < 1e-10
        zero = ~raw.any(axis=1)
        moved[lost] = raw[lost]
        moved[zero] = 0.0
        return _unit(moved)

    def invert(self, vectors: NDArray[np.float32]) -> NDArray[np.float32]:
        """The raw unit vectors, float32 [n, dimensions], of vectors of this space; zeros stay zeros.

        A vector of this space says in which direction from the mean the raw one lies; that it has unit length says
        how far: one positive root, since the mean lies within the unit sphere.
        """
        backward: NDArray[np.float32] = vectors @ self._backward
        directions = _unit(backward)
        along = (directions @ self.mean).astype(np.float64)
        mean = self.mean.astype(np.float64)
        distance = np.sqrt(along * along + 1.0 - mean @ mean) - along
        raw: NDArray[np.float32] = directions * distance[:, None].astype(np.float32) + self.mean
        raw[~vectors.any(axis=1)] = 0.0
        return _unit(raw)


def fit(statistics: Statistics, *, axes: int | None = None) -> Whitening:
    """The half-whitening of what the statistics have seen; the identity when they have seen next to nothing.

    Args:
        statistics: of raw unit vectors.
        axes: principal axes with a scale of their own at most; all others get a common one. None: all.
    """
    count, dimensions = statistics.count, len(statistics.total)
    mean = statistics.total / max(count, 1)
    covariance = statistics.outer / max(count, 1) - np.outer(mean, mean)
    variance = max(float(np.trace(covariance)), 0.0)
    # Few vectors, or vectors that are all but equal: their mean is the vectors themselves.
    mean *= count / (count + _MEAN_PRIOR) * variance / (variance + _LEAST_VARIANCE)
    # Sample variances of few vectors are far more unequal than the true ones: towards equal ones (Ledoit and Wolf
    # 2004, doi 10.1016/S0047-259X(03)00096-4, with a fixed weight).
    weight = _COVARIANCE_PRIOR * dimensions / (count + _COVARIANCE_PRIOR * dimensions)
    values, vectors = np.linalg.eigh((covariance + covariance.T) / 2)
    values = np.maximum(values[::-1], 0.0)
    vectors = vectors[:, ::-1].T
    values = (1.0 - weight) * values + weight * max(variance / dimensions, 1e-12) + 1e-12
    kept = dimensions if axes is None else min(axes, dimensions)
    floor = _EPSILON * values[0]
    rest = float(values[kept:].mean()) if kept < dimensions else float(values[-1])
    scales = ((rest + floor) / (values[:kept] + floor)) ** 0.25
    # The sign of an axis is arbitrary (and without effect): largest component positive.
    signs = np.sign(np.take_along_axis(vectors, np.abs(vectors).argmax(axis=1)[:, None], axis=1))
    return Whitening(
        mean=mean.astype(np.float32),
        axes=(vectors * signs)[:kept].astype(np.float16),
        scales=scales.astype(np.float32),
    )


def _unit(vectors: NDArray[np.float32]) -> NDArray[np.float32]:
    """The vectors with unit length; zeros stay zeros."""
    vectors = np.asarray(vectors, np.float32)
    lengths = np.sqrt(np.einsum("nd,nd->n", vectors, vectors))
    lengths[lengths == 0] = 1.0
    unit: NDArray[np.float32] = vectors / lengths[:, None]
    return unit
