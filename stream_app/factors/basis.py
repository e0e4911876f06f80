"""Where an item's factors start: a projection of its text vector, so that an item nobody has touched has some too.

The projection keeps the directions in which the catalogue's texts differ most, evened out half-way (each scaled by
its variance to the power of -1/4). Started from there, and not from noise, the factor model ranks far better: hit rate
at 10 of .058 instead of .052 on Online Retail, .078 instead of .053 on MovieLens.

A basis is fitted once and then kept: factors that were learned stay comparable with those that start later.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from schemas import messages
from schemas.arrays import pack_float32, unpack_float32

__all__ = ["FactorBasis", "fit_basis", "without_text"]

_EVENNESS = 0.003
"""Share of the largest variance added to each, so that directions that hardly vary are not blown up."""


@dataclass(frozen=True, slots=True)
class FactorBasis:
    """A projection of encoder vectors to factors.

    Attributes:
        space: the vector space it takes vectors of.
        mean: float32 [dimensions].
        matrix: float32 [dimensions, k].
    """

    space: str
    mean: NDArray[np.float32]
    matrix: NDArray[np.float32]

    def project(self, vectors: NDArray[np.float32]) -> NDArray[np.float32]:
        """Factors to start with: float32 [n, dimensions] -> float32 [n, k]."""
        started: NDArray[np.float32] = ((vectors - self.mean) @ self.matrix).astype(np.float32)
        return started

    def message(self) -> messages.FactorBasis:
        """As published on ``factor-basis.v1``."""
        dimensions, factors = self.matrix.shape
        return messages.FactorBasis(
            space=self.space,
            dimensions=dimensions,
            factors=factors,
            mean=pack_float32(self.mean),
            matrix=pack_float32(self.matrix),
        )

    @classmethod
    def of(cls, message: messages.FactorBasis) -> FactorBasis:
        """The basis that was published.

        Raises:
            ValueError: when its arrays cannot be read or do not fit its sizes.
        """
        mean, matrix = unpack_float32(message.mean), unpack_float32(message.matrix)
        if len(mean) != message.dimensions or len(matrix) != message.dimensions * message.factors:
            raise ValueError(f"the basis of {message.space!r} has arrays of other sizes than it says")
        if not (np.isfinite(mean).all() and np.isfinite(matrix).all()):
            raise ValueError(f"the basis of {message.space!r} holds values that are not finite")
        return cls(message.space, mean, matrix.reshape(message.dimensions, message.factors))

    def same_as(self, other: FactorBasis | None) -> bool:
        """Whether items start at the same place."""
        return (
            other is not None
            and self.space == other.space
            and np.array_equal(self.mean, other.mean)
            and np.array_equal(self.matrix, other.matrix)
        )


def fit_basis(vectors: NDArray[np.float32], *, space: str, factors: int, length: float) -> FactorBasis:
    """The basis of a catalogue.

    Args:
        vectors: float32 [n, dimensions] as the encoder made them; the order of the rows does not matter beyond
            rounding. With fewer rows than factors the missing directions stay zero.
        space: their vector space.
        factors: how many.
        length: root mean square length of the projections.
    """
    values = vectors.astype(np.float64)
    dimensions = values.shape[1] if values.ndim == 2 else 0
    mean = values.mean(axis=0) if len(values) else np.zeros(dimensions)
    matrix = np.zeros((dimensions, factors))
    if len(values) > 1:
        values -= mean
        variances, axes = np.linalg.eigh(values.T @ values / len(values))
        count = min(factors, dimensions, len(values) - 1)
        variances, axes = np.maximum(variances[::-1][:count], 0.0), axes[:, ::-1][:, :count]
        if variances[0] > 1e-12:
            # An axis has two directions; the one in which its largest component is positive is taken.
            signs = np.sign(axes[np.abs(axes).argmax(axis=0), np.arange(count)])
            matrix[:, :count] = axes * signs * (variances + _EVENNESS * variances[0]) ** -0.25
            found = values @ matrix
            matrix *= length / max(float(np.sqrt((found * found).sum(axis=1).mean())), 1e-12)
    return FactorBasis(space, mean.astype(np.float32), matrix.astype(np.float32))


def without_text(item_hash: int, factors: int, length: float) -> NDArray[np.float32]:
    """Factors to start with for an item without a vector: small noise that depends on its id alone, float32 [k]."""
    noise = np.random.default_rng(item_hash & 0xFFFFFFFFFFFFFFFF).normal(0.0, 0.1 * length / factors**0.5, factors)
    return noise.astype(np.float32)
