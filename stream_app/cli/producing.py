"""Sending a file of messages: validate each line as Tailrace will, send what is valid, account for the rest."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Final, Literal

from schemas.cloudevents import event_type, headers
from schemas.decode import MAX_VALUE_BYTES, parse_interaction, parse_item, parse_rule, parse_user
from stream_app.cli.console import wait_for_kafka
from stream_app.cli.jsonl import LineReader
from stream_app.delivery.admin import create_topics
from stream_app.delivery.publisher import OutRecord, Publisher
from stream_app.errors import InvalidMessage
from stream_app.metrics import Metrics
from stream_app.settings import Settings
from stream_app.topics import Topics

__all__ = ["Kind", "Outcome", "produce_file"]

Kind = Literal["items", "interactions", "users", "rules"]

_SLICE: Final = 500
"""Records sent before their acknowledgement is awaited: bounds memory and what a crash sends twice."""
_SLICES_PER_S: Final = 20
"""How smooth a limited rate is."""
_ENVELOPE_BYTES: Final = 1_024
"""Room for headers and the batch's own bytes in a message of the largest size."""

Send = Callable[[list[OutRecord]], Awaitable[None]]


@dataclass(slots=True)
class Outcome:
    """What became of a file so far: records acknowledged (or found valid), lines refused, seconds it took.

    ``position`` of ``size`` bytes are read; ``size`` is None for standard input.
    """

    sent: int = 0
    refused: int = 0
    seconds: float = 0.0
    position: int = 0
    size: int | None = None
    started: float = field(default_factory=time.monotonic)

    @property
    def rate(self) -> float:
        """Records per second."""
        return self.sent / self.seconds if self.seconds > 0 else 0.0


async def produce_file(
    settings: Settings,
    kind: Kind,
    file: str,
    *,
    rate: float | None = None,
    check: bool = False,
    on_refused: Callable[[int, InvalidMessage], None] = lambda _number, _error: None,
    on_progress: Callable[[Outcome], None] = lambda _outcome: None,
) -> Outcome:
    """Validate and send the lines of ``file``; returns when the broker has acknowledged all that are valid.

    Waits for a broker that is not there. Everything is sent in the order of the file; when sending had to be
    repeated, records of the same 500 may have changed places.

    Args:
        rate: at most so many records per second.
        check: only validate; no broker is needed.
        on_refused: told the line's number and what is wrong with it.
        on_progress: told after every few hundred lines.

    Raises:
        DatasetError: when the file cannot be read.
        TailraceError: when the broker refuses what it is sent.
    """
    reader = LineReader(file)
    try:
        async with _sender(settings, check=check) as send, aclosing(reader.chunks()) as chunks:
            outcome = Outcome(size=reader.size)
            to_record = _to_record(settings, kind, file)
            step = _SLICE if rate is None else max(1, min(_SLICE, int(rate / _SLICES_PER_S)))
            async for chunk in chunks:
                for first in range(0, len(chunk), step):
                    records = []
                    for number, value in chunk[first : first + step]:
                        try:
                            records.append(to_record(number, value))
                        except InvalidMessage as error:
                            outcome.refused += 1
                            on_refused(number, error)
                    if rate is not None:
                        await asyncio.sleep(outcome.started + outcome.sent / rate - time.monotonic())
                    await send(records)
                    outcome.sent += len(records)
                    outcome.position = reader.position
                    outcome.seconds = time.monotonic() - outcome.started
                    on_progress(outcome)
            return outcome
    finally:
        reader.close()


def _to_record(settings: Settings, kind: Kind, file: str) -> Callable[[int, bytes | None], OutRecord]:
    """A function from a line to its record, which raises InvalidMessage as Tailrace would."""
    topics = Topics(settings)
    largest = settings.connection.max_message_bytes
    source = "/tailrace/produce"
    name = Path(file).name

    def checked(value: bytes | None) -> bytes:
        if value is None:
            raise InvalidMessage("too_large", f"the line has more than {MAX_VALUE_BYTES:,} bytes")
        if len(value) + _ENVELOPE_BYTES > largest:
            raise InvalidMessage(
                "too_large",
                f"the line has {len(value):,} bytes, the broker takes {largest:,} (setting "
                "connection.max_message_bytes and the topic's max.message.bytes)",
            )
        return value

    def item(number: int, value: bytes | None) -> OutRecord:
        value = checked(value)
        parsed = parse_item(value)
        attributes = headers(event_type("items"), source=source, id=f"{name}:{number}", time=datetime.now(UTC))
        return OutRecord(topics.items, parsed.item_id.encode(), value, attributes)

    oldest = datetime.fromisoformat(settings.events.oldest).timestamp()

    def interaction(number: int, value: bytes | None) -> OutRecord:
        value = checked(value)
        parsed = parse_interaction(
            value,
            event_types=settings.event_types,
            now=time.time(),
            oldest=oldest,
            future_tolerance_s=settings.events.future_tolerance_s,
        )
        attributes = headers(event_type("interactions"), source=source, id=parsed.event_id, time=parsed.occurred_at)
        return OutRecord(topics.interactions, parsed.user_id.encode(), value, attributes)

    def user(number: int, value: bytes | None) -> OutRecord:
        value = checked(value)
        parsed = parse_user(value)
        attributes = headers(event_type("users"), source=source, id=f"{name}:{number}", time=datetime.now(UTC))
        return OutRecord(topics.users, parsed.user_id.encode(), value, attributes)

    def rule(number: int, value: bytes | None) -> OutRecord:
        value = checked(value)
        parsed = parse_rule(value)
        attributes = headers(event_type("rules"), source=source, id=f"{name}:{number}", time=datetime.now(UTC))
        return OutRecord(topics.rules, parsed.rule_id.encode(), value, attributes)

    return {"items": item, "interactions": interaction, "users": user, "rules": rule}[kind]


@asynccontextmanager
async def _sender(settings: Settings, *, check: bool) -> AsyncIterator[Send]:
    if check:

        async def nowhere(_records: list[OutRecord]) -> None:
            await asyncio.sleep(0)

        yield nowhere
        return
    await wait_for_kafka(settings)
    if settings.topics.create:
        await create_topics(settings)
    publisher = Publisher(settings, Metrics())
    await publisher.start()
    try:
        yield publisher.publish
    finally:
        await publisher.stop()
