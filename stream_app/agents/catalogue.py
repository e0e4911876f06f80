"""The catalogue path: items in, text, embeddings out. Business rules are checked here too."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from schemas.arrays import pack_float32
from schemas.decode import decode_item, decode_rule, encode
from schemas.messages import Item, ItemVector
from stream_app.agents.base import Agent
from stream_app.delivery.publisher import OutRecord, Publisher
from stream_app.delivery.records import InRecord
from stream_app.errors import EncodeError, InvalidMessage, Unavailable
from stream_app.metrics import Metrics
from stream_app.settings import Settings
from stream_app.textify import Textifier, text_hash
from workers.vector_pool import VectorPool

__all__ = ["CatalogueAgent"]

_PART = 128
"""Events in a part, at most: vectors leave when their part is done, the first ones soon."""
_ON_ITS_WAY_S = 2.0
"""A rebalance waits for parts under way for so long, or for a third of the session."""
_UNDER_WAY_S = 10.0
"""Encoders that do not come back do not hold up who retires their space."""
_TRIES = 4
"""Batches that a text takes part in, at most, before it is given up (``workers.driver``)."""
_PARTS = 4
"""Parts under way: so many texts are with the pool that batches of like length can be chosen among them."""


class CatalogueAgent(Agent):
    """Keeps ``item-vectors.v1`` true to ``items.v1``.

    Events are taken in parts, a few of them under way at a time: while the texts of one are embedded, the next is
    decoded and its texts are in line behind. Parts are published and acknowledged one after the other, in order, so an
    item's older vector never comes after its newer one. When the partitions move, parts under way are finished or
    dropped.

    Several changes of one item in a part cost one embedding; a text embedded before comes from the cache. An
    event is acknowledged when its vector (or tombstone) is acknowledged by the broker.

    It also reads ``rules.v1``, only to dead-letter what is no rule: rules take effect in the replicas, which leave
    those out in silence.

    Each vector space has an agent and a consumer group of its own. The first (``number`` 0) is there for as long as the
    role is: what is wrong in the topics is dead-lettered by its group alone, once, whichever spaces there are. What a
    model cannot embed is dead-lettered for each space, which the letter names.

    Args:
        settings, publisher, metrics: as for every agent.
        pool: of the space; None: no vectors are wanted of the first space any more.
        number: of the space (``ModelSpace.number``).
    """

    role: ClassVar[str] = "catalogue"

    def __init__(
        self,
        settings: Settings,
        publisher: Publisher,
        metrics: Metrics,
        pool: VectorPool | None,
        *,
        number: int = 0,
    ) -> None:
        super().__init__(settings, publisher, metrics)
        self.pool = pool
        self._number = number
        self._vectors_topic = self.topics.vectors_of(number)
        self._textifier = Textifier.of(settings.textify)
        self._parts: deque[asyncio.Task[None]] = deque()
        self._moving = False

    @property
    def group(self) -> str:
        return f"{self.role}-{self._number}" if self._number else self.role

    @property
    def topic(self) -> str:
        return self.topics.items

    @property
    def also(self) -> tuple[str, ...]:
        return () if self._number else (self.topics.rules,)

    @property
    def most(self) -> int:
        return min(super().most, _PART)

    @property
    def patience_s(self) -> float:
        # A text that ends encoder processes is tried so often before it is given up.
        return super().patience_s + _TRIES * self.settings.encoder.batch_timeout_s

    @property
    def work(self) -> int:
        pool = self.pool
        stats = [] if pool is None else [part.stats for part in pool.parts]
        return sum(one.texts_encoded + one.cache_hits + one.poison_texts for one in stats)

    @property
    def busy(self) -> str:
        pool = self.pool
        return "the start of its encoder" if pool is not None and pool.started and not pool.pids else ""

    async def before_partitions_move(self) -> None:
        # What is under way is finished, so that it need not be done again. What is not by then is dropped: published
        # later, it could come after what the next owner made of a newer text, and stay.
        self._moving = True
        await self._finish(min(_ON_ITS_WAY_S, self.settings.connection.session_timeout_s / 3))

    async def partitions_changed(self) -> None:
        await self._finish(0.0)
        self._moving = False

    async def _finish(self, within_s: float) -> None:
        if self._parts and within_s:
            await asyncio.wait(list(self._parts), timeout=within_s)
        while self._parts:
            parts = list(self._parts)
            self._parts.clear()  # what comes next has nothing before it
            for part in parts:
                part.cancel()
            await asyncio.gather(*parts, return_exceptions=True)

    async def without_vectors(self) -> None:
        """No vectors are wanted of the space any more; returns when what is under way is done, or soon."""
        self.pool = None
        if self._parts:
            await asyncio.wait(list(self._parts), timeout=_UNDER_WAY_S)

    async def handle(self, events: Sequence[Any]) -> None:
        """Begin with a part; returns while it is under way, but waits while too many are."""
        if self.stopping or self._moving:
            return  # not acknowledged: the next owner's, or delivered again
        before = self._parts[-1] if self._parts else None
        self._parts.append(self._run("part", self._part(events, before)))
        while len(self._parts) >= _PARTS:
            oldest = self._parts[0]
            await asyncio.wait([oldest])
            if self._parts and self._parts[0] is oldest:  # else the partitions moved
                self._parts.popleft()

    async def _part(self, events: Sequence[Any], before: asyncio.Task[None] | None) -> None:
        """Embed, then publish and acknowledge when the part before is."""
        began = time.perf_counter()
        out = await self._vectors(events)
        embedded = time.perf_counter()
        if before is not None:
            await asyncio.wait([before])
        if self.failed.done() or (before is not None and before.cancelled()):
            return  # nothing after the part before may be published: its records come again
        await self.publisher.publish(out)
        for event in events:
            event.ack()
        self.metrics.batch_seconds.labels(self.role, "embed").observe(embedded - began)
        self.metrics.batch_seconds.labels(self.role, "publish").observe(time.perf_counter() - embedded)

    async def _vectors(self, events: Sequence[Any]) -> list[OutRecord]:
        """What the events of a part cause: vectors, tombstones, dead letters."""
        latest: dict[str, tuple[InRecord, Item | None]] = {}
        out: list[OutRecord] = []
        for event in events:
            record = InRecord.from_faust(event)
            try:
                if record.topic == self.topics.rules:
                    decode_rule(record.key, record.value, record.headers)
                    continue
                item_id, item = decode_item(record.key, record.value, record.headers)
            except InvalidMessage as error:
                if not self._number:
                    out.append(self.letter(record, error))
            else:
                latest[item_id] = (record, item)
        pool = self.pool
        if pool is None:
            latest.clear()
        out += [
            OutRecord(self._vectors_topic, item_id.encode(), None)
            for item_id, (_, item) in latest.items()
            if item is None
        ]
        items = [(record, item) for record, item in latest.values() if item is not None]
        texts = [self._textifier.item(item) for _, item in items]
        images = [item.image_url for _, item in items]
        # One poisonous text costs the others nothing: each has an outcome of its own.
        try:
            outcomes = await pool.encode_items(texts, images) if pool is not None and texts else []
        except Unavailable:
            if self.pool is not None:
                raise
            return out  # the space is retired meanwhile, and its pool with it
        for (record, item), text, vector in zip(items, texts, outcomes, strict=True):
            if isinstance(vector, EncodeError):
                problem = InvalidMessage(
                    "not_embeddable",
                    f"item {item.item_id!r} could not be embedded in space {self._number}: {vector}; change its text",
                )
                out.append(self.letter(record, problem))
            else:
                assert pool is not None  # noqa: S101 - it gave the vector
                out.append(self._vector(pool.space, item, text, vector))
        return out

    def _vector(self, space: str, item: Item, text: str, vector: NDArray[np.float32]) -> OutRecord:
        message = ItemVector(
            item_id=item.item_id,
            space=space,
            text_hash=text_hash(text),
            dimensions=len(vector),
            vector=pack_float32(vector),
            text=text,
        )
        return OutRecord(self._vectors_topic, item.item_id.encode(), encode(message))
