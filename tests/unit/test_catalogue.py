"""The item table: rows, what may be served when, and what happens to rows nobody needs."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas.messages import Item
from stream_app.errors import SnapshotError
from stream_app.items.catalogue import Catalogue
from stream_app.users.state import id_hash


def item(item_id: str, **fields: Any) -> Item:
    return Item(item_id=item_id, title=fields.pop("title", item_id.upper()), **fields)


def instant(seconds: float) -> datetime:
    return datetime.fromtimestamp(seconds, UTC)


def test_an_item_has_one_row_for_as_long_as_it_is_known() -> None:
    catalogue = Catalogue(unknown_items=10)
    first = catalogue.put(item("a", price=3.5, brand="B", categories=["C"]))
    second = catalogue.put(item("b"))
    assert (first, second) == (0, 1)
    assert catalogue.put(item("a", title="new")) == first
    assert len(catalogue) == 2
    facts = catalogue.facts(first)
    assert facts is not None
    assert facts.title == "new"
    assert np.isnan(catalogue.price[first])
    assert catalogue.id_hash[second] == id_hash("b")
    assert catalogue.row_of_hash(id_hash("b")) == second
    assert (catalogue.row("b"), catalogue.row("c"), catalogue.item_id(second)) == (second, -1, "b")


def test_a_removed_item_keeps_its_row_and_is_not_served() -> None:
    catalogue = Catalogue(unknown_items=10)
    row = catalogue.put(item("a"))
    assert catalogue.servable(0.0)[row]
    assert catalogue.remove("a") == row
    assert catalogue.remove("never there") == -1
    assert not catalogue.servable(0.0)[row]
    assert (len(catalogue), catalogue.unknown, catalogue.row("a")) == (0, 1, row)
    assert catalogue.facts(row) is None
    assert catalogue.put(item("a")) == row
    assert catalogue.servable(0.0)[row]


def test_dates_and_availability_decide_what_is_servable() -> None:
    catalogue = Catalogue(unknown_items=10)
    catalogue.put(item("always"))
    catalogue.put(item("soon", published_at=instant(100)))
    catalogue.put(item("short", expires_at=instant(200)))
    catalogue.put(item("off", available=False))

    def served(now: float) -> list[str]:
        return [catalogue.item_id(row) for row in np.flatnonzero(catalogue.servable(now)).tolist()]

    assert served(99.9) == ["always", "short"]
    assert served(100.0) == ["always", "soon", "short"]
    assert served(200.0) == ["always", "soon"]
    assert served(50.0) == ["always", "short"]
    assert catalogue.listed("soon")
    assert not catalogue.listed("off")
    assert not catalogue.listed("unheard of")


@given(
    st.lists(
        st.tuples(
            st.sampled_from("abcdef"),
            st.sampled_from(["put", "remove", "intern", "ask"]),
            st.booleans(),
            st.one_of(st.none(), st.integers(0, 10)),
            st.one_of(st.none(), st.integers(0, 10)),
            st.floats(0, 11),
        ),
        max_size=40,
    )
)
def test_the_kept_mask_is_the_one_computed_afresh(
    steps: list[tuple[str, str, bool, int | None, int | None, float]],
) -> None:
    catalogue = Catalogue(unknown_items=10)
    entries: dict[str, Item] = {}
    for item_id, step, available, published, expires, now in steps:
        if step == "put":
            entries[item_id] = item(
                item_id,
                available=available,
                published_at=None if published is None else instant(published),
                expires_at=None if expires is None else instant(expires),
            )
            catalogue.put(entries[item_id])
        elif step == "remove":
            entries.pop(item_id, None)
            catalogue.remove(item_id)
        elif step == "intern":
            catalogue.intern(item_id)
        mask = catalogue.servable(now)
        assert len(mask) == catalogue.rows
        expected = {
            name
            for name, entry in entries.items()
            if entry.available
            and (entry.published_at is None or entry.published_at.timestamp() <= now)
            and (entry.expires_at is None or entry.expires_at.timestamp() > now)
        }
        assert {catalogue.item_id(row) for row in np.flatnonzero(mask).tolist()} == expected


def test_unknown_ids_have_rows_up_to_a_bound() -> None:
    catalogue = Catalogue(unknown_items=2)
    assert [catalogue.intern(name) for name in "abac"] == [0, 1, 0, -1]
    assert catalogue.dropped == 1
    assert catalogue.put(item("c")) == 2
    assert catalogue.put(item("a")) == 0
    assert catalogue.intern("d") == 3


def test_reclaimed_rows_are_used_again_lowest_first() -> None:
    catalogue = Catalogue(unknown_items=4)
    for name in "abcd":
        catalogue.put(item(name))
    for name in "dab":
        catalogue.remove(name)
    referenced = np.array([False, True, False, False])
    assert catalogue.reclaim(referenced).tolist() == [0, 3]
    assert [catalogue.row(name) for name in "abcd"] == [-1, 1, 2, -1]
    assert catalogue.row_of_hash(id_hash("a")) == -1
    with pytest.raises(KeyError):
        catalogue.item_id(0)
    assert [catalogue.put(item(name)) for name in "xyz"] == [0, 3, 4]
    assert catalogue.reclaim(np.zeros(5, np.bool_)).tolist() == [1]


def test_it_grows_beyond_its_first_capacity() -> None:
    catalogue = Catalogue(unknown_items=0)
    for number in range(3_000):
        catalogue.put(item(f"i{number}", expires_at=instant(number)))
    assert len(catalogue) == catalogue.rows == 3_000
    assert int(np.count_nonzero(catalogue.servable(1_500.0))) == 1_499


def test_saved_and_loaded_it_is_the_same(tmp_path: Path) -> None:
    catalogue = Catalogue(unknown_items=10)
    catalogue.put(item("a", price=1.25, published_at=instant(5)))
    catalogue.put(item("b"))
    catalogue.intern("c")
    catalogue.remove("b")
    catalogue.reclaim(np.array([True, True, False]))
    catalogue.save(tmp_path)
    loaded = Catalogue.load(tmp_path, unknown_items=10)
    assert (len(loaded), loaded.rows, loaded.unknown, loaded.version) == (1, 3, 1, catalogue.version)
    assert loaded.facts(0) == catalogue.facts(0)
    assert loaded.published_at.tolist() == catalogue.published_at.tolist()
    assert loaded.id_hash.tolist() == catalogue.id_hash.tolist()
    assert loaded.intern("d") == 2
    assert loaded.servable(5.0).tolist() == [True, False, False]


def test_a_damaged_snapshot_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(SnapshotError, match="cannot be read"):
        Catalogue.load(tmp_path, unknown_items=1)
    Catalogue(unknown_items=1).save(tmp_path)
    (tmp_path / "catalogue.msgpack").write_bytes(b"\xc1")
    with pytest.raises(SnapshotError, match="cannot be read"):
        Catalogue.load(tmp_path, unknown_items=1)


def test_a_price_beyond_all_numbers_is_the_largest():
    """Found by a reader of evaluations: a warning of NumPy's on the screen."""
    catalogue = Catalogue(unknown_items=10)
    row = catalogue.put(item("dear", price=1e308))
    assert catalogue.price[row] == np.finfo(np.float32).max
