"""Which events of a log are tests, and how they came out: the same for a replay in process and over a broker."""

from __future__ import annotations

from array import array
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from schemas.messages import Interaction
from stream_app.evaluation.metrics import DEPTH, Ranks
from stream_app.settings import Settings

__all__ = ["MAX_DEPTH", "Ledger", "Tests", "without"]

MAX_DEPTH = 200
"""Longest slate that is asked for, so that ``DEPTH`` places remain without what the user had."""


@dataclass(frozen=True, slots=True)
class Tests:
    """The tests of one basket.

    Attributes:
        user: number of the user, from 0.
        rows: int32 [n], distinct rows, one test each.
        had: rows the user had something to do with; they take no place.
        depth: length of the slate to ask for.
    """

    user: int
    rows: NDArray[np.int32]
    had: set[int]
    depth: int


@dataclass(slots=True)
class _User:
    """Rows a user had something to do with: all of them, and those that may still be recommended."""

    number: int
    events: int = 0
    rows: set[int] = field(default_factory=set)
    open: set[int] = field(default_factory=set)


class Ledger:
    """Decides what is a test, and keeps what every ranking has in common.

    Args:
        settings: event types, and what is a cold item.
        row_of: the row of an item id, negative when the catalogue does not know it.
        rows: rows of the catalogue; ``row_of`` gives smaller ones.

    Attributes:
        slates: ranks in what is published.
        untested: events that named an item and were no test, by why.
    """

    def __init__(self, settings: Settings, row_of: Callable[[str], int], rows: int) -> None:
        self._settings = settings
        self._row_of = row_of
        self._rows = rows
        self._users: dict[str, _User] = {}
        self._item_events: Counter[str] = Counter()
        self._maturity, self._at, self._cold = array("i"), array("d"), array("b")
        self.slates = Ranks(rows)
        self.untested: Counter[str] = Counter()

    @property
    def maturity(self) -> NDArray[np.int32]:
        """int32 [tests], earlier events of the user."""
        return np.array(self._maturity, np.int32)

    @property
    def at(self) -> NDArray[np.float64]:
        """float64 [tests], event time (seconds since 1970)."""
        return np.array(self._at, np.float64)

    @property
    def cold(self) -> NDArray[np.bool_]:
        """bool [tests], the item had fewer earlier events than ``retrieval.cold_events``."""
        return np.array(self._cold, np.bool_)

    def wanted(self, event: Interaction) -> bool:
        """Whether the event says that the user wanted an item of the catalogue."""
        kind = self._settings.event_types[event.type]
        disliked = kind.negative_below is not None and event.value is not None and event.value < kind.negative_below
        return (
            kind.polarity > 0
            and not disliked
            and not event.items
            and event.item_id is not None
            and 0 <= self._row_of(event.item_id) < self._rows
        )

    def tests(self, basket: Sequence[Interaction], *, at: float, counted: bool = True) -> Tests | None:
        """What is tested of a basket that nothing has learned yet; whoever asks scores :attr:`slates` once for it.

        Args:
            basket: events of one user at one time.
            at: when it is ranked, seconds since 1970.
            counted: False in the part that only trains.
        """
        user = self._users.get(basket[0].user_id)
        had = user.rows if user is not None else set()
        found: dict[int, str] = {}
        for event in basket:
            if event.item_id is None:
                continue
            row = self._row_of(event.item_id)
            if not self.wanted(event):
                self.untested["not wanted, or not in the catalogue"] += 1
            elif row in had or row in found:
                self.untested["not new to the user"] += 1
            else:
                found[row] = event.item_id
        if not found:
            return None
        if user is None or not user.events:
            self.untested["first events of a user"] += len(found)
            return None
        if not counted:
            self.untested["training part"] += len(found)
            return None
        self._maturity.extend([user.events] * len(found))
        self._at.extend([at] * len(found))
        cold_events = self._settings.retrieval.cold_events
        self._cold.extend([self._item_events[item_id] < cold_events for item_id in found.values()])
        # What the user had and may still be shown takes no place: a list so much longer is asked for.
        spare = len(user.open) + max(0, len(user.rows) - self._settings.users.consumed)
        rows = np.fromiter(found, np.int32, len(found))
        return Tests(user.number, rows, user.rows, min(DEPTH + spare, MAX_DEPTH))

    def remember(self, basket: Sequence[Interaction]) -> tuple[int, NDArray[np.int32]]:
        """Note what the user had: the user's number, and the rows that were wanted, int32 in order."""
        user = self._users.get(basket[0].user_id)
        if user is None:
            user = self._users[basket[0].user_id] = _User(number=len(self._users))
        user.events += len(basket)
        wanted = []
        for event in basket:
            if event.item_id is None:
                continue
            self._item_events[event.item_id] += 1
            row = self._row_of(event.item_id)
            kind = self._settings.event_types[event.type]
            if not 0 <= row < self._rows or not kind.polarity:
                continue
            if kind.consumes or kind.hides:
                user.open.discard(row)
            elif row not in user.rows:
                user.open.add(row)
            user.rows.add(row)
            if self.wanted(event):
                wanted.append(row)
        return user.number, np.array(wanted, np.int32)


def without(slate: NDArray[np.int32], had: set[int]) -> NDArray[np.int32]:
    """The slate (int32 rows) without what the user had."""
    kept = [row for row in slate.tolist() if row not in had]
    return slate if len(kept) == len(slate) else np.array(kept, np.int32)
