"""``interactions.v1`` gets more partitions while everything runs: users move, and nobody's state or order is lost."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from aiokafka import AIOKafkaProducer

from schemas.decode import encode
from stream_app.delivery.admin import create_topics, grow_topics
from stream_app.delivery.connections import kafka_options
from stream_app.errors import TopicError
from stream_app.settings import load_settings
from stream_app.torture.pipeline import Pipeline
from stream_app.torture.stream import make_stream
from stream_app.users.fold import Folder
from stream_app.users.state import UserState, decode_state, encode_state
from tests.stacks import Stack

pytestmark = [pytest.mark.kafka, pytest.mark.timeout(240)]

BEFORE, AFTER = 2, 6


async def test_users_that_move_to_new_partitions_keep_their_events_and_their_order(
    stack: Stack, topic_prefix: str, tmp_path: Path
) -> None:
    stream = make_stream(5, items=30, users=60, events=1_500)
    overrides = {
        "topics": {"prefix": topic_prefix, "partitions": BEFORE},
        "connection": {**stack.overrides["connection"], "metadata_max_age_s": 1.0},
    }
    pipeline = Pipeline(stack.overrides, topic_prefix, tmp_path, overrides, items=len(stream.items))
    settings = pipeline.settings
    fold = Folder(settings.event_types, settings.users, settings.items)
    states = {user: UserState(user) for user in stream.users}
    places: dict[str, set[int]] = {user: set() for user in stream.users}
    try:
        await pipeline.start(["catalogue,items,ranker", "interactions", "interactions#2"])
        await pipeline.send_items(stream.items)
        await pipeline.embedded(len(stream.items))
        producer = AIOKafkaProducer(**kafka_options(settings), acks="all")
        await producer.start()
        try:
            for number, event in enumerate(stream.events):
                if number == len(stream.events) // 3:
                    grown = await grow_topics(settings, AFTER)
                    assert set(grown.values()) == {BEFORE}
                    assert len(grown) == 2
                sent = await producer.send_and_wait(
                    pipeline.topics.interactions, encode(event), key=event.user_id.encode()
                )
                place = {"partition": sent.partition, "offset": sent.offset, "appended_s": sent.timestamp / 1_000}
                fold(states[event.user_id], event, **place)
                places[event.user_id].add(sent.partition)
                pipeline.last_offsets[sent.partition] = sent.offset
                await asyncio.sleep(0.002)
        finally:
            await producer.stop()
        assert set(pipeline.last_offsets) == set(range(AFTER)), "the producer saw the new partitions"
        assert any(len(found) > 1 for found in places.values()), "users moved"
        pipeline.settings = load_settings(
            **{**pipeline.overrides, "topics": {"prefix": topic_prefix, "partitions": AFTER}}
        )
        await pipeline.interactions_done()
        # To the byte, so also the order of the history: what came through a new partition came after what was before.
        found = await pipeline.states(stream.users)
        wrong = [
            _told(decode_state(user, found[user]), state, places[user])
            for user, state in states.items()
            if found[user] != encode_state(state)
        ]
        assert not wrong, "\n".join(wrong)
        slates = await pipeline.slates()
        last = {event.user_id: event.event_id for event in stream.events}
        assert set(slates) == set(stream.users)
        stale = {user: slate.trigger.event_id for user, slate in slates.items() if slate.trigger.event_id != last[user]}
        # A duplicate has the id of the event it is of, and some types refresh nothing.
        assert not {user for user in stale if (slates[user].trigger.partition not in places[user])}
    except BaseException:
        print(pipeline.logs())  # noqa: T201 - pytest shows it with the failure
        raise
    finally:
        await pipeline.close()


def _told(found: UserState, wanted: UserState, places: set[int]) -> str:
    def entries(state: UserState) -> list[tuple[str, int]]:
        return [(entry.type, round(entry.at) % 100_000) for entry in state.history[-12:]]

    return (
        f"{found.user_id} of partitions {places}: applied {found.applied}, events {found.events}, {entries(found)}; "
        f"wanted {wanted.applied}, {wanted.events}, {entries(wanted)}"
    )


async def test_partitions_cannot_be_taken_back(stack: Stack, topic_prefix: str, tmp_path: Path) -> None:
    settings = load_settings(**{**stack.overrides, "topics": {"prefix": topic_prefix, "partitions": 3}})
    with pytest.raises(TopicError, match="is not there; create it"):
        await grow_topics(settings, 6)
    await create_topics(settings)
    with pytest.raises(TopicError, match="has 3 partitions, and they cannot be taken back: ask for 3 or more"):
        await grow_topics(settings, 2)
    with pytest.raises(TopicError, match="ask for a multiple, such as 6; with 4 users would move"):
        await grow_topics(settings, 4)
    assert await grow_topics(settings, 3) == {}
    assert set((await grow_topics(settings, 6)).values()) == {3}
