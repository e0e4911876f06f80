"""What an adapter learns from, read back from a real broker, slates and vectors included."""

from __future__ import annotations

import re
from datetime import UTC, datetime

import msgspec
import pytest
from aiokafka import AIOKafkaProducer

from schemas.arrays import pack_float32
from schemas.decode import SPACES_KEY, encode
from schemas.messages import ItemVector, ModelSpace, Reason, Slate, SlateItem, SpaceControl, Trigger, Versions
from stream_app.adapters.topics import read_topics
from stream_app.delivery.admin import create_topics, create_vectors_topic
from stream_app.delivery.connections import kafka_options
from stream_app.errors import DatasetError
from stream_app.settings import Settings
from stream_app.topics import Topics
from tests.logs import buy, catalogue
from tests.unit.test_adapters import vectors
from workers.models import describe_model

PATIENCE_S = 20.0


async def test_the_newest_events_come_back_in_order_with_what_belongs_to_them(settings: Settings) -> None:
    topics, space = Topics(settings), describe_model(settings.encoder.model).space
    await create_topics(settings)
    with pytest.raises(DatasetError, match="no interactions on the topics"):
        await read_topics(settings, events=3, patience_s=PATIENCE_S)
    slate = Slate(
        slate_id="s",
        user_id="u1",
        generated_at=datetime(2025, 1, 1, tzinfo=UTC),
        items=[SlateItem("i2", 1, 0.0, [], Reason(code="x"))],
        trigger=Trigger(topic="t", partition=0, offset=0),
        versions=Versions(space="s", index="i", ranker="r"),
    )
    table = vectors(4)
    client = AIOKafkaProducer(**kafka_options(settings))
    await client.start()
    try:
        for item, vector in zip(catalogue(4), table, strict=True):
            row = ItemVector(item_id=item.item_id, space=space, text_hash="", dimensions=8, vector=pack_float32(vector))
            await client.send_and_wait(topics.items, key=item.item_id.encode(), value=encode(item))
            await client.send_and_wait(topics.item_vectors, key=item.item_id.encode(), value=encode(row))
        for number in (4, 1, 3, 2):
            event = buy(number, f"u{number % 2}", f"i{number - 1}", 1.7e9 + number)
            await client.send_and_wait(topics.interactions, key=event.user_id.encode(), value=encode(event))
        await client.send_and_wait(topics.recommendations, key=b"u1", value=encode(slate))
    finally:
        await client.stop()
    found = await read_topics(settings, events=3, patience_s=PATIENCE_S)
    assert [event.event_id for event in found.interactions] == ["2", "3", "4"]
    assert {item.item_id for item in found.items} == {"i0", "i1", "i2", "i3"}
    assert {item_id: vector.tobytes() for item_id, vector in found.vectors.items()} == {
        f"i{row}": vector.tobytes() for row, vector in enumerate(table)
    }
    assert [(slate.user_id, slate.items) for slate in found.slates] == [("u1", ("i2",))]
    assert found.space == space


async def test_after_a_cut_over_the_vectors_are_those_of_the_kept_space(settings: Settings) -> None:
    topics, space = Topics(settings), describe_model(settings.encoder).space
    await create_topics(settings)
    await create_vectors_topic(settings, 1)
    other = ModelSpace(space="another/mean/8/raw/0", dimensions=8, number=2)
    alone = SpaceControl(version=3, serving=other.space, spaces=[other], next_number=3)
    kept = ModelSpace(space=space, dimensions=8, number=1)
    vector = vectors(1)[0]
    row = ItemVector(item_id="i0", space=space, text_hash="", dimensions=8, vector=pack_float32(vector))
    event = buy(1, "u", "i0", 1.7e9)

    client = AIOKafkaProducer(**kafka_options(settings))
    await client.start()
    try:
        for topic, key, message in (
            (topics.items, "i0", catalogue(1)[0]),
            (topics.vectors_of(1), "i0", row),
            (topics.interactions, "u", event),
            (topics.space_control, SPACES_KEY, alone),
        ):
            await client.send_and_wait(topic, key=key.encode(), value=encode(message))
        with pytest.raises(DatasetError, match=rf"the space {re.escape(space)} .* is not kept.* kept are 2 \(another"):
            await read_topics(settings, events=3, patience_s=PATIENCE_S)
        control = msgspec.structs.replace(alone, version=4, spaces=[kept, other])
        await client.send_and_wait(topics.space_control, key=SPACES_KEY.encode(), value=encode(control))
    finally:
        await client.stop()
    found = await read_topics(settings, events=3, patience_s=PATIENCE_S)
    assert {item_id: one.tobytes() for item_id, one in found.vectors.items()} == {"i0": vector.tobytes()}
    assert found.space == space
