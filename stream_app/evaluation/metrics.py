"""Ranking metrics over single-item tests, and what a run of tests amounts to."""

from __future__ import annotations

from dataclasses import dataclass, field
from math import log2

__all__ = ["Scores", "Tally"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Scores:
    """Means over tests: hit rates, NDCG and reciprocal rank, each test having one relevant item.

    ``coverage_at_10`` is the share of the catalogue that was in somebody's first ten. Cold tests are those whose
    item had fewer than the configured number of earlier events.
    """

    tests: int
    hr_at_10: float
    ndcg_at_10: float
    mrr: float
    hr_at_50: float
    coverage_at_10: float
    cold_tests: int
    cold_hr_at_10: float
    cold_hr_at_50: float


@dataclass(slots=True)
class Tally:
    """Sums over tests, in the order they come."""

    tests: int = 0
    _hits_10: int = 0
    _hits_50: int = 0
    _gain: float = 0.0
    _reciprocal: float = 0.0
    _cold: int = 0
    _cold_hits_10: int = 0
    _cold_hits_50: int = 0
    _shown: set[int] = field(default_factory=set)

    def add(self, rank: int | None, *, cold: bool) -> None:
        """Count a test; ``rank`` is the item's place from 1, None when it is not in the slate (a miss)."""
        self.tests += 1
        self._cold += cold
        if rank is None:
            return
        self._reciprocal += 1.0 / rank
        if rank <= 50:
            self._hits_50 += 1
            self._cold_hits_50 += cold
        if rank <= 10:
            self._hits_10 += 1
            self._cold_hits_10 += cold
            self._gain += 1.0 / log2(rank + 1)

    def show(self, rows: list[int]) -> None:
        """Note the first ten of a slate, by row."""
        self._shown.update(rows[:10])

    def scores(self, catalogue_size: int) -> Scores:
        """Means so far; zeros when there were no tests."""
        tests, cold = max(self.tests, 1), max(self._cold, 1)
        return Scores(
            tests=self.tests,
            hr_at_10=self._hits_10 / tests,
            ndcg_at_10=self._gain / tests,
            mrr=self._reciprocal / tests,
            hr_at_50=self._hits_50 / tests,
            coverage_at_10=len(self._shown) / max(catalogue_size, 1),
            cold_tests=self._cold,
            cold_hr_at_10=self._cold_hits_10 / cold,
            cold_hr_at_50=self._cold_hits_50 / cold,
        )
