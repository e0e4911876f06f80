"""How far a space is: counted as records come, whatever their order."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from stream_app.spaces.building import Building

RECORDS = st.lists(
    st.tuples(st.sampled_from(("old", "new")), st.sampled_from("abcd"), st.sampled_from((None, "1", "2"))), max_size=40
)


@given(RECORDS)
def test_counts_are_those_of_what_is_there(records: list[tuple[str, str, str | None]]) -> None:
    building = Building()
    sides: dict[str, dict[str, str]] = {"old": {}, "new": {}}
    for side, item_id, text_hash in records:
        (building.in_old if side == "old" else building.in_new)(item_id, text_hash)
        if text_hash is None:
            sides[side].pop(item_id, None)
        else:
            sides[side][item_id] = text_hash
        old, new = sides["old"], sides["new"]
        assert building.items == len(old)
        assert building.done == len(old.keys() & new.keys())
        assert building.missing == len(old.keys() - new.keys())
        assert building.other_texts == sum(old[one] != new[one] for one in old.keys() & new.keys())
        assert building.some_missing(2) == [one for one in old if one not in new][:2]
