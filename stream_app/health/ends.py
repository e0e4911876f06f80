"""Where topics end, asked of the broker over a connection of its own: what a dead consumer cannot know."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from contextlib import suppress

from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.errors import KafkaError

from stream_app.delivery.connections import kafka_options, stop_consumer
from stream_app.settings import Settings

__all__ = ["Ends"]

_ANSWER_S = 5.0
"""A broker that has not answered by then is away."""


class Ends:
    """Asks every ``health.interval_s`` seconds.

    Args:
        settings: of this process.
        wanted: the partitions whose ends are to be known.

    Attributes:
        known: the end offset by partition, as of the last answer.
        away: why there was no answer the last time; "" when there was one, or it was never asked.
    """

    def __init__(self, settings: Settings, wanted: Callable[[], Iterable[TopicPartition]]) -> None:
        self._settings = settings
        self._wanted = wanted
        self.known: dict[TopicPartition, int] = {}
        self.away = ""
        self._there: set[str] = set()

    async def watch(self) -> None:
        """Ask for ever, over a new connection whenever one has failed."""
        while True:
            consumer = AIOKafkaConsumer(**kafka_options(self._settings), enable_auto_commit=False)
            self._there.clear()
            try:
                async with asyncio.timeout(_ANSWER_S):
                    await consumer.start()
                while True:
                    await self._ask(consumer)
                    await asyncio.sleep(self._settings.health.interval_s)
            except (KafkaError, OSError) as error:  # TimeoutError is one of these
                self.away = f"{type(error).__name__}: {error}" if str(error) else "it does not answer"
            finally:
                await self._left(consumer)
            await asyncio.sleep(self._settings.health.interval_s)

    async def _ask(self, consumer: AIOKafkaConsumer) -> None:
        places = list(self._wanted())
        async with asyncio.timeout(_ANSWER_S):
            if not places or not self._there.issuperset(place.topic for place in places):
                # Of a topic that is gone the end would be waited for; of all topics, see delivery.reading.
                self._there = await consumer.topics()
            places = [place for place in places if place.topic in self._there]
            self.known = dict(await consumer.end_offsets(places)) if places else {}
        self.away = ""

    @staticmethod
    async def _left(consumer: AIOKafkaConsumer) -> None:
        with suppress(KafkaError, OSError):
            async with asyncio.timeout(_ANSWER_S):
                await stop_consumer(consumer)
