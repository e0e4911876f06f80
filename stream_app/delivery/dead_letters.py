"""Dead letters: a record that cannot be processed goes, whole, to a topic of its own, with what to do about it."""

from __future__ import annotations

from base64 import b64encode
from dataclasses import dataclass
from datetime import UTC, datetime

from schemas.cloudevents import event_type, headers
from schemas.decode import encode
from schemas.messages import DeadLetter
from stream_app.delivery.publisher import OutRecord
from stream_app.delivery.records import InRecord
from stream_app.errors import InvalidMessage

__all__ = ["dead_letter"]

_MAX_DETAIL = 2_000
_SHORT_DETAIL = 300
_MAX_KEY = 1_024
"""A longer key is carried in the letter only; it need not decide the letter's partition."""
_RECORD_OVERHEAD = 100
"""Bytes a record takes besides key, value and headers: aiokafka's own estimate is 70, and the size varints."""
_HEADER_OVERHEAD = 10


@dataclass(frozen=True, slots=True, kw_only=True)
class _Kept:
    """What of a record is carried."""

    value: bool = False
    headers: int = 0
    key: bool = False
    detail: int = _SHORT_DETAIL


_CHOICES = (
    _Kept(value=True, headers=1_000, key=True, detail=_MAX_DETAIL),
    _Kept(headers=1_000, key=True, detail=_MAX_DETAIL),
    _Kept(headers=8, key=True),
    _Kept(key=True),
    _Kept(),
)
"""From everything to what always fits; the first that fits is taken."""


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
    """The dead letter of ``record``; never larger than ``max_message_bytes``.

    Bytes, key and headers are carried in base64. What makes the letter too large is left out, the value first, then
    headers, then the key, and the letter is marked ``truncated``: the whole record is still in the original topic,
    whose place the letter names.

    Args:
        record: what could not be processed.
        error: why, with a stable code and a sentence.
        topic: full name of the dead letter topic.
        stage: the role that gave up.
        attempts: how often it was tried.
        now: wall clock, seconds since 1970.
        max_message_bytes: the largest record the broker takes; 16,384 at least.
    """
    failed_at = datetime.fromtimestamp(now, UTC)
    sent_headers = headers(
        event_type("dead-letter"),
        source=f"/tailrace/{stage}",
        id=f"{record.topic}-{record.partition}-{record.offset}",
        time=failed_at,
    )
    sent_key = record.key if record.key is not None and len(record.key) <= _MAX_KEY else None
    spare = max_message_bytes - _RECORD_OVERHEAD - len(sent_key or b"")
    spare -= sum(len(name) + len(content) + _HEADER_OVERHEAD for name, content in sent_headers)
    for kept in _CHOICES:
        if _least_bytes(record, kept) <= spare:
            value = encode(_letter(record, error, kept, stage=stage, attempts=attempts, failed_at=failed_at))
            if len(value) <= spare:
                return OutRecord(topic, sent_key, value, sent_headers)
    raise ValueError(f"no letter about {record.place} fits into {max_message_bytes} bytes")


def _least_bytes(record: InRecord, kept: _Kept) -> int:
    """A lower bound of the letter's size, so that nothing large is encoded in vain."""
    return (len(record.value or b"") if kept.value else 0) + (len(record.key or b"") if kept.key else 0)


def _letter(
    record: InRecord, error: InvalidMessage, kept: _Kept, *, stage: str, attempts: int, failed_at: datetime
) -> DeadLetter:
    value, key = record.value, record.key
    carried = list(record.headers)[: kept.headers]
    if len(carried) < len(record.headers):
        carried = [(str(name)[:64], (content or b"")[:96]) for name, content in carried]
    truncated = (
        (value is not None and not kept.value)
        or (key is not None and not kept.key)
        or len(record.headers) > kept.headers
    )
    return DeadLetter(
        reason=error.reason,
        detail=error.detail[: kept.detail],
        attempts=attempts,
        stage=stage,
        topic=record.topic,
        partition=record.partition,
        offset=record.offset,
        failed_at=failed_at,
        # Rounded: milliseconds became a float of seconds on the way, and cutting it off loses one now and then.
        timestamp_ms=round((record.timestamp_s or 0.0) * 1000),
        key=_base64(key) if kept.key else None,
        value=_base64(value) if kept.value else None,
        headers=[(str(name), _base64(content or b"") or "") for name, content in carried],
        truncated=truncated,
        value_bytes=len(value or b""),
    )


def _base64(data: bytes | None) -> str | None:
    return None if data is None else b64encode(data).decode("ascii")
