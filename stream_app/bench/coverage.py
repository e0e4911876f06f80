"""Which events a slate knows, and how long it took: bookkeeping of the load generator, without a clock.

Events are numbered in the order of sending; those of one user are in one partition, so the slate that one of them
caused knows all that the same user did before.
"""

from __future__ import annotations

import math
from collections import defaultdict, deque
from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

__all__ = ["Coverage", "SlateSequence", "due_times", "percentiles_ms"]


class SlateSequence:
    """What follows on what among the slates of a topic.

    Attributes:
        older: slates that know less of their user than one before them did.
    """

    def __init__(self) -> None:
        self.older = 0
        self._known: dict[str, int] = {}
        self._models: dict[int, list[str]] = {}

    def slate(self, user_id: str, partition: int, number: int, space: str) -> None:
        """A slate, in the order of its partition.

        Args:
            number: of the event that caused it.
            space: it was made in: a model's, with a suffix from "+w" on where it is whitened.
        """
        before = self._known.get(user_id, -1)
        self.older += number < before
        self._known[user_id] = max(number, before)
        model = space.rpartition("+w")[0] or space
        models = self._models.setdefault(partition, [])
        if not models or models[-1] != model:
            models.append(model)

    @property
    def models(self) -> int:
        """Different models whose spaces were served."""
        return len({model for models in self._models.values() for model in models})

    @property
    def changes(self) -> int:
        """How often a partition's slates went from one model's space to another's, in the partition where most did."""
        return max((len(models) - 1 for models in self._models.values()), default=0)


def due_times(count: int, rate: float) -> NDArray[np.float64]:
    """When each of ``count`` events is to be sent, in seconds after the start, at ``rate`` events per second.

    Fixed beforehand: what is sent late is late by that much more.

    Raises:
        ValueError: when the rate is no positive number.
    """
    if not 0.0 < rate < math.inf:
        raise ValueError(f"a rate is a number of events per second greater than 0, not {rate}")
    return np.arange(count) / rate


def percentiles_ms(seconds: NDArray[np.float64]) -> dict[str, float | None]:
    """``p50_ms``, ``p99_ms``, ``p999_ms`` and ``max_ms`` of the finite values; None of none."""
    known = seconds[np.isfinite(seconds)]
    names = ("p50_ms", "p99_ms", "p999_ms", "max_ms")
    if not len(known):
        return dict.fromkeys(names)
    values = np.percentile(known, [50.0, 99.0, 99.9, 100.0])
    return {name: round(1e3 * value, 2) for name, value in zip(names, values.tolist(), strict=True)}


class Coverage:
    """Events of one run, and what is known of each.

    Args:
        users: of each event, in the order of sending.

    Attributes:
        due: float64 [events], when each was to be sent; NaN before :meth:`sent`.
        known: float64 [events], when the first slate that knows it arrived; NaN before.
        uncovered: events that were sent and that no slate knows yet.
        most_uncovered: the most there were at a time.
    """

    def __init__(self, users: Iterable[str]) -> None:
        self._waiting: defaultdict[str, deque[int]] = defaultdict(deque)
        count = 0
        for number, user_id in enumerate(users):
            self._waiting[user_id].append(number)
            count = number + 1
        self.due = np.full(count, np.nan)
        self.known = np.full(count, np.nan)
        self.uncovered = 0
        self.most_uncovered = 0

    def __len__(self) -> int:
        return len(self.due)

    def sent(self, number: int, due: float) -> None:
        """Event ``number`` is on its way; it was to be sent at ``due`` (seconds of the caller's clock)."""
        self.due[number] = due
        self.uncovered += 1
        self.most_uncovered = max(self.most_uncovered, self.uncovered)

    def slate(self, user_id: str, number: int, at: float) -> int:
        """A slate that event ``number`` of the user caused arrived at ``at``.

        Returns:
            of how many events it is the first to know.
        """
        waiting = self._waiting.get(user_id)
        covered = 0
        while waiting and waiting[0] <= number and self.due[waiting[0]] == self.due[waiting[0]]:
            self.known[waiting.popleft()] = at
            covered += 1
        self.uncovered -= covered
        return covered

    @property
    def latencies(self) -> NDArray[np.float64]:
        """Seconds from when each event was to be sent to the first slate that knows it; NaN where there is none."""
        took: NDArray[np.float64] = self.known - self.due
        return took

    @property
    def lost(self) -> int:
        """Events that no slate knows, whether or not they were sent."""
        return int(np.isnan(self.known).sum())
