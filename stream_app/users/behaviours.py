"""A user's history as behaviours to put into words: the same thing done several times is one of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from schemas.messages import Item
from stream_app.textify import Behaviour
from stream_app.users.state import HistoryEntry

__all__ = ["behaviours_of"]


@dataclass(slots=True)
class _Group:
    weighs: float
    count: int
    last: HistoryEntry
    text: str


def behaviours_of(history: Sequence[HistoryEntry], items: Mapping[str, Item], *, decay: float) -> list[Behaviour]:
    """What the user did, strongest first: in the order of what each weighs in the user's slow interest vector (the
    weight of an event times ``decay`` for each event after it, see ``stream_app.retrieval.interests``); of equals the
    newer first.

    Events of one type with one item are one behaviour, and so are events without an item that say the same; what counts
    for an item and what counts against it are two. What names neither a known item nor a text is left out.

    Args:
        history: oldest first.
        items: by id; of others only a text is told.
        decay: the setting ``users.slow_decay``.
    """
    groups: dict[tuple[str, str, bool], _Group] = {}
    for place, entry in enumerate(reversed(history)):
        if entry.item_id not in items and not entry.text:
            continue
        key = (entry.item_id and f"item {entry.item_id}") or f"text {entry.text}", entry.type, entry.weight < 0
        weighs = abs(entry.weight) * decay**place
        if (group := groups.get(key)) is None:
            groups[key] = _Group(weighs, 1, entry, entry.text)
        else:
            group.weighs += weighs
            group.count += 1
            group.text = group.text or entry.text
            if entry.at > group.last.at:
                group.last = entry
    ordered = sorted(groups.values(), key=lambda group: (-group.weighs, -group.last.at))
    return [
        Behaviour(
            type=group.last.type,
            at=group.last.at,
            item=items.get(group.last.item_id),
            text=group.text,
            count=group.count,
            against=group.last.weight < 0,
        )
        for group in ordered
    ]
