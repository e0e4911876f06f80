"""Dead letters: reading them, and putting their records back on the topics they came from.

A replayed record carries the original bytes, key and headers, goes to its original partition (so the order of a key
is kept), and has a header that names its letter. After the broker acknowledged it, a marker is appended to the dead
letter topic: a record with null value and a header that names the letter. A letter with a marker is not replayed
again. A crash between record and marker replays the record once more, which consumers of Tailrace's topics must
expect (at-least-once) and Tailrace itself does.
"""

from __future__ import annotations

from base64 import b64decode
from collections.abc import AsyncGenerator, Collection
from dataclasses import dataclass, field
from typing import Final

import orjson
from aiokafka.structs import ConsumerRecord

from schemas.decode import decode_dead_letter
from schemas.messages import DeadLetter
from stream_app.delivery.publisher import OutRecord
from stream_app.delivery.reading import read_at, read_to_end
from stream_app.errors import InvalidMessage, TopicError
from stream_app.settings import Settings
from stream_app.topics import Topics

__all__ = [
    "REPLAYED_FROM",
    "REPLAYED_MARK",
    "Filter",
    "Letter",
    "LetterId",
    "Letters",
    "carried",
    "original_record",
]

REPLAYED_FROM: Final = "tailrace_replayed_from"
"""Header of a replayed record: ``topic[partition]@offset`` of its dead letter."""

REPLAYED_MARK: Final = "tailrace_replayed"
"""Header of a marker on the dead letter topic: ``partition:offset`` of the letter that was replayed."""

_LAST_PARTITION: Final = 2**31 - 1
_KEY_FIELDS: Final = {
    "items.v1": "item_id",
    "interactions.v1": "user_id",
    "users.v1": "user_id",
    "rules.v1": "rule_id",
}


@dataclass(frozen=True, order=True, slots=True)
class LetterId:
    """Where a letter is on the dead letter topic; written ``partition:offset``."""

    partition: int
    offset: int

    def __str__(self) -> str:
        return f"{self.partition}:{self.offset}"

    @classmethod
    def parse(cls, text: str) -> LetterId:
        """The id in ``text``.

        Raises:
            ValueError: when it is not two numbers with a colon.
        """
        partition, colon, offset = text.partition(":")
        if not (colon and partition.isdecimal() and offset.isdecimal()):
            raise ValueError(f"{text!r} is not the id of a dead letter; it looks like 2:17 (partition:offset)")
        return cls(int(partition), int(offset))


@dataclass(frozen=True, kw_only=True, slots=True)
class Letter:
    """A dead letter, where it is, and whether it was replayed."""

    id: LetterId
    message: DeadLetter
    replayed: bool


@dataclass(frozen=True, kw_only=True, slots=True)
class Filter:
    """Which letters are meant; what is empty does not restrict. ``topics`` are names as ``items.v1`` or in full."""

    reasons: Collection[str] = ()
    topics: Collection[str] = ()
    ids: Collection[LetterId] = ()

    def accepts(self, id_: LetterId, message: DeadLetter, settings: Settings) -> bool:
        """Whether the letter is meant."""
        short = message.topic.removeprefix(f"{settings.topics.prefix}.")
        return (
            (not self.ids or id_ in self.ids)
            and (not self.reasons or message.reason in self.reasons)
            and (not self.topics or message.topic in self.topics or short in self.topics)
        )


@dataclass(slots=True)
class Letters:
    """The dead letter topic as it is now. Only ids are held in memory, never the letters.

    Attributes:
        replayed: letters that have a marker.
        ends: per partition, the offset after its last record; later letters are left for the next time.
    """

    settings: Settings
    patience_s: float
    replayed: set[LetterId] = field(default_factory=set)
    ends: dict[int, int] = field(default_factory=dict)

    @classmethod
    async def open(cls, settings: Settings, *, patience_s: float) -> Letters:
        """Read the markers.

        Raises:
            Unavailable, TopicError: as :func:`~stream_app.delivery.reading.read_to_end`.
        """
        letters = cls(settings, patience_s)
        async for record in letters._records():
            letters.ends[record.partition] = record.offset + 1
            mark = _mark(record)
            if mark is not None:
                letters.replayed.add(mark)
        return letters

    async def read(self, wanted: Filter) -> AsyncGenerator[Letter, None]:
        """The letters that ``wanted`` accepts, in order per partition; records that are not letters are left out."""
        async for record in self._records():
            if record.value is None or record.offset >= self.ends.get(record.partition, 0):
                continue
            try:
                message = decode_dead_letter(record.value)
            except InvalidMessage:
                continue
            id_ = LetterId(record.partition, record.offset)
            if wanted.accepts(id_, message, self.settings):
                yield Letter(id=id_, message=message, replayed=id_ in self.replayed)

    def marker(self, letter: Letter) -> OutRecord:
        """The record that says the letter was replayed; published after the replayed record was acknowledged."""
        topic, id_ = Topics(self.settings).dead_letter, str(letter.id).encode()
        return OutRecord(topic, id_, None, [(REPLAYED_MARK, id_)], letter.id.partition)

    def _records(self) -> AsyncGenerator[ConsumerRecord, None]:
        return read_to_end(self.settings, Topics(self.settings).dead_letter, patience_s=self.patience_s)


def carried(message: DeadLetter) -> tuple[bytes | None, bytes | None, list[tuple[str, bytes]]]:
    """Key, value and headers of the record that a letter is about, as far as it carries them.

    Raises:
        InvalidMessage: ``not_replayable``, when they are not base64.
    """
    try:
        key = None if message.key is None else b64decode(message.key, validate=True)
        value = None if message.value is None else b64decode(message.value, validate=True)
        return key, value, [(name, b64decode(content, validate=True)) for name, content in message.headers]
    except ValueError as error:  # binascii's is one; that of characters beyond ASCII is another
        raise _not_replayable(f"it is damaged: {error}") from None


async def original_record(
    letter: Letter, settings: Settings, *, rekey: bool = False, patience_s: float = 10.0
) -> OutRecord:
    """The record to replay for a letter; a truncated value is fetched from where it still is.

    Args:
        rekey: take the key from the id in the value, for records that had none or a wrong one. The partition is
            then the one Kafka's own clients choose.

    Raises:
        InvalidMessage: ``not_replayable`` with the reason, when there is nothing to replay it from or to.
        Unavailable: when no broker answers.
    """
    message = letter.message
    topic = Topics(settings).by_full_name.get(message.topic)
    if topic is None:
        raise _not_replayable(f"topic {message.topic} is not one of ours (setting topics.prefix)")
    key, value, headers = carried(message)
    if not 0 <= message.partition <= _LAST_PARTITION:
        raise _not_replayable(f"it is damaged: no topic has a partition {message.partition}")
    if message.truncated:
        value = await _whole_value(message, settings, patience_s)
    partition: int | None = message.partition
    if rekey:
        key, partition = _key_from(value, _KEY_FIELDS.get(topic.name)), None
    elif key is None and topic.public:
        raise _not_replayable("it has no key and would be refused again; --rekey takes the id in the value")
    if key is None and value is None:
        raise _not_replayable("it has neither key nor value: there is nothing to replay")
    mine = f"{Topics(settings).dead_letter}[{letter.id.partition}]@{letter.id.offset}"
    kept = [(name, content) for name, content in headers if name != REPLAYED_FROM]
    return OutRecord(message.topic, key, value, [*kept, (REPLAYED_FROM, mine.encode())], partition)


async def _whole_value(message: DeadLetter, settings: Settings, patience_s: float) -> bytes | None:
    try:
        record = await read_at(settings, message.topic, message.partition, message.offset, patience_s=patience_s)
    except TopicError as error:
        raise _not_replayable(str(error)) from None
    if record is None:
        place = f"{message.topic}[{message.partition}]@{message.offset}"
        raise _not_replayable(f"its value was too large to keep and {place} is gone (retention or compaction)")
    value: bytes | None = record.value
    return value


def _key_from(value: bytes | None, name: str | None) -> bytes:
    if name is None:
        raise _not_replayable("--rekey knows the ids of items, interactions, users and rules only")
    try:
        document = orjson.loads(value or b"")
    except orjson.JSONDecodeError:
        raise _not_replayable("--rekey finds no id: the value is not JSON") from None
    key = document.get(name) if isinstance(document, dict) else None
    if not isinstance(key, str) or not key:
        raise _not_replayable(f"--rekey finds no {name} in the value")
    return key.encode()


def _mark(record: ConsumerRecord) -> LetterId | None:
    """The letter a marker names; None for any other record."""
    if record.value is not None:
        return None
    for name, content in record.headers:
        if name == REPLAYED_MARK:
            try:
                # A header may be null, whatever the library's types say.
                return LetterId.parse((content or b"").decode("utf-8", "replace"))
            except ValueError:
                return None
    return None


def _not_replayable(why: str) -> InvalidMessage:
    return InvalidMessage("not_replayable", why)
