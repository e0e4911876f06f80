"""The edge: what is accepted, and that whatever is refused is refused with a code and a sentence one can act on."""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import numpy as np
import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas import decode
from schemas.arrays import pack_float32, pack_float64
from schemas.messages import Interaction, Item, ItemSignals, ItemVector, Transition, Transitions
from stream_app.errors import InvalidMessage
from stream_app.settings import DEFAULT_EVENT_TYPES

NOW = datetime(2026, 11, 23, 12, tzinfo=UTC).timestamp()
OLDEST = datetime(2000, 1, 1, tzinfo=UTC).timestamp()

EVENT: dict[str, Any] = {
    "event_id": "e-1",
    "user_id": "u-1",
    "type": "click",
    "item_id": "i-1",
    "occurred_at": "2026-11-23T10:00:00Z",
}
ITEM: dict[str, Any] = {"item_id": "i-1", "title": "Mug"}


def interaction(value: bytes | None, key: bytes | None = b"u-1", headers: Any = None) -> Interaction:
    return decode.decode_interaction(
        key, value, headers, event_types=DEFAULT_EVENT_TYPES, now=NOW, oldest=OLDEST, future_tolerance_s=300.0
    )


def refused(value: bytes | None, key: bytes | None = b"u-1", headers: Any = None) -> InvalidMessage:
    with pytest.raises(InvalidMessage) as caught:
        interaction(value, key, headers)
    assert caught.value.reason in decode.REASONS
    assert len(caught.value.detail) < 1_000
    return caught.value


def refused_item(value: bytes | None, key: bytes | None = b"i-1", headers: Any = None) -> InvalidMessage:
    with pytest.raises(InvalidMessage) as caught:
        decode.decode_item(key, value, headers)
    assert caught.value.reason in decode.REASONS
    assert len(caught.value.detail) < 1_000
    return caught.value


def event(**changes: Any) -> bytes:
    return orjson.dumps({**EVENT, **changes})


def without(field: str) -> bytes:
    return orjson.dumps({name: value for name, value in EVENT.items() if name != field})


class TestInteraction:
    def test_typical_event_is_decoded(self) -> None:
        got = interaction(event(quantity=2, value=2.5, context={"page": "home"}))
        assert (got.event_id, got.user_id, got.item_id, got.quantity, got.value) == ("e-1", "u-1", "i-1", 2.0, 2.5)
        assert got.occurred_at == datetime(2026, 11, 23, 10, tzinfo=UTC)

    def test_unknown_fields_are_ignored(self) -> None:
        assert interaction(event(colour="red", nested={"a": [1]})) == interaction(event())

    def test_zone_other_than_utc_is_the_same_instant(self) -> None:
        shifted = interaction(event(occurred_at="2026-11-23T11:00:00+01:00"))
        assert shifted.occurred_at == interaction(event()).occurred_at

    @pytest.mark.parametrize("field", ["event_id", "user_id", "type", "occurred_at"])
    def test_missing_field_is_named(self, field: str) -> None:
        error = refused(without(field))
        assert error.reason == "missing_field"
        assert error.detail.startswith(f"{field}: ")

    @pytest.mark.parametrize(
        ("changes", "starts", "says"),
        [
            ({"user_id": 42}, "user_id: expected a string", "the number 42"),
            ({"user_id": ""}, "user_id: expected a string of at least 1 characters", "an empty string"),
            ({"user_id": None}, "user_id: expected a string", "found null"),
            ({"event_id": "x" * 300}, "event_id: expected a string of at most 256 characters", "(300 characters)"),
            ({"item_id": "a\x00b"}, "item_id: expected a string without control characters", "x00"),
            ({"item_id": "a\n"}, "item_id: expected a string without control characters", "'a\\n'"),
            ({"item_id": True}, "item_id: expected a string or null", "found true"),
            ({"type": 3}, "type: expected a string", "the number 3"),
            ({"occurred_at": "2026-11-23T10:00:00"}, "occurred_at: expected an RFC 3339", "with a zone"),
            ({"occurred_at": "yesterday"}, "occurred_at: expected an RFC 3339", "'yesterday'"),
            ({"occurred_at": 1795428000}, "occurred_at: expected an RFC 3339", "the number 1795428000"),
            ({"position": -1}, "position: expected a number of at least 0", "the number -1"),
            ({"position": 1.5}, "position: expected an integer or null", "1.5"),
            ({"value": "4"}, "value: expected a number or null", "the string '4'"),
            ({"quantity": True}, "quantity: expected a number or null", "true"),
            ({"items": "i-1"}, "items: expected an array", "the string 'i-1'"),
            ({"items": ["a", 3]}, "items[1]: expected a string", "the number 3"),
            ({"items": ["a"] * 501}, "items: expected an array of at most 500 elements", "an array of 501"),
            ({"context": [1]}, "context: expected an object", "an array of 1"),
            ({"text": ["q"]}, "text: expected a string or null", "an array of 1"),
        ],
    )
    def test_wrong_field_says_path_expectation_and_finding(
        self, changes: dict[str, Any], starts: str, says: str
    ) -> None:
        error = refused(event(**changes))
        assert error.reason == "invalid_field"
        assert error.detail.startswith(starts)
        assert says in error.detail

    @pytest.mark.parametrize("document", [b"[]", b"3", b"null", b'"text"', b"true"])
    def test_json_that_is_no_object(self, document: bytes) -> None:
        assert refused(document).reason == "invalid_field"

    @pytest.mark.parametrize(
        "value",
        [
            b"",
            b"not json",
            b"{",
            b'{"a":1}{"b":2}',
            b"\xef\xbb\xbf{}",
            event().replace(b'"click"', b'"click","value":NaN'),
            event().replace(b'"click"', b'"click","value":-Infinity'),
            event().replace(b'"click"', b'"click","value":1e999'),
            event().replace(b'"click"', b'"\\ud800"'),
        ],
    )
    def test_not_json(self, value: bytes) -> None:
        assert refused(value).reason == "not_json"

    def test_not_utf8(self) -> None:
        assert refused(event().replace(b"click", b"cl\xffck")).reason == "not_utf8"
        assert refused(event(), key=b"\xff").reason == "not_utf8"

    def test_null_value(self) -> None:
        assert refused(None).reason == "null_value"

    @pytest.mark.parametrize("key", [None, b""])
    def test_null_key(self, key: bytes | None) -> None:
        assert refused(event(), key=key).reason == "null_key"

    @pytest.mark.parametrize("key", [b"x" * 257, b"a\x00b", b"u-1\n"])
    def test_invalid_key(self, key: bytes) -> None:
        assert refused(event(), key=key).reason == "invalid_key"

    def test_key_of_somebody_else(self) -> None:
        error = refused(event(), key=b"u-2")
        assert error.reason == "key_mismatch"
        assert "'u-2'" in error.detail
        assert "'u-1'" in error.detail

    def test_key_written_as_json_is_explained(self) -> None:
        assert "drop the quotes" in refused(event(), key=b'"u-1"').detail

    def test_unknown_type_lists_the_known_ones(self) -> None:
        error = refused(event(type="teleport"))
        assert error.reason == "unknown_event_type"
        assert "'teleport'" in error.detail
        assert "purchase" in error.detail

    @pytest.mark.parametrize(
        "instant",
        [
            "1970-01-01T00:00:00Z",
            "1999-12-31T23:59:59Z",
            "2099-01-01T00:00:00Z",
            "2026-11-23T12:05:01Z",
            "0001-01-01T00:00:00+23:59",
            "9999-12-31T23:59:59-23:59",
        ],
    )
    def test_clock_that_is_wrong(self, instant: str) -> None:
        error = refused(event(occurred_at=instant))
        assert error.reason == "occurred_at_out_of_range"
        assert "setting events." in error.detail

    def test_clock_a_little_ahead_is_accepted(self) -> None:
        assert interaction(event(occurred_at="2026-11-23T12:05:00Z"))

    @pytest.mark.parametrize("type_", ["click", "purchase", "review", "hide", "rating"])
    def test_type_that_needs_an_item(self, type_: str) -> None:
        assert refused(event(type=type_, item_id=None)).reason == "missing_field"

    def test_impression_needs_items_search_needs_text_visit_needs_nothing(self) -> None:
        assert refused(event(type="impression")).detail.startswith("items: ")
        assert refused(event(type="search")).detail.startswith("text: ")
        assert refused(event(type="search", text=" \n")).detail.startswith("text: ")
        bare = {"item_id": None}
        assert interaction(event(type="impression", items=["a", "b"], **bare)).items == ["a", "b"]
        assert interaction(event(type="search", text="mug", **bare)).text == "mug"
        assert interaction(event(type="visit", **bare)).type == "visit"

    def test_search_of_100k_characters_is_accepted(self) -> None:
        assert interaction(event(type="search", text="q" * 100_000)).text == "q" * 100_000

    def test_version_header(self) -> None:
        assert interaction(event(), headers=[("ce_type", b"tailrace.interactions.v1")])
        assert interaction(event(), headers={"ce_type": b"tailrace.interactions.v1"})
        assert refused(event(), headers=[("ce_type", b"tailrace.interactions.v2")]).reason == "unsupported_version"
        assert refused(event(), headers=[("ce_type", b"com.example.order")]).reason == "unsupported_type"
        assert interaction(event(), headers=[("trace", None), ("x", b"\xff")])


class TestItem:
    def test_full_item_is_decoded(self) -> None:
        document = {
            **ITEM,
            "description": "A mug.",
            "categories": ["kitchen", "mugs"],
            "price": 3,
            "currency": "GBP",
            "published_at": "2026-01-01T00:00:00Z",
            "attributes": {"colour": "blue", "sizes": [1, {"a": None}]},
        }
        item_id, item = decode.decode_item(b"i-1", orjson.dumps(document))
        assert item_id == "i-1"
        assert item is not None
        assert (item.price, item.categories, item.available) == (3.0, ["kitchen", "mugs"], True)
        assert item.attributes == document["attributes"]

    def test_null_value_deletes(self) -> None:
        assert decode.decode_item(b"i-1", None) == ("i-1", None)

    @pytest.mark.parametrize("key", [None, b""])
    def test_null_key_deletes_nothing(self, key: bytes | None) -> None:
        assert refused_item(None, key=key).reason == "null_key"

    @pytest.mark.parametrize("price", [b"-1", b"-0.01"])
    def test_negative_price(self, price: bytes) -> None:
        error = refused_item(b'{"item_id":"i-1","title":"Mug","price":' + price + b"}")
        assert error.reason == "invalid_field"
        assert error.detail.startswith("price: expected a number of at least 0")

    def test_nan_price(self) -> None:
        assert refused_item(b'{"item_id":"i-1","title":"Mug","price":NaN}').reason == "not_json"

    def test_10_mb_title_is_refused_without_an_echo(self) -> None:
        error = refused_item(orjson.dumps({**ITEM, "title": "x" * 10_000_000}))
        assert error.reason == "invalid_field"
        assert "(10,000,000 characters)" in error.detail

    def test_value_beyond_the_limit_is_not_parsed(self) -> None:
        assert refused_item(b"[" * (decode.MAX_VALUE_BYTES + 1)).reason == "too_large"

    @pytest.mark.parametrize("depth", [33, 500, 1_000])
    def test_deep_attributes(self, depth: int) -> None:
        nested = b"[" * depth + b"]" * depth
        assert refused_item(b'{"item_id":"i-1","title":"t","attributes":{"a":%b}}' % nested).reason == "too_deep"

    def test_deep_garbage(self) -> None:
        assert refused_item(b"[" * 1_000_000).reason == "too_deep"

    def test_attributes_at_the_limit(self) -> None:
        nested = b"[" * (decode.MAX_DEPTH - 1) + b"]" * (decode.MAX_DEPTH - 1)
        assert decode.decode_item(b"i-1", b'{"item_id":"i-1","title":"t","attributes":{"a":%b}}' % nested)[1]

    def test_other_version(self) -> None:
        error = refused_item(orjson.dumps(ITEM), headers=[("ce_type", b"tailrace.items.v7")])
        assert error.reason == "unsupported_version"
        assert "tailrace.items.v1" in error.detail


class TestInternal:
    def vector(self, **changes: Any) -> bytes:
        row = ItemVector(item_id="i", space="s", text_hash="h", dimensions=3, vector=pack_float32(np.ones(3)))
        return orjson.dumps({**orjson.loads(decode.encode(row)), **changes})

    def test_vector(self) -> None:
        item_id, row = decode.decode_item_vector(b"i", self.vector())
        assert (item_id, row and row.dimensions) == ("i", 3)
        assert decode.decode_item_vector(b"i", None) == ("i", None)

    @pytest.mark.parametrize(
        ("key", "value", "reason"),
        [
            (None, None, "null_key"),
            (b"j", {}, "key_mismatch"),
            (b"i", {"dimensions": 4}, "invalid_field"),
            (b"i", {"dimensions": "3"}, "invalid_field"),
        ],
    )
    def test_vector_refused(self, key: bytes | None, value: dict[str, Any] | None, reason: str) -> None:
        with pytest.raises(InvalidMessage) as caught:
            decode.decode_item_vector(key, None if value is None else self.vector(**value))
        assert caught.value.reason == reason

    def test_signals(self) -> None:
        row = ItemSignals(
            item_id="i",
            at=1.0,
            counts=[1.0],
            neighbours=["a", "b"],
            symmetric=pack_float64(np.ones(2)),
            directed=pack_float64(np.ones(2)),
            applied={"0": 3},
        )
        assert decode.decode_item_signals(b"i", decode.encode(row)) == ("i", row)

    def test_transitions_rows_must_fit(self) -> None:
        row = Transition(offset=1, at=1.0, item_id="i", count=1.0, previous=["a"], symmetric=[1.0], directed=[1.0, 2.0])
        batch = Transitions(source_topic="t", source_partition=0, rows=[row])
        with pytest.raises(InvalidMessage, match=r"rows\[0\].directed"):
            decode.decode_transitions(decode.encode(batch))

    @pytest.mark.parametrize("value", [None, b"", b"x", b"\xff", b"{}", b"[" * 100_000, b'{"a":"\\ud800"}'])
    def test_hostile_internal_values_are_refused(self, value: bytes | None) -> None:
        for read in (decode.decode_transitions, decode.decode_training_examples, decode.decode_dead_letter):
            with pytest.raises(InvalidMessage) as caught:
                read(value)
            assert caught.value.reason in decode.REASONS


def attempt(read: Callable[[], Any]) -> Any:
    """What ``read`` gives, or the refusal; any other error fails the test."""
    try:
        return read()
    except InvalidMessage as error:
        return error


@given(st.binary(max_size=200), st.none() | st.binary(max_size=20))
def test_any_bytes_are_decoded_or_refused_never_anything_else(value: bytes, key: bytes | None) -> None:
    for read in (
        lambda: interaction(value, key),
        lambda: decode.decode_item(key, value),
        lambda: decode.decode_slate(key, value),
        lambda: decode.decode_item_vector(key, value),
        lambda: decode.decode_dead_letter(value),
    ):
        outcome = attempt(read)
        assert not isinstance(outcome, InvalidMessage) or outcome.reason in decode.REASONS


_PRINTED = "aZ09 .-/é漢ا😀"
_text = st.text(_PRINTED + '\x00\n\t\x7f"\\', max_size=10)
_json = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats(allow_nan=False) | _text,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(_text, inner, max_size=4),
    max_leaves=8,
)


@given(st.dictionaries(st.sampled_from(sorted(Interaction.__struct_fields__)), _json, max_size=6))
def test_any_json_in_any_field_is_decoded_or_refused(changes: dict[str, Any]) -> None:
    value = json.dumps({**EVENT, **changes}).encode()
    got = attempt(lambda: interaction(value))
    if isinstance(got, InvalidMessage):
        assert got.reason in decode.REASONS
        assert len(got.detail) < 1_000
    else:
        assert interaction(decode.encode(got)) == got


_ids = st.text(_PRINTED, min_size=1, max_size=20)


@given(
    st.builds(
        Item,
        item_id=_ids,
        title=_text.filter(bool),
        tags=st.lists(_text, max_size=3),
        price=st.none() | st.floats(min_value=0, allow_infinity=False),
        published_at=st.none() | st.datetimes(timezones=st.just(UTC)),
    )
)
def test_what_is_encoded_is_decoded_to_the_same(item: Item) -> None:
    assert decode.decode_item(item.item_id.encode(), decode.encode(item)) == (item.item_id, item)
