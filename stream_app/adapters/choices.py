"""What a log teaches an adapter: choices of an item, with what the user had taken before and what was passed over.

Arrays only, so that a log of a million events is a hundred megabytes, and training asks for a batch of choices in the
shape in which it computes: the distinct items of the batch once, everything else as places among them.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Final

import numpy as np
from numpy.typing import NDArray

from stream_app.adapters.adapter import TASKS
from stream_app.settings import EventType

__all__ = ["HARD", "Batch", "Choices", "Taken", "task_of"]

HARD: Final = 10
"""Passed-over items kept per basket: the first ten are what people look at."""
_PURCHASE: Final = TASKS.index("purchase")
_PURCHASE_WEIGHT: Final = 3.0
"""From this ``event_types.*.weight`` on an event is a purchase, or as good as one (a like, a rating, a review); below
it is a click, or as good as that (a view, a play, a cart)."""


def task_of(kind: EventType) -> int:
    """Place in ``TASKS`` of what an event of this type is an example of."""
    return _PURCHASE if kind.weight >= _PURCHASE_WEIGHT else TASKS.index("click")


@dataclass(frozen=True, slots=True)
class Taken:
    """An item (``row`` of the catalogue) a user wanted, of which task, and what such an event weighs."""

    row: int
    task: int
    weight: float


@dataclass(frozen=True, slots=True)
class Batch:
    """Choices to learn from at once.

    Attributes:
        rows: int32 [items], distinct rows of the catalogue; the other arrays hold places among them.
        before: int64 [sum of lengths], what the users had taken before, one choice after the other.
        starts: int64 [n], where that of each begins.
        pooled: float32 [sum of lengths], what each counts.
        taken: int64 [n].
        hard: int64 [n, HARD], what was shown and not taken; -1 where there is no more.
        task: int64 [n], place in ``TASKS``.
        weight: float32 [n].
    """

    rows: NDArray[np.int32]
    before: NDArray[np.int64]
    starts: NDArray[np.int64]
    pooled: NDArray[np.float32]
    taken: NDArray[np.int64]
    hard: NDArray[np.int64]
    task: NDArray[np.int64]
    weight: NDArray[np.float32]


@dataclass(slots=True)
class _User:
    """Places of a user's events among all, oldest first, and the rows they named."""

    places: array[int] = field(default_factory=lambda: array("q"))
    rows: set[int] = field(default_factory=set)


class Choices:
    """The choices of a log, told basket by basket in order of time.

    A choice is the first time a user wants an item, with something known of the user: the same events that an
    evaluation tests.

    Args:
        items: rows of the catalogue.
        history: items before a choice that are looked at, newest first.
        decay: what an item counts less than the one after it, as ``users.slow_decay``; 1: nothing.

    Attributes:
        popularity: int64 [items], how often each was wanted so far.
    """

    def __init__(self, items: int, *, history: int = 50, decay: float = 1.0) -> None:
        self.popularity = np.zeros(items, np.int64)
        self._history, self._decay = history, decay
        self._users: dict[int, _User] = {}
        self._rows, self._task, self._weight = array("i"), array("b"), array("f")
        self._place, self._user, self._known, self._basket = array("q"), array("q"), array("i"), array("q")
        self._hard: list[NDArray[np.int32]] = []

    def __len__(self) -> int:
        return len(self._place)

    def tasks(self, first: int = 0) -> NDArray[np.int8]:
        """int8 [choices], place in ``TASKS`` of each from ``first`` on."""
        return np.array(self._task, np.int8)[np.array(self._place[first:], np.int64)]

    def task_weights(self) -> dict[str, float]:
        """By task, what its choices weigh together; tasks without any are left out."""
        places = np.array(self._place, np.int64)
        weights = np.array(self._weight, np.float64)[places]
        total = np.bincount(self.tasks(), weights=weights, minlength=len(TASKS))
        return {task: float(total[number]) for number, task in enumerate(TASKS) if total[number] > 0}

    def add(self, user: int, taken: Iterable[Taken], shown: Iterable[int] = ()) -> None:
        """Tell what a user wanted at one time.

        Args:
            user: number of the user.
            taken: in order; those that are not new to the user are remembered, and no choice.
            shown: rows that were shown to the user before, in the order shown.
        """
        state = self._users.setdefault(user, _User())
        known = len(state.places)
        wanted = list(taken)
        rows = {one.row for one in wanted}
        passed = np.fromiter((row for row in dict.fromkeys(shown) if row not in rows), np.int32)[:HARD]
        basket = len(self._hard)
        chosen = 0
        for one in wanted:
            place = len(self._rows)
            self._rows.append(one.row)
            self._task.append(one.task)
            self._weight.append(one.weight)
            self.popularity[one.row] += 1
            if known and one.row not in state.rows:
                self._place.append(place)
                self._user.append(user)
                self._known.append(known)
                self._basket.append(basket)
                chosen += 1
            state.rows.add(one.row)
            state.places.append(place)
        if chosen:
            self._hard.append(passed)

    def batch(self, choices: NDArray[np.int64]) -> Batch:
        """The choices with these numbers (int64 [n], from 0), ready to be learned from."""
        befores, lengths = [], []
        hard = np.full((len(choices), HARD), -1, np.int64)
        places = np.fromiter((self._place[choice] for choice in choices), np.int64, len(choices))
        for number, choice in enumerate(choices.tolist()):
            known = self._known[choice]
            before = self._users[self._user[choice]].places[max(0, known - self._history) : known]
            befores.append(before)
            lengths.append(len(before))
            passed = self._hard[self._basket[choice]]
            hard[number, : len(passed)] = passed
        rows = np.frombuffer(self._rows, np.int32)
        weights = np.frombuffer(self._weight, np.float32)
        earlier = np.concatenate([np.frombuffer(before, np.int64) for before in befores])
        pooled = [self._decay ** np.arange(length - 1, -1, -1, dtype=np.float32) for length in lengths]
        taken = rows[places]
        distinct, where = np.unique(np.concatenate([rows[earlier], taken, hard[hard >= 0]]), return_inverse=True)
        ends = np.cumsum([len(earlier), len(taken)])
        hard[hard >= 0] = where[ends[1] :]
        return Batch(
            rows=distinct.astype(np.int32),
            before=where[: ends[0]].astype(np.int64),
            starts=np.cumsum([0, *lengths[:-1]]).astype(np.int64),
            pooled=(np.concatenate(pooled) * weights[earlier]).astype(np.float32),
            taken=where[ends[0] : ends[1]].astype(np.int64),
            hard=hard,
            task=np.frombuffer(self._task, np.int8)[places].astype(np.int64),
            weight=weights[places],
        )
