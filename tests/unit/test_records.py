"""A record keeps everything of the Faust event it came from."""

from __future__ import annotations

from types import SimpleNamespace

from stream_app.delivery.records import InRecord


def event(headers):
    message = SimpleNamespace(
        topic="t", partition=1, offset=7, key=None, value=b"v", headers=headers, timestamp=1_700_000_000.25
    )
    return SimpleNamespace(message=message)


def test_pairs_keep_their_order_and_repeats():
    pairs = (("a", b"1"), ("a", b"2"))
    assert list(InRecord.from_faust(event(pairs)).headers) == list(pairs)


def test_a_mapping_and_nothing_become_pairs():
    assert list(InRecord.from_faust(event({"a": b"1"})).headers) == [("a", b"1")]
    assert list(InRecord.from_faust(event(None)).headers) == []


def test_the_place_names_topic_partition_and_offset():
    record = InRecord.from_faust(event(()))
    assert record.place == "t[1]@7"
    assert (record.key, record.value, record.timestamp_s) == (None, b"v", 1_700_000_000.25)
