"""What the demo counts: freshness, nothing lost, and whether the slates held what was bought next.

Pure bookkeeping; times are arguments.
"""

from __future__ import annotations

import heapq
from collections import OrderedDict, deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from schemas.messages import Interaction, Slate
from stream_app.demo.traffic import Basket

__all__ = ["HitRate", "Popularity", "Scoreboard", "Shown"]

_DAY = 86_400.0
_MAX_WAITING = 100_000
_MAX_EARLY = 10_000


@dataclass(slots=True)
class HitRate:
    """Hit rate at ``k`` of published slates and of a popularity list, on the same tests.

    A test is an item of a basket that is new to a user who was there before. The slate is the one that stood
    when the basket began; items the user had already and the other items of the basket are taken out of both
    lists, as the protocol says.
    """

    k: int = 10
    tests: int = 0
    hits: int = 0
    popular_hits: int = 0
    reciprocal_gain: float = 0.0

    def add(self, taken: Sequence[str], slate: Sequence[str], popular: Sequence[str]) -> None:
        """Count the tests of one basket."""
        group = set(taken)
        for item in taken:
            others = group - {item}
            self.tests += 1
            rank = _rank(item, slate, others)
            if rank is not None and rank < self.k:
                self.hits += 1
                self.reciprocal_gain += 1.0 / float(np.log2(rank + 2))
            popular_rank = _rank(item, popular, others)
            self.popular_hits += popular_rank is not None and popular_rank < self.k

    @property
    def slates(self) -> float:
        return self.hits / self.tests if self.tests else 0.0

    @property
    def popularity(self) -> float:
        return self.popular_hits / self.tests if self.tests else 0.0

    @property
    def ndcg(self) -> float:
        return self.reciprocal_gain / self.tests if self.tests else 0.0


def _rank(item: str, ranked: Sequence[str], without: set[str]) -> int | None:
    """Zero-based rank of ``item`` among ``ranked`` without the others; None when it is not there."""
    rank = 0
    for candidate in ranked:
        if candidate == item:
            return rank
        rank += candidate not in without
    return None


class Popularity:
    """Counts with a half-life in event time: the strongest simple method on this data (7 days)."""

    def __init__(self, half_life_days: float = 7.0) -> None:
        self._half_life_s = half_life_days * _DAY
        self._scores: dict[str, float] = {}
        self._origin: float | None = None

    def add(self, item_id: str, at: float) -> None:
        """One purchase at event time ``at`` (seconds)."""
        if self._origin is None:
            self._origin = at
        # Later events weigh more instead of earlier ones less; rescaled before it overflows.
        exponent = (at - self._origin) / self._half_life_s
        if exponent > 200:
            self._scores = {item: score * 2.0**-exponent for item, score in self._scores.items()}
            self._origin, exponent = at, 0.0
        self._scores[item_id] = self._scores.get(item_id, 0.0) + 2.0**exponent

    def top(self, count: int, without: set[str]) -> list[str]:
        """The ``count`` most popular items that are not in ``without``."""
        wanted = count + len(without)
        best = heapq.nlargest(wanted, self._scores, key=self._scores.__getitem__)
        return [item for item in best if item not in without][:count]


@dataclass(frozen=True, slots=True)
class Shown:
    """A purchase and the slate it caused, for people to look at."""

    event: Interaction
    slate: Slate
    after_ms: float


@dataclass(slots=True)
class _User:
    bought: set[str] = field(default_factory=set)
    slate: tuple[str, ...] = ()
    cause: str | None = None
    begun: int = -1
    covered: dict[int, int] = field(default_factory=dict)
    waiting: dict[int, set[int]] = field(default_factory=dict)


class Scoreboard:
    """Everything that is counted from the events sent and the slates received.

    Bounded by the number of users of the data set, and one integer per event that has no slate yet; samples of
    freshness are the latest 100,000.

    Args:
        train: the first so many events are not tested.

    Attributes:
        uncovered: events no slate of their user knows yet. Zero at the end, or events were lost.
    """

    def __init__(self, *, train: int = 0) -> None:
        self.events_in = 0
        self.slates_out = 0
        self.uncovered = 0
        self.hit_rate = HitRate()
        self.first_slate_s: float | None = None
        self.freshness_ms: deque[float] = deque(maxlen=100_000)
        self.last_shown: Shown | None = None
        self._train = train
        self._popularity = Popularity()
        self._users: dict[str, _User] = {}
        self._sent: OrderedDict[tuple[int, int], tuple[float, Interaction]] = OrderedDict()
        self._early: OrderedDict[tuple[int, int], tuple[float, Slate]] = OrderedDict()

    def basket_begins(self, basket: Basket) -> None:
        """The first purchase of the basket is about to be sent: test what stands, then learn popularity."""
        user = self._users.setdefault(basket.user_id, _User())
        if basket.number <= user.begun:
            return
        # By user: baskets of different users may begin in another order than they are numbered.
        user.begun = basket.number
        new = list(dict.fromkeys(e.item_id for e in basket.events if e.item_id and e.item_id not in user.bought))
        if user.bought and new and self.events_in >= self._train:
            slate = [item for item in user.slate if item not in user.bought]
            popular = self._popularity.top(10 + len(new), user.bought)
            self.hit_rate.add(new, slate, popular)
        for event in basket.events:
            if event.item_id:
                if event.item_id not in user.bought:
                    self._popularity.add(event.item_id, event.occurred_at.timestamp())
                user.bought.add(event.item_id)

    def sent(self, event: Interaction, *, partition: int, offset: int, at: float) -> None:
        """An event the broker acknowledged. ``at``: when it was meant to be sent, in seconds of the caller's clock."""
        self.events_in += 1
        user = self._users.setdefault(event.user_id, _User())
        place = (partition, offset)
        early = self._early.pop(place, None)
        if early is not None:
            self._measure(event, early[1], (early[0] - at) * 1000)
        if user.covered.get(partition, -1) >= offset:
            return
        user.waiting.setdefault(partition, set()).add(offset)
        self.uncovered += 1
        self._sent[place] = (at, event)
        while len(self._sent) > _MAX_WAITING:
            self._sent.popitem(last=False)  # its freshness will not be measured; it still counts as uncovered

    def received(self, slate: Slate, *, at: float, since_start: float) -> None:
        """A slate read from the topic at ``at`` (caller's clock)."""
        self.slates_out += 1
        if self.first_slate_s is None:
            self.first_slate_s = since_start
        user = self._users.setdefault(slate.user_id, _User())
        user.slate = tuple(item.item_id for item in slate.items)
        user.cause = slate.trigger.event_id
        if slate.trigger.event_id is None:
            return  # An item's change caused it: it says nothing of events.
        partition, offset = slate.trigger.partition, slate.trigger.offset
        found = self._sent.get((partition, offset))
        if found is not None:
            self._measure(found[1], slate, (at - found[0]) * 1000)
        elif user.covered.get(partition, -1) < offset:
            # The slate may be here before the acknowledgement of its event.
            self._early[partition, offset] = (at, slate)
            while len(self._early) > _MAX_EARLY:
                self._early.popitem(last=False)
        self._cover(user, partition, offset)

    def knows(self, event: Interaction) -> bool:
        """Whether the user's present slate was caused by ``event``."""
        user = self._users.get(event.user_id)
        return user is not None and user.cause == event.event_id

    def _cover(self, user: _User, partition: int, through: int) -> None:
        """The user's slate knows the events of a partition up to and with ``through``."""
        user.covered[partition] = max(through, user.covered.get(partition, -1))
        waiting = user.waiting.get(partition, set())
        for offset in [offset for offset in waiting if offset <= through]:
            waiting.discard(offset)
            self._sent.pop((partition, offset), None)
            self.uncovered -= 1

    def _measure(self, event: Interaction, slate: Slate, after_ms: float) -> None:
        self.freshness_ms.append(after_ms)
        if event.type != "visit" and slate.items:
            self.last_shown = Shown(event, slate, after_ms)

    def freshness(self) -> tuple[float, float]:
        """p50 and p99 of event to slate in milliseconds, over the latest samples; NaN before the first."""
        if not self.freshness_ms:
            return float("nan"), float("nan")
        p50, p99 = np.percentile(np.fromiter(self.freshness_ms, float), [50, 99])
        return float(p50), float(p99)

    def summary(self) -> dict[str, Any]:
        """What ``--json`` writes."""
        p50, p99 = self.freshness()
        return {
            "first_slate_s": None if self.first_slate_s is None else round(self.first_slate_s, 3),
            "events_in": self.events_in,
            "slates_out": self.slates_out,
            "events_lost": self.uncovered,
            "freshness_ms": {"p50": _rounded(p50), "p99": _rounded(p99)},
            "tests": self.hit_rate.tests,
            "hit_rate_at_10": {
                "slates": round(self.hit_rate.slates, 4),
                "popularity": round(self.hit_rate.popularity, 4),
            },
            "ndcg_at_10": {"slates": round(self.hit_rate.ndcg, 4)},
        }


def _rounded(value: float) -> float | None:
    return None if np.isnan(value) else round(value, 2)
