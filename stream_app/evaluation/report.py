"""What an evaluation found, as plain data: what ``--json`` writes and what tables and the HTML page are made of.

Figures are None where there was nothing to measure, never 0 or NaN.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from stream_app.evaluation.metrics import FEW_TESTS, Estimate, Ranks, gains, hit_rate, mean
from stream_app.evaluation.prequential import Outcome
from stream_app.evaluation.wording import number_of, reasons

__all__ = ["MATURITY", "Run", "report"]

MATURITY: Final = (1, 2, 5, 10, 20, 50, 100)
"""Buckets of a user's earlier events begin at these counts."""
_SLICES: Final = 10


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """What is known of an evaluation besides its tests.

    Attributes:
        data: facts of the log.
        protocol: ``streaming`` or ``leave-one-out``.
        seconds: the replay took, reading files and encoding texts apart.
        seed: of baselines that draw random numbers.
        options: how it was replayed.
        settings: those that differ from their defaults.
        warnings: for people.
    """

    data: Mapping[str, Any]
    protocol: str
    seconds: float
    seed: int
    options: Mapping[str, Any] = field(default_factory=dict)
    settings: Mapping[str, Any] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()


def report(outcome: Outcome, run: Run) -> dict[str, Any]:
    """Everything, ready to be written as JSON; the keys are described in ``docs/evaluation.md``."""
    tests = len(outcome.slates)
    ranks, items = outcome.slates.values, outcome.items
    return {
        "tests": tests,
        "seconds": round(run.seconds, 2),
        "tests_per_s": round(tests / run.seconds, 1) if run.seconds > 0 else None,
        "overall": _figures(outcome.slates, items),
        "cold": _cold(outcome.slates, outcome.cold),
        "sources": {name: _alone(found, outcome) for name, found in outcome.sources.items()},
        "compare": {name: _alone(found, outcome) for name, found in outcome.baselines.items()},
        "by_maturity": [
            {"from": low, "to": high, **_rates(ranks[chosen]), **_others(outcome, chosen)}
            for low, high, chosen in _by_maturity(outcome)
        ],
        "over_time": [
            {
                "from": _instant(outcome.at[chosen[0]]),
                "to": _instant(outcome.at[chosen[-1]]),
                **_rates(ranks[chosen]),
                **_others(outcome, chosen),
            }
            for chosen in _slices(tests)
        ],
        "ranks": _histogram(ranks),
        "weights": dict(outcome.weights),
        "untested": dict(outcome.untested),
        "protocol": run.protocol,
        "seed": run.seed,
        "options": dict(run.options),
        "settings": dict(run.settings),
        "data": dict(run.data),
        "warnings": [*run.warnings, *_warnings(outcome)],
    }


def _figures(found: Ranks, items: int) -> dict[str, Any]:
    rates = _rates(found.values)
    rates["coverage@10"] = _rounded(found.shown / items) if items and len(found) else None
    return rates


def _rates(ranks: NDArray[np.float32]) -> dict[str, Any]:
    estimates = {
        "hr@10": hit_rate(ranks, 10),
        "ndcg@10": mean(gains(ranks, 10)),
        "mrr": mean(1.0 / ranks.astype(np.float64)),
        "hr@50": hit_rate(ranks, 50),
    }
    return {"tests": len(ranks), **_values(estimates)}


def _cold(found: Ranks, cold: NDArray[np.bool_]) -> dict[str, Any]:
    ranks = found.values[cold]
    return {"tests": len(ranks), **_values({"hr@10": hit_rate(ranks, 10), "hr@50": hit_rate(ranks, 50)})}


def _values(estimates: Mapping[str, Estimate]) -> dict[str, Any]:
    values: dict[str, Any] = {name: _rounded(estimate.value) for name, estimate in estimates.items()}
    values["intervals"] = {
        name: None if estimate.low is None else [_rounded(estimate.low), _rounded(estimate.high)]
        for name, estimate in estimates.items()
    }
    return values


def _alone(found: Ranks, outcome: Outcome) -> dict[str, Any]:
    return {**_figures(found, outcome.items), "cold": _cold(found, outcome.cold)}


def _others(outcome: Outcome, chosen: NDArray[np.intp]) -> dict[str, Any]:
    """Hit rates of what the slates are compared with, on some of the tests."""
    others = {**outcome.sources, **outcome.baselines}
    return {"others": {name: _rounded(hit_rate(found.values[chosen], 10).value) for name, found in others.items()}}


def _by_maturity(outcome: Outcome) -> Iterator[tuple[int, int | None, NDArray[np.intp]]]:
    for low, following in zip(MATURITY, (*MATURITY[1:], None), strict=True):
        high = None if following is None else following - 1
        inside = outcome.maturity >= low
        if high is not None:
            inside &= outcome.maturity <= high
        chosen = np.flatnonzero(inside)
        if len(chosen):
            yield low, high, chosen


def _slices(tests: int) -> list[NDArray[np.intp]]:
    return [part for part in np.array_split(np.arange(tests), _SLICES) if len(part)]


def _histogram(ranks: NDArray[np.float32]) -> dict[str, int]:
    """Tests by rank, in steps that widen; ``miss`` for the rest."""
    edges = (1, 2, 3, 5, 10, 20, 50)
    counts = {}
    for low, high in zip((0, *edges), edges, strict=False):
        counts[str(high) if high - low == 1 else f"{low + 1}-{high}"] = int(((ranks > low) & (ranks <= high)).sum())
    return {**counts, "miss": int((ranks > edges[-1]).sum())}


def _warnings(outcome: Outcome) -> Iterator[str]:
    tests, cold = len(outcome.slates), int(outcome.cold.sum())
    if not tests:
        why = reasons(outcome.untested)
        # Leave-one-out takes the tests out of the log beforehand, and counts no others.
        why = why or "no user wanted an item of the catalogue that was new to the user, after a first event"
        yield f"there was no test, so nothing is measured ({why})"
    elif tests < FEW_TESTS:
        yield f"only {number_of(tests, 'test')}: look at the intervals, the figures alone say little"
    if tests and not cold:
        yield "no test had a cold item"
    elif cold < FEW_TESTS and tests >= FEW_TESTS:
        yield f"only {number_of(cold, 'test')} had a cold item: look at the intervals of the cold figures"


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 6)


def _instant(seconds: float) -> str:
    return datetime.fromtimestamp(float(seconds), UTC).isoformat(timespec="seconds")
