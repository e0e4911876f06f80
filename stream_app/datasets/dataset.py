"""What a data set is: a catalogue, and interactions in the order of time."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from schemas.messages import Interaction, Item

__all__ = ["Dataset"]


@dataclass(frozen=True, kw_only=True)
class Dataset:
    """A catalogue and what happened to it.

    ``interactions`` is ordered by ``occurred_at``, can be iterated more than once, and is made while it is
    iterated: a data set need not fit in memory. ``interaction_count`` is how many it gives.
    """

    name: str
    items: Sequence[Item]
    interactions: Iterable[Interaction]
    interaction_count: int
