"""The ranker's stage on a real broker: every example once, weights durable before anything is acknowledged."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

import numpy as np
import pytest
from aiokafka import AIOKafkaProducer

from schemas.arrays import pack_float32, unpack_float32
from schemas.decode import decode_factor_basis, decode_item_factors, decode_ranker_weights, encode
from schemas.messages import Item, ItemFactors, ItemVector, RankerWeights, TrainingExample, TrainingExamples
from stream_app.agents.ranker import RankerAgent
from stream_app.delivery.publisher import Publisher
from stream_app.errors import InvalidMessage
from stream_app.factors.live import LiveFactors
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


def ranker(settings: Settings, publisher: Publisher) -> RankerAgent:
    return RankerAgent(settings, publisher, publisher._metrics, space="s", dimensions=16)


@asynccontextmanager
async def running(settings: Settings, publisher: Publisher) -> AsyncIterator[RankerAgent]:
    agent = ranker(settings, publisher)
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
        agent = ranker(settings, publisher)
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
        agent = ranker(settings, publisher)
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


ITEMS = 40
VECTORS = np.random.default_rng(7).normal(size=(ITEMS, 16)).astype(np.float32)


def vector(number: int) -> ItemVector:
    return ItemVector(
        item_id=f"i{number}", space="s", text_hash="", dimensions=16, vector=pack_float32(VECTORS[number])
    )


async def catalogue(producer: AIOKafkaProducer, settings: Settings) -> None:
    """Every item, described and embedded."""
    topics = Topics(settings)
    for number in range(ITEMS):
        key = f"i{number}".encode()
        item = Item(item_id=f"i{number}", title=f"Item {number}")
        await producer.send(topics.items, encode(item), key=key, partition=0)
        await producer.send(topics.item_vectors, encode(vector(number)), key=key, partition=0)
    await producer.flush()


def choices(settings: Settings, first: int, count: int, *, source: int = 0) -> TrainingExamples:
    """Choices that teach the factors, and the ranker only that they were made."""
    draws = np.random.default_rng(first).integers(0, ITEMS, (count, 4)).tolist()
    made = [
        TrainingExample(
            offset=first + place,
            at=0,
            weight=1,
            rows=0,
            features="",
            item_id=f"i{item}",
            previous=[f"i{n}" for n in past],
        )
        for place, (item, *past) in enumerate(draws)
    ]
    names = list(feature_names(settings.items))
    return TrainingExamples(source_topic="t", source_partition=source, feature_names=names, examples=made)


def factors_of(settings: Settings, messages: Sequence[TrainingExamples]) -> dict[str, ItemFactors]:
    """What an owner that nothing happens to makes of them."""
    live = LiveFactors(settings.factors, space="s", dimensions=16)
    for number in range(ITEMS):
        live.apply_item(f"i{number}", there=True)
        live.apply_vector(f"i{number}", vector(number))
    basis = live.due(wanted=True)
    assert basis is not None
    live.adopt(basis)
    for offset, message in enumerate(messages):
        live.learn(message, offset=offset)
    return {item_id: row for item_id, row in live.take(1_000) if row is not None}


async def last_factors(settings: Settings) -> dict[str, ItemFactors | None]:
    """The last row of each item on the topic: what compaction keeps."""
    found: dict[str, ItemFactors | None] = {}
    for record in await records(settings, Topics(settings).item_factors):
        with contextlib.suppress(InvalidMessage):
            found.update([decode_item_factors(record.key, record.value)])
    return found


def assert_same_factors(
    found: dict[str, ItemFactors | None], wanted: dict[str, ItemFactors], *, within: float = 1e-5
) -> None:
    assert found.keys() == wanted.keys()
    for item_id, row in wanted.items():
        other = found[item_id]
        assert other is not None
        assert other.applied == row.applied
        for name in ("context", "target"):
            values = [unpack_float32(getattr(one, name)) for one in (other, row)]
            np.testing.assert_allclose(values[0], values[1], rtol=within, atol=within)


async def test_an_owner_killed_before_it_broadcasts_leaves_factors_equal_and_nothing_was_acknowledged(
    settings: Settings,
):
    topics = Topics(settings)
    messages = [
        choices(settings, 0, 20),
        choices(settings, 0, 20, source=1),
        choices(settings, 20, 20),
        choices(settings, 40, 9),
    ]
    async with publishing(settings) as publisher, sending(settings) as producer:
        await catalogue(producer, settings)
        async with running(settings, publisher):
            end = await sent(producer, settings, messages[:2])
            await committed_reaches(settings, topics.training_examples, "ranker", end)
        assert_same_factors(await last_factors(settings), factors_of(settings, messages[:2]))
        publisher.gated_topic = topics.item_factors
        agent = ranker(settings, publisher)
        await agent.start()
        await sent(producer, settings, messages[2:3])
        await asyncio.wait_for(publisher.arrived.wait(), 20)
        await eventually(lambda: agent.lag() == 0, what="everything was read")

        async def weights_durable() -> bool:
            weights = await last_weights(settings)
            return weights is not None and weights.examples == 60

        await eventually(weights_durable, what="the weights hold what the factors do not")
        assert await committed(settings, topics.training_examples, "ranker") == end
        await crash(agent)
        assert_same_factors(await last_factors(settings), factors_of(settings, messages[:2]))
        publisher.gate.set()
        async with running(settings, publisher):
            # As after a crash of the stage before: some of it again.
            end = await sent(producer, settings, [*messages[1:3], *messages[3:]])
            await committed_reaches(settings, topics.training_examples, "ranker", end)
        assert_same_factors(await last_factors(settings), factors_of(settings, messages))
        bases = [decode_factor_basis(one.key, one.value) for one in await records(settings, topics.factor_basis)]
        assert [space for space, _ in bases] == ["s"], "one basis, whoever owns it"


async def test_an_owner_killed_between_two_flushes_leaves_rows_that_took_every_choice_once(
    stack: Stack, topic_prefix: str
):
    slow = quick(stack, topic_prefix, factors={"flush_rows": 5})
    topics = Topics(slow)
    messages = [choices(slow, 0, 20), choices(slow, 20, 20)]
    async with publishing(slow) as publisher, sending(slow) as producer:
        await catalogue(producer, slow)
        publisher.gated_topic, publisher.pass_first = topics.item_factors, 2
        agent = ranker(slow, publisher)
        await agent.start()
        await sent(producer, slow, messages)
        await asyncio.wait_for(publisher.arrived.wait(), 20)
        await crash(agent)
        assert len(await last_factors(slow)) == 10
        publisher.gate.set()
        async with running(slow, publisher):
            await committed_reaches(slow, topics.training_examples, "ranker", 2)
        # Rows of two times met, so the steps differ a little; no row took a choice twice, and none missed one.
        assert_same_factors(await last_factors(slow), factors_of(slow, messages), within=0.05)


async def test_items_that_leave_the_catalogue_leave_the_factors_whether_anybody_looks_or_not(settings: Settings):
    topics = Topics(settings)
    messages = [choices(settings, 0, 60)]
    async with publishing(settings) as publisher, sending(settings) as producer:
        await catalogue(producer, settings)

        async def gone(item_id: str) -> None:
            async def tombstone() -> bool:
                return (await last_factors(settings))[item_id] is None

            await eventually(tombstone, what=f"{item_id} is broadcast as gone")

        async with running(settings, publisher):
            end = await sent(producer, settings, messages)
            await committed_reaches(settings, topics.training_examples, "ranker", end)
            await put(producer, topics.items, [None], key=b"i3")
            await gone("i3")
        await put(producer, topics.items, [None], key=b"i4")
        async with running(settings, publisher):
            await sent(producer, settings, messages)
            await gone("i4")
        assert len([row for row in (await last_factors(settings)).values() if row is not None]) == ITEMS - 2


async def test_records_that_mean_nothing_stop_no_learning(settings: Settings):
    topics = Topics(settings)
    good = choices(settings, 0, 20)
    lost = choices(settings, 2**70, 1)
    async with publishing(settings) as publisher, sending(settings) as producer:
        for topic in (topics.items, topics.item_vectors, topics.factor_basis, topics.item_factors):
            await put(producer, topic, [b"nonsense", b"{}"], key=b"k")
        short = ItemVector(item_id="i0", space="s", text_hash="", dimensions=3, vector=pack_float32(np.ones(3)))
        await put(producer, topics.item_vectors, [encode(short)], key=b"i0")
        await catalogue(producer, settings)
        async with running(settings, publisher):
            await sent(producer, settings, [lost])
            letters = await dead_letters(settings, 1)
            end = await sent(producer, settings, [good])
            await committed_reaches(settings, topics.training_examples, "ranker", end)
            await put(producer, topics.items, [b"nonsense"], key=b"i0")
            end = await sent(producer, settings, [choices(settings, 20, 5)])
            await committed_reaches(settings, topics.training_examples, "ranker", end)
        assert [letter.reason for letter in letters] == ["not_learnable"]
        assert_same_factors(await last_factors(settings), factors_of(settings, [good, choices(settings, 20, 5)]))
