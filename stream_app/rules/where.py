"""Which items a rule is about: for one item, for some rows, for the whole catalogue; the three always agree."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from schemas.messages import RuleWhere
from stream_app.items.attributes import Codes, fold, folded
from stream_app.items.catalogue import Catalogue, ItemFacts

__all__ = ["fits", "fitting_rows"]

V = TypeVar("V")


def fits(where: RuleWhere, item_id: str, facts: ItemFacts) -> bool:
    """Whether an item fits every field that is given."""
    if where.item_ids and item_id not in where.item_ids:
        return False
    if where.categories and not _any_of(where.categories)(folded(facts.categories)):
        return False
    if where.tags and not _any_of(where.tags)(folded(facts.tags)):
        return False
    if where.brands and not (facts.brand is not None and fold(facts.brand) in folded(where.brands)):
        return False
    if where.owner_ids and facts.owner_id not in where.owner_ids:
        return False
    if where.languages and not (facts.language is not None and _speaks(where.languages)(fold(facts.language))):
        return False
    if where.min_price is None and where.max_price is None:
        return True
    if facts.price is None:
        return False
    price = float(np.float32(facts.price))
    low, high = _price_range(where)
    return low <= price <= high


def fitting_rows(where: RuleWhere, catalogue: Catalogue, rows: NDArray[np.int32] | None = None) -> NDArray[np.bool_]:
    """Which of ``rows`` (None: all) fit: bool, in the same order. A row without an entry never does.

    The cost is a few array operations over the rows, and a look at each distinct value of the fields that are asked.
    """
    attributes = catalogue.attributes
    mask = catalogue.known.copy() if rows is None else catalogue.known[rows]

    def codes(column: Codes[V]) -> NDArray[np.int32]:
        return column.all(catalogue.rows) if rows is None else column.at(rows)

    if where.item_ids:
        named = np.array([row for item_id in where.item_ids if (row := catalogue.row(item_id)) >= 0], np.int32)
        if rows is None:
            listed = np.zeros(catalogue.rows, np.bool_)
            listed[named] = True
            mask &= listed
        else:
            mask &= np.isin(rows, named)
    if where.categories:
        mask &= attributes.categories.accepted(codes(attributes.categories), _any_of(where.categories))
    if where.tags:
        mask &= attributes.tags.accepted(codes(attributes.tags), _any_of(where.tags))
    if where.brands:
        mask &= attributes.brand.among(codes(attributes.brand), folded(where.brands))
    if where.owner_ids:
        mask &= attributes.owner.among(codes(attributes.owner), where.owner_ids)
    if where.languages:
        mask &= attributes.language.accepted(codes(attributes.language), _speaks(where.languages))
    if where.min_price is not None or where.max_price is not None:
        price = catalogue.price if rows is None else catalogue.price[rows]
        low, high = _price_range(where)
        mask &= (price >= low) & (price <= high)  # NaN is neither
    return mask


def _price_range(where: RuleWhere) -> tuple[float, float]:
    """The range in the precision prices are kept in, so that an item at the very limit is inside."""
    with np.errstate(over="ignore"):  # beyond all prices: infinity is right
        low = -np.inf if where.min_price is None else float(np.float32(where.min_price))
        high = np.inf if where.max_price is None else float(np.float32(where.max_price))
    return low, high


def _any_of(wanted: list[str]) -> Callable[[tuple[str, ...]], bool]:
    values = frozenset(folded(wanted))
    return lambda held: not values.isdisjoint(held)


def _speaks(wanted: list[str]) -> Callable[[str], bool]:
    tags = folded(wanted)
    return lambda language: any(language == tag or language.startswith(f"{tag}-") for tag in tags)
