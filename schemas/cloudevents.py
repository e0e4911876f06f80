"""CloudEvents 1.0 attributes as Kafka headers, binary mode: ``ce_id``, ``ce_type``, ``ce_source`` and so on.

Follows the Kafka protocol binding (CloudEvents 1.0.2, section 3.2): the value is the data, untouched; attributes
travel as headers with the prefix ``ce_`` in UTF-8. Producers may leave them out: then version 1 of the topic's
message is assumed. When ``ce_type`` is there, it must be ``tailrace.<name>.v1``.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from types import MappingProxyType

from schemas.problems import shorten
from stream_app.errors import InvalidMessage

__all__ = ["SPEC_VERSION", "CloudEvent", "Headers", "event_type", "expect_type", "headers", "parse"]

SPEC_VERSION = "1.0"

Headers = Iterable[tuple[str, bytes | None]] | Mapping[str, bytes | None] | None
"""Headers as Kafka clients give them: pairs (a name may repeat), a mapping, or none."""

_PREFIX = "ce_"
_KNOWN = frozenset({"specversion", "id", "type", "source", "time", "subject"})
_NO_EXTENSIONS: Mapping[str, str] = MappingProxyType({})
_LONGEST = 2_048
"""Header bytes that are looked at; the rest of a longer header is ignored."""


@dataclass(frozen=True, kw_only=True, slots=True)
class CloudEvent:
    """The attributes of one event; everything else in ``ce_`` headers is in ``extensions``."""

    id: str | None = None
    type: str | None = None
    source: str | None = None
    spec_version: str | None = None
    time: datetime | None = None
    subject: str | None = None
    extensions: Mapping[str, str] = field(default_factory=lambda: _NO_EXTENSIONS)


def event_type(name: str, version: int = 1) -> str:
    """The CloudEvents type of a message, ``event_type("items")`` is ``tailrace.items.v1``."""
    return f"tailrace.{name}.v{version}"


def headers(
    type_: str,
    *,
    source: str,
    id: str,
    time: datetime,
    subject: str | None = None,
    extensions: Mapping[str, str] = _NO_EXTENSIONS,
) -> list[tuple[str, bytes]]:
    """Kafka headers of one event.

    Args:
        type_: see :func:`event_type`.
        source: URI reference of who made it, for example ``/tailrace/interactions``.
        id: unique per source.
        time: when it happened, with a zone.
        subject: what it is about, for example the user id.
        extensions: further attributes; names in lower-case letters and digits.
    """
    if time.tzinfo is None:
        raise ValueError(f"time {time!r} has no zone")
    made = [
        ("content-type", b"application/json"),
        ("ce_specversion", b"1.0"),
        ("ce_id", id.encode()),
        ("ce_type", type_.encode()),
        ("ce_source", source.encode()),
        ("ce_time", _rfc3339(time).encode()),
    ]
    if subject is not None:
        made.append(("ce_subject", subject.encode()))
    made.extend((f"{_PREFIX}{name}", value.encode()) for name, value in extensions.items())
    return made


def parse(headers: Headers) -> CloudEvent:
    """The attributes in ``headers``; absent or unreadable ones are None, never an error: they inform, the value
    decides. Of a repeated header the last counts."""
    attributes = {
        name[len(_PREFIX) :].lower(): value[:_LONGEST].decode("utf-8", "replace")
        for name, value in _pairs(headers)
        if value is not None and name[: len(_PREFIX)].lower() == _PREFIX
    }
    return CloudEvent(
        id=attributes.get("id"),
        type=attributes.get("type"),
        source=attributes.get("source"),
        spec_version=attributes.get("specversion"),
        time=_instant(attributes.get("time")),
        subject=attributes.get("subject"),
        extensions={name: value for name, value in attributes.items() if name not in _KNOWN},
    )


def expect_type(headers: Headers, expected: bytes) -> None:
    """Refuse a record whose ``ce_type`` says that it is something else than ``expected``.

    Raises:
        InvalidMessage: ``unsupported_version`` for another version of the same message, ``unsupported_type``
            for any other type.
    """
    for name, value in _pairs(headers):
        if value == expected or value is None or name.lower() != "ce_type":
            continue
        said = value[:_LONGEST].decode("utf-8", "replace")
        wanted = expected.decode()
        same_message = said.rpartition(".v")[0] == wanted.rpartition(".v")[0]
        if same_message:
            raise InvalidMessage(
                "unsupported_version",
                f"header ce_type is {shorten(said)}, this release reads {wanted}; "
                "upgrade Tailrace and replay, or send the version it reads",
            )
        raise InvalidMessage(
            "unsupported_type",
            f"header ce_type is {shorten(said)}, this topic carries {wanted}; "
            "send the record to its own topic, or correct or drop the header",
        )


def _pairs(headers: Headers) -> Iterable[tuple[str, bytes | None]]:
    if not headers:
        return ()
    return headers.items() if isinstance(headers, Mapping) else headers


def _rfc3339(time: datetime) -> str:
    return time.astimezone(UTC).isoformat().replace("+00:00", "Z")


def _instant(text: str | None) -> datetime | None:
    if text is None:
        return None
    try:
        time = datetime.fromisoformat(text)
    except ValueError:
        return None
    return time if time.tzinfo is not None else None
