"""The local copy of everything ranking needs, kept by tailing the compacted topics.

A plain reader without a consumer group: every process reads every partition of ``items.v1``, ``rules.v1``,
``item-vectors.v1``, ``spaces.v1``, ``item-signals.v1``, ``factor-basis.v1``, ``item-factors.v1`` and
``ranker-weights.v1`` into its :class:`ServingState`. It starts from the newest usable snapshot and its offsets, is
ready when it has passed the offsets that were the end when it started and a poll comes back empty (or has not for a
second: busy topics never fall silent) and no other space is being made ready, and then goes on for as long as the
process lives.

Records are applied in slices of a few milliseconds, so events get their turn in between.

Further models' spaces (``space-control.v1``) are tailed beside the one that is served, each from a topic of its own
into an index of its own. When another one is to be served, it takes over between two batches, as soon as it has all
that was in its topic when that was said; until then the old one is served. Snapshots hold the space that is served.
"""

from __future__ import annotations

import asyncio
import heapq
import math
import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.errors import KafkaError, OffsetOutOfRangeError
from aiokafka.structs import ConsumerRecord

from schemas.decode import (
    decode_factor_basis,
    decode_item,
    decode_item_factors,
    decode_item_signals,
    decode_item_vector,
    decode_ranker_weights,
    decode_rule,
    decode_vector_space,
)
from schemas.messages import Item, ModelSpace, SpaceControl
from stream_app.delivery.connections import close_client, kafka_options, stop_consumer
from stream_app.delivery.reading import Ends, position_now, read_to_end
from stream_app.delivery.retry import until_it_works
from stream_app.errors import InvalidMessage, SnapshotError, TailraceError
from stream_app.logs import get_logger
from stream_app.metrics import Metrics
from stream_app.replicas.snapshots import Snapshots
from stream_app.serving import ServingState
from stream_app.settings import Settings
from stream_app.spaces.control import first_control, served_space
from stream_app.topics import Topics

__all__ = ["ItemChange", "Replica"]

_log = get_logger(__name__)
_SLICE_S = 0.004
"""Longest stretch of applying records before the event loop gets its turn."""
_TOGETHER = 32
"""Rows of one topic that are applied together, in about a millisecond."""
_POLL_MS = 200
_SETTLE_S = 1.0
"""Topics that keep growing are read this far beyond where they ended at the start; then the replica is ready."""
_LOOK_AGAIN_S = 5.0
"""After this long a topic that was not there is looked for again."""
_PREPARE_AGAIN_S = 10.0
"""After this long what could not be made ready for another space is tried again."""
_STALE_EXPIRIES = 1_024
"""Outdated entries in the heap of expiries before it is made again, beyond as many as there are valid ones."""


@dataclass(frozen=True, slots=True)
class ItemChange:
    """An item left the set that may be recommended (deleted, made unavailable, excluded) or is new there, and the
    record that said so.

    Attributes:
        users: whose slates it left; None: everybody's.
        appended_s: the record's timestamp, seconds since 1970; 0: not known.
    """

    item_id: str
    topic: str
    partition: int
    offset: int
    users: frozenset[str] | None = None
    appended_s: float = 0.0


class Replica:
    """Tails the compacted topics into a serving state.

    Args:
        settings: of this process.
        metrics: of this process.
        space: the vector space served, where ``control`` does not say.
        dimensions: of its vectors.
        control: which spaces are kept, and which one is served; None: only ``space``.

    Attributes:
        serving: what ranking reads; final once :attr:`ready` is set.
        live: the space that is served.
        prepare: makes the process ready to serve another space; what it raises is logged, and it is tried again.
        exclusively: nothing ranks and no batch is under way within the context it gives.
        on_cut_over: called within it, just before another space is served; what it raises puts that off.
        on_withdrawn: called when an item that could be recommended no longer can.
        on_arrived: called, once :attr:`ready`, when a new item (one with hardly any events) can be recommended and has
            a vector, and it was not so before.
        ready: set when caught up for the first time.
        client: what reads at present.
        failed: completes with what ended the tail.
    """

    def __init__(
        self,
        settings: Settings,
        metrics: Metrics,
        *,
        space: str,
        dimensions: int,
        control: SpaceControl | None = None,
    ) -> None:
        self.settings = settings
        self.metrics = metrics
        self.on_withdrawn: Callable[[ItemChange], None] | None = None
        self.on_arrived: Callable[[ItemChange], None] | None = None
        self.ready = asyncio.Event()
        self.client: AIOKafkaConsumer | None = None
        self.failed: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.positions: dict[TopicPartition, int] = {}
        self.prepare: Callable[[ModelSpace], Awaitable[None]] | None = None
        self.exclusively: Callable[[], AbstractAsyncContextManager[None]] = nullcontext
        self.on_cut_over: Callable[[ModelSpace], None] | None = None
        self._topics = Topics(settings)
        self._control = control or first_control(space, dimensions)
        self.live = served_space(self._control)
        self._numbers: dict[str, int] = {}
        self._preparing: asyncio.Task[None] | None = None
        self._target_ends: tuple[str, Ends] | None = None
        self.serving = self._empty()
        self._task: asyncio.Task[None] | None = None
        self._ends = Ends({})
        self._reached_at: float | None = None
        self._snapshots: Snapshots | None = None
        self._left_out = 0
        self._expiries: dict[str, tuple[float, ItemChange]] = {}
        self._expiring: list[tuple[float, str]] = []
        self._rule_places: dict[str, tuple[int, int]] = {}

    def _empty(self) -> ServingState:
        serving = ServingState(self.settings, space=self.live.space, dimensions=self.live.dimensions)
        self._keep_spaces(serving)
        return serving

    def _keep_spaces(self, serving: ServingState) -> None:
        """Keep the spaces that are to be kept beside the one that is served, and no others."""
        wanted = {one.space: one.number for one in self._control.spaces}
        for space in list(serving.beside):
            if space not in wanted or self._numbers.get(space) != wanted[space]:
                serving.drop_beside(space)
        for one in self._control.spaces:
            serving.keep_beside(one.space, one.dimensions)
        self._numbers = wanted

    def spaces_changed(self, control: SpaceControl) -> None:
        """Other spaces are to be kept, or another one is to be served. Takes effect with the next poll."""
        self._control = control

    async def start(self) -> None:
        """Load the newest snapshot and begin to tail; :attr:`ready` says when it has caught up."""
        directory = self.settings.replica.folder
        if directory is not None:
            self._snapshots = Snapshots(directory, self.settings, cluster=await self._cluster_id())
            await self._load_snapshot()
        self._task = asyncio.create_task(self._run(), name="replica")
        self._task.add_done_callback(self._ended)

    async def _cluster_id(self) -> str:
        async def ask() -> str:
            admin = AIOKafkaAdminClient(**kafka_options(self.settings))
            try:
                await admin.start()
                return str((await admin.describe_cluster()).get("cluster_id") or "")
            finally:
                await close_client(admin.close())

        return await until_it_works(
            ask,
            what=f"Kafka at {self.settings.kafka}",
            transient=(KafkaError, OSError),
            settings=self.settings.delivery,
            metrics=self.metrics,
        )

    def _ended(self, task: asyncio.Task[None]) -> None:
        if task.cancelled():
            self.failed.cancel()
        elif (error := task.exception()) is not None and not self.failed.done():
            self.failed.set_exception(error)

    async def stop(self) -> None:
        """End tailing; writes a last snapshot when there is something new and a place for it."""
        task, self._task = self._task, None
        if task is None:
            return
        task.cancel()
        if self._preparing is not None:
            self._preparing.cancel()
        await asyncio.gather(task, return_exceptions=True)
        if self._snapshots is not None and self.ready.is_set():
            await self._write_snapshot()

    async def _load_snapshot(self) -> None:
        assert self._snapshots is not None  # noqa: S101 - only called with one
        try:
            loaded = await asyncio.to_thread(
                self._snapshots.load, space=self.live.space, dimensions=self.live.dimensions, now=time.time()
            )
        except SnapshotError as error:
            _log.warning("snapshot not used, reading the topics", error=str(error))
            return
        if loaded is not None:
            self.serving, offsets = loaded
            self._keep_spaces(self.serving)
            self.positions = {TopicPartition(t, p): offset for (t, p), offset in offsets.items()}
            items = Topics(self.settings).items
            # Which record said so is not kept in snapshots.
            self._expiries = {
                item_id: (at, ItemChange(item_id, items, -1, -1))
                for at, item_id in self.serving.catalogue.expiring()
                if self.serving.catalogue.listed(item_id)
            }
            self._order_expiries()
            _log.info("snapshot loaded", vectors=len(self.serving.index))

    async def _run(self) -> None:
        topics = self._topics
        while True:
            consumer, vectors = await self._connect()
            self.client = consumer
            try:
                if self.serving.factors.basis is None:
                    # What is learned is of the basis' frame: it must not come first.
                    async for record in read_to_end(self.settings, topics.factor_basis):
                        self._apply_one(record, self._apply_basis)
                await self._tail(consumer, vectors)
            except OffsetOutOfRangeError as error:
                self._start_over(str(error))
            except (KafkaError, OSError) as error:
                _log.warning("replica reader interrupted", error=f"{type(error).__name__}: {error}")
                await asyncio.sleep(self.settings.delivery.retry_max_s)
            finally:
                self.client = None
                await stop_consumer(consumer)

    async def _connect(self) -> tuple[AIOKafkaConsumer, dict[str, str]]:
        """A consumer of everything, and the topics of vectors among it with their spaces."""
        topics = self._topics
        names = [topics.items, topics.item_signals, topics.ranker_weights, topics.rules]
        names += [topics.factor_basis, topics.item_factors, topics.spaces]

        async def attempt() -> tuple[AIOKafkaConsumer, dict[str, str]]:
            # Looked at again at every try: a space may be retired, and its topic gone, while a broker is waited for.
            kept, served = self._kept(self._control), topics.vectors_of(self.live.number)
            vectors = {topics.vectors_of(one.number): one.space for one in kept}
            consumer = AIOKafkaConsumer(
                **kafka_options(self.settings),
                enable_auto_commit=False,
                auto_offset_reset="none",
                fetch_max_wait_ms=max(self.settings.connection.fetch_max_wait_ms, 20),
                max_partition_fetch_bytes=max(self.settings.connection.max_message_bytes * 2, 4 * 1_048_576),
            )
            try:
                await consumer.start()
                partitions = []
                for name in [*names, *vectors]:
                    found = consumer.partitions_for_topic(name)
                    if not found:
                        await consumer._client.force_metadata_update()
                        found = await self._partitions(consumer, name)
                    if not found:
                        needed = name in names or (name == served and self.live in self._control.spaces)
                        if needed:
                            raise KafkaError(f"topic {name} does not exist yet; create it with: tailrace topics create")
                        _log.warning("vectors of a space are not there", topic=name, space=vectors.pop(name))
                        continue
                    partitions += [TopicPartition(name, number) for number in sorted(found)]
                # Of spaces that are kept no longer.
                there = {*names, *vectors}
                self.positions = {place: at for place, at in self.positions.items() if place.topic in there}
                self._target_ends = None
                consumer.assign(partitions)
                beginning = await consumer.beginning_offsets(partitions)
                end = await consumer.end_offsets(partitions)
                self._ends, self._reached_at = Ends(dict(end)), None
                self._check_positions(beginning, end)
                for partition in partitions:
                    consumer.seek(partition, self.positions.setdefault(partition, beginning[partition]))
            except BaseException:
                await stop_consumer(consumer)
                raise
            return consumer, vectors

        return await until_it_works(
            attempt,
            what=f"the catalogue topics on Kafka at {self.settings.kafka}",
            transient=(KafkaError, OSError),
            settings=self.settings.delivery,
            metrics=self.metrics,
        )

    @staticmethod
    async def _partitions(consumer: AIOKafkaConsumer, name: str) -> set[int]:
        await consumer.topics()
        return set(consumer.partitions_for_topic(name) or ())

    def _check_positions(self, beginning: dict[TopicPartition, int], end: dict[TopicPartition, int]) -> None:
        """Start over when a position cannot be continued from: the topic was made again or cleaned up.

        A broker that states an end that is too low makes us read a topic again for nothing; better than to keep
        what belongs to other topics. Once ready we came from these topics, and only their beginning can pass us.
        """
        for partition, position in self.positions.items():
            first, last = beginning.get(partition), end.get(partition)
            beyond = last is None or (position > last and not self.ready.is_set())
            if first is None or beyond or position < first:
                where = f"{partition.topic}[{partition.partition}]"
                self._start_over(f"{where} holds offsets {first} to {last}, we were at {position}")
                return

    def _start_over(self, why: str) -> None:
        """The topics are not those our copy was made from. What it holds may be wrong: read everything again.

        Raises:
            TailraceError: when the copy is in use already; the process must be started again.
        """
        if self.ready.is_set():
            raise TailraceError(f"the topics were made again while this process ran ({why}); start it again")
        _log.warning("replica starts over", why=why)
        self.positions.clear()
        self.serving = self._empty()
        self._expiries.clear()
        self._expiring.clear()
        self._rule_places.clear()

    def _kept(self, control: SpaceControl) -> list[ModelSpace]:
        """The spaces to tail: those that are to be kept, and what is served while it still is."""
        return [*control.spaces, *([] if self.live in control.spaces else [self.live])]

    def _reads_what_is_kept(self, vectors: dict[str, str], since: float) -> bool:
        """Whether no other spaces are to be kept, nor is it time to look for topics that were not there."""
        kept = {self._topics.vectors_of(one.number): one for one in self._kept(self._control)}
        missing = [one for topic, one in kept.items() if topic not in vectors and one in self._control.spaces]
        look_again = bool(missing) and time.monotonic() - since > _LOOK_AGAIN_S
        held = {*self.serving.beside, self.live.space}
        return vectors.keys() <= kept.keys() and held == {one.space for one in kept.values()} and not look_again

    async def _tail(self, consumer: AIOKafkaConsumer, vectors: dict[str, str]) -> None:
        """Until other spaces are to be kept."""
        topics = self._topics
        self._keep_spaces(self.serving)
        apply = {
            topics.items: self._apply_item,
            **{topic: self._vectors_of(space) for topic, space in vectors.items()},
            topics.item_signals: self._apply_signals,
            topics.ranker_weights: self._apply_weights,
            topics.rules: self._apply_rule,
            topics.factor_basis: self._apply_basis,
            topics.item_factors: self._apply_factors,
            topics.spaces: self._apply_space,
        }
        at_once: dict[str, tuple[Callable[..., Any], Callable[..., None]]] = {
            topics.item_signals: (decode_item_signals, ServingState.apply_all_signals),
            topics.item_factors: (decode_item_factors, ServingState.apply_all_factors),
        }
        last_snapshot = time.monotonic()
        loop_time = time.perf_counter
        since = time.monotonic()
        while self._reads_what_is_kept(vectors, since):
            fetched = await consumer.getmany(timeout_ms=_POLL_MS, max_records=self.settings.replica.apply_slice)
            started = loop_time()
            newest = 0
            for partition, records in fetched.items():
                apply_record, together = apply[partition.topic], at_once.get(partition.topic)
                # One by one, or some dozens of which nothing else depends on where one ends and the next begins.
                step = 1 if together is None else _TOGETHER
                for start in range(0, len(records), step):
                    some = records[start : start + step]
                    if together is None or not self._apply_together(some, *together):
                        for record in some:
                            self._apply_one(record, apply_record)
                    self.positions[partition] = some[-1].offset + 1
                    newest = max(newest, *(record.timestamp for record in some))
                    if loop_time() - started > _SLICE_S:
                        await asyncio.sleep(0)
                        started = loop_time()
                self.metrics.replica_records.labels(partition.topic).inc(len(records))
            self._advance_space()
            if await self._cut_over(consumer):
                last_snapshot = -math.inf
            if newest:
                self.metrics.replica_offset_age.set(max(0.0, time.time() - newest / 1000))
            if not self.ready.is_set() and await self._caught_up(consumer, idle=not fetched):
                self._became_ready()
            if self.ready.is_set():
                self._expire()
                self._exclude()
                self._measure()
                if (
                    self._snapshots is not None
                    and time.monotonic() - last_snapshot > self.settings.replica.snapshot_interval_s
                ):
                    await self._write_snapshot()
                    last_snapshot = time.monotonic()

    async def _cut_over(self, consumer: AIOKafkaConsumer) -> bool:
        """Serve the space that is to be served as soon as everything is there for it; whether that was now."""
        target = served_space(self._control)
        if target.space == self.live.space:
            self._target_ends = None
            if self._preparing is not None:
                self._preparing.cancel()
                self._preparing = None
            return False
        if self._target_ends is None or self._target_ends[0] != target.space:
            topics = self._topics
            topic = topics.vectors_of(target.number)
            if all(place.topic != topic for place in consumer.assignment()):
                return False  # it is not read yet
            wanted = (topic, topics.spaces, topics.factor_basis)
            places = [place for place in consumer.assignment() if place.topic in wanted]
            self._target_ends = target.space, Ends(dict(await consumer.end_offsets(places)))
            _log.info("another space is to be served", space=target.space, now=self.live.space)
        kept = self.serving.beside.get(target.space)
        if kept is None or not await self._target_ends[1].reached(consumer) or kept.migrating:
            return False
        if self.ready.is_set() and not self._prepared(target):
            return False
        async with self.exclusively():
            try:
                if self.on_cut_over is not None:
                    self.on_cut_over(target)
            except TailraceError as error:
                _log.error("another space cannot be served here", space=target.space, error=str(error))
                self._preparing = None
                return False
            self.serving.cut_over(target.space)
            before, self.live = self.live, target
        self._target_ends = self._preparing = None
        _log.info("cut over", space=self.serving.served.name, before=before.space, vectors=len(self.serving.index))
        return True

    def _prepared(self, target: ModelSpace) -> bool:
        """Whether the process can serve another space; begins to make it ready when it does not do so yet."""
        if self.prepare is None:
            return True
        task = self._preparing
        if task is not None and task.get_name() == target.space:
            return task.done() and not task.cancelled() and task.exception() is None
        if task is not None:
            task.cancel()
        self._preparing = asyncio.create_task(self._prepare(self.prepare, target), name=target.space)
        return False

    async def _prepare(self, prepare: Callable[[ModelSpace], Awaitable[None]], target: ModelSpace) -> None:
        while True:
            try:
                await prepare(target)
            except Exception as error:  # whatever it is, it may pass, and the old space goes on
                _log.error(
                    "another space cannot be served here, the old one still is",
                    space=target.space,
                    error=f"{type(error).__name__}: {error}",
                )
                await asyncio.sleep(_PREPARE_AGAIN_S)
            else:
                return

    async def _caught_up(self, consumer: AIOKafkaConsumer, *, idle: bool) -> bool:
        """Whether everything is applied that was there at the start. ``idle``: the last poll brought nothing."""
        if self._reached_at is None and await self._ends.reached(consumer):
            self._reached_at = time.monotonic()
        # A space that is being made ready is a part of it: a restart does not show slates of an older one.
        settled = self._reached_at is not None and (idle or time.monotonic() - self._reached_at > _SETTLE_S)
        return settled and not self.serving.migrating

    def _became_ready(self) -> None:
        self.serving.rules.watched = True
        self.ready.set()
        self.metrics.replica_ready.set(1)
        _log.info(
            "replica ready",
            items=len(self.serving.catalogue),
            vectors=len(self.serving.index),
            left_out=self._left_out,
        )

    def _measure(self) -> None:
        positions: dict[str, int] = {}
        for partition, position in self.positions.items():
            positions[partition.topic] = positions.get(partition.topic, 0) + position
        for topic, position in positions.items():
            self.metrics.replica_position.labels(topic).set(position)
        self.metrics.index_items.set(len(self.serving.index))
        self.metrics.space_version.set(self.serving.served.version)
        self.metrics.space_number.set(self.live.number)
        self.metrics.index_deleted.set(self.serving.index.churn)

    def read_through(self) -> dict[TopicPartition, int]:
        """As :meth:`positions_served`, and beyond what is no record (the markers of transactions). What the last poll
        brought may be on its way."""
        served, client = self.positions_served(), self.client
        if client is None:
            return served
        return {place: max(offset, position_now(client, place) or 0) for place, offset in served.items()}

    def positions_served(self) -> dict[TopicPartition, int]:
        """The next offsets to be applied, but for vectors of spaces that are not served."""
        beside = {self._topics.vectors_of(one.number) for one in self._kept(self._control)}
        beside.discard(self._topics.vectors_of(self.live.number))
        return {place: offset for place, offset in self.positions.items() if place.topic not in beside}

    async def _write_snapshot(self) -> None:
        assert self._snapshots is not None  # noqa: S101 - only called with one
        # Of the other spaces' vectors nothing is in it.
        positions = {(p.topic, p.partition): offset for p, offset in self.positions_served().items()}
        try:
            # Nothing is applied meanwhile: the reader waits for the thread; ranking goes on.
            with self.serving.saving():
                await asyncio.to_thread(self._snapshots.write, self.serving, positions, now=time.time())
        except OSError as error:
            _log.warning("snapshot not written", error=str(error))

    def _apply_item(self, record: ConsumerRecord) -> None:
        item_id, item = decode_item(record.key, record.value, record.headers)
        now = time.time()
        held = self._expiries.get(item_id)
        # Its time may be over since the last look: then nobody was told yet, and this record is what tells.
        listed = self._listed(item_id, now) or (held is not None and held[0] <= now)
        self.serving.apply_item(item_id, item)
        change = ItemChange(item_id, record.topic, record.partition, record.offset)
        self._note_expiry(item, change, now)
        if listed and not self._listed(item_id, now):
            self._withdraw(change)
        elif not listed and self._embedded(item_id):
            self._arrived(record, item_id)

    def _withdraw(self, change: ItemChange) -> None:
        if self.on_withdrawn is not None:
            self.on_withdrawn(change)

    def _embedded(self, item_id: str) -> bool:
        row = self.serving.catalogue.row(item_id)
        return row >= 0 and bool(self.serving.index.has(np.array([row], np.int32))[0])

    def _arrived(self, record: ConsumerRecord, item_id: str) -> None:
        """Tell of an item that became complete just now, when it is new and can be recommended."""
        if self.on_arrived is None or not self.ready.is_set():
            return
        if self._listed(item_id, time.time()) and self.serving.catalogue.row(item_id) in self.serving.cold:
            appended_s = max(0.0, record.timestamp / 1000)
            self.on_arrived(ItemChange(item_id, record.topic, record.partition, record.offset, appended_s=appended_s))

    def _note_expiry(self, item: Item | None, change: ItemChange, now: float) -> None:
        """Remember when an item's time will be over; what was remembered of it before is outdated."""
        held = self._expiries.pop(change.item_id, None)
        if item is None or item.expires_at is None or not item.available:
            return
        ends_at = item.expires_at.timestamp()
        if ends_at <= now:
            return
        self._expiries[change.item_id] = (ends_at, change)
        if held is None or held[0] != ends_at:
            heapq.heappush(self._expiring, (ends_at, change.item_id))
        if len(self._expiring) > 2 * len(self._expiries) + _STALE_EXPIRIES:
            self._order_expiries()

    def _order_expiries(self) -> None:
        self._expiring = [(at, item_id) for item_id, (at, _) in self._expiries.items()]
        heapq.heapify(self._expiring)

    def _expire(self) -> None:
        """Items whose time is over by now, without any record saying so."""
        now = time.time()
        while self._expiring and self._expiring[0][0] <= now:
            at, item_id = heapq.heappop(self._expiring)
            held = self._expiries.get(item_id)
            if held is not None and held[0] == at:
                del self._expiries[item_id]
                self._withdraw(held[1])

    def _listed(self, item_id: str, now: float) -> bool:
        row = self.serving.catalogue.row(item_id)
        return row >= 0 and bool(self.serving.servable(now)[row])

    def _apply_rule(self, record: ConsumerRecord) -> None:
        rule_id, rule = decode_rule(record.key, record.value, record.headers)
        left_out = self.serving.rules.left_out
        self.serving.apply_rule(rule_id, rule, now=time.time())
        if rule is None:
            self._rule_places.pop(rule_id, None)
        else:
            self._rule_places[rule_id] = (record.partition, record.offset)
        if self.serving.rules.left_out > left_out:
            _log.warning("more rules than kept (setting slate.rules)", kept=len(self.serving.rules))
            held = {rule.rule_id for rule in self.serving.rules.rules}
            self._rule_places = {key: place for key, place in self._rule_places.items() if key in held}

    def _exclude(self) -> None:
        """Items that rules keep out from now on: those that came into force, by a record or by the clock."""
        rules, topic = self.serving.rules, Topics(self.settings).rules
        rules.advance(time.time())
        for exclusion in rules.take_exclusions():
            partition, offset = self._rule_places.get(exclusion.rule_id, (-1, -1))
            users = frozenset(exclusion.users) or None
            for row in exclusion.rows.tolist():
                self._withdraw(ItemChange(self.serving.catalogue.item_id(row), topic, partition, offset, users))

    def _vectors_of(self, space: str) -> Callable[[ConsumerRecord], None]:
        return lambda record: self._apply_vector(record, space)

    def _apply_vector(self, record: ConsumerRecord, space: str) -> None:
        item_id, vector = decode_item_vector(record.key, record.value)
        embedded = self._embedded(item_id)
        self.serving.apply_vector(item_id, vector, space=space)
        if not embedded and self._embedded(item_id):
            self._arrived(record, item_id)

    def _apply_signals(self, record: ConsumerRecord) -> None:
        item_id, signals = decode_item_signals(record.key, record.value)
        self.serving.apply_signals(item_id, signals)

    def _apply_one(self, record: ConsumerRecord, apply: Callable[[ConsumerRecord], None]) -> None:
        try:
            apply(record)
        except (InvalidMessage, ValueError) as error:
            # The catalogue role dead-letters what is wrong in items.v1 and rules.v1; here it is left out.
            self._left_out += 1
            _log.debug("record left out", topic=record.topic, offset=record.offset, error=str(error))

    def _apply_together(
        self,
        records: Sequence[ConsumerRecord],
        decode: Callable[..., tuple[str, Any]],
        apply: Callable[[ServingState, list[tuple[str, Any]]], None],
    ) -> bool:
        """Apply records at once; False when nothing was applied, because one of them is a tombstone or wrong."""
        try:
            messages = [decode(record.key, record.value) for record in records]
            if any(message is None for _, message in messages):
                return False
            apply(self.serving, messages)
        except (InvalidMessage, ValueError):
            return False
        return True

    def _apply_space(self, record: ConsumerRecord) -> None:
        model, space = decode_vector_space(record.key, record.value)
        self.serving.apply_space(space, space=model)

    def _advance_space(self) -> None:
        if self.serving.advance_space():
            _log.info("space served", space=self.serving.served.name, vectors=len(self.serving.index))

    def _apply_weights(self, record: ConsumerRecord) -> None:
        _, weights = decode_ranker_weights(record.key, record.value)
        if weights is not None:
            self.serving.apply_weights(weights)

    def _apply_basis(self, record: ConsumerRecord) -> None:
        space, basis = decode_factor_basis(record.key, record.value)
        if basis is not None:
            self.serving.apply_basis(basis)
        else:
            self.serving.forget_basis(space)

    def _apply_factors(self, record: ConsumerRecord) -> None:
        item_id, factors = decode_item_factors(record.key, record.value)
        self.serving.apply_factors(item_id, factors)
