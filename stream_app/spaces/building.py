"""How far a space is that is built beside another one: which items it has, and of which text. Pure."""

from __future__ import annotations

__all__ = ["Building"]


class Building:
    """Counts items in two spaces, record by record, in any order of the two topics.

    Attributes:
        items: in the space it is built after.
        done: of these, in the new one.
        other_texts: of these, made of another text than there.
    """

    def __init__(self) -> None:
        self.items = 0
        self.done = 0
        self.other_texts = 0
        self._old: dict[str, str] = {}
        self._new: dict[str, str] = {}

    @property
    def missing(self) -> int:
        """Items without a vector in the new space."""
        return self.items - self.done

    def in_old(self, item_id: str, text_hash: str | None) -> None:
        """A record of the space it is built after; None: the item is gone."""
        self._set(self._old, item_id, text_hash)

    def in_new(self, item_id: str, text_hash: str | None) -> None:
        """A record of the new space; None: the item is gone."""
        self._set(self._new, item_id, text_hash)

    def some_missing(self, count: int) -> list[str]:
        """Ids of items that are missing, at most so many."""
        found: list[str] = []
        for item_id in self._old:
            if len(found) >= count:
                break
            if item_id not in self._new:
                found.append(item_id)
        return found

    def _set(self, side: dict[str, str], item_id: str, text_hash: str | None) -> None:
        self._count(item_id, -1)
        if text_hash is None:
            side.pop(item_id, None)
        else:
            side[item_id] = text_hash
        self._count(item_id, 1)

    def _count(self, item_id: str, by: int) -> None:
        old, new = self._old.get(item_id), self._new.get(item_id)
        if old is not None:
            self.items += by
            self.done += by * (new is not None)
            self.other_texts += by * (new is not None and new != old)
