"""A dead letter carries the whole record where it fits, always fits into a message, and says what was cut."""

from __future__ import annotations

from base64 import b64decode

import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas.decode import decode_dead_letter
from schemas.messages import DeadLetter
from stream_app.delivery.dead_letters import dead_letter
from stream_app.delivery.publisher import OutRecord
from stream_app.delivery.records import InRecord
from stream_app.errors import InvalidMessage

LIMIT = 16_384
"""The smallest allowed ``connection.max_message_bytes``."""


def record(
    key: bytes | None = b"u", value: bytes | None = b"not json", headers=(), timestamp_s: float = 1_700_000_000.0
) -> InRecord:
    return InRecord("t.interactions.v1", 3, 42, key, value, headers, timestamp_s)


def letter_of(
    source: InRecord, error: InvalidMessage | None = None, limit: int = LIMIT
) -> tuple[OutRecord, DeadLetter]:
    out = dead_letter(
        source,
        error or InvalidMessage("not_json", "send JSON"),
        topic="t.dead-letter.v1",
        stage="interactions",
        attempts=2,
        now=1_700_000_001.5,
        max_message_bytes=limit,
    )
    return out, decode_dead_letter(out.value)


def wire_bytes(out: OutRecord) -> int:
    """At least what the record takes in a message set: aiokafka refuses by this sum plus up to 70 bytes and varints."""
    headers = sum(len(name.encode()) + len(value) + 10 for name, value in out.headers)
    return len(out.key or b"") + len(out.value or b"") + headers + 100


def test_bytes_key_headers_and_place_are_all_there():
    source = record(b"\xff\x00", b"\xfe raw \x00", [("ce_id", b"\x01\x02"), ("empty", b"")])
    out, letter = letter_of(source)
    assert out.topic == "t.dead-letter.v1"
    assert out.key == source.key
    assert b64decode(letter.key or "") == source.key
    assert b64decode(letter.value or "") == source.value
    assert [(name, b64decode(value)) for name, value in letter.headers] == [("ce_id", b"\x01\x02"), ("empty", b"")]
    assert (letter.topic, letter.partition, letter.offset) == ("t.interactions.v1", 3, 42)
    assert (letter.reason, letter.detail, letter.attempts, letter.stage) == ("not_json", "send JSON", 2, "interactions")
    assert letter.failed_at.timestamp() == 1_700_000_001.5
    assert not letter.truncated
    assert letter.value_bytes == len(source.value or b"")


def test_null_key_and_null_value_stay_null():
    out, letter = letter_of(record(None, None))
    assert out.key is None
    assert letter.key is None
    assert letter.value is None
    assert letter.value_bytes == 0
    assert not letter.truncated


def test_a_header_without_a_value_does_not_stop_the_letter():
    _, letter = letter_of(record(headers=[("x", None)]))
    assert letter.headers == [("x", "")]


@pytest.mark.parametrize("timestamp_ms", [0, 1, 1_700_000_000_001, 1_700_000_000_123, 1_799_999_999_999])
def test_the_timestamp_is_the_original_one_to_the_millisecond(timestamp_ms: int):
    _, letter = letter_of(record(timestamp_s=timestamp_ms / 1000))
    assert letter.timestamp_ms == timestamp_ms


@given(st.integers(1_500_000_000_000, 2_500_000_000_000))
def test_every_millisecond_survives_the_way_through_seconds(timestamp_ms: int):
    _, letter = letter_of(record(timestamp_s=timestamp_ms / 1000))
    assert letter.timestamp_ms == timestamp_ms


def test_a_value_that_does_not_fit_is_left_out_and_said_so():
    _, letter = letter_of(record(value=b"x" * LIMIT))
    assert letter.truncated
    assert letter.value is None
    assert letter.value_bytes == LIMIT


@pytest.mark.parametrize(
    "source",
    [
        pytest.param(record(key=b"k" * LIMIT), id="a key as large as a message"),
        pytest.param(record(headers=[(f"h{n}", b"v" * 4_000) for n in range(64)]), id="many large headers"),
        pytest.param(record(headers=[("é" * 10_000, b"v")]), id="a header name of many bytes"),
        pytest.param(
            record(key=b"k" * 9_000, value=b"v" * 9_000, headers=[("h", b"v" * 9_000)]), id="each fits, all do not"
        ),
    ],
)
def test_a_record_whose_key_or_headers_are_too_large_still_makes_a_letter_that_fits(source: InRecord):
    out, letter = letter_of(source)
    assert wire_bytes(out) <= LIMIT
    assert letter.truncated, "something was cut: the letter has to say so"
    assert (letter.partition, letter.offset) == (source.partition, source.offset)


@given(
    key=st.none() | st.binary(max_size=4_000).map(lambda some: some * 5),
    value=st.none() | st.binary(max_size=4_000).map(lambda some: some * 4),
    headers=st.lists(st.tuples(st.text(max_size=300), st.none() | st.binary(max_size=3_000)), max_size=40),
    detail=st.text(max_size=3_000) | st.sampled_from(["\x00" * 2_500, "𝄞" * 2_500, '"' * 2_500]),
)
def test_every_letter_fits_and_what_is_not_cut_is_whole(key, value, headers, detail):
    source = record(key, value, headers)
    out, letter = letter_of(source, InvalidMessage("odd", detail))
    assert wire_bytes(out) <= LIMIT
    if not letter.truncated:
        assert (None if letter.key is None else b64decode(letter.key)) == key
        assert (None if letter.value is None else b64decode(letter.value)) == value
        assert [b64decode(content) for _, content in letter.headers] == [content or b"" for _, content in headers]
