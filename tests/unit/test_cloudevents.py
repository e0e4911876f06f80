"""CloudEvents attributes survive the way through Kafka headers; foreign ones are told apart."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta, timezone

import pytest

from schemas import cloudevents
from stream_app.errors import InvalidMessage

TIME = datetime(2026, 11, 23, 10, 0, 0, 5000, tzinfo=UTC)


def test_headers_are_binary_mode_attributes() -> None:
    made = cloudevents.headers(
        cloudevents.event_type("recommendations"), source="/tailrace/interactions", id="s-1", time=TIME, subject="u-1"
    )
    assert made == [
        ("content-type", b"application/json"),
        ("ce_specversion", b"1.0"),
        ("ce_id", b"s-1"),
        ("ce_type", b"tailrace.recommendations.v1"),
        ("ce_source", b"/tailrace/interactions"),
        ("ce_time", b"2026-11-23T10:00:00.005000Z"),
        ("ce_subject", b"u-1"),
    ]


def test_parse_gives_back_what_headers_made() -> None:
    local = TIME.astimezone(timezone(timedelta(hours=9)))
    made = cloudevents.headers(
        "tailrace.items.v1", source="/shop", id="é", time=local, extensions={"traceparent": "00-ab"}
    )
    event = cloudevents.parse(made)
    assert (event.id, event.type, event.source, event.spec_version) == ("é", "tailrace.items.v1", "/shop", "1.0")
    assert event.time == TIME
    assert event.extensions == {"traceparent": "00-ab"}


@pytest.mark.parametrize("headers", [None, [], {}, [("other", b"x")], [("ce_id", None)]])
def test_absent_attributes_are_none(headers: cloudevents.Headers) -> None:
    assert cloudevents.parse(headers) == cloudevents.CloudEvent()


@pytest.mark.parametrize("time", [b"", b"yesterday", b"2026-11-23T10:00:00", b"\xff"])
def test_unreadable_time_is_none(time: bytes) -> None:
    assert cloudevents.parse([("ce_time", time)]).time is None


def test_time_without_zone_cannot_be_sent() -> None:
    with pytest.raises(ValueError, match="no zone"):
        cloudevents.headers("t", source="/s", id="i", time=datetime(2026, 1, 1))


def test_every_repeat_of_the_type_header_counts() -> None:
    """Otherwise a proxy that adds a second header could hide the first."""
    good, bad = ("ce_type", b"tailrace.items.v1"), ("CE_Type", b"tailrace.items.v2")
    cloudevents.expect_type([good, good], good[1])
    with pytest.raises(InvalidMessage, match="unsupported_version"):
        cloudevents.expect_type([good, bad], good[1])


def test_long_type_is_not_echoed() -> None:
    with pytest.raises(InvalidMessage) as caught:
        cloudevents.expect_type([("ce_type", b"x" * 1_000_000)], b"tailrace.items.v1")
    assert caught.value.reason == "unsupported_type"
    assert len(caught.value.detail) < 500
