"""What an adapter learns from, read back from the topics: catalogue, vectors, interactions and published slates.

Each topic is read once, to where it ends. Nothing is embedded: the vectors are
those that a kept space has (``item-vectors.v1``, or a further space's topic). Of
interactions and slates the newest are kept, so memory is bounded whatever retention is. Records that cannot be used are
counted and left out, as everywhere.
"""

from __future__ import annotations

import heapq
import time
from collections import Counter
from collections.abc import Callable
from contextlib import aclosing
from datetime import datetime
from typing import Generic, TypeVar

import numpy as np
from aiokafka.structs import ConsumerRecord
from numpy.typing import NDArray

from schemas.arrays import unpack_float32
from schemas.decode import decode_interaction, decode_item, decode_item_vector, decode_slate
from schemas.messages import Interaction, Item, SpaceControl
from stream_app.adapters.choices import HARD
from stream_app.adapters.shown import SlateShown
from stream_app.adapters.train import Examples
from stream_app.delivery.reading import read_to_end
from stream_app.errors import DatasetError, InvalidMessage
from stream_app.settings import Settings
from stream_app.space_operations import present_control
from stream_app.topics import Topics
from workers.models import describe_model

__all__ = ["Newest", "Records", "read_topics"]

T = TypeVar("T")


class Newest(Generic[T]):
    """The newest of what is added, whatever order it comes in; what has one key counts once.

    Args:
        most: how many are kept.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._heap: list[tuple[float, tuple[str, str], T]] = []
        self._keys: set[tuple[str, str]] = set()

    def add(self, at: float, key: tuple[str, str], value: T) -> None:
        """Add ``value`` of time ``at`` (seconds); the first with a key stays."""
        if key in self._keys:
            return
        entry = (at, key, value)
        if len(self._heap) < self._most:
            heapq.heappush(self._heap, entry)
        elif (at, key) > self._heap[0][:2]:
            self._keys.discard(heapq.heapreplace(self._heap, entry)[1])
        else:
            return
        self._keys.add(key)

    def values(self) -> list[T]:
        """In order of time; those of one time in order of their keys."""
        return [value for _, _, value in sorted(self._heap, key=lambda entry: entry[:2])]


class Records:
    """Collects records of the four topics.

    Args:
        settings: event types, and how old an event may be.
        space: of the encoder in use; vectors of other spaces are left out.
        events: interactions, and slates, that are kept.
        now: our clock, seconds since 1970.

    Attributes:
        rejected: records that could not be used, by reason.
    """

    def __init__(self, settings: Settings, *, space: str, events: int, now: float) -> None:
        self._settings, self._space, self._now = settings, space, now
        self._oldest = datetime.fromisoformat(settings.events.oldest).timestamp()
        self._items: dict[str, Item] = {}
        self._vectors: dict[str, NDArray[np.float32]] = {}
        self._events: Newest[Interaction] = Newest(events)
        self._slates: Newest[SlateShown] = Newest(events)
        self.rejected: Counter[str] = Counter()

    def item(self, record: ConsumerRecord) -> None:
        """A record of ``items.v1``."""
        item_id, item = decode_item(record.key, record.value, record.headers)
        if item is None:
            self._items.pop(item_id, None)
        else:
            self._items[item_id] = item

    def vector(self, record: ConsumerRecord) -> None:
        """A record of ``item-vectors.v1`` or of a further space."""
        item_id, row = decode_item_vector(record.key, record.value)
        if row is None or row.space != self._space:
            self._vectors.pop(item_id, None)
            return
        try:
            vector = unpack_float32(row.vector)
        except ValueError as error:
            raise InvalidMessage("wrong_field", f"vector: {error}") from error
        if len(vector) != row.dimensions or not np.isfinite(vector).all():
            raise InvalidMessage("wrong_field", f"vector: not {row.dimensions} finite numbers")
        self._vectors[item_id] = vector

    def interaction(self, record: ConsumerRecord) -> None:
        """A record of ``interactions.v1``."""
        event = decode_interaction(
            record.key,
            record.value,
            record.headers,
            event_types=self._settings.event_types,
            now=self._now,
            oldest=self._oldest,
            future_tolerance_s=self._settings.events.future_tolerance_s,
        )
        self._events.add(event.occurred_at.timestamp(), (event.user_id, event.event_id), event)

    def slate(self, record: ConsumerRecord) -> None:
        """A record of ``recommendations.v1``."""
        user_id, slate = decode_slate(record.key, record.value, record.headers)
        if slate is not None:
            at = slate.generated_at.timestamp()
            items = tuple(item.item_id for item in slate.items[:HARD])
            self._slates.add(at, (user_id, slate.slate_id), SlateShown(at, user_id, items))

    def take(self, how: Callable[[ConsumerRecord], None], record: ConsumerRecord) -> None:
        """Hand a record to one of the methods above; one that cannot be used is counted."""
        try:
            how(record)
        except InvalidMessage as error:
            self.rejected[error.reason] += 1

    def examples(self) -> Examples:
        """What there is to learn from.

        Raises:
            DatasetError: when there are no interactions, or no vectors of this model.
        """
        events = self._events.values()
        vectors = {item_id: vector for item_id, vector in self._vectors.items() if item_id in self._items}
        if not events:
            raise DatasetError(
                f"no interactions on the topics ({_counted(self.rejected)}); send some: tailrace produce"
            )
        if not vectors:
            raise DatasetError(
                f"no item on the topics has a vector of the space {self._space} (setting encoder.model); a catalogue "
                "process embeds them: tailrace up"
            )
        return Examples(
            name="topics",
            items=list(self._items.values()),
            interactions=events,
            vectors=vectors,
            space=self._space,
            slates=self._slates.values(),
        )


def _counted(rejected: Counter[str]) -> str:
    return ", ".join(f"{count:,} {reason}" for reason, count in rejected.most_common()) or "none was refused"


def _number(space: str, control: SpaceControl) -> int:
    """Of the kept space with this name: after a cut-over its vectors are not where the first space's are."""
    for one in control.spaces:
        if one.space == space:
            return one.number
    kept = ", ".join(f"{one.number} ({one.space})" for one in control.spaces)
    raise DatasetError(
        f"the space {space} (settings encoder.model, pooling, dimensions, document_prefix) is not kept, so its vectors "
        f"are on no topic; kept are {kept}. Set encoder.model to that of a kept space that is neither adapted (+a-) "
        "nor fused with images (&), or build it: tailrace spaces build"
    )


async def read_topics(settings: Settings, *, events: int, patience_s: float) -> Examples:
    """Read the four topics to their ends; the vectors are those of the encoder's own space, wherever it is kept.

    Args:
        settings: where the broker is, and the encoder.
        events: interactions, and slates, that are kept, the newest.
        patience_s: give up after this long without a broker or without progress (seconds).

    Raises:
        Unavailable, TopicError: as :func:`~stream_app.delivery.reading.read_to_end`.
        SettingsError: when the model of the settings is not here.
        DatasetError: when there is nothing to learn from, or the model's space is not kept.
    """
    topics = Topics(settings)
    space = describe_model(settings.encoder).space
    vectors = topics.vectors_of(_number(space, (await present_control(settings))[0]))
    records = Records(settings, space=space, events=events, now=time.time())
    for topic, how in (
        (topics.items, records.item),
        (vectors, records.vector),
        (topics.interactions, records.interaction),
        (topics.recommendations, records.slate),
    ):
        async with aclosing(read_to_end(settings, topic, patience_s=patience_s)) as reading:
            async for record in reading:
                records.take(how, record)
    return records.examples()
