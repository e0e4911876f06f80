"""What a rebuild reads: the records of users from both topics as one, and how far their owners are."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from contextlib import asynccontextmanager

from aiokafka import TopicPartition
from aiokafka.structs import ConsumerRecord

from stream_app.delivery.admin import committed_offsets
from stream_app.delivery.merging import MergedReader
from stream_app.delivery.records import InRecord
from stream_app.errors import InvalidMessage, TopicError
from stream_app.rebuild.folding import Sourced
from stream_app.rebuild.shares import Share
from stream_app.settings import Settings
from stream_app.topics import Topics
from stream_app.users.sources import Sources

__all__ = ["UserRecords", "expect_everything"]

_PATIENCE_S = 30.0


class UserRecords:
    """``interactions.v1`` and ``users.v1`` on the broker, by fence (see ``folding.py``). Made by :meth:`open`.

    Attributes:
        read_records: how many records were decoded.
        refused: how many of these cannot be used.
    """

    def __init__(self, settings: Settings, reader: MergedReader) -> None:
        self._settings = settings
        self._reader = reader
        self._topics = Topics(settings)
        self._sources = Sources(settings)
        self.read_records = 0
        self.refused = 0

    @classmethod
    @asynccontextmanager
    async def open(cls, settings: Settings) -> AsyncIterator[UserRecords]:
        """Connect.

        Raises:
            Unavailable: when no broker answers.
            TopicError: when a topic is not there.
        """
        topics = Topics(settings)
        async with MergedReader.open(settings, [topics.users, topics.interactions], patience_s=_PATIENCE_S) as reader:
            yield cls(settings, reader)

    @property
    def beginnings(self) -> dict[str, int]:
        """The first offset that is still there."""
        return {self._fence(place): offset for place, offset in self._reader.beginnings.items()}

    async def effects_done(self) -> dict[str, int]:
        """The next offset the owners have to process: what they committed."""
        wanted = [self._topics.interactions, self._topics.users]
        done = await committed_offsets(self._settings, self._topics.group("interactions"), wanted)
        return {self._fence(place): offset for place, offset in done.items()}

    async def ends(self) -> dict[str, int]:
        """The next offset the broker will give."""
        return {self._fence(place): offset for place, offset in (await self._reader.ends()).items()}

    async def read(self, until: Mapping[str, int], share: Share) -> AsyncGenerator[tuple[int, list[Sourced]], None]:
        """The records before ``until`` that were not read yet, in the order the broker took them: how many came, and
        those of the users of ``share`` that can be used.

        Raises:
            Unavailable: when the broker does not answer, or has less than that.
        """
        places = {self._place(fence): offset for fence, offset in until.items()}
        async for records in self._reader.read(places, patience_s=_PATIENCE_S):
            mine = [record for record in records if record.key is not None and record.key in share]
            yield len(records), [one for record in mine if (one := self._decoded(record)) is not None]

    def _decoded(self, record: ConsumerRecord) -> Sourced | None:
        given = InRecord(
            record.topic,
            record.partition,
            record.offset,
            record.key,
            record.value,
            record.headers,
            record.timestamp / 1_000,
        )
        self.read_records += 1
        try:
            if record.topic == self._topics.users:
                return self._sources.profile(given)
            # Whether it came from the future is judged by when it came, not by now.
            return self._sources.event(given, given.timestamp_s)
        except InvalidMessage:  # it is on the dead letter topic since it was processed
            self.refused += 1
            return None

    def _fence(self, place: TopicPartition) -> str:
        return f"{'o' if place.topic == self._topics.interactions else 'u'}{place.partition}"

    def _place(self, fence: str) -> TopicPartition:
        topic = self._topics.interactions if fence[0] == "o" else self._topics.users
        return TopicPartition(topic, int(fence[1:]))


def expect_everything(beginnings: Mapping[str, int], settings: Settings) -> None:
    """Refuse when the topic begins later than its first event.

    Raises:
        TopicError: then; says how to go on.
    """
    for name, offset in beginnings.items():
        if name[0] == "o" and offset:
            raise TopicError(
                f"{settings.topics.prefix}.interactions.v1 begins at offset {offset:,} in partition {name[1:]}: what "
                "was before is gone (retention.ms), and what is made of the rest knows less than what is there; "
                "--partial goes on with that (of users, only states are replaced that know no more events)"
            )
