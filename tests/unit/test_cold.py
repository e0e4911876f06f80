"""New items, in and out of the set of them, against plain sets."""

from __future__ import annotations

from datetime import UTC, datetime

import numpy as np
import pytest

from schemas.messages import Item
from stream_app.items.catalogue import Catalogue
from stream_app.items.cold import ColdItems


@pytest.mark.parametrize("seed", range(5))
def test_rows_that_come_and_go_are_those_of_a_set(seed: int) -> None:
    rng = np.random.default_rng(seed)
    cold, expected = ColdItems(), set[int]()
    for _ in range(200):
        rows = rng.permutation(5_000)[: rng.integers(0, 40)].astype(np.int32)
        said = rng.random(len(rows)) < 0.5
        cold.set_all(rows, said, counted=True)
        expected = (expected - set(rows[~said].tolist())) | set(rows[said].tolist())
        assert len(cold) == len(expected)
    assert {row for row in range(6_000) if row in cold} == expected


def test_the_rising_come_first_and_then_the_newest() -> None:
    catalogue = Catalogue(unknown_items=0)
    for number in range(20):
        published = datetime(2026, 1, number + 1, tzinfo=UTC) if number < 10 else None
        catalogue.put(Item(item_id=f"i{number}", title="x", published_at=published))
    cold = ColdItems(limit=6)
    cold.set_all(np.arange(20, dtype=np.int32), np.ones(20, np.bool_), changed=True)
    momentum = np.full(20, -np.inf)
    momentum[[12, 3, 15, 8]] = 1.0, 4.0, 2.0, 3.0
    # Half of the places are for the rising ones; the others go to the newest.
    assert cold.rows(catalogue, momentum).tolist() == [3, 8, 15, 9, 7, 6]


def test_without_dates_the_order_is_that_of_ids_and_not_of_rows() -> None:
    found = []
    for names in (range(40), reversed(range(40))):
        catalogue = Catalogue(unknown_items=0)
        for number in names:
            catalogue.put(Item(item_id=f"i{number}", title="x"))
        cold = ColdItems(limit=10)
        cold.set_all(np.arange(40, dtype=np.int32), np.ones(40, np.bool_), changed=True)
        rows = cold.rows(catalogue, np.full(40, -np.inf))
        found.append([catalogue.item_id(row) for row in rows.tolist()])
    assert found[0] == found[1]
    assert len(set(found[0])) == 10
