"""The learning stage: examples in, the ranker's weights and the items' factors out. One partition, so one learner of
each; everyone else tails what they broadcast."""

from __future__ import annotations

import asyncio
import math
import time
from collections import deque
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Any, ClassVar

from aiokafka.structs import ConsumerRecord

from schemas.decode import (
    decode_factor_basis,
    decode_item,
    decode_item_factors,
    decode_item_vector,
    decode_ranker_weights,
    decode_training_examples,
    encode,
)
from schemas.messages import ItemFactors, ModelSpace, TrainingExamples
from stream_app.agents.base import Agent
from stream_app.agents.pacing import Pace
from stream_app.delivery.engine import without_payload
from stream_app.delivery.publisher import OutRecord, Publisher
from stream_app.delivery.reading import follow, read_to_end
from stream_app.delivery.records import InRecord
from stream_app.errors import InvalidMessage
from stream_app.factors.live import LiveFactors, holds_less
from stream_app.logs import get_logger
from stream_app.metrics import Metrics
from stream_app.ranking.features import feature_names
from stream_app.ranking.softmax import SoftmaxRanker
from stream_app.settings import Settings

__all__ = ["RankerAgent"]

_log = get_logger(__name__)
_MAX_HELD = 50_000
"""Records learned but not yet durable; beyond it reading waits for the broadcasts."""

_Followed = AsyncGenerator[tuple[list[ConsumerRecord], bool], None]


@dataclass(slots=True, eq=False)
class _Owned:
    """What an owner of the partition has.

    Attributes:
        held: offset and event of what was read and is not acknowledged.
        durable_version: of the weights the broker has.
        weights_through: the offset before which everything is in them.
        fitting: held while a basis is made durable.
        following: tails of the catalogue topics, and what to do with their records.
    """

    model: SoftmaxRanker
    factors: LiveFactors
    held: deque[tuple[int, Any]] = field(default_factory=deque)
    durable_version: int = 0
    weights_through: int = 0
    fitting: asyncio.Lock = field(default_factory=asyncio.Lock)
    following: list[tuple[_Followed, Callable[[ConsumerRecord], None]]] = field(default_factory=list)
    tasks: list[asyncio.Task[None]] = field(default_factory=list)

    async def close(self) -> None:
        """End the tails."""
        for task in self.tasks:
            task.cancel()
        await asyncio.gather(*self.tasks, return_exceptions=True)
        for records, _ in self.following:
            await records.aclose()


class RankerAgent(Agent):
    """Learns from every example once, the ranker and the factors of the items it names, and broadcasts both.

    The broadcasts are also the durable state: weights and every row say through which source offsets they are
    complete, so examples that are delivered again are skipped. A record is acknowledged when the weights that hold it
    and every row that it changed are acknowledged by the broker.

    The factors need the catalogue, which a plain reader tails while the partition is ours.

    Args:
        settings, publisher, metrics: as for every agent.
        space: the model's vector space.
        dimensions: of its vectors.
        number: of the space (``ModelSpace.number``).
    """

    role: ClassVar[str] = "ranker"
    gathers: ClassVar[bool] = True

    def __init__(
        self,
        settings: Settings,
        publisher: Publisher,
        metrics: Metrics,
        *,
        space: str,
        dimensions: int,
        number: int = 0,
    ) -> None:
        super().__init__(settings, publisher, metrics)
        self._space = ModelSpace(space=space, dimensions=dimensions, number=number)
        self._next_space = self._space
        self._told = asyncio.Event()
        # One broadcast of each kind at a time; a hand-over may come while one is under way.
        self._publishing, self._flushing = asyncio.Lock(), asyncio.Lock()
        self._owned: _Owned | None = None
        self._moves = 0
        self._flushed = asyncio.Condition()

    @property
    def topic(self) -> str:
        return self.topics.training_examples

    @property
    def patience_s(self) -> float:
        return super().patience_s + self.settings.ranker.publish_interval_s + self.settings.factors.flush_interval_s

    def serve(self, space: ModelSpace) -> None:
        """Items start from their vectors of this space from now on. What was learned stays, where the basis of learned
        factors was carried over to it."""
        self._next_space = space
        self._told.set()

    async def start(self) -> None:
        await super().start()
        self._run("publish", self._publish_for_ever())
        self._run("flush", self._flush_for_ever())

    async def stop(self) -> None:
        await super().stop()
        await self.partitions_changed()

    async def partitions_changed(self) -> None:
        self._moves += 1
        owned, self._owned = self._owned, None
        if owned is not None:
            await owned.close()

    async def handle(self, events: Sequence[Any]) -> None:
        if self._next_space != self._space:
            await self._change_space()
        owned = self._owned
        if owned is None:
            moves = self._moves
            with self.long_work("taking over the ranker"):
                owned = await self._taken_over()
            if moves != self._moves:
                await owned.close()
                return  # The partition moved meanwhile.
            self._owned = owned
            for records, apply in owned.following:
                owned.tasks.append(self._run("catalogue", self._follow(owned, records, apply)))
        for event in events:
            record = InRecord.from_faust(event)
            try:
                batch = decode_training_examples(record.value)
                await self._keep_basis(owned, wanted=True)
                if self._owned is not owned:
                    return
                self._learn(owned, batch, record.offset)
            except InvalidMessage as error:
                # Before it is held: what is held may be acknowledged by a broadcast at any await.
                await self.publisher.publish([self.letter(record, error)])
                owned.factors.skip(record.offset)
                if self._owned is not owned:
                    return
            owned.held.append((record.offset, without_payload(event)))
        while self._owned is owned and len(owned.held) > _MAX_HELD:
            async with self._flushed:
                await self._flushed.wait()

    async def _taken_over(self) -> _Owned:
        """Take over in the space that is to be served, begun again when that is another one meanwhile: the topic of the
        one before may be gone, and would be waited for."""
        while True:
            self._told.clear()
            self._space = self._next_space
            taking = asyncio.ensure_future(self.reading(self._take_over, self.topics.training_examples))
            told = asyncio.ensure_future(self._told.wait())
            try:
                while not taking.done() and self._next_space == self._space:
                    await asyncio.wait((taking, told), return_when=asyncio.FIRST_COMPLETED)
                    if told.done():  # perhaps of other spaces, and then it may be told again of this one
                        self._told.clear()
                        told = asyncio.ensure_future(self._told.wait())
                if taking.done():
                    return taking.result()
            finally:
                told.cancel()
                if not taking.done():
                    taking.cancel()
                    await asyncio.gather(taking, return_exceptions=True)

    async def _change_space(self) -> None:
        """Make everything durable and leave it; what is read next is taken over in the other space."""
        owned = self._owned
        if owned is not None:
            await self.hand_over()
            if owned.held or self._owned is not owned:
                return  # Not all of it is: with the next batch, then.
            self._owned = None
            await owned.close()
        self._space = self._next_space
        _log.info("learning in another space", space=self._space.space)

    def _learn(self, owned: _Owned, batch: TrainingExamples, offset: int) -> None:
        try:
            self.metrics.factor_examples.inc(owned.factors.learn(batch, offset=offset))
            owned.model.learn(batch)
        except (ValueError, ArithmeticError) as error:
            raise InvalidMessage(
                "not_learnable", f"{error}; what came before it in the message was learned; written by another release?"
            ) from error

    async def _take_over(self) -> _Owned:
        owned = _Owned(
            SoftmaxRanker(feature_names(self.settings.items), self.settings.ranker),
            LiveFactors(self.settings.factors, space=self._space.space, dimensions=self._space.dimensions),
        )
        try:
            await self._read_weights(owned)
            await self._read_basis(owned.factors)
            # One after the other: a vector without its item waits in a small place.
            await self._catch_up(owned, self.topics.items, self._item_of(owned.factors))
            await self._catch_up(owned, self.topics.vectors_of(self._space.number), self._vector_of(owned.factors))
            rows = await self._read_factors(owned.factors)
        except BaseException:
            await owned.close()
            raise
        _log.info("took over the ranker", examples=owned.model.examples, items=len(owned.factors), learned_items=rows)
        return owned

    async def _read_weights(self, owned: _Owned) -> None:
        model = owned.model
        async for record in read_to_end(self.settings, self.topics.ranker_weights):
            try:
                _, weights = decode_ranker_weights(record.key, record.value)
                if weights is not None:
                    model.restore(weights)
            except (InvalidMessage, ValueError) as error:
                _log.warning("weights left out", offset=record.offset, error=str(error))
        self.metrics.ranker_examples.set(model.examples)
        owned.durable_version = model.version

    async def _read_basis(self, factors: LiveFactors) -> None:
        async for record in read_to_end(self.settings, self.topics.factor_basis):
            try:
                factors.restore_basis(decode_factor_basis(record.key, record.value)[1])
            except (InvalidMessage, ValueError) as error:
                _log.warning("basis left out", offset=record.offset, error=str(error))

    async def _read_factors(self, factors: LiveFactors) -> int:
        rows: dict[str, ItemFactors] = {}
        async for record in read_to_end(self.settings, self.topics.item_factors):
            try:
                item_id, row = decode_item_factors(record.key, record.value)
            except InvalidMessage as error:
                _log.warning("factors left out", offset=record.offset, error=str(error))
                continue
            held = rows.get(item_id)
            if row is None:
                rows.pop(item_id, None)
            elif held is None or not holds_less(row, held):
                rows[item_id] = row
        return factors.restore(rows)

    async def _catch_up(self, owned: _Owned, topic: str, apply: Callable[[ConsumerRecord], None]) -> None:
        """Read a catalogue topic to where it ends now, and keep it to be followed further."""
        followed = follow(self.settings, topic)
        owned.following.append((followed, apply))
        async for records, caught_up in followed:
            await self._apply(owned, records, apply)
            if caught_up:
                return

    async def _follow(self, owned: _Owned, followed: _Followed, apply: Callable[[ConsumerRecord], None]) -> None:
        async with aclosing(followed):
            async for records, _ in followed:
                await self._apply(owned, records, apply)

    async def _apply(
        self, owned: _Owned, records: Sequence[ConsumerRecord], apply: Callable[[ConsumerRecord], None]
    ) -> None:
        for record in records:
            try:
                apply(record)
            except (InvalidMessage, ValueError) as error:
                # The catalogue role dead-letters what is wrong; here it is left out, as in every replica.
                _log.debug("record left out", topic=record.topic, offset=record.offset, error=str(error))
        await self._keep_basis(owned, wanted=False)

    @staticmethod
    def _item_of(factors: LiveFactors) -> Callable[[ConsumerRecord], None]:
        def apply(record: ConsumerRecord) -> None:
            item_id, item = decode_item(record.key, record.value, record.headers)
            factors.apply_item(item_id, there=item is not None)

        return apply

    @staticmethod
    def _vector_of(factors: LiveFactors) -> Callable[[ConsumerRecord], None]:
        def apply(record: ConsumerRecord) -> None:
            factors.apply_vector(*decode_item_vector(record.key, record.value))

        return apply

    async def _keep_basis(self, owned: _Owned, *, wanted: bool) -> None:
        """Fit or extend the basis when it is time, durable before anything is learned under it."""
        async with owned.fitting:  # One at a time: the next is asked for when this one is in force.
            basis = owned.factors.due(wanted=wanted)
            if basis is None:
                return
            await self.publisher.publish(
                [OutRecord(self.topics.factor_basis, basis.space.encode(), encode(basis.message()))]
            )
            owned.factors.adopt(basis)
        _log.info("factor basis", items=len(owned.factors), directions=basis.found)

    async def _publish_for_ever(self) -> None:
        while True:
            await asyncio.sleep(self.settings.ranker.publish_interval_s)
            if self._owned is not None:
                await self._publish_weights(self._owned)

    async def _flush_for_ever(self) -> None:
        settings, clock = self.settings.factors, time.monotonic
        # Readers apply a few rows often instead of all at once.
        pace = Pace(settings.flush_interval_s, limit=settings.flush_rows, now=clock())
        named_s = settings.named_interval_s if settings.named_interval_s < settings.flush_interval_s else math.inf
        named_at = clock() + named_s
        while True:
            await asyncio.sleep(max(0.0, min(pace.next_at, named_at) - clock()))
            if clock() >= named_at:
                named_at = clock() + named_s
                if self._owned is not None:
                    await self._flush(self._owned, settings.flush_rows, named=True)
            if clock() >= pace.next_at:
                rows = pace.share(clock(), 0 if self._owned is None else self._owned.factors.waiting)
                if self._owned is not None:
                    await self._flush(self._owned, rows)
            async with self._flushed:
                self._flushed.notify_all()

    async def hand_over(self) -> None:
        owned = self._owned
        if owned is None:
            return
        await self._publish_weights(owned)
        while owned.factors.waiting:
            await self._flush(owned, self.settings.factors.flush_rows)

    async def _publish_weights(self, owned: _Owned) -> None:
        async with self._publishing:
            await self._publish_weights_now(owned)

    async def _publish_weights_now(self, owned: _Owned) -> None:
        model = owned.model
        if not owned.held:
            return
        through = owned.held[-1][0] + 1
        if model.version > owned.durable_version:
            weights = model.weights_message()
            await self.publisher.publish(
                [OutRecord(self.topics.ranker_weights, weights.variant.encode(), encode(weights))]
            )
            # Only now: when this is cancelled in the middle, the hand-over has to broadcast again.
            owned.durable_version = weights.version
            self.metrics.ranker_examples.set(weights.examples)
        owned.weights_through = through
        self._acknowledge(owned)

    async def _flush(self, owned: _Owned, limit: int, *, named: bool = False) -> None:
        """Broadcast the rows that wait longest, at most so many; with ``named`` of those that moved far."""
        async with self._flushing:
            await self._flush_now(owned, limit, named=named)

    async def _flush_now(self, owned: _Owned, limit: int, *, named: bool) -> None:
        factors = owned.factors
        rows = factors.take(limit, named=named)
        try:
            await self.publisher.publish(
                OutRecord(self.topics.item_factors, item_id.encode(), None if row is None else encode(row))
                for item_id, row in rows
            )
        except BaseException:
            # Told to stop in the middle: the hand-over broadcasts them again.
            factors.taken_are_lost()
            raise
        factors.taken_are_durable()
        self.metrics.factor_rows_waiting.set(factors.waiting)
        self._acknowledge(owned)

    @staticmethod
    def _acknowledge(owned: _Owned) -> None:
        """Whatever both the weights and the rows on the broker hold."""
        through = min(owned.weights_through, owned.factors.commit_offset())
        while owned.held and owned.held[0][0] < through:
            owned.held.popleft()[1].ack()
