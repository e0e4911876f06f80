"""When what was learned of a basket has been broadcast: statistics and factors of its items, and the ranker's weights.

What an event teaches goes through ``training-examples.v1``, and every broadcast says through which source offsets it is
complete (``applied``): so whoever knows the places of a basket's events can tell. The processes that rank read the same
records at the same time.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Iterable
from types import TracebackType
from typing import Final, Self

import msgspec
from aiokafka import AIOKafkaConsumer

from stream_app.delivery.connections import kafka_options, stop_consumer
from stream_app.settings import Settings
from stream_app.topics import Topics

__all__ = ["Effects"]

_POLL_MS: Final = 200
_KEPT: Final = 10_000
"""Examples remembered until somebody asks for what they taught."""


class _Applied(msgspec.Struct):
    """What the records have in common: last applied offset per source partition."""

    applied: dict[str, int] = {}


class _Example(msgspec.Struct):
    offset: int
    item_id: str = ""


class _Examples(msgspec.Struct):
    """What of a message of examples says where they are from."""

    source_partition: int
    examples: list[_Example]


_decode = msgspec.json.Decoder(_Applied).decode
_decode_examples = msgspec.json.Decoder(_Examples).decode


class Effects:
    """Follows the broadcasts. Use with ``async with``.

    Args:
        settings: where the broker is, and whether anything is learned.
    """

    def __init__(self, settings: Settings) -> None:
        topics = Topics(settings)
        self._weights = topics.ranker_weights
        self._examples = topics.training_examples
        self._taught: OrderedDict[tuple[int, int], str] = OrderedDict()
        # Whoever does not learn broadcasts nothing.
        self._of_items = [topics.item_signals] + [topics.item_factors] * (settings.factors.learning_rate > 0)
        self._of_all = [self._weights] * (settings.ranker.learning_rate > 0)
        self._consumer = AIOKafkaConsumer(
            *self._of_items, self._weights, self._examples, **kafka_options(settings), auto_offset_reset="earliest"
        )
        self._applied: dict[tuple[str, bytes], dict[str, int]] = {}
        self._awaited: dict[tuple[str, bytes], list[_Wait]] = {}
        self._task: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        await self._consumer.start()
        self._task = asyncio.create_task(self._follow(), name="effects")
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        await stop_consumer(self._consumer)

    async def of(self, events: Iterable[tuple[int, int]], *, patience_s: float) -> bool:
        """Wait until what these events taught has been broadcast; False when it was not by then.

        Args:
            events: partition and offset of each, of one partition and in order; they were processed already.
            patience_s: how long at most.
        """
        last: dict[str, tuple[str, int]] = {}
        for partition, offset in events:
            item_id = self._taught.pop((partition, offset), "")
            if item_id:
                last[item_id] = (str(partition), offset)
        if not last:
            return True
        wait = _Wait()
        for topic in self._of_items:
            for item_id, place in last.items():
                self._await(wait, topic, item_id.encode(), place)
        for topic in self._of_all:
            self._await(wait, topic, b"", max(last.values(), key=lambda place: place[1]))
        if not wait.open:
            return True
        try:
            async with asyncio.timeout(patience_s):
                await wait.over.wait()
        except TimeoutError:
            return False
        finally:
            for key in {(topic, item) for topic, item, _ in wait.open}:
                self._awaited.pop(key, None)
        return True

    def _await(self, wait: _Wait, topic: str, item: bytes, place: tuple[str, int]) -> None:
        if self._applied.get((topic, item), {}).get(place[0], -1) >= place[1]:
            return
        wait.open.add((topic, item, place))
        self._awaited.setdefault((topic, item), []).append(wait)

    async def _follow(self) -> None:
        while True:
            fetched = await self._consumer.getmany(timeout_ms=_POLL_MS)
            for partition, records in fetched.items():
                for record in records:
                    if partition.topic == self._examples:
                        self._note_examples(record.value)
                        continue
                    item = b"" if partition.topic == self._weights else record.key
                    if record.value is not None:
                        self._note((partition.topic, item), _decode(record.value).applied)

    def _note_examples(self, value: bytes) -> None:
        message = _decode_examples(value)
        for example in message.examples:
            self._taught[message.source_partition, example.offset] = example.item_id
        while len(self._taught) > _KEPT:
            self._taught.popitem(last=False)

    def _note(self, key: tuple[str, bytes], applied: dict[str, int]) -> None:
        self._applied[key] = applied
        for wait in self._awaited.pop(key, ()):
            held = {one for one in wait.open if one[:2] == key}
            done = {one for one in held if applied.get(one[2][0], -1) >= one[2][1]}
            wait.open -= done
            if held - done:
                self._awaited.setdefault(key, []).append(wait)
            if not wait.open:
                wait.over.set()


class _Wait:
    """What one caller still waits for: topic, key, and place."""

    def __init__(self) -> None:
        self.open: set[tuple[str, bytes, tuple[str, int]]] = set()
        self.over = asyncio.Event()
