"""The text source with adapted vectors, scored exactly as the baseline ``text`` is, and how much better it is."""

from __future__ import annotations

from array import array
from math import sqrt
from typing import Final

import numpy as np
from numpy.typing import NDArray

from stream_app.evaluation.baselines import Told
from stream_app.evaluation.baselines.text import Text
from stream_app.evaluation.metrics import Estimate

__all__ = ["Adapted", "paired"]

_Z: Final = 1.959964


class Adapted(Text):
    """Nearest to the mean of what the user took, in vectors that may be replaced by others of another space.

    Args:
        vectors: float32 [items, dimensions], unit vectors by row, zeros where there is none; taken as they are.
    """

    name = "adapted"

    def __init__(self, vectors: NDArray[np.float32]) -> None:
        self._vectors = vectors
        self._sums: dict[int, NDArray[np.float32]] = {}
        self._taken: dict[int, array[int]] = {}

    def serve(self, vectors: NDArray[np.float32]) -> None:
        """From now on rank with these; what users took is remembered as items, so no two spaces meet."""
        self._vectors = vectors
        self._sums = {}

    def test(
        self, user: int, at: float, had: NDArray[np.int32], tested: NDArray[np.int32]
    ) -> tuple[NDArray[np.float32], NDArray[np.int32]]:
        """See ``Baseline``."""
        if user not in self._sums and user in self._taken:
            self._sums[user] = self._vectors[np.frombuffer(self._taken[user], np.int32)].sum(axis=0)
        return super().test(user, at, had, tested)

    def learn(self, told: Told) -> None:
        """See ``Baseline``."""
        self._taken.setdefault(told.user, array("i")).extend(told.rows.tolist())
        if told.user in self._sums:
            self._sums[told.user] += self._vectors[told.rows].sum(axis=0)


def paired(gains: NDArray[np.float64], users: NDArray[np.int32]) -> Estimate:
    """The mean difference of two rankings on the same tests, with a 95 % interval that takes users as drawn, not tests.

    Tests of one user come out alike, so an interval that takes them as independent is too narrow. The variance is that
    of a sum over users (Liang and Zeger 1986, doi 10.1093/biomet/73.1.13, for a mean).

    Args:
        gains: float64 [tests], the one's figure less the other's.
        users: int32 [tests], numbers of the users, from 0.
    """
    tests = len(gains)
    if not tests:
        return Estimate(None, None, None)
    middle = float(gains.mean())
    sums = np.bincount(users, weights=gains - middle)
    groups = int((np.bincount(users) > 0).sum())
    if groups < 2:
        return Estimate(middle, -1.0, 1.0)
    half = _Z * sqrt(float(sums @ sums) * groups / (groups - 1)) / tests
    return Estimate(middle, middle - half, middle + half)
