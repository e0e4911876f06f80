"""What is produced, in which order: a shop's purchases, with each basket announced by a visit.

The data set knows only purchases. In a real shop a customer arrives before buying, and that is what refreshes
the page; so every basket (consecutive purchases of one user at one time) is preceded by a ``visit`` event of the
same user and time. It carries no information but that the user is there now, which is exactly what the
prequential protocol knows when it ranks.
"""

from __future__ import annotations

from collections import defaultdict, deque
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

    At a steady rate that is ``ahead / rate`` seconds: the time a customer looks at the page before buying. A user's
    events stay in order: one who comes back that soon is announced when the basket before is through.
    """
    waiting: deque[Basket] = deque()
    of_user: defaultdict[str, deque[Basket]] = defaultdict(deque)
    queued = 0

    def through(basket: Basket) -> Iterator[tuple[Basket, Interaction]]:
        for event in basket.events:
            yield basket, event
        mine = of_user[basket.user_id]
        mine.popleft()
        if mine:
            yield mine[0], mine[0].visit
        else:
            del of_user[basket.user_id]

    for basket in stream:
        mine = of_user[basket.user_id]
        mine.append(basket)
        if len(mine) == 1:
            yield basket, basket.visit
        waiting.append(basket)
        queued += len(basket.events)
        while queued - len(waiting[0].events) >= ahead:
            ready = waiting.popleft()
            queued -= len(ready.events)
            yield from through(ready)
    for ready in waiting:
        yield from through(ready)
