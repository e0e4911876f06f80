"""Dead letters: a record that cannot be processed goes, whole, to a topic of its own, with what to do about it."""

from __future__ import annotations

from base64 import b64encode
from datetime import UTC, datetime

from schemas.cloudevents import event_type, headers
from schemas.decode import encode
from schemas.messages import DeadLetter
from stream_app.delivery.publisher import OutRecord
from stream_app.delivery.records import InRecord
from stream_app.errors import InvalidMessage

__all__ = ["dead_letter"]

_ENVELOPE_BYTES = 4_096
_MAX_DETAIL = 2_000
_MAX_HEADERS = 32


def dead_letter(
    record: InRecord,
    error: InvalidMessage,
    *,
    topic: str,
    stage: str,
    attempts: int,
    now: float,
    max_message_bytes: int,
) -> OutRecord:
    """The dead letter of ``record``.

    Bytes, key and headers are carried in base64. A value too large for one message is left out and marked
    ``truncated``: it is still in the original topic, whose place the letter names.

    Args:
        record: what could not be processed.
        error: why, with a stable code and a sentence.
        topic: full name of the dead letter topic.
        stage: the role that gave up.
        attempts: how often it was tried.
        now: wall clock, seconds since 1970.
        max_message_bytes: the largest record the broker takes.
    """
    value = record.value
    kept_headers = [
        (str(name)[:256], b64encode(content or b"")[:4_096].decode("ascii"))
        for name, content in list(record.headers)[:_MAX_HEADERS]
    ]
    key = record.key
    header_bytes = sum(len(name) + len(content) for name, content in kept_headers)
    fixed = _ENVELOPE_BYTES + header_bytes + 2 * len(key or b"") + len(error.detail[:_MAX_DETAIL])
    truncated = value is not None and fixed + 4 * (len(value) // 3 + 1) > max_message_bytes
    letter = DeadLetter(
        reason=error.reason,
        detail=error.detail[:_MAX_DETAIL],
        attempts=attempts,
        stage=stage,
        topic=record.topic,
        partition=record.partition,
        offset=record.offset,
        failed_at=datetime.fromtimestamp(now, UTC),
        timestamp_ms=int((record.timestamp_s or 0.0) * 1000),
        key=None if key is None else b64encode(key).decode("ascii"),
        value=None if value is None or truncated else b64encode(value).decode("ascii"),
        headers=kept_headers,
        truncated=truncated,
        value_bytes=len(value or b""),
    )
    return OutRecord(
        topic,
        key if key is not None and len(key) <= 1_024 else None,
        encode(letter),
        headers(
            event_type("dead-letter"),
            source=f"/tailrace/{stage}",
            id=f"{record.topic}-{record.partition}-{record.offset}",
            time=letter.failed_at,
        ),
    )
