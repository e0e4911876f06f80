"""How far a space is that is built beside another one: which items it has with the text they have there. Pure."""

from __future__ import annotations

__all__ = ["Building"]


class Building:
    """Counts items by their text's hash in two spaces, record by record, in any order of the two topics.

    Attributes:
        items: in the space it is built after.
        done: of these, in the new one with the same text.
    """

    def __init__(self) -> None:
        self.items = 0
        self.done = 0
        self._old: dict[str, str] = {}
        self._new: dict[str, str] = {}

    @property
    def missing(self) -> int:
        """Items without a vector of their present text in the new space."""
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
        for item_id, text_hash in self._old.items():
            if len(found) >= count:
                break
            if self._new.get(item_id) != text_hash:
                found.append(item_id)
        return found

    def _set(self, side: dict[str, str], item_id: str, text_hash: str | None) -> None:
        self.items -= item_id in self._old
        self.done -= self._same(item_id)
        if text_hash is None:
            side.pop(item_id, None)
        else:
            side[item_id] = text_hash
        self.items += item_id in self._old
        self.done += self._same(item_id)

    def _same(self, item_id: str) -> bool:
        held = self._old.get(item_id)
        return held is not None and self._new.get(item_id) == held
