"""Ranking metrics over tests that have one relevant item each, with 95 % intervals.

A test is a rank: the place of the item from 1 (a half where it ties), infinity when it was not found (a miss). Hit
rate, NDCG and reciprocal rank follow Järvelin and Kekäläinen 2002 (doi 10.1145/582415.582418) with one relevant item.
The interval of a hit rate is Wilson's (1927, doi 10.1080/01621459.1927.10502953), that of the other means the normal
one. Both take tests as independent; tests of one user are not quite, so the true intervals are a little wider.
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from math import sqrt
from typing import Final

import numpy as np
from numpy.typing import NDArray

from stream_app.compiled import compiled

__all__ = ["DEPTH", "FEW_TESTS", "SHOWN", "Estimate", "Ranks", "RanksBySource", "gains", "hit_rate", "mean", "wilson"]

SHOWN: Final = 10
"""Ranks that coverage looks at."""
_NONE_HAD: Final = np.zeros(0, np.bool_)
DEPTH: Final = 50
"""Places looked at; an item further down is a miss."""
FEW_TESTS: Final = 100
"""With fewer tests a figure says little and carries a warning."""
_Z: Final = 1.959964


@dataclass(frozen=True, slots=True)
class Estimate:
    """A mean over tests and its 95 % interval; all None when there was no test."""

    value: float | None
    low: float | None
    high: float | None


_NOTHING: Final = Estimate(None, None, None)


def wilson(hits: int, tests: int) -> Estimate:
    """The share ``hits / tests`` with Wilson's 95 % interval."""
    if not tests:
        return _NOTHING
    share, square = hits / tests, _Z * _Z
    centre = (share + square / (2 * tests)) / (1 + square / tests)
    half = _Z * sqrt(share * (1 - share) / tests + square / (4 * tests * tests)) / (1 + square / tests)
    return Estimate(share, min(share, max(0.0, centre - half)), max(share, min(1.0, centre + half)))


def mean(values: NDArray[np.float64]) -> Estimate:
    """The mean of ``values`` (float64 [tests], each from 0 to 1) with the normal 95 % interval."""
    tests = len(values)
    if not tests:
        return _NOTHING
    middle = float(values.mean())
    half = _Z * float(values.std(ddof=1)) / sqrt(tests) if tests > 1 else 1.0
    return Estimate(middle, max(0.0, middle - half), min(1.0, middle + half))


def hit_rate(ranks: NDArray[np.float32], k: int) -> Estimate:
    """Share of tests whose item stands among the first ``k``."""
    return wilson(int((ranks <= k).sum()), len(ranks))


def gains(ranks: NDArray[np.float32], k: int) -> NDArray[np.float64]:
    """NDCG at ``k`` of each test: 1 / log2(rank + 1) where the item stands among the first ``k``, else 0."""
    found: NDArray[np.float64] = np.where(ranks <= k, 1.0 / np.log2(ranks.astype(np.float64) + 1.0), 0.0)
    return found


class Ranks:
    """Ranks of tests in the order they come, and which items were in somebody's first ten.

    Args:
        rows: rows of the catalogue.
    """

    def __init__(self, rows: int) -> None:
        self._ranks = array("f")
        self._shown: NDArray[np.bool_] = np.zeros(rows, np.bool_)

    def __len__(self) -> int:
        return len(self._ranks)

    @property
    def values(self) -> NDArray[np.float32]:
        """float32 [tests], infinity for a miss."""
        return np.array(self._ranks, np.float32)

    @property
    def shown(self) -> int:
        """Distinct items that were in somebody's first ten."""
        return int(self._shown.sum())

    def add(self, ranks: NDArray[np.float32], first: NDArray[np.int32]) -> None:
        """Ranks of the tests of one request, and the rows of its first ten."""
        self._ranks.frombytes(ranks.tobytes())
        self._shown[first[:SHOWN]] = True

    def add_slate(
        self, slate: NDArray[np.int32], tested: NDArray[np.int32], had: NDArray[np.bool_] | None = None
    ) -> None:
        """Tests of one request against its slate.

        An item's rank leaves out the other tested items: they were taken as well.

        Args:
            slate: int32, distinct rows, best first.
            tested: int32 [n], distinct rows; one test each.
            had: bool [rows], what takes no place, because the user had it before; None: nothing.
        """
        ranks = np.empty(len(tested), np.float32)
        _rank(np.ascontiguousarray(slate), tested, _NONE_HAD if had is None else had, DEPTH, ranks, self._shown)
        self._ranks.frombytes(ranks.tobytes())


class RanksBySource:
    """Ranks of the same tests in several rankings.

    Args:
        names: of the rankings.
        rows: rows of the catalogue.

    Attributes:
        by_name: the ranks of each.
    """

    def __init__(self, names: Sequence[str], rows: int) -> None:
        self._shown = np.zeros((len(names), rows), np.bool_)
        self.by_name = {name: Ranks(rows) for name in names}
        for ranks, shown in zip(self.by_name.values(), self._shown, strict=True):
            ranks._shown = shown

    def add(
        self, slates: NDArray[np.int32], lengths: NDArray[np.int64], tested: NDArray[np.int32], had: NDArray[np.bool_]
    ) -> None:
        """Tests of one request against the slate of each ranking.

        Args:
            slates: int32 [names, any], of each the first so many rows, distinct, best first:
            lengths: int64 [names].
            tested, had: see :meth:`Ranks.add_slate`.
        """
        ranks = np.empty((len(slates), len(tested)), np.float32)
        _rank_all(slates, lengths, tested, had, DEPTH, ranks, self._shown)
        for of_one, added in zip(self.by_name.values(), ranks, strict=True):
            of_one._ranks.frombytes(added.tobytes())


@compiled
def _rank_all(
    slates: NDArray[np.int32],
    lengths: NDArray[np.int64],
    tested: NDArray[np.int32],
    had: NDArray[np.bool_],
    depth: int,
    ranks: NDArray[np.float32],
    shown: NDArray[np.bool_],
) -> None:
    for place, length in enumerate(lengths):
        _rank(slates[place, :length], tested, had, depth, ranks[place], shown[place])


@compiled
def _rank(
    slate: NDArray[np.int32],
    tested: NDArray[np.int32],
    had: NDArray[np.bool_],
    depth: int,
    ranks: NDArray[np.float32],
    shown: NDArray[np.bool_],
) -> None:
    """:meth:`Ranks.add_slate`: the ranks, float32 [tested], are overwritten; ``shown`` bool by row says what was among
    the first of any request."""
    ranks[:] = np.inf
    place = above = 0
    for row in slate:
        if place == depth:
            break
        if row < len(had) and had[row]:
            continue
        if place < SHOWN and row < len(shown):
            shown[row] = True
        place += 1
        for test, wanted in enumerate(tested):
            if row == wanted:
                ranks[test] = place - above
                above += 1
                break
