"""``tailrace rebuild users`` on a real broker and Redis: beside nobody, and beside owners with traffic."""

from __future__ import annotations

import asyncio
import dataclasses
import math
import random
from collections.abc import AsyncIterator, Iterable, Mapping
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import msgspec
import pytest
from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.structs import ConsumerRecord
from redis.asyncio import Redis

from schemas.decode import encode
from schemas.messages import Interaction, User
from stream_app.app import Tailrace
from stream_app.cli import main
from stream_app.delivery.admin import create_topics
from stream_app.delivery.connections import kafka_options
from stream_app.delivery.reading import read_to_end
from stream_app.delivery.records import InRecord
from stream_app.errors import InvalidMessage, NewerVersion, TailraceError, TopicError
from stream_app.rebuild.users import Progress, UsersOutcome, rebuild_users
from stream_app.settings import Settings
from stream_app.stores.users import connect_redis
from stream_app.topics import Topics
from stream_app.users.fold import Folder
from stream_app.users.profiles import fold_profile
from stream_app.users.sources import Sources
from stream_app.users.state import STATE_VERSION, Flood, UserState, decode_state, encode_state, id_hash
from tests.integration.consuming import sending
from tests.integration.pipeline import live
from tests.waiting import eventually

pytestmark = [pytest.mark.stack, pytest.mark.timeout(180)]

START = datetime(2026, 10, 1, tzinfo=UTC)
ITEMS = [f"item-{number}" for number in range(12)]
GOLDEN = Path(__file__).parents[1] / "golden" / "users"
OLDER = range(1, STATE_VERSION)


@pytest.fixture
def settings(settings: Settings) -> Settings:
    return settings.model_copy(
        update={
            "topics": settings.topics.model_copy(update={"partitions": 3}),
            "delivery": settings.delivery.model_copy(update={"commit_interval_s": 0.2, "retry_max_s": 0.2}),
            "encoder": settings.encoder.model_copy(update={"eager": False}),
        }
    )


@pytest.fixture
async def redis(settings: Settings) -> AsyncIterator[Redis]:
    client = connect_redis(settings)
    yield client
    await client.aclose()


def make_events(seed: int, users: int, count: int) -> list[Interaction]:
    draw = random.Random(seed)
    at, made = START, []
    for number in range(count):
        at += timedelta(minutes=draw.randrange(90))
        kind = draw.choices(["click", "purchase", "view", "hide", "like"], [5, 3, 3, 1, 1])[0]
        made.append(
            Interaction(
                event_id=f"e{seed}-{number if draw.random() > 0.03 else number - 1}",
                user_id=f"user-{draw.randrange(users)}",
                type=kind,
                item_id=draw.choice(ITEMS),
                occurred_at=at,
            )
        )
    return made


async def produce(settings: Settings, records: Iterable[Interaction | User | str]) -> None:
    """Events, profiles and (as text) users to be forgotten, each acknowledged before the next."""
    topics = Topics(settings)
    async with sending(settings) as producer:
        for record in records:
            if isinstance(record, str):
                await producer.send_and_wait(topics.users, None, key=record.encode())
            else:
                topic = topics.interactions if isinstance(record, Interaction) else topics.users
                await producer.send_and_wait(topic, encode(record), key=record.user_id.encode())


@asynccontextmanager
async def group(settings: Settings) -> AsyncIterator[AIOKafkaConsumer]:
    consumer = AIOKafkaConsumer(
        **kafka_options(settings), group_id=Topics(settings).group("interactions"), enable_auto_commit=False
    )
    await consumer.start()
    try:
        yield consumer
    finally:
        await consumer.stop()


async def ends(settings: Settings) -> dict[TopicPartition, int]:
    """Where each partition truly ends, by reading it: a broker may state an end that is too low."""
    found: dict[TopicPartition, int] = {}
    for topic in (Topics(settings).interactions, Topics(settings).users):
        async for record in read_to_end(settings, topic):
            found[TopicPartition(record.topic, record.partition)] = record.offset + 1
    return found


async def commit(settings: Settings, offsets: Mapping[TopicPartition, int]) -> None:
    """As the owners would have, had they processed so much."""
    async with group(settings) as consumer:
        consumer.assign(list(offsets))
        await consumer.commit(dict(offsets))


async def caught_up(settings: Settings) -> None:
    """Wait until the owners have processed everything there is."""
    wanted = await ends(settings)

    async def done() -> bool:
        async with group(settings) as consumer:
            return all([(await consumer.committed(place) or 0) >= end for place, end in wanted.items()])

    await eventually(done, timeout_s=60, interval_s=0.1, what=f"committed {wanted}")


def as_record(record: ConsumerRecord) -> InRecord:
    return InRecord(
        record.topic,
        record.partition,
        record.offset,
        record.key,
        record.value,
        record.headers,
        record.timestamp / 1_000,
    )


async def fold(settings: Settings) -> dict[str, UserState]:
    """The topics in the order the broker took them, folded here."""
    topics, sources = Topics(settings), Sources(settings)
    folder = Folder(settings.event_types, settings.users, settings.items)
    records = [record async for record in read_to_end(settings, topics.users)]
    records += [record async for record in read_to_end(settings, topics.interactions)]
    states: dict[str, UserState] = {}
    for record in sorted(records, key=lambda record: record.timestamp):
        given = as_record(record)
        place = {"partition": given.partition, "offset": given.offset, "appended_s": given.timestamp_s}
        try:
            if record.topic == topics.users:
                profile = sources.profile(given)
                state = states.setdefault(profile.user_id, UserState(profile.user_id))
                fold_profile(state, profile.profile, **place)
            else:
                event = sources.event(given, given.timestamp_s).event
                folder(states.setdefault(event.user_id, UserState(event.user_id)), event, **place)
        except InvalidMessage:
            continue
    return states


async def stored(settings: Settings, redis: Redis) -> dict[str, bytes]:
    prefix = f"{settings.topics.prefix}:user:"
    keys = [key.decode() async for key in redis.scan_iter(match=f"{prefix}*", count=1_000)]
    return {key.removeprefix(prefix): await redis.hget(key, "s") for key in keys}


def packed(states: Mapping[str, UserState]) -> dict[str, bytes]:
    return {user_id: encode_state(state) for user_id, state in states.items()}


async def test_from_nothing_in_passes_and_again(settings: Settings, redis: Redis) -> None:
    await create_topics(settings)
    await produce(settings, [User(user_id="user-1", liked_items=["item-1"]), *make_events(1, 40, 400)])
    await produce(settings, ["user-2", User(user_id="user-3", language="zh"), *make_events(2, 40, 100), "user-4"])
    await commit(settings, await ends(settings))
    expected = await fold(settings)

    told: list[Progress] = []
    outcome = await rebuild_users(settings, dry_run=True, tell=told.append)
    assert (outcome.counts.created, outcome.passes, outcome.records) == (len(expected), 1, 504)
    assert await stored(settings, redis) == {}
    assert (told[-1].done, told[-1].total, told[-1].users) == (504, 504, len(expected))

    outcome = await rebuild_users(settings, users_at_once=12, tell=told.append)
    assert outcome.counts.created == outcome.counts.users == len(expected)
    assert outcome.passes >= 4
    assert outcome.counts.left == []
    assert told[-1].done == told[-1].total
    assert await stored(settings, redis) == packed(expected)
    assert 0 < await redis.ttl(f"{settings.topics.prefix}:user:user-4") <= settings.users.forgotten_keep_s
    assert await redis.ttl(f"{settings.topics.prefix}:user:user-3") == -1

    outcome = await rebuild_users(settings)
    assert outcome.counts.unchanged == outcome.counts.users == len(expected)


async def test_what_the_owners_have_not_processed_is_left_to_them(settings: Settings, redis: Redis) -> None:
    await create_topics(settings)
    await produce(settings, make_events(1, 5, 60))
    before, done = await fold(settings), await ends(settings)
    await commit(settings, done)
    await produce(settings, make_events(2, 9, 60))
    outcome = await rebuild_users(settings)
    assert outcome.counts.users == len(before)
    assert await stored(settings, redis) == packed(before)


async def test_who_was_forgotten_stays_forgotten_when_the_topic_does_not_say_so_any_more(
    settings: Settings, redis: Redis
) -> None:
    await create_topics(settings)
    await produce(settings, make_events(1, 1, 20))
    known = (await fold(settings))["user-0"]
    await commit(settings, await ends(settings))
    gone = UserState("user-0", applied=dict(known.applied), profile_applied={0: 7}, forgotten_at=4e9)
    fences = {f"o{partition}": offset for partition, offset in known.applied.items()}
    key = f"{settings.topics.prefix}:user:user-0"
    await redis.hset(key, mapping={"s": encode_state(gone), "u0": 6, **fences})
    await produce(settings, [User(user_id=f"other-{number}") for number in range(40)])
    await commit(settings, await ends(settings))
    outcome = await rebuild_users(settings)
    assert outcome.counts.replaced == 1
    state = decode_state("user-0", await redis.hget(key, "s"))
    assert (state.forgotten, state.forgotten_at, state.history, state.applied) == (True, 4e9, (), known.applied)


async def test_states_nobody_can_read_are_made_again_and_those_of_newer_releases_are_not_touched(
    settings: Settings, redis: Redis
) -> None:
    await create_topics(settings)
    await produce(settings, make_events(1, 3, 30))
    await commit(settings, await ends(settings))
    key = f"{settings.topics.prefix}:user:user-0"
    await redis.hset(key, "s", b"\x04damaged")
    await rebuild_users(settings)
    assert await stored(settings, redis) == packed(await fold(settings))
    newer = bytes([STATE_VERSION + 1]) + b"whatever"
    await redis.hset(key, "s", newer)
    for dry_run in (True, False):
        with pytest.raises(NewerVersion, match="'user-0'"):
            await rebuild_users(settings, dry_run=dry_run)
    assert await redis.hget(key, "s") == newer


def golden(version: int) -> bytes:
    return bytes.fromhex((GOLDEN / f"v{version}.hex").read_text())


def written_by(version: int, state: UserState) -> bytes:
    """The state as releases with this version wrote it, as far as they could. Of their longer hashes the last bits are
    not known any more; nobody who reads them looks at those."""
    history = [msgspec.to_builtins(entry)[: 7 if version > 2 else 6] for entry in state.history]
    until = {item_hash: at for item_hash, at in state.consumed.items() if at != math.inf}
    recent = [event_id << 15 for event_id in state.recent_event_ids]
    fields: list[Any] = [version, history, list(state.consumed), list(state.hidden), recent]
    fields += [state.applied, state.events]
    if version > 1:
        fields += [until, state.profile, state.profile_applied, state.forgotten_at]
    if version > 2:
        fields += [{short << 31: added for short, added in state.added.items()}, state.spent]
        fields += [state.seen, state.seen_spent]
    return msgspec.msgpack.encode(fields)


def known_to(version: int, state: UserState) -> dict[str, Any]:
    """What a state of this version says of a user."""
    said = {
        "history": state.history,
        "consumed": state.consumed,
        "hidden": state.hidden,
        "recent": state.recent_event_ids,
        "applied": state.applied,
        "events": state.events,
    }
    if version < 3:
        said["history"] = tuple(msgspec.structs.replace(entry, share=1.0) for entry in state.history)
    if version == 1:
        return {**said, "consumed": list(state.consumed)}
    said |= {"profile": state.profile, "until": state.profile_applied, "forgotten": state.forgotten_at}
    return said if version == 2 else {"all": dataclasses.replace(state, flood=Flood())}


async def put(settings: Settings, redis: Redis, user_id: str, state: bytes) -> None:
    """As an owner would have stored it."""
    held = decode_state(user_id, state)
    fences = {f"o{partition}": offset for partition, offset in held.applied.items()}
    fences |= {f"u{partition}": offset for partition, offset in held.profile_applied.items()}
    await redis.hset(f"{settings.topics.prefix}:user:{user_id}", mapping={"s": state, **fences})


@pytest.mark.parametrize("version", OLDER)
async def test_states_of_older_versions_are_written_anew_and_say_the_same(
    settings: Settings, redis: Redis, version: int
) -> None:
    form, told = msgspec.msgpack.decode(golden(version), strict=False), decode_state("u", golden(version))
    written = msgspec.msgpack.decode(written_by(version, told), strict=False)
    assert [type(one) for one in written] == [type(one) for one in form], "the form of the golden bytes"
    assert [len(entry) for entry in written[1]] == [len(entry) for entry in form[1]]

    await create_topics(settings)
    shown = Interaction(event_id="s", user_id="user-0", type="impression", items=ITEMS[:4], occurred_at=START)
    profile = User(user_id="user-1", liked_items=["item-1"], interests=["lamps"], language="zh")
    await produce(settings, [profile, shown, *make_events(1, 12, 150), "user-2"])
    await commit(settings, await ends(settings))
    expected = await fold(settings)
    for user_id, state in expected.items():
        await put(settings, redis, user_id, written_by(version, state))
    before = {user_id: decode_state(user_id, state) for user_id, state in (await stored(settings, redis)).items()}
    assert {state[0] for state in (await stored(settings, redis)).values()} == {golden(version)[0]}

    outcome = await rebuild_users(settings)
    assert (outcome.counts.replaced, outcome.counts.users) == (len(expected), len(expected))
    after = await stored(settings, redis)
    assert {state[0] for state in after.values()} == {STATE_VERSION}
    assert after == packed(expected)
    for user_id, state in after.items():
        assert known_to(version, decode_state(user_id, state)) == known_to(version, before[user_id])
    assert (await rebuild_users(settings)).counts.unchanged == len(expected)


@pytest.mark.parametrize("version", OLDER)
async def test_the_golden_bytes_of_older_versions_are_replaced_by_what_the_topics_say(
    settings: Settings, redis: Redis, version: int
) -> None:
    """What was published: its user's records are where it says that they are."""
    settings = settings.model_copy(
        update={"events": settings.events.model_copy(update={"oldest": "1970-01-01T00:00:00Z"})}
    )
    told = decode_state("u", golden(version))
    clicked, searched = (datetime.fromtimestamp(at, UTC) for at in (100.0, 200.0))
    events = [
        Interaction(event_id="c", user_id="u", type="click", item_id="a", occurred_at=clicked),
        Interaction(event_id="s", user_id="u", type="search", text="lamp", occurred_at=searched),
    ]
    await create_topics(settings)
    topics = Topics(settings)
    async with sending(settings) as producer:
        for topic, partition, records in (
            (topics.interactions, 0, [*make_events(1, 3, 7), *events]),
            (topics.users, 1, [*(User(user_id="other") for _ in range(4)), User(user_id="u", interests=["garden"])]),
        ):
            for offset, record in enumerate(records):
                key = record.user_id.encode()
                sent = await producer.send_and_wait(topic, encode(record), key=key, partition=partition)
                assert sent.offset == offset
    await commit(settings, await ends(settings))
    await put(settings, redis, "u", golden(version))

    outcome = await rebuild_users(settings)
    assert outcome.counts.replaced == 1
    packed_anew = (await stored(settings, redis))["u"]
    state = decode_state("u", packed_anew)
    assert packed_anew[0] == STATE_VERSION
    assert state == dataclasses.replace((await fold(settings))["u"], forgotten_at=told.forgotten_at)
    for entry, before in zip(state.history, told.history, strict=version < 3):  # 3 has one of its two
        assert msgspec.structs.replace(entry, share=before.share) == before
    assert (state.events, state.applied) == (told.events, told.applied)
    assert told.profile_applied.items() <= state.profile_applied.items()


async def test_a_second_rebuild_is_refused_and_one_that_died_is_not_waited_for_long(
    settings: Settings, redis: Redis
) -> None:
    await create_topics(settings)
    key = f"{settings.topics.prefix}:rebuild:users"
    await redis.set(key, "process 1 on elsewhere", ex=1)
    with pytest.raises(TailraceError, match="under way: process 1 on elsewhere"):
        await rebuild_users(settings)
    await rebuild_users(settings, dry_run=True)

    async def gone() -> bool:
        return not await redis.exists(key)

    await eventually(gone)
    assert await rebuild_users(settings) == UsersOutcome(passes=1)
    assert not await redis.exists(key)


async def test_topics_that_are_not_there_are_named(settings: Settings) -> None:
    with pytest.raises(TopicError, match=r"users\.v1 is not on Kafka"):
        await rebuild_users(settings)


async def test_the_command_says_what_it_did_and_what_is_wrong(
    settings: Settings, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    for name, value in {
        "KAFKA": settings.kafka,
        "REDIS": settings.redis.get_secret_value(),
        "TOPICS__PREFIX": settings.topics.prefix,
        "CONNECTION__FETCH_MAX_WAIT_MS": str(settings.connection.fetch_max_wait_ms),
    }.items():
        monkeypatch.setenv(f"TAILRACE_{name}", value)

    async def tailrace(*arguments: str) -> tuple[int, str]:
        status = await asyncio.to_thread(main, ["rebuild", *arguments])
        captured = capsys.readouterr()
        return status, captured.out + captured.err

    status, said = await tailrace("users")
    assert status == 2
    assert "users.v1 is not on Kafka" in said
    await create_topics(settings)
    await produce(settings, [*make_events(1, 3, 30), User(user_id="user-0")])
    await commit(settings, await ends(settings))
    status, said = await tailrace("users", "--dry-run")
    assert status == 0
    assert "3 users from 31 records in 1 pass: would be 3 created, 0 replaced, 0 unchanged" in said
    status, said = await tailrace("users", "--users-at-once", "1")
    assert status == 0
    assert "3 created" in said
    status, said = await tailrace("users")
    assert (status, "3 unchanged" in said) == (0, True)
    status, said = await tailrace("items", "--dry-run")
    assert (status, "would have rows made of 31 records" in said) == (0, True)
    status, said = await tailrace("recommendations", "--dry-run")
    assert (status, "0 slates would be made again" in said) == (0, True)
    status, said = await tailrace("recommendations", "--stop")
    assert (status, "nobody had asked for it" in said) == (0, True)


@pytest.mark.model
async def test_a_redis_that_was_wiped_is_repaired_while_owners_and_traffic_go_on(
    settings: Settings, redis: Redis
) -> None:
    # The owner remembers few: what it still knew of the others, it would write back by itself.
    few = settings.model_copy(update={"users": settings.users.model_copy(update={"cache": 4, "unpacked": 2})})
    await create_topics(settings)
    async with live(few, ["interactions"]) as running:
        profiles = [User(user_id=f"user-{number}", liked_items=["item-2"]) for number in range(0, 30, 3)]
        await produce(settings, [*profiles, *make_events(1, 30, 500), "user-6"])
        await caught_up(settings)
        traffic = asyncio.create_task(produce(settings, make_events(2, 30, 1_000)))
        for key in [key async for key in redis.scan_iter(match=f"{settings.topics.prefix}:user:*", count=1_000)]:
            await redis.delete(key)
        await damage(settings, redis)
        outcome = await rebuild_users(settings, users_at_once=20)
        assert outcome.counts.left == []
        assert outcome.counts.created + outcome.counts.replaced >= 20, outcome
        await traffic
        await caught_up(settings)
        assert await stored(settings, redis) == packed(await fold(settings))
        assert isinstance(running.tailrace, Tailrace)
        assert len(await running.dead_letters(0)) == 0


async def damage(settings: Settings, redis: Redis) -> None:
    """By a defect of an earlier release, say, in states that were written since."""
    prefix = f"{settings.topics.prefix}:user:"
    for user_id, state in (await stored(settings, redis)).items():
        wrong = decode_state(user_id, state)
        wrong.hidden[id_hash("never hidden")] = None
        await redis.hset(prefix + user_id, "s", encode_state(wrong))
