"""The interface of a candidate source, and what a source sees of a request.

A new source is one file with one class: give it a name, propose rows, add it to ``stream_app.retrieval.SOURCES``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from stream_app.factors.table import Factors
from stream_app.items.catalogue import Catalogue
from stream_app.items.signals import Signals
from stream_app.retrieval.interests import Interests
from stream_app.retrieval.links import Links, Scratch
from stream_app.settings import RetrievalSettings

__all__ = ["Context", "Source", "best"]


@dataclass(frozen=True, slots=True)
class Context:
    """One request as sources see it.

    Attributes:
        near: int32 [2, k], rows nearest to the slow and to the fast vector, best first, -1 where there are none.
        near_similarity: float32 [2, k], their cosines.
        cold_rows: int32 [c], cold items.
        cold_similarity: float32 [c], their cosines to the slow vector.
        cold_counts: float64 [c], their decayed counts.
        seed: a hash of the user, for choices that are random but the same every time.
        columns: popularity columns (half-lives and all time).
    """

    interests: Interests
    links: Links
    near: NDArray[np.int32]
    near_similarity: NDArray[np.float32]
    cold_rows: NDArray[np.int32]
    cold_similarity: NDArray[np.float32]
    cold_counts: NDArray[np.float64]
    catalogue: Catalogue
    signals: Signals
    factors: Factors
    settings: RetrievalSettings
    servable: NDArray[np.bool_]
    scratch: Scratch
    request: int
    seed: int

    def allowed(self, rows: NDArray[np.int32]) -> NDArray[np.int32]:
        """Those of ``rows`` that may be recommended to this user now, in the same order."""
        kept: NDArray[np.int32] = rows[self.servable[rows] & (self.scratch.blocked[rows] != self.request)]
        return kept


class Source(Protocol):
    """Proposes candidates for a request."""

    @property
    def name(self) -> str:
        """Stable; published in slates."""

    def propose(self, context: Context) -> NDArray[np.int32]:
        """Distinct allowed rows, int32, best first."""


def best(rows: NDArray[np.int32], scores: NDArray[np.floating], count: int, catalogue: Catalogue) -> NDArray[np.int32]:
    """The ``count`` rows with the largest scores, best first; ties go to the smaller id hash.

    Scores are compared in steps of 1e-6: sums in another order must not change what is proposed.
    """
    if not count:
        return rows[:0]
    if len(rows) > 4 * count:
        floor = np.partition(scores, len(scores) - count)[len(scores) - count]
        kept = scores >= floor - 1e-6
        rows, scores = rows[kept], scores[kept]
    order = np.lexsort((catalogue.id_hash[rows], -np.rint(scores * 1e6)))[:count]
    return rows[order]
