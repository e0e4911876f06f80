"""``tailrace rebuild items``: the statistics of all items made again from the users' events, while their owners go on.

``transitions.v1`` does not reach back far enough, so the events are folded again, with what they say of items. That is
complete up to where ``interactions.v1`` ended when it began. Where each partition of ``transitions.v1`` ended was asked
before that, so whatever is not in the rows is behind it; the owner reads from there again, on top of them, and rows
skip what they hold (``stream_app.items.rebuilt``).
"""

from __future__ import annotations

import asyncio
import time
from collections import defaultdict
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass

import msgspec
from aiokafka import TopicPartition

from schemas.decode import encode
from schemas.messages import ItemSignals, RebuiltRows, Transition, Transitions
from stream_app.delivery.admin import committed_offsets
from stream_app.delivery.publisher import OutRecord, Publisher
from stream_app.delivery.reading import true_ends
from stream_app.items.partitions import by_owner, item_partition
from stream_app.items.statistics import ItemStatistics
from stream_app.metrics import Metrics
from stream_app.rebuild.folding import Refolding, Sourced
from stream_app.rebuild.shares import EVERYBODY
from stream_app.rebuild.source import UserRecords, expect_everything
from stream_app.settings import Settings
from stream_app.stores.lock import one_at_a_time
from stream_app.stores.redis_client import RedisClient
from stream_app.stores.users import connect_redis
from stream_app.textify import Textifier
from stream_app.topics import Topics
from stream_app.users.fold import Fold, Folder
from stream_app.users.stage import SourcedEvent

__all__ = ["ItemsOutcome", "RowsFromEvents", "rebuild_items"]

_PATIENCE_S = 30.0
_TAKEN_WITHIN_S = 900.0
"""How long owners may take without any of them getting further: they acknowledge when all rows are broadcast, some
hundred per second and process."""
_LOOK_EVERY_S = 0.3
_ROWS_AT_ONCE = 500


@dataclass(slots=True)
class ItemsOutcome:
    """What a rebuild of items did; of a dry run, what it would have done.

    Attributes:
        records: events and profiles that were folded.
        items: with a row.
        waiting: partitions of ``transitions.v1`` whose owners have not taken the rows over.
    """

    records: int = 0
    items: int = 0
    waiting: tuple[int, ...] = ()


class RowsFromEvents:
    """Rows of all items from events in the order the broker took them. Pure.

    Args:
        settings: what events mean, and how statistics are kept.
        partitions: of ``transitions.v1``.
    """

    def __init__(self, settings: Settings, partitions: int) -> None:
        self._cold = settings.retrieval.cold_events
        self._topic = Topics(settings).interactions
        self._partitions = partitions
        fold = Folder(settings.event_types, settings.users, settings.items, Textifier.of(settings.textify))
        self._users = Refolding(fold, unpacked=settings.users.unpacked, note=self._note)
        self._noted: dict[int, list[Transition]] = defaultdict(list)
        self.statistics = [ItemStatistics(number, partitions, settings.items) for number in range(partitions)]

    def effects_until(self, ends: dict[str, int]) -> None:
        """Everything before these offsets, by fence, is folded as it comes."""
        self._users.effects_done({name: end - 1 for name, end in ends.items()})

    def take(self, sourced: Sequence[Sourced]) -> None:
        """Fold some records, and apply what they say of items."""
        for one in sourced:
            if one.user_id not in self._users:
                self._users.begin(one.user_id)
            self._users.take(one)
        for source, transitions in self._noted.items():
            of_owner: dict[int, list[Transition]] = defaultdict(list)
            for transition in transitions:
                for owner, part in by_owner(transition, self._partitions).items():
                    of_owner[owner].append(part)
            for owner, rows in of_owner.items():
                message = Transitions(source_topic=self._topic, source_partition=source, rows=rows)
                self.statistics[owner].apply(message, offset=0)
        self._noted.clear()

    def rows(self, partition: int, ends: dict[str, int]) -> Iterator[ItemSignals]:
        """The rows of a partition, each complete up to ``ends`` of ``interactions.v1``."""
        applied = {name[1:]: end - 1 for name, end in ends.items() if name[0] == "o" and end}
        statistics = self.statistics[partition]
        item_ids = statistics.item_ids
        for start in range(0, len(item_ids), _ROWS_AT_ONCE):
            for row in statistics.stated(item_ids[start : start + _ROWS_AT_ONCE]):
                yield msgspec.structs.replace(row, applied=applied)

    def _note(self, sourced: SourcedEvent, fold: Fold) -> None:
        noted = self._noted[sourced.partition]
        if fold.transition is not None:
            noted.append(fold.transition)
        at = sourced.event.occurred_at.timestamp()
        for item_id in fold.shown:
            owner = self.statistics[item_partition(item_id, self._partitions)]
            if owner.counted(item_id) < self._cold:  # of others it does not matter
                noted.append(_shown(sourced.offset, at, item_id))


def _shown(offset: int, at: float, item_id: str) -> Transition:
    return Transition(
        offset=offset, at=at, item_id=item_id, count=0.0, previous=[], symmetric=[], directed=[], shown=1.0
    )


async def rebuild_items(
    settings: Settings,
    *,
    dry_run: bool = False,
    partial: bool = False,
    tell: Callable[[int, int], None] = lambda _, __: None,
) -> ItemsOutcome:
    """Fold all events again and have the items' owners go on with the rows that makes.

    The states of all users are in memory meanwhile, packed (about 2 KB each), and the statistics of all items (up to 10
    KB each).

    Args:
        dry_run: publish nothing.
        partial: go on although the beginning of ``interactions.v1`` is gone, and with it what it said of items.
        tell: is called with how many records are read, and how many there are.

    Raises:
        TailraceError: when another rebuild is under way.
        TopicError: when a topic is not there, or the beginning of ``interactions.v1`` is gone and not ``partial``.
        Unavailable: when the broker does not answer.
    """
    redis = connect_redis(settings)
    try:
        async with _alone(settings, redis, dry_run):
            return await _rebuild(settings, dry_run, partial, tell)
    finally:
        await redis.aclose()


@asynccontextmanager
async def _alone(settings: Settings, redis: RedisClient, dry_run: bool) -> AsyncIterator[None]:
    if dry_run:
        yield
        return
    async with one_at_a_time(redis, f"{settings.topics.prefix}:rebuild:items", "a rebuild of items"):
        yield


async def _rebuild(settings: Settings, dry_run: bool, partial: bool, tell: Callable[[int, int], None]) -> ItemsOutcome:
    topics, outcome = Topics(settings), ItemsOutcome()
    begins = await true_ends(settings, topics.transitions, patience_s=_PATIENCE_S)
    made = RowsFromEvents(settings, len(begins))
    async with UserRecords.open(settings) as records:
        if not partial:
            expect_everything(records.beginnings, settings)
        read = 0
        for _ in range(2):  # Once read, the ends are known for certain (see ``reading``).
            ends = await records.ends()
            made.effects_until(ends)
            total = sum(end - records.beginnings[name] for name, end in ends.items())
            async for count, sourced in records.read(ends, EVERYBODY):
                made.take(sourced)
                read += count
                tell(read, total)
        outcome.records = records.read_records
    outcome.items = sum(map(len, made.statistics))
    if not dry_run:
        outcome.waiting = await _hand_over(settings, made, ends, begins)
    return outcome


async def _hand_over(
    settings: Settings, made: RowsFromEvents, ends: dict[str, int], begins: dict[int, int]
) -> tuple[int, ...]:
    """Publish the rows for their owners; the partitions whose owners did not take them."""
    topics, generation = Topics(settings), int(time.time() * 1_000)
    limit = settings.connection.max_message_bytes // 3
    publisher = Publisher(settings, Metrics())
    await publisher.start()
    try:
        for partition, begin in begins.items():
            parts = list(_parts(made.rows(partition, ends), limit))
            for number, rows in enumerate(parts):
                rebuilt = RebuiltRows(generation=generation, begin=begin, part=number, parts=len(parts), rows=rows)
                message = Transitions(source_topic=topics.interactions, source_partition=0, rows=[], rebuilt=rebuilt)
                await publisher.publish(
                    [OutRecord(topics.transitions, b"rebuilt", encode(message), partition=partition)]
                )
    finally:
        await publisher.stop()
    return await _taken(settings)


def _parts(rows: Iterator[ItemSignals], limit: int) -> Iterator[list[ItemSignals]]:
    """Parts whose JSON is no larger than ``limit`` bytes, unless it is one row; one part at least."""
    part: list[ItemSignals] = []
    size = 0
    for row in rows:
        needed = len(encode(row)) + 1
        if part and size + needed > limit:
            yield part
            part, size = [], 0
        part.append(row)
        size += needed
    yield part


async def _taken(settings: Settings) -> tuple[int, ...]:
    """Wait until the owners have acknowledged the last parts, which they do when all rows are broadcast."""
    topics = Topics(settings)
    ends = await true_ends(settings, topics.transitions, patience_s=_PATIENCE_S)
    wanted = {TopicPartition(topics.transitions, partition): end for partition, end in ends.items()}
    loop = asyncio.get_running_loop()
    since, before = loop.time(), dict[TopicPartition, int]()
    while True:
        done = await committed_offsets(settings, topics.group("items"), [topics.transitions])
        waiting = tuple(place.partition for place, end in wanted.items() if done.get(place, 0) < end)
        if not waiting:
            return ()
        if done != before:
            since, before = loop.time(), done
        elif loop.time() - since > _TAKEN_WITHIN_S:
            return waiting
        await asyncio.sleep(_LOOK_EVERY_S)
