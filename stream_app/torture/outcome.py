"""What a run amounts to, and how two of them differ.

Two runs of one stream are equal when every user's state, every item's statistics, the ranker's count of examples, and
every user's last slate are.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from schemas.arrays import unpack_float64
from schemas.messages import ItemSignals, Slate
from stream_app.users.state import Flood, decode_state, encode_state

__all__ = ["Outcome"]

_SCORES = 1e-5
"""Scores closer than this are the same."""


@dataclass
class Outcome:
    """What a run amounts to.

    Attributes:
        users: their packed states.
        expected: what these must be: the topic as it is, folded by one process with nothing in between.
        items: the statistics' rows.
        examples: that the ranker learned from.
        examples_applied: through which offset of each partition of events they are complete.
        slates: the last of each user.
    """

    users: dict[str, bytes]
    expected: dict[str, bytes]
    items: dict[str, ItemSignals]
    examples: int
    examples_applied: dict[str, int]
    slates: dict[str, Slate]

    def differences(self, other: Outcome) -> list[str]:
        """What is not equal, in words; empty when the runs are."""
        found = [*self.unexpected(), *other.unexpected()]
        users = sorted(self.users.keys() | other.users.keys())
        found += [
            f"state of {name} differs"
            for name in users
            if _timeless(name, self.users.get(name)) != _timeless(name, other.users.get(name))
        ]
        for name in sorted(self.items.keys() | other.items.keys()):
            one, two = self.items.get(name), other.items.get(name)
            if one is None or two is None or not _same_row(one, two):
                found.append(f"statistics of {name} differ: {_brief(one)} / {_brief(two)}")
        if (self.examples, self.examples_applied) != (other.examples, other.examples_applied):
            found.append(
                f"examples differ: {self.examples} {self.examples_applied} / {other.examples} {other.examples_applied}"
            )
        for name in sorted(self.slates.keys() | other.slates.keys()):
            one_slate, two_slate = self.slates.get(name), other.slates.get(name)
            if one_slate is None or two_slate is None or not _same_slate(one_slate, two_slate):
                found.append(f"slate of {name} differs: {_unlike(one_slate, two_slate)}")
        return found

    def unexpected(self) -> list[str]:
        """Whose state is not that of the events on the topic."""
        users = sorted(self.users.keys() | self.expected.keys())
        return [
            f"state of {name} is not that of its events"
            for name in users
            if self.users.get(name) != self.expected.get(name)
        ]


def _timeless(user_id: str, packed: bytes | None) -> bytes | None:
    """The state without the times its events were appended at (they bound floods), which no two runs share."""
    if packed is None:
        return None
    state = decode_state(user_id, packed)
    state.flood = Flood()
    return encode_state(state)


def _same_row(one: ItemSignals, two: ItemSignals) -> bool:
    def links(row: ItemSignals) -> dict[str, tuple[float, float]]:
        pairs = zip(unpack_float64(row.symmetric), unpack_float64(row.directed), strict=True)
        return dict(zip(row.neighbours, pairs, strict=True))

    left, right = links(one), links(two)
    return (
        one.applied == two.applied
        and bool(np.isclose(one.at, two.at, rtol=0, atol=1e-3))
        and np.allclose(one.counts, two.counts, rtol=1e-9)
        and left.keys() == right.keys()
        and all(np.allclose(left[name], right[name], rtol=1e-9, atol=1e-12) for name in left)
    )


def _same_slate(one: Slate, two: Slate) -> bool:
    return (
        [item.item_id for item in one.items] == [item.item_id for item in two.items]
        and np.allclose([item.score for item in one.items], [item.score for item in two.items], rtol=0, atol=_SCORES)
        and _cause(one) == _cause(two)
    )


def _cause(slate: Slate) -> tuple[int, int, str | None]:
    return slate.trigger.partition, slate.trigger.offset, slate.trigger.event_id


def _brief(row: ItemSignals | None) -> str:
    return "none" if row is None else f"counts {row.counts} applied {row.applied} links {len(row.neighbours)}"


def _unlike(one: Slate | None, two: Slate | None) -> str:
    """Where two slates begin to differ, and by what."""
    if one is None or two is None:
        return f"{'none' if one is None else one.trigger} / {'none' if two is None else two.trigger}"
    if _cause(one) != _cause(two):
        return f"caused by {one.trigger} / {two.trigger}"
    if len(one.items) != len(two.items):
        return f"{len(one.items)} / {len(two.items)} items"
    for place, (left, right) in enumerate(zip(one.items, two.items, strict=True), start=1):
        if left.item_id != right.item_id or not np.isclose(left.score, right.score, rtol=0, atol=_SCORES):
            return f"place {place}: " + " / ".join(
                f"{item.item_id} {item.score:.6f} by {item.sources}" for item in (left, right)
            )
    return "nowhere"
