"""The ranker's stage: examples in, weights out. One partition, so one learner; everyone else tails the weights."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Sequence
from typing import Any, ClassVar

from schemas.decode import decode_ranker_weights, decode_training_examples, encode
from schemas.messages import TrainingExamples
from stream_app.agents.base import Agent
from stream_app.delivery.publisher import OutRecord
from stream_app.delivery.reading import read_to_end
from stream_app.delivery.records import InRecord
from stream_app.errors import InvalidMessage
from stream_app.logs import get_logger
from stream_app.ranking.features import feature_names
from stream_app.ranking.softmax import SoftmaxRanker

__all__ = ["RankerAgent"]

_log = get_logger(__name__)


class RankerAgent(Agent):
    """Learns from every example once and broadcasts the weights.

    The broadcast is also the durable state: it says through which source offsets it is complete, so examples
    that are delivered again are skipped.
    """

    role: ClassVar[str] = "ranker"

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self._model: SoftmaxRanker | None = None
        self._held: deque[Any] = deque()
        self._durable_version = 0

    @property
    def topic(self) -> str:
        return self.topics.training_examples

    async def start(self) -> None:
        await super().start()
        self._run("publish", self._publish_for_ever())

    async def partitions_changed(self) -> None:
        self._model = None
        self._held = deque()

    async def handle(self, events: Sequence[Any]) -> None:
        held, model = self._held, self._model
        if model is None:
            model = await self.reading(self._take_over, self.topics.ranker_weights)
            if held is not self._held:
                return  # The partition moved meanwhile.
            self._model = model
            self._durable_version = model.version
        for event in events:
            record = InRecord.from_faust(event)
            try:
                self._learn(model, decode_training_examples(record.value))
            except InvalidMessage as error:
                # Before it is held: what is held may be acknowledged by a broadcast at any await.
                await self.publisher.publish([self.letter(record, error)])
                if held is not self._held:
                    return
            held.append(event)

    @staticmethod
    def _learn(model: SoftmaxRanker, batch: TrainingExamples) -> None:
        try:
            model.learn(batch)
        except ValueError as error:
            raise InvalidMessage(
                "not_learnable", f"{error}; what came before it in the message was learned; written by another release?"
            ) from error

    async def _take_over(self) -> SoftmaxRanker:
        model = SoftmaxRanker(feature_names(self.settings.items), self.settings.ranker)
        async for record in read_to_end(self.settings, self.topics.ranker_weights):
            try:
                _, weights = decode_ranker_weights(record.key, record.value)
                if weights is not None:
                    model.restore(weights)
            except (InvalidMessage, ValueError) as error:
                _log.warning("weights left out", offset=record.offset, error=str(error))
        self.metrics.ranker_examples.set(model.examples)
        _log.info("took over the ranker", examples=model.examples)
        return model

    async def _publish_for_ever(self) -> None:
        while True:
            await asyncio.sleep(self.settings.ranker.publish_interval_s)
            await self.hand_over()

    async def hand_over(self) -> None:
        model, held = self._model, self._held
        if model is None or not held:
            return
        through = len(held)
        if model.version > self._durable_version:
            weights = model.weights_message()
            await self.publisher.publish(
                [OutRecord(self.topics.ranker_weights, weights.variant.encode(), encode(weights))]
            )
            # Only now: when this is cancelled in the middle, the hand-over has to broadcast again.
            if model is self._model:
                self._durable_version = weights.version
            self.metrics.ranker_examples.set(weights.examples)
        for _ in range(through):
            held.popleft().ack()
