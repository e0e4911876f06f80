"""What a user was shown lately: impressions of the log, and published slates where a log has no impressions.

A slate is what was offered, not what was seen, so an impression replaces it. What was shown too long before a choice
was not passed over for it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

from schemas.messages import Interaction
from stream_app.adapters.choices import HARD

__all__ = ["Shown", "SlateShown"]

_PAGE_S = 1_800.0
"""As for the ranker (``stream_app.users.impressions``): seconds of event time."""


@dataclass(frozen=True, slots=True, order=True)
class SlateShown:
    """A slate: when it was published (seconds since 1970), for whom, and the ids of its items, best first."""

    at: float
    user_id: str
    items: tuple[str, ...]


class Shown:
    """The last thing shown to every user; one list of at most ``HARD`` rows each.

    Args:
        row_of: the row of an item id, negative when the catalogue does not know it.
        slates: in order of time.
    """

    def __init__(self, row_of: Callable[[str], int], slates: Iterable[SlateShown] = ()) -> None:
        self._row_of = row_of
        self._slates: Iterator[SlateShown] = iter(slates)
        self._next = next(self._slates, None)
        self._last: dict[str, tuple[float, bool, tuple[int, ...]]] = {}

    def before(self, user_id: str, at: float) -> tuple[int, ...]:
        """Rows shown to the user before event time ``at`` (seconds), in the order shown; none that is long ago."""
        while self._next is not None and self._next.at < at:
            slate, self._next = self._next, next(self._slates, None)
            self._note(slate.user_id, slate.at, slate.items, seen=False)
        shown_at, _, rows = self._last.get(user_id, (float("-inf"), False, ()))
        return rows if at - shown_at <= _PAGE_S else ()

    def note(self, event: Interaction) -> None:
        """Note an event; only those with a list of items say what was shown."""
        if event.items:
            self._note(event.user_id, event.occurred_at.timestamp(), event.items, seen=True)

    def _note(self, user_id: str, at: float, items: Iterable[str], *, seen: bool) -> None:
        last = self._last.get(user_id)
        if last is not None and last[1] and not seen and at - last[0] <= _PAGE_S:
            return
        rows = [row for row in map(self._row_of, items) if row >= 0]
        self._last[user_id] = (at, seen, tuple(rows[:HARD]))
