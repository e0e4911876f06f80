"""Which spaces are kept and which is served: every change of the one record that says so."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas import decode
from schemas.messages import ModelSpace, SpaceControl
from stream_app.errors import InvalidMessage, SpaceError
from stream_app.spaces.control import (
    MOST_SPACES,
    cut_over,
    find_space,
    first_control,
    retire,
    roll_back,
    served_space,
    with_space,
)

AT = datetime(2026, 11, 27, tzinfo=UTC)


def built(*names: str) -> SpaceControl:
    control = first_control("old/384", 384)
    for name in names:
        control = with_space(control, name, 256, {"model": f"/models/{name}"}, at=AT)
    return control


def test_a_space_is_built_served_rolled_back_and_retired() -> None:
    control = built("new/256")
    assert control.serving == "old/384"
    assert find_space(control, "new/256") == ModelSpace(
        space="new/256", dimensions=256, number=1, encoder={"model": "/models/new/256"}
    )
    served = cut_over(control, "new/256", at=AT)
    assert served_space(served).number == 1
    back = roll_back(served, at=AT)
    assert served_space(back).number == 0
    again = roll_back(back, at=AT)
    assert served_space(again).number == 1
    alone = retire(again, "old/384", at=AT)
    assert [one.number for one in alone.spaces] == [1]
    assert alone.previous == ""
    assert [control.version, served.version, back.version, alone.version] == [2, 3, 4, 6]


def test_numbers_are_never_used_again() -> None:
    control = retire(built("a/1"), "a/1", at=AT)
    assert find_space(with_space(control, "a/1", 1, {}, at=AT), "a/1").number == 2


def test_a_space_is_named_by_its_name_its_number_or_a_beginning() -> None:
    control = built("new/256")
    assert find_space(control, "1") is find_space(control, "new") is find_space(control, "new/256")
    for wrong in ("", "2", "newer"):
        with pytest.raises(SpaceError, match=r"none of the spaces: 0 .old/384., 1 .new/256."):
            find_space(control, wrong)
    with pytest.raises(SpaceError, match="several"):
        find_space(built("new/a", "new/b"), "new")


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda: with_space(built("a"), "a", 1, {}, at=AT), "there already"),
        (lambda: with_space(built("a", "b"), "c", 1, {}, at=AT), "retire one first"),
        (lambda: cut_over(built("a"), "old/384", at=AT), "served already"),
        (lambda: cut_over(built("a"), "b", at=AT), "none of the spaces"),
        (lambda: roll_back(built("a"), at=AT), "nothing was served before"),
        (lambda: retire(built("a"), "0", at=AT), "is served; cut over"),
    ],
)
def test_what_cannot_be_done_says_why(change: object, says: str) -> None:
    assert MOST_SPACES == 3
    with pytest.raises(SpaceError, match=says):
        change()  # type: ignore[operator]


def test_to_go_back_to_what_is_retired_is_refused() -> None:
    control = retire(cut_over(built("a"), "a", at=AT), "0", at=AT)
    with pytest.raises(SpaceError, match="nothing was served before"):
        roll_back(control, at=AT)


@given(st.lists(st.tuples(st.sampled_from("bcrt"), st.integers(0, 3)), max_size=12))
def test_whatever_is_done_the_record_stays_one_that_can_be_read(steps: list[tuple[str, int]]) -> None:
    control = first_control("s0", 4)
    for what, which in steps:
        try:
            match what:
                case "b":
                    control = with_space(control, f"s{which}", 4, {}, at=AT)
                case "c":
                    control = cut_over(control, f"s{which}", at=AT)
                case "r":
                    control = roll_back(control, at=AT)
                case _:
                    control = retire(control, f"s{which}", at=AT)
        except SpaceError:
            continue
        assert decode.decode_space_control(b"spaces", decode.encode(control)) == control
        assert 1 <= len(control.spaces) <= MOST_SPACES


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        (b"{}", "missing_field"),
        (b'{"version":1,"serving":"a","spaces":[]}', "invalid_field"),
        (b'{"version":1,"serving":"b","spaces":[{"space":"a","dimensions":1,"number":0}]}', "invalid_field"),
        (b'{"version":1,"serving":"a","spaces":[{"space":"a","dimensions":1,"number":1}]}', "invalid_field"),
        (
            b'{"version":1,"serving":"a","next_number":9,"spaces":[{"space":"a","dimensions":1,"number":1},'
            b'{"space":"b","dimensions":1,"number":1}]}',
            "invalid_field",
        ),
        (b"nonsense", "not_json"),
    ],
)
def test_a_record_that_makes_no_sense_is_refused(value: bytes, reason: str) -> None:
    with pytest.raises(InvalidMessage) as caught:
        decode.decode_space_control(b"spaces", value)
    assert caught.value.reason == reason


def test_only_one_key_is_known_and_null_takes_the_record_back() -> None:
    assert decode.decode_space_control(b"spaces", None) is None
    with pytest.raises(InvalidMessage, match="produce the record with key = spaces"):
        decode.decode_space_control(b"other", None)
