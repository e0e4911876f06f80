"""What rules ask about items, as numbers by row: categories, tags, brand, owner and language.

A question about the whole catalogue ("which items are of this brand") is then one array operation, and a question
about the candidates of a request another one. Codes are given by order of arrival and mean nothing beyond equality.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterable
from functools import lru_cache
from typing import Generic, TypeVar

import numpy as np
from numpy.typing import NDArray

__all__ = ["Attributes", "Codes", "fold", "folded"]

V = TypeVar("V", bound=Hashable)
_START_CAPACITY = 1_024
_OWNERS_KEPT = 1_024
_NO_ROWS = np.zeros(0, np.int32)


@lru_cache(maxsize=4_096)
def fold(name: str) -> str:
    """A name to compare by: without regard to case and outer spaces. Remembered: a catalogue has the same few over and
    over again."""
    return name.strip().casefold()


def folded(names: Iterable[str]) -> tuple[str, ...]:
    """Names to compare by."""
    return tuple(map(fold, names))


class Codes(Generic[V]):
    """One column: a code per row for its value, -1 where there is none. Values nobody has any more are forgotten."""

    def __init__(self) -> None:
        self._code_of: dict[V, int] = {}
        self._values: list[V | None] = []
        self._uses: list[int] = []
        self._free: list[int] = []
        self._rows = np.full(_START_CAPACITY, -1, np.int32)

    def set(self, row: int, value: V | None) -> bool:
        """State a row's value; True when it is another one than before."""
        if row >= len(self._rows):
            grown = np.full(max(2 * len(self._rows), row + 1), -1, np.int32)
            grown[: len(self._rows)] = self._rows
            self._rows = grown
        held = int(self._rows[row])
        if held >= 0 and self._values[held] == value:
            return False
        if held < 0 and value is None:
            return False
        self._rows[row] = -1 if value is None else self._take(value)
        if held >= 0:
            self._give_back(held)
        return True

    def at(self, rows: NDArray[np.int32]) -> NDArray[np.int32]:
        """Codes of these rows, int32."""
        codes: NDArray[np.int32] = self._rows[rows]
        return codes

    def all(self, count: int) -> NDArray[np.int32]:
        """Codes of the rows 0 to ``count``, int32, a view where all of them were ever set."""
        if count <= len(self._rows):
            return self._rows[:count]
        return np.concatenate([self._rows, np.full(count - len(self._rows), -1, np.int32)])

    def code(self, value: V) -> int:
        """The value's code, -1 when no row has it."""
        return self._code_of.get(value, -1)

    def accepted(self, codes: NDArray[np.int32], accepts: Callable[[V], bool]) -> NDArray[np.bool_]:
        """Whether the value of each code is accepted: bool; never for -1. Each distinct value is asked about once."""
        table = np.zeros(len(self._values) + 1, np.bool_)  # the last is for -1
        some = len(codes) < len(self._values)
        for code in np.unique(codes).tolist() if some else range(len(self._values)):
            value = self._values[code] if code >= 0 else None
            table[code] = value is not None and accepts(value)
        answers: NDArray[np.bool_] = table[codes]
        return answers

    def among(self, codes: NDArray[np.int32], values: Iterable[V]) -> NDArray[np.bool_]:
        """Whether the value of each code is one of ``values``: bool; never for -1."""
        wanted = np.array([self._code_of[value] for value in values if value in self._code_of], np.int32)
        return np.isin(codes, wanted)

    def _take(self, value: V) -> int:
        code = self._code_of.get(value)
        if code is None:
            if self._free:
                code = self._free.pop()
                self._values[code] = value
            else:
                code = len(self._values)
                self._values.append(value)
                self._uses.append(0)
            self._code_of[value] = code
        self._uses[code] += 1
        return code

    def _give_back(self, code: int) -> None:
        self._uses[code] -= 1
        if not self._uses[code]:
            value = self._values[code]
            assert value is not None  # noqa: S101 - a code in use has one
            del self._code_of[value]
            self._values[code] = None
            self._free.append(code)


class Attributes:
    """The columns of a catalogue. Names are folded (:func:`fold`), ids are as they are.

    Attributes:
        categories: all categories of an item, as one value.
        category: the most general one.
        tags: all tags of an item, as one value.
    """

    def __init__(self) -> None:
        self.categories: Codes[tuple[str, ...]] = Codes()
        self.category: Codes[str] = Codes()
        self.tags: Codes[tuple[str, ...]] = Codes()
        self.brand: Codes[str] = Codes()
        self.owner: Codes[str] = Codes()
        self.language: Codes[str] = Codes()
        self._owned: OrderedDict[str, NDArray[np.int32]] = OrderedDict()

    def set(
        self,
        row: int,
        *,
        categories: tuple[str, ...] = (),
        tags: tuple[str, ...] = (),
        brand: str | None = None,
        owner_id: str | None = None,
        language: str | None = None,
    ) -> None:
        """What is known of a row's item; nothing, when it left."""
        categories = tuple(map(fold, categories))
        self.categories.set(row, categories or None)
        self.category.set(row, categories[0] if categories else None)
        self.tags.set(row, folded(tags) or None)
        self.brand.set(row, None if brand is None else fold(brand))
        self.language.set(row, None if language is None else fold(language))
        if self.owner.set(row, owner_id):
            self._owned.clear()

    def owned_by(self, owner_id: str, count: int) -> NDArray[np.int32]:
        """Rows below ``count`` of this owner's items, int32. Nearly always none, and then for nothing."""
        code = self.owner.code(owner_id)
        if code < 0:
            return _NO_ROWS
        rows = self._owned.get(owner_id)
        if rows is None:
            rows = self._owned[owner_id] = np.flatnonzero(self.owner.all(count) == code).astype(np.int32)
            if len(self._owned) > _OWNERS_KEPT:
                self._owned.popitem(last=False)
        else:
            self._owned.move_to_end(owner_id)
        return rows
