"""The ranker's stage on a real broker: every example once, weights durable before anything is acknowledged."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

import numpy as np
import pytest
from aiokafka import AIOKafkaProducer

from schemas.arrays import pack_float32
from schemas.decode import decode_ranker_weights, encode
from schemas.messages import RankerWeights, TrainingExample, TrainingExamples
from stream_app.agents.ranker import RankerAgent
from stream_app.delivery.publisher import Publisher
from stream_app.ranking.features import feature_names
from stream_app.ranking.softmax import SoftmaxRanker
from stream_app.settings import Settings
from stream_app.topics import Topics
from tests.integration.consuming import (
    committed,
    committed_reaches,
    crash,
    dead_letters,
    publishing,
    put,
    quick,
    records,
    sending,
)
from tests.stacks import Stack
from tests.waiting import eventually


@pytest.fixture
def settings(stack: Stack, topic_prefix: str) -> Settings:
    return quick(stack, topic_prefix)


def examples(settings: Settings, *offsets: int, source: int = 0, broken: int | None = None) -> TrainingExamples:
    """Three rows each; the taken one is large in a column of its own. ``broken``: this offset holds a NaN."""
    names = list(feature_names(settings.items))
    made = []
    for offset in offsets:
        features = np.random.default_rng(offset).normal(size=(3, len(names))).astype(np.float32)
        if offset == broken:
            features[1, 2] = np.nan
        made.append(TrainingExample(offset=offset, at=0.0, weight=1.0, rows=3, features=pack_float32(features)))
    return TrainingExamples(source_topic="t", source_partition=source, feature_names=names, examples=made)


def learned(settings: Settings, messages: Sequence[TrainingExamples]) -> RankerWeights:
    model = SoftmaxRanker(feature_names(settings.items), settings.ranker)
    for message in messages:
        model.learn(message)
    return model.weights_message()


async def last_weights(settings: Settings) -> RankerWeights | None:
    found = None
    for record in await records(settings, Topics(settings).ranker_weights):
        assert record.key == b"default"
        _, found = decode_ranker_weights(record.key, record.value)
    return found


def assert_same(found: RankerWeights | None, wanted: RankerWeights) -> None:
    """Versions count messages, which may be more when some come twice."""
    assert found is not None
    assert (found.examples, found.applied, found.feature_names) == (
        wanted.examples,
        wanted.applied,
        wanted.feature_names,
    )
    assert found.weights == pytest.approx(wanted.weights, abs=1e-12)
    assert found.accumulators == pytest.approx(wanted.accumulators, abs=1e-12)


@asynccontextmanager
async def running(settings: Settings, publisher: Publisher) -> AsyncIterator[RankerAgent]:
    agent = RankerAgent(settings, publisher, publisher._metrics)
    await agent.start()
    try:
        yield agent
        assert not agent.failed.done(), agent.failed
    finally:
        await agent.stop()


async def sent(producer: AIOKafkaProducer, settings: Settings, messages: Sequence[TrainingExamples]) -> int:
    place = await put(producer, Topics(settings).training_examples, [encode(one) for one in messages], key=b"default")
    return int(place.offset) + 1


async def test_a_learner_goes_on_from_the_weights_of_the_one_before_and_what_comes_twice_is_learned_once(
    settings: Settings,
):
    topic = Topics(settings).training_examples
    messages = [
        examples(settings, 0, 1, 4),
        examples(settings, 0, 3, source=1),
        examples(settings, 5, 9),
        examples(settings, 8, source=1),
    ]
    async with publishing(settings) as publisher, sending(settings) as producer:
        async with running(settings, publisher):
            await committed_reaches(settings, topic, "ranker", await sent(producer, settings, messages[:2]))
        assert_same(await last_weights(settings), learned(settings, messages[:2]))
        async with running(settings, publisher):
            end = await sent(producer, settings, [*messages[:2], *messages[2:], *messages[1:]])
            await committed_reaches(settings, topic, "ranker", end)
        assert_same(await last_weights(settings), learned(settings, messages))


async def test_nothing_is_acknowledged_before_the_weights_are_durable_and_a_crash_there_loses_nothing(
    settings: Settings,
):
    topics = Topics(settings)
    messages = [examples(settings, 0, 1), examples(settings, 2, 3)]
    async with publishing(settings) as publisher, sending(settings) as producer:
        publisher.gated_topic = topics.ranker_weights
        agent = RankerAgent(settings, publisher, publisher._metrics)
        await agent.start()
        end = await sent(producer, settings, messages)
        await asyncio.wait_for(publisher.arrived.wait(), 20)
        await eventually(lambda: agent.lag() == 0, what="everything was read")
        assert await committed(settings, topics.training_examples, "ranker") == 0
        await crash(agent)
        assert await last_weights(settings) is None
        publisher.gate.set()
        async with running(settings, publisher):
            await committed_reaches(settings, topics.training_examples, "ranker", end)
        assert_same(await last_weights(settings), learned(settings, messages))


async def test_stopped_in_the_middle_of_a_broadcast_it_hands_over_the_weights(settings: Settings):
    topics = Topics(settings)
    messages = [examples(settings, 0, 1)]
    async with publishing(settings) as publisher, sending(settings) as producer:
        publisher.gated_topic = topics.ranker_weights
        agent = RankerAgent(settings, publisher, publisher._metrics)
        await agent.start()
        end = await sent(producer, settings, messages)
        await asyncio.wait_for(publisher.arrived.wait(), 20)
        broadcast = next(task for task in agent._tasks if task.get_name() == "ranker-publish")
        broadcast.add_done_callback(lambda _: publisher.gate.set())
        await agent.stop()
        assert_same(await last_weights(settings), learned(settings, messages))
        assert await committed(settings, topics.training_examples, "ranker") == end


async def test_what_cannot_be_decoded_or_learned_is_dead_lettered_and_the_stream_goes_on(settings: Settings):
    topics = Topics(settings)
    good = examples(settings, 20, 21)
    # The examples before the broken one are learned; those after it in its message are not.
    broken = examples(settings, 3, 4, 5, broken=4)
    short = encode(examples(settings, 6)).replace(b'"rows":3', b'"rows":2')
    one_row = TrainingExamples(
        source_topic="t",
        source_partition=0,
        feature_names=["text_slow"],
        examples=[TrainingExample(offset=7, at=0, weight=1, rows=1, features=pack_float32(np.ones(1)))],
    )
    bad: list[bytes | None] = [b"\xff", None, encode(broken), short, encode(one_row)]
    async with publishing(settings) as publisher, sending(settings) as producer:
        async with running(settings, publisher):
            await put(producer, topics.training_examples, bad, key=b"default")
            letters = await dead_letters(settings, len(bad))
            await committed_reaches(settings, topics.training_examples, "ranker", len(bad))
            weights = await last_weights(settings)
            assert weights is not None, "what was learned before the broken example is broadcast"
            assert weights.examples == 1
            end = await sent(producer, settings, [good])
            await committed_reaches(settings, topics.training_examples, "ranker", end)
        reasons = [letter.reason for letter in letters]
        assert reasons[1:] == ["null_value", "not_learnable", "invalid_field", "not_learnable"]
        assert "offset 4" in letters[2].detail
        assert {letter.stage for letter in letters} == {"ranker"}
        assert_same(await last_weights(settings), learned(settings, [examples(settings, 3), good]))


async def test_weights_are_broadcast_only_when_something_was_learned(settings: Settings):
    topics = Topics(settings)
    messages = [examples(settings, 0, 1)]
    async with publishing(settings) as publisher, sending(settings) as producer, running(settings, publisher):
        for _ in range(3):
            end = await sent(producer, settings, messages)
            await committed_reaches(settings, topics.training_examples, "ranker", end)
        assert len(await records(settings, topics.ranker_weights)) == 1
