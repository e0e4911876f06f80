"""Wrong records among right ones, and a process that is short of memory: what is right has its effect all the same."""

from __future__ import annotations

import asyncio
import os
import random
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import pytest
from aiokafka import AIOKafkaProducer
from aiokafka.errors import KafkaError

from schemas import decode
from schemas.messages import Interaction, Item
from stream_app.delivery.connections import kafka_options
from stream_app.delivery.reading import read_to_end
from stream_app.errors import InvalidMessage
from stream_app.metrics import Metrics
from stream_app.settings import Settings
from stream_app.stores.users import UserStore, connect_redis
from tests.fuzz import targets
from tests.fuzz.target import Sample, Target, mutation
from tests.integration.pipeline import Live, live
from tests.waiting import eventually

pytestmark = [pytest.mark.stack, pytest.mark.model, pytest.mark.timeout(600)]

RECORDS = int(os.environ.get("FUZZ_RECORDS", "3000"))
"""Mutated records; some tens of thousands take some minutes."""
GOOD_EVERY = 30
_LARGEST = 500_000
_NOT_COMPACTED = ("interactions", "transitions", "training-examples")
_Place = tuple[str, int, int]


def _refuses(read: Callable[[Sample], object], sample: Sample) -> bool:
    try:
        read(sample)
    except InvalidMessage:
        return True
    return False


def _readers(settings: Settings) -> dict[str, Callable[[Sample], object]]:
    """As the roles read them, which dead-letter what these refuse."""
    oldest = datetime.fromisoformat(settings.events.oldest).timestamp()

    def interaction(sample: Sample) -> object:
        return decode.decode_interaction(
            sample.key,
            sample.value,
            sample.headers,
            event_types=settings.event_types,
            now=datetime.now(UTC).timestamp(),
            oldest=oldest,
            future_tolerance_s=settings.events.future_tolerance_s,
        )

    return {
        "interactions": interaction,
        "items": lambda one: decode.decode_item(one.key, one.value, one.headers),
        "users": lambda one: decode.decode_user(one.key, one.value, one.headers),
        "rules": lambda one: decode.decode_rule(one.key, one.value, one.headers),
        "transitions": lambda one: decode.decode_transitions(one.value),
        "training-examples": lambda one: decode.decode_training_examples(one.value),
    }


_SILENT = ("item-vectors", "item-signals", "item-factors", "ranker-weights", "factor-basis")
"""Topics whose readers leave out what is wrong; nobody else writes there."""


async def _letters(live: Live) -> dict[_Place, str]:
    found: dict[_Place, str] = {}
    async for record in read_to_end(live.settings, live.topics.dead_letter):
        letter = decode.decode_dead_letter(record.value)
        found[letter.topic, letter.partition, letter.offset] = letter.reason
    return found


async def test_among_mutated_records_every_good_one_has_its_effect_and_every_bad_one_its_letter(settings: Settings):
    readers = _readers(settings)
    chosen: list[Target] = [
        target for target in [*targets._public(), *targets._internal()] if target.name in {*readers, *_SILENT}
    ]
    full = {name: f"{settings.topics.prefix}.{name}.v1" for name in {*readers, *_SILENT}}
    weights = [4.0 if target.name in ("interactions", "items") else 1.0 for target in chosen]
    random_ = random.Random(3)
    async with live(settings) as running:
        await running.item("good-item-0", "A brass lamp")
        await running.indexed(1)
        refused: set[_Place] = set()
        sent = good = 0
        slates: dict[str, Any] = {}
        waiting: list[tuple[str, Sample, Any]] = []

        async def placed() -> None:
            for name, sample, future in waiting:
                place = await future
                if name in readers and _refuses(readers[name], sample):
                    refused.add((place.topic, place.partition, place.offset))
            waiting.clear()

        for number, target in enumerate(random_.choices(chosen, weights, k=RECORDS)):
            sample = mutation(target, random_)
            if sample.value is not None and len(sample.value) > _LARGEST:
                continue
            if sample.key is None and target.name not in _NOT_COMPACTED:
                continue  # Apache Kafka refuses it, and whatever is in a batch with it
            said = [(name, content) for name, content in sample.headers if content is not None]
            sample = Sample(sample.value, sample.key, tuple(said))
            try:
                future = await running.producer.send(full[target.name], sample.value, key=sample.key, headers=said)
            except (KafkaError, ValueError, AssertionError):  # neither key nor value: no client sends that
                continue
            waiting.append((target.name, sample, future))
            sent += 1
            if number % GOOD_EVERY == 0:
                good += 1
                await running.item(f"good-item-{good}", f"A brass lamp, number {good}")
                slates[f"good-{good}"] = await running.event(f"good-{good}", "good-item-0")
                await placed()
        await placed()
        assert sent > RECORDS * 0.9
        assert refused, "some were wrong"
        redis = connect_redis(settings)
        for user_id, place in slates.items():
            # Later slates follow when items come and go, so it is not asked for the one of the event.
            await eventually(
                lambda user_id=user_id: user_id in running.slates, timeout_s=120, what=f"slate of {user_id}"
            )

            async def written(user_id: str = user_id, place: Any = place) -> bool:
                state = (await UserStore(redis, settings, Metrics()).load([user_id]))[user_id]
                return (state.events, state.applied) == (1, {place.partition: place.offset})

            await eventually(written, what=f"state of {user_id}")
        await redis.aclose()

        async def all_letters() -> bool:
            return refused <= (await _letters(running)).keys()

        await eventually(all_letters, timeout_s=120, interval_s=0.5, what="a letter about every bad record")
        letters = await _letters(running)
        assert "processing_failed" not in letters.values()
        topics = {full[name] for name in ("interactions", "items", "users", "rules")}
        extra = {place: why for place, why in letters.items() if place not in refused and place[0] in topics}
        assert not extra, "what can be read has no letter"

        replica = running.tailrace.replica
        assert replica is not None
        catalogue = replica.serving.catalogue

        def all_items() -> bool:
            rows = [catalogue.row(f"good-item-{number}") for number in range(1, good + 1)]
            return all(row >= 0 and bool(replica.serving.index.has(targets.np.array([row]))[0]) for row in rows)

        await eventually(all_items, timeout_s=120, what="every good item can be recommended")
        assert not replica.failed.done()
        assert not any(agent.failed.done() for agent in running.tailrace.agents)


async def test_a_process_far_beyond_its_limit_of_memory_goes_on_a_few_records_at_a_time(settings: Settings):
    """A limit that the libraries alone exceed: nothing can be given back, and events have their slates all the same."""
    tight = settings.model_copy(update={"memory": settings.memory.model_copy(update={"limit": 16 << 20})})
    async with live(tight) as running:
        metrics = running.tailrace.metrics
        await eventually(lambda: metrics.held_back._value.get() == 1, what="it is noticed")
        assert running.tailrace._gate.closed
        await running.item("lamp", "A lamp")
        await running.indexed(1)
        for number in range(3):
            place = await running.event(f"u{number}", "lamp")
            assert (await running.slate_after(f"u{number}", place)).items is not None
        await asyncio.sleep(0)
        assert metrics.memory_used._value.get() > metrics.memory_limit._value.get()


async def test_batches_that_unpack_to_too_much_are_left_out_and_what_follows_is_not(settings: Settings):
    tight = settings.model_copy(
        update={"connection": settings.connection.model_copy(update={"max_unpacked_bytes": 1 << 20})}
    )
    async with live(tight) as running:
        packing = AIOKafkaProducer(
            **kafka_options(tight), acks="all", max_request_size=64 * 1_048_576, compression_type="zstd"
        )
        await packing.start()
        try:
            topics = (running.topics.items, running.topics.interactions, running.topics.users)
            bombs = [
                await packing.send_and_wait(topic, b"\0" * (8 << 20), key=b"k", partition=partition)
                for topic in topics
                for partition in range(tight.topics.partitions)
            ]
        finally:
            await packing.stop()
        await running.item("lamp", "A lamp")
        await running.indexed(1)
        for number in range(4):
            place = await running.event(f"u{number}", "lamp")
            await running.slate_after(f"u{number}", place)
        letters = await running.dead_letters(len(bombs))
        assert {letter.reason for letter in letters} == {"too_large"}
        places = {(letter.topic, letter.partition, letter.offset) for letter in letters}
        assert places == {(place.topic, place.partition, place.offset) for place in bombs}


def test_the_good_ones_are_what_the_readers_take():
    """The test's own premise."""
    settings = targets.fuzz_settings()
    readers = _readers(settings)
    event = Interaction(event_id="e", user_id="good-1", type="click", item_id="i", occurred_at=datetime.now(UTC))
    assert not _refuses(readers["interactions"], Sample(decode.encode(event), b"good-1"))
    assert not _refuses(readers["items"], Sample(decode.encode(Item(item_id="i", title="t")), b"i"))
    assert _refuses(readers["items"], Sample(b"{", b"i"))
