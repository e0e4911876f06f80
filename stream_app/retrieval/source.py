"""The interface of a candidate source, and what a source sees of a request.

A new source is one file with one class: give it a name, propose rows, add it to ``stream_app.retrieval.sources``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from stream_app.codes import Codes
from stream_app.compiled import compiled
from stream_app.heap import drain, keep_best
from stream_app.items.catalogue import Catalogue
from stream_app.items.signals import Signals
from stream_app.retrieval.interests import Interests
from stream_app.retrieval.links import Links, Scratch
from stream_app.settings import RetrievalSettings

__all__ = ["Context", "Near", "Source", "best"]


@dataclass(slots=True)
class Near:
    """Neighbours of the slow and of the fast interest vector.

    Attributes:
        rows: int32 [2, k], best first, -1 where there are none.
        similarity: float64 [2, k], their cosines, to the error of codes (:mod:`stream_app.codes`).
    """

    rows: NDArray[np.int32]
    similarity: NDArray[np.float64]


@dataclass(slots=True)
class Context:
    """One request as sources see it; not to be changed (it is not frozen because making it would take three times as
    long).

    Attributes:
        near: what is nearest to the slow and to the fast vector.
        cold_rows: int32 [c], cold items.
        cold_counts: float64 [c], their decayed counts.
        codes: unit vectors by row, in whole numbers, zeros where there is none.
        by_factors: int32 [2, k], allowed rows with the largest scores by learned factors, with a long and with a short
            memory, best first, -1 where there are none.
        seed: a hash of the user, for choices that are random but the same every time.
        columns: popularity columns (half-lives and all time).
    """

    interests: Interests
    links: Links
    near: Near
    cold_rows: NDArray[np.int32]
    cold_counts: NDArray[np.float64]
    codes: Codes
    catalogue: Catalogue
    signals: Signals
    by_factors: NDArray[np.int32]
    settings: RetrievalSettings
    servable: NDArray[np.bool_]
    scratch: Scratch
    request: int
    seed: int

    def first_allowed(self, rows: NDArray[np.int32], count: int) -> NDArray[np.int32]:
        """The first ``count`` of ``rows`` that may be recommended to this user now, in the same order."""
        if not len(rows):
            return rows
        kept = np.empty(min(count, len(rows)), np.int32)
        return kept[: _first(rows, self.servable, self.scratch.blocked, self.request, kept)]

    def best(self, rows: NDArray[np.int32], scores: NDArray[np.floating], count: int) -> NDArray[np.int32]:
        """The ``count`` of ``rows`` with the largest scores that may be recommended to this user now, best first.

        Args:
            rows: int32 [n]; negative ones are left out.
            scores: [n], compared in steps of 1e-6: sums in another order must not change what is proposed. Ties go to
                the smaller id hash.
            count: how many.
        """
        kept = np.empty(min(count, len(rows)), np.int32)
        if not len(kept):
            return kept
        hashes = self.catalogue.id_hash
        return kept[: best(rows, scores, self.servable, self.scratch.blocked, self.request, hashes, kept)]


class Source(Protocol):
    """Proposes candidates for a request."""

    @property
    def name(self) -> str:
        """Stable; published in slates."""

    def propose(self, context: Context) -> NDArray[np.int32]:
        """Distinct allowed rows, int32, best first."""


@compiled
def best(
    rows: NDArray[np.int32],
    scores: NDArray[np.floating],
    servable: NDArray[np.bool_],
    blocked: NDArray[np.int64],
    request: int,
    hashes: NDArray[np.int64],
    kept: NDArray[np.int32],
) -> int:
    """:meth:`Context.best` over plain arrays; how many of ``kept`` were filled."""
    kept_scores = np.empty(len(kept))
    ties = np.empty(len(kept), np.int64)
    found = 0
    for place, row in enumerate(rows):
        if row >= 0 and servable[row] and blocked[row] != request:
            score = np.rint(scores[place] * 1e6)
            # Asked here too, because a call takes longer than the answer.
            if found < len(kept) or score >= kept_scores[0]:
                found = keep_best(kept, kept_scores, ties, found, row, score, hashes[row])
    drain(kept, kept_scores, ties, found)
    return found


@compiled
def _first(
    rows: NDArray[np.int32],
    servable: NDArray[np.bool_],
    blocked: NDArray[np.int64],
    request: int,
    kept: NDArray[np.int32],
) -> int:
    found = 0
    for row in rows:
        if found == len(kept):
            break
        if servable[row] and blocked[row] != request:
            kept[found] = row
            found += 1
    return found
