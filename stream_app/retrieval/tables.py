"""What ranking reads, by row of the catalogue: arrays for compiled functions, one object for all of them."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from stream_app.items.signals import Arena

__all__ = ["Tables"]


class Tables(NamedTuple):
    """Views of a serving state, for one time; read-only, and good until it changes (``ServingState.tables``).

    There is room for every row of the catalogue in each of them.

    Attributes:
        servable: bool by row, whether the item may be shown to anybody.
        hashes: int64 by row, of the ids: the order of ties.
        published_at: float64 by row, seconds since 1970, -inf where unknown.
        vectors: float32 [rows, dimensions], zeros where there is none.
        present: bool by row, whether there is a vector.
        codes, steps: the vectors in whole numbers (:class:`stream_app.codes.Codes`).
        counts: float64 [rows, columns], see ``Signals.counts``.
        shown: float64 by row, how often each was shown while it was new.
        rates: float64 [columns], half-lives per second.
        arena: links between items.
        transition_rate: half-lives of links per second.
        tops: int32 [columns, t], rows with the largest counts of each column, best first.
        top_counts: int64 [columns], how many of them.
        context, target: float32 [rows, factors], learned factors.
        bias: float32 by row.
        has_factors: bool by row.
        factor_codes, factor_steps: ``target`` in whole numbers.
        cold: int32 [c], new items that are looked at.
        cold_codes, cold_steps: their vectors in whole numbers.
    """

    servable: NDArray[np.bool_]
    hashes: NDArray[np.int64]
    published_at: NDArray[np.float64]
    vectors: NDArray[np.float32]
    present: NDArray[np.bool_]
    codes: NDArray[np.int8]
    steps: NDArray[np.float32]
    counts: NDArray[np.float64]
    shown: NDArray[np.float64]
    rates: NDArray[np.float64]
    arena: Arena
    transition_rate: float
    tops: NDArray[np.int32]
    top_counts: NDArray[np.int64]
    context: NDArray[np.float32]
    target: NDArray[np.float32]
    bias: NDArray[np.float32]
    has_factors: NDArray[np.bool_]
    factor_codes: NDArray[np.int8]
    factor_steps: NDArray[np.float32]
    cold: NDArray[np.int32]
    cold_codes: NDArray[np.int8]
    cold_steps: NDArray[np.float32]
