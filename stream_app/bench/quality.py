"""The quality gate of precisions: one is only on offer where its vectors find what those in float32 find.

Rounding moves every vector a little. What counts is whether neighbours stay neighbours, so both are measured: the mean
cosine of a text's two vectors, and the overlap of its nearest texts. Pure; float32 vectors in, figures out.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

__all__ = ["LEAST_MEAN_COSINE", "LEAST_OVERLAP", "NEIGHBOURS", "Quality", "overlap", "quality_of"]

LEAST_MEAN_COSINE: Final = 0.99
LEAST_OVERLAP: Final = 0.90
"""The gate, over some four thousand titles. Of fewer, the nearest lie farther apart and more of them are kept."""
NEIGHBOURS: Final = 10


@dataclass(frozen=True, slots=True, kw_only=True)
class Quality:
    """Of vectors against exact ones.

    Attributes:
        mean_cosine, least_cosine: of each text's two vectors.
        overlap: share of each text's ten nearest that are the same, on average.
    """

    mean_cosine: float
    least_cosine: float
    overlap: float

    @property
    def passes(self) -> bool:
        """Whether the gate is passed; figures that are no numbers do not."""
        return self.mean_cosine >= LEAST_MEAN_COSINE and self.overlap >= LEAST_OVERLAP


def quality_of(exact: NDArray[np.float32], vectors: NDArray[np.float32]) -> Quality:
    """How near ``vectors`` are to ``exact``: unit vectors of the same texts, float32 [n, dimensions] with n > 10."""
    cosines = np.einsum("nd,nd->n", exact, vectors)
    return Quality(
        mean_cosine=float(cosines.mean()),
        least_cosine=float(cosines.min()),
        overlap=overlap(exact, vectors, NEIGHBOURS),
    )


def overlap(one: NDArray[np.float32], other: NDArray[np.float32], k: int) -> float:
    """The share of each text's ``k`` nearest by ``one`` that are among its ``k`` nearest by ``other``, on average.

    Args:
        one, other: unit vectors of the same texts, float32 [n, dimensions]; ``n`` must be greater than ``k``.
        k: how many; a text is not its own neighbour.
    """
    nearest = []
    for vectors in (one, other):
        similar = vectors @ vectors.T
        np.fill_diagonal(similar, -np.inf)
        nearest.append(np.argpartition(-similar, k - 1, axis=1)[:, :k])
    both = [len(np.intersect1d(a, b, assume_unique=True)) for a, b in zip(*nearest, strict=True)]
    return float(np.mean(both)) / k
