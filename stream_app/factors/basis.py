"""Where an item's factors start: a projection of its text vector, so that an item nobody has touched has some too.

The projection keeps the directions in which the catalogue's texts differ most, evened out half-way (each scaled by
its variance to the power of -1/4). Started from there, and not from noise, the factor model ranks far better: hit rate
at 10 of .058 instead of .052 on Online Retail, .078 instead of .053 on MovieLens.

A basis is fitted once. One that was fitted to few items lacks directions; it can be extended by further ones, and those
it has stay: factors that were learned stay comparable with those that start later.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from schemas import messages
from schemas.arrays import learnable, pack_float32, unpack_float32

__all__ = ["FactorBasis", "carry_basis", "extend_basis", "fit_basis", "without_text"]

_EVENNESS = 0.003
"""Share of the largest variance added to each, so that directions that hardly vary are not blown up."""
_ITEMS_PER_DIRECTION = 2
"""With fewer items than this for each, the last directions are those of single items."""


@dataclass(frozen=True, slots=True)
class FactorBasis:
    """A projection of encoder vectors to factors.

    Attributes:
        space: the vector space it takes vectors of.
        mean: float32 [dimensions].
        matrix: float32 [dimensions, k]; columns of zeros are directions not found yet.
        origin: the space whose basis it was carried over from; empty: its own.
    """

    space: str
    mean: NDArray[np.float32]
    matrix: NDArray[np.float32]
    origin: str = ""

    @property
    def frame(self) -> str:
        """Factors that start from bases of one frame can be compared."""
        return self.origin or self.space

    @property
    def columns(self) -> NDArray[np.bool_]:
        """Which directions were found: bool [k]."""
        found: NDArray[np.bool_] = (self.matrix != 0.0).any(axis=0)
        return found

    @property
    def found(self) -> int:
        """How many directions were found."""
        return int(np.count_nonzero(self.columns))

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
            frame=self.origin,
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
        if not learnable(mean, matrix):
            raise ValueError(f"the basis of {message.space!r} holds values that are not finite, or too large")
        return cls(message.space, mean, matrix.reshape(message.dimensions, message.factors), message.frame)

    def same_as(self, other: FactorBasis | None) -> bool:
        """Whether items start at the same place."""
        return (
            other is not None
            and self.space == other.space
            and self.frame == other.frame
            and np.array_equal(self.mean, other.mean)
            and np.array_equal(self.matrix, other.matrix)
        )


def fit_basis(vectors: NDArray[np.float32], *, space: str, factors: int, length: float) -> FactorBasis:
    """The basis of a catalogue.

    Args:
        vectors: float32 [n, dimensions] as the encoder made them; the order of the rows does not matter beyond
            rounding. With fewer than two rows per factor the missing directions stay zero.
        space: their vector space.
        factors: how many.
        length: root mean square length of the projections.
    """
    values = vectors.astype(np.float64)
    dimensions = values.shape[1] if values.ndim == 2 else 0
    mean = values.mean(axis=0) if len(values) else np.zeros(dimensions)
    matrix = np.zeros((dimensions, factors))
    axes = _axes(values - mean, min(factors, len(values) // _ITEMS_PER_DIRECTION), length)
    matrix[:, : axes.shape[1]] = axes
    return FactorBasis(space, mean.astype(np.float32), matrix.astype(np.float32))


def extend_basis(basis: FactorBasis, vectors: NDArray[np.float32], *, length: float) -> FactorBasis:
    """The same basis with directions added that a larger catalogue shows; those that it has stay to the bit.

    Args:
        basis: fitted to fewer items than it has factors for.
        vectors: float32 [n, dimensions], all of the catalogue.
        length: root mean square length of the projections, of which the new directions take their share.
    """
    found = basis.columns
    free = np.flatnonzero(~found)
    wanted = min(len(free), len(vectors) // _ITEMS_PER_DIRECTION - basis.found)
    if wanted <= 0:
        return basis
    values = vectors.astype(np.float64)
    mean = values.mean(axis=0)
    # Orthogonal to what is there, and to the step between the means, which every item would share.
    taken = np.column_stack([basis.matrix[:, found].astype(np.float64), mean - basis.mean])
    kept, weights, _ = np.linalg.svd(taken, full_matrices=False)
    kept = kept[:, weights > 1e-6 * max(float(weights.max(initial=0.0)), 1e-12)]
    values -= mean
    values -= (values @ kept) @ kept.T
    axes = _axes(values, wanted, length * (wanted / (wanted + basis.found)) ** 0.5)
    matrix = basis.matrix.copy()
    matrix[:, free[: axes.shape[1]]] = axes.astype(np.float32)
    return FactorBasis(basis.space, basis.mean, matrix, basis.origin)


def _axes(values: NDArray[np.float64], count: int, length: float) -> NDArray[np.float64]:
    """The ``count`` strongest axes of centred rows, evened out half-way: float64 [dimensions, at most count]."""
    count = min(count, values.shape[1] if values.ndim == 2 else 0)
    if count < 1:
        return np.zeros((values.shape[-1], 0))
    variances, axes = np.linalg.eigh(values.T @ values / len(values))
    variances, axes = np.maximum(variances[::-1][:count], 0.0), axes[:, ::-1][:, :count]
    if variances[0] <= 1e-12:
        return axes[:, :0]
    # An axis has two directions; the one in which its largest component is positive is taken.
    signs = np.sign(axes[np.abs(axes).argmax(axis=0), np.arange(count)])
    scaled: NDArray[np.float64] = axes * signs * (variances + _EVENNESS * variances[0]) ** -0.25
    along = values @ scaled
    scaled *= length / max(float(np.sqrt((along * along).sum(axis=1).mean())), 1e-12)
    return scaled


def carry_basis(basis: FactorBasis, old: NDArray[np.float32], new: NDArray[np.float32], *, space: str) -> FactorBasis:
    """The basis of another vector space from which items start nearest to where they started from ``basis``.

    What was learned stays where it is: rows that started there and here can be compared. Linear regression of the
    factors on the new vectors (ridge, Hoerl and Kennedy 1970), so a model that says less of what the old one said draws
    new items nearer to the middle, which is the best guess there is of them.

    Args:
        basis: in force.
        old: float32 [n, dimensions] of its space, the items both spaces have.
        new: float32 [n, other dimensions] of the other one, row for row.
        space: the name of the other one.

    Raises:
        ValueError: when there are not as many old vectors as new ones, or none.
    """
    if len(old) != len(new) or not len(new):
        raise ValueError(f"a basis is carried over with the same items in both spaces, not {len(old)} and {len(new)}")
    wanted = basis.project(old).astype(np.float64)
    middle, mean = wanted.mean(axis=0), new.mean(axis=0, dtype=np.float64)
    centred = new.astype(np.float64) - mean
    covariance = centred.T @ centred
    # Directions in which hardly any text differs say nothing, and would be blown up.
    ridge = _EVENNESS * max(float(np.linalg.eigvalsh(covariance)[-1]), 1e-12)
    matrix = np.linalg.solve(covariance + ridge * np.eye(len(covariance)), centred.T @ (wanted - middle))
    found = basis.columns
    matrix[:, ~found] = 0.0
    # Where the mean has to lie for the items' middle to stay what it was, as nearly as the new space allows.
    mean -= middle[found] @ np.linalg.pinv(matrix[:, found])
    return FactorBasis(space, mean.astype(np.float32), matrix.astype(np.float32), basis.frame)


def without_text(item_hash: int, factors: int, length: float) -> NDArray[np.float32]:
    """Factors to start with for an item without a vector: small noise that depends on its id alone, float32 [k]."""
    noise = np.random.default_rng(item_hash & 0xFFFFFFFFFFFFFFFF).normal(0.0, 0.1 * length / factors**0.5, factors)
    return noise.astype(np.float32)
