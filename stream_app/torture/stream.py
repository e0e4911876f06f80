"""A catalogue and a seeded stream of events: what every run of a torture is given."""

from __future__ import annotations

import random
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from schemas.messages import Interaction, Item
from stream_app.datasets.online_retail import load_online_retail

__all__ = ["Stream", "make_stream"]

START = datetime(2026, 3, 1, tzinfo=UTC)
_DUPLICATES = 0.02
"""Share of visits whose last event its producer sends twice."""


@dataclass(frozen=True)
class Stream:
    """A catalogue and events in the order they are produced."""

    items: tuple[Item, ...]
    events: tuple[Interaction, ...]

    @property
    def users(self) -> list[str]:
        """Whose events these are, sorted."""
        return sorted({event.user_id for event in self.events})


def make_stream(seed: int, *, items: int = 60, users: int = 40, events: int = 1_200) -> Stream:
    """A seeded stream: real titles, Zipf-like popularity, baskets, repeats, hides, duplicates.

    Args:
        seed: decides everything.
        items: of the catalogue, the first of Online Retail.
        users: at most so many have events.
        events: with the duplicates.
    """
    rng = random.Random(seed)
    catalogue = tuple(load_online_retail().items[:items])
    weights = [1 / (rank + 1) for rank in range(items)]
    made: list[Interaction] = []
    at = START
    while len(made) < events:
        user = f"user-{rng.randrange(users)}"
        at += timedelta(seconds=rng.randrange(1, max(2, 3_600 * 1_200 // events)))
        for _ in range(rng.choice([1, 1, 2, 4])):
            kind = rng.choices(["purchase", "click", "view", "hide", "cart"], [4, 4, 3, 0.3, 1])[0]
            item = rng.choices(catalogue, weights)[0].item_id
            made.append(Interaction(event_id=f"e{len(made)}", user_id=user, type=kind, item_id=item, occurred_at=at))
        if rng.random() < _DUPLICATES:
            made.append(made[-1])
    return Stream(catalogue, tuple(made[:events]))
