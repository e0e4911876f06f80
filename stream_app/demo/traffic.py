"""What is produced, in which order: a shop's purchases, with each basket announced by a visit.

The data set knows only purchases. In a real shop a customer arrives before buying, and that is what refreshes
the page; so every basket (consecutive purchases of one user at one time) is preceded by a ``visit`` event of the
same user and time. It carries no information but that the user is there now, which is exactly what the
prequential protocol knows when it ranks.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import groupby

from schemas.messages import Interaction

__all__ = ["Basket", "baskets", "with_visits"]


@dataclass(frozen=True, slots=True)
class Basket:
    """Consecutive events of one user at one event time. ``number`` counts up from 0."""

    number: int
    visit: Interaction
    events: tuple[Interaction, ...]

    @property
    def user_id(self) -> str:
        return self.visit.user_id


def baskets(interactions: Iterable[Interaction]) -> Iterator[Basket]:
    """The baskets of a stream in time order."""
    grouped = groupby(interactions, key=lambda event: (event.user_id, event.occurred_at))
    for number, ((user_id, occurred_at), events) in enumerate(grouped):
        members = tuple(events)
        visit = Interaction(
            event_id=f"visit-{members[0].event_id}",
            user_id=user_id,
            type="visit",
            occurred_at=occurred_at,
            session_id=members[0].session_id,
        )
        yield Basket(number, visit, members)


def with_visits(stream: Iterable[Basket], *, ahead: int) -> Iterator[tuple[Basket, Interaction]]:
    """One flat schedule: every event with its basket, each visit about ``ahead`` events before its basket.

    At a steady rate that is ``ahead / rate`` seconds: the time a customer looks at the page before buying.
    """
    waiting: deque[Basket] = deque()
    queued = 0
    for basket in stream:
        yield basket, basket.visit
        waiting.append(basket)
        queued += len(basket.events)
        while queued - len(waiting[0].events) >= ahead:
            ready = waiting.popleft()
            queued -= len(ready.events)
            for event in ready.events:
                yield ready, event
    for ready in waiting:
        for event in ready.events:
            yield ready, event
