"""User states in a real Redis: fenced writes, a bounded cache, and waiting while Redis is away."""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from redis.asyncio import Redis

from stream_app.embedded.redis import EmbeddedRedis
from stream_app.errors import NewerVersion
from stream_app.metrics import Metrics
from stream_app.settings import Settings, load_settings
from stream_app.stores.rebuilt import Held, RebuiltStates, Replacement
from stream_app.stores.redis_client import connect_redis
from stream_app.stores.users import UserStore
from stream_app.users.state import STATE_VERSION, HistoryEntry, Profile, UserState, encode_state
from tests.stacks import Stack


@asynccontextmanager
async def store(settings: Settings) -> AsyncIterator[tuple[UserStore, Redis, Metrics]]:
    redis = connect_redis(settings)
    metrics = Metrics()
    try:
        yield UserStore(redis, settings, metrics), redis, metrics
    finally:
        await redis.aclose()


@pytest.fixture
def settings(stack: Stack, topic_prefix: str) -> Settings:
    return make_settings(stack.redis, topic_prefix)


@pytest.fixture
async def own_redis(tmp_path: Path) -> AsyncIterator[EmbeddedRedis]:
    """A server to be suspended and filled up."""
    server = EmbeddedRedis(directory=tmp_path)
    await server.start()
    try:
        yield server
    finally:
        await server.stop()


def make_settings(redis: str, prefix: str, **users: int) -> Settings:
    return load_settings(redis=redis, topics={"prefix": prefix}, delivery={"retry_max_s": 0.1}, users=users)


def state(user: str, through: int, partition: int = 0) -> UserState:
    """A state after events 0 to ``through`` of a partition."""
    history = tuple(HistoryEntry(f"i{n}", "click", float(n), 1.0, n) for n in range(through + 1))
    return UserState(user, history, {through: math.inf}, {}, {}, {partition: through}, through + 1)


def packed(states: dict[str, UserState]) -> dict[str, bytes]:
    return {user: encode_state(one) for user, one in states.items()}


async def test_what_is_saved_is_loaded_by_another_process(settings: Settings):
    states = {user: state(user, 3) for user in ("u", "ü 🕯", "v" * 256)}
    async with store(settings) as (one, _, _), store(settings) as (other, _, _):
        await one.save(states, partitions=dict.fromkeys(states, 0))
        assert packed(await other.load(states)) == packed(states)


async def test_a_user_nobody_has_seen_has_an_empty_state(settings: Settings):
    async with store(settings) as (users, _, _):
        loaded = await users.load(["new", "new"])
        assert packed(loaded) == packed({"new": UserState("new")})
        assert await users.load([]) == {}


async def test_prefixes_keep_users_apart(stack: Stack, settings: Settings):
    async with store(settings) as (one, _, _), store(make_settings(stack.redis, "other-prefix")) as (other, _, _):
        await one.save({"u": state("u", 1)}, partitions={"u": 0})
        assert (await other.load(["u"]))["u"].events == 0


async def test_an_older_owner_s_write_changes_nothing_and_it_forgets_the_user(settings: Settings):
    async with store(settings) as (paused, _, _), store(settings) as (owner, _, _), store(settings) as (reader, _, _):
        await paused.save({"u": state("u", 2)}, partitions={"u": 0})
        await owner.save({"u": state("u", 9)}, partitions={"u": 0})
        await paused.save({"u": state("u", 5)}, partitions={"u": 0})
        assert packed(await reader.load(["u"])) == packed({"u": state("u", 9)})
        assert packed(await paused.load(["u"])) == packed({"u": state("u", 9)}), "read again, not from its cache"


async def test_the_same_write_again_changes_nothing(settings: Settings):
    """As after an outage in which the reply was lost."""
    async with store(settings) as (users, _, _):
        for _ in range(2):
            await users.save({"u": state("u", 2)}, partitions={"u": 0})
        assert packed(await users.load(["u"])) == packed({"u": state("u", 2)})


async def test_one_user_s_stale_write_does_not_hold_up_the_others(settings: Settings):
    async with store(settings) as (one, _, _), store(settings) as (other, _, _):
        await one.save({"v": state("v", 8, partition=1)}, partitions={"v": 1})
        await other.save(
            {"u": state("u", 3), "v": state("v", 2, partition=1), "w": state("w", 0)},
            partitions={"u": 0, "v": 1, "w": 0},
        )
        found = await one.load(["u", "v", "w"])
        assert {user: one_state.events for user, one_state in found.items()} == {"u": 4, "v": 9, "w": 1}


async def test_fences_of_partitions_are_apart_and_large_offsets_are_compared_as_numbers(settings: Settings):
    async with store(settings) as (users, _, _), store(settings) as (reader, _, _):
        for partition, offset in ((0, 9), (0, 10), (1, 2)):
            moved = state("u", 1)
            moved.applied = {0: 10 if partition else offset, 1: 2}
            moved.events = 100 * partition + offset
            await users.save({"u": moved}, partitions={"u": partition})
        assert (await reader.load(["u"]))["u"].events == 102
        large = state("u", 1)
        for offset, events in ((2**53 - 2, 1), (2**53 - 1, 2)):
            large.applied, large.events = {0: 10, 1: 2, 2: offset}, events
            await users.save({"u": large.copy()}, partitions={"u": 2})
        reader.forget()
        assert (await reader.load(["u"]))["u"].events == 2


async def test_the_owner_of_a_user_s_old_partition_sets_nothing_back(settings: Settings):
    """A topic got more partitions: some events of the user are in one, the later ones in another."""
    async with store(settings) as (old, _, _), store(settings) as (new, _, _), store(settings) as (reader, _, _):
        assert await old.save({"u": state("u", 3)}, partitions={"u": 0}) == []
        moved = (await new.load(["u"]))["u"].copy()
        moved.applied, moved.events = {0: 3, 4: 0}, 5
        assert await new.save({"u": moved}, partitions={"u": 4}) == []
        late = state("u", 4)
        assert await old.save({"u": late}, partitions={"u": 0}) == ["u"], "it lacks what came through the other"
        assert (await reader.load(["u"]))["u"].applied == {0: 3, 4: 0}
        late = (await old.load(["u"]))["u"].copy()
        late.applied, late.events = {0: 4, 4: 0}, 6
        assert await old.save({"u": late}, partitions={"u": 0}) == []
        assert await new.save({"u": moved}, partitions={"u": 4}) == ["u"]
        ahead = moved.copy()
        ahead.applied, ahead.events = {0: 3, 4: 1}, 6
        assert await new.save({"u": ahead}, partitions={"u": 4}) == ["u"], "and now this one does"
        assert (await new.load_stored(["u"]))["u"].applied == {0: 4, 4: 0}


async def test_a_state_that_lags_behind_its_fence_can_be_written_again(settings: Settings):
    """As earlier releases left it, where two processes wrote one user for two partitions."""
    async with store(settings) as (users, redis, _):
        await users.save({"u": state("u", 4)}, partitions={"u": 0})
        await redis.hset(f"{settings.topics.prefix}:user:u", "o1", 7)
        users.forget()
        loaded = (await users.load(["u"]))["u"].copy()
        assert loaded.applied == {0: 4, 1: 7}
        loaded.applied[0] = 5
        assert await users.save({"u": loaded}, partitions={"u": 0}) == []


async def test_a_cached_state_is_not_believed_where_it_matters(settings: Settings):
    async with store(settings) as (one, _, _), store(settings) as (other, _, _):
        await one.save({"u": state("u", 1)}, partitions={"u": 0})
        await other.save({"u": state("u", 2)}, partitions={"u": 0})
        assert (await one.load(["u"]))["u"].applied == {0: 1}
        assert (await one.load_stored(["u"]))["u"].applied == {0: 2}
        assert (await one.load(["u"]))["u"].applied == {0: 2}


async def test_a_profile_is_fenced_by_its_own_offsets(settings: Settings):
    async with store(settings) as (paused, _, _), store(settings) as (owner, _, _), store(settings) as (reader, _, _):
        told = state("u", 2)
        told.profile, told.profile_applied = Profile(("x",)), {0: 5}
        assert await owner.save({"u": told}, partitions={"u": 0}) == []
        assert await paused.save({"u": state("u", 3)}, partitions={"u": 0}) == ["u"], "knows nothing of the profile"
        later = told.copy()
        later.profile, later.profile_applied = Profile(("y",)), {0: 6}
        assert await owner.save({"u": later}, partitions={"u": 0}) == [], "no event came meanwhile"
        assert await owner.save({"u": later}, partitions={"u": 0}) == ["u"]
        assert (await reader.load(["u"]))["u"] == later


async def test_what_is_left_of_a_forgotten_user_goes_away_unless_the_user_comes_back(settings: Settings):
    async with store(settings) as (users, redis, _):
        key = f"{settings.topics.prefix}:user:u"
        gone = UserState("u", applied={0: 4}, profile_applied={0: 1}, forgotten_at=9.0)
        await users.save({"u": gone}, partitions={"u": 0})
        assert 0 < await redis.ttl(key) <= settings.users.forgotten_keep_s
        back = state("u", 5)
        back.profile_applied, back.forgotten_at = {0: 1}, 9.0
        await users.save({"u": back}, partitions={"u": 0})
        assert await redis.ttl(key) == -1


async def test_a_lost_script_cache_is_filled_again(settings: Settings):
    async with store(settings) as (users, redis, metrics):
        await users.save({"u": state("u", 1)}, partitions={"u": 0})
        await redis.script_flush()
        await users.save({"u": state("u", 2), "v": state("v", 1)}, partitions={"u": 0, "v": 0})
        users.forget()
        assert packed(await users.load(["u", "v"])) == packed({"u": state("u", 2), "v": state("v", 1)})
        assert metrics.registry.get_sample_value("tailrace_retries_total", {"what": "user states to Redis"}) == 1


async def test_a_state_that_cannot_be_read_is_named(settings: Settings):
    async with store(settings) as (users, redis, _):
        await redis.hset(f"{settings.topics.prefix}:user:broken one", "s", b"\x04 not a state")
        with pytest.raises(ValueError, match="state of user 'broken one' cannot be read"):
            await users.load(["fine", "broken one"])
        assert (await users.load(["fine"]))["fine"].events == 0


async def test_a_state_of_a_newer_release_is_named_and_not_written_over(settings: Settings):
    """Not even by an owner who has an older one in memory and knows more events."""
    async with store(settings) as (users, redis, _):
        key = f"{settings.topics.prefix}:user:u"
        await users.save({"u": state("u", 0)}, partitions={"u": 0})
        newer = bytes([STATE_VERSION + 1]) + b" in another form"
        await redis.hset(key, "s", newer)
        with pytest.raises(NewerVersion, match="'u'"):
            await users.save({"u": state("u", 5), "v": state("v", 1)}, partitions={"u": 0, "v": 0})
        assert await redis.hget(key, "s") == newer
        with pytest.raises(NewerVersion, match=f"'u' has version {STATE_VERSION + 1}"):
            await users.load(["u"])
        assert (await users.load(["v"]))["v"].events == 2


async def test_a_write_on_top_of_what_was_rebuilt_since_is_refused_once(settings: Settings):
    async with store(settings) as (users, redis, _):
        key = f"{settings.topics.prefix}:user:u"
        await users.save({"u": state("u", 2)}, partitions={"u": 0})
        rebuilt = state("u", 2)
        rebuilt.hidden = {7: None}
        held = Held(encode_state(state("u", 2)), 0, {"o0": 2})
        rebuilding = RebuiltStates(redis, settings, generation=11)
        assert await rebuilding.held(["u"]) == [held]
        offered = Replacement(rebuilt, encode_state(rebuilt), {"o0": 2}, held)
        assert await rebuilding.replace([offered]) == ["written"]
        assert await rebuilding.replace([offered]) == ["newer"], "by this rebuild, or one that began later"
        assert await users.save({"u": state("u", 3)}, partitions={"u": 0}) == ["u"]
        again = (await users.load(["u"]))["u"].copy()
        assert (again.hidden, again.generation) == ({7: None}, 11)
        again.applied = {0: 3}
        assert await users.save({"u": again}, partitions={"u": 0}) == []
        users.forget()
        assert (await users.load(["u"]))["u"].generation == 11
        # A Redis that was set back, or wiped, takes what the owner has.
        await redis.delete(key)
        again.applied = {0: 4}
        assert await users.save({"u": again}, partitions={"u": 0}) == []
        assert await redis.hget(key, "g") == b"11"


async def test_a_rebuilt_state_goes_through_only_if_nothing_moved(settings: Settings):
    async with store(settings) as (users, redis, _):
        rebuilding = RebuiltStates(redis, settings, generation=11)
        (nothing,) = await rebuilding.held(["u"])
        assert nothing == Held()
        await users.save({"u": state("u", 2)}, partitions={"u": 0})
        (held,) = await rebuilding.held(["u"])
        later = state("u", 3)
        later.profile_applied = {1: 0}
        await users.save({"u": later}, partitions={"u": 1})  # another partition's offset
        for stale in (nothing, held):
            offered = Replacement(state("u", 2), b"never written", {"o0": 2}, stale)
            assert await rebuilding.replace([offered]) == ["moved"]
        assert (await rebuilding.held(["u"]))[0].packed == encode_state(later)
        await redis.script_flush()
        (held,) = await rebuilding.held(["u"])
        gone = UserState("u", applied={0: 3}, profile_applied={1: 0}, forgotten_at=9.0)
        offered = Replacement(gone, encode_state(gone), {"o0": 3, "u1": 0}, held)
        assert await rebuilding.replace([offered]) == ["written"]
        assert await rebuilding.forgotten(["u", "v"]) == {"u": 9.0}
        assert 0 < await redis.ttl(f"{settings.topics.prefix}:user:u") <= settings.users.forgotten_keep_s


async def test_a_key_that_is_no_user_state_is_named_and_does_not_stop_other_users(settings: Settings):
    async with store(settings) as (users, redis, _):
        await redis.set(f"{settings.topics.prefix}:user:odd", b"a string")
        with pytest.raises(ValueError, match="'odd'"):
            await users.load(["fine", "odd"])
        with pytest.raises(ValueError, match="'odd'"):
            await users.save({"odd": state("odd", 1)}, partitions={"odd": 0})


@pytest.mark.parametrize("unpacked", [1, 2, 1_000])
async def test_the_cache_holds_a_bounded_number_of_users_the_most_recent(
    stack: Stack, topic_prefix: str, unpacked: int
):
    settings = make_settings(stack.redis, topic_prefix, cache=3, unpacked=unpacked)
    async with store(settings) as (users, redis, metrics):
        many = {f"u{n}": state(f"u{n}", n) for n in range(10)}
        await users.save(many, partitions=dict.fromkeys(many, 0))
        assert len(users) == 3
        assert packed(await users.load(many)) == packed(many), "a batch larger than the cache is still loaded whole"
        assert len(users) == 3
        await users.load(["u7", "u8", "u9"])
        await users.load(["u7"])
        await users.load(["u1"])  # u8 makes room
        await redis.flushdb()
        found = await users.load(["u7", "u9", "u1", "u8"])
        assert {user: one.events for user, one in found.items()} == {"u7": 8, "u9": 10, "u1": 2, "u8": 0}
        assert metrics.registry.get_sample_value("tailrace_users_cached") == 3


async def test_what_is_forgotten_is_read_again(settings: Settings):
    async with store(settings) as (users, _, _), store(settings) as (other, _, _):
        await users.save({"u": state("u", 1)}, partitions={"u": 0})
        await other.save({"u": state("u", 4)}, partitions={"u": 0})
        assert (await users.load(["u"]))["u"].events == 2, "the owner trusts its cache"
        users.forget()
        assert len(users) == 0
        assert (await users.load(["u"]))["u"].events == 5


async def test_a_state_that_was_on_its_way_when_partitions_moved_is_not_kept(settings: Settings):
    """Read before another process owned the user, it would be taken for the newest when the partition comes back."""
    async with store(settings) as (users, _, _), store(settings) as (other, _, _):
        await other.save({"u": state("u", 1)}, partitions={"u": 0})
        reading = asyncio.create_task(users.load(["u"]))
        await asyncio.sleep(0)
        users.forget()
        assert (await reading)["u"].events == 2
        assert len(users) == 0
        writing = asyncio.create_task(users.save({"u": state("u", 2)}, partitions={"u": 0}))
        await asyncio.sleep(0)
        users.forget()
        await writing
        assert len(users) == 0


async def test_loading_and_saving_wait_while_redis_hangs_and_go_on_when_it_is_back(
    own_redis: EmbeddedRedis, topic_prefix: str
):
    settings = load_settings(
        redis=own_redis.url,
        redis_connection={"timeout_s": 0.2},
        topics={"prefix": topic_prefix},
        delivery={"retry_max_s": 0.1},
    )
    async with store(settings) as (users, _, metrics):

        def tries(what: str) -> float:
            return metrics.registry.get_sample_value("tailrace_retries_total", {"what": what}) or 0.0

        await users.save({"u": state("u", 1)}, partitions={"u": 0})
        users.forget()
        own_redis.suspend()
        try:
            loading = asyncio.create_task(users.load(["u", "v"]))
            saving = asyncio.create_task(users.save({"w": state("w", 3)}, partitions={"w": 0}))
            async with asyncio.timeout(20):
                while not (tries("user states from Redis") and tries("user states to Redis")):
                    done, _ = await asyncio.wait([loading, saving], timeout=0.05)
                    assert not done
        finally:
            own_redis.resume()
        loaded = await asyncio.wait_for(loading, 20)
        assert await asyncio.wait_for(saving, 20) == [], "what an earlier try wrote is ours"
        assert {user: one.events for user, one in loaded.items()} == {"u": 2, "v": 0}
        users.forget()
        assert (await users.load(["w"]))["w"].events == 4


@pytest.mark.parametrize(
    ("setting", "refusing", "willing"), [("maxmemory", "1", "0"), ("min-replicas-to-write", "1", "0")]
)
async def test_a_redis_that_refuses_writes_is_waited_for(
    own_redis: EmbeddedRedis, topic_prefix: str, setting: str, refusing: str, willing: str
):
    settings = make_settings(own_redis.url, topic_prefix)
    async with store(settings) as (users, redis, metrics):
        await redis.config_set(setting, refusing)
        saving = asyncio.create_task(users.save({"u": state("u", 3)}, partitions={"u": 0}))
        async with asyncio.timeout(20):
            while not metrics.registry.get_sample_value("tailrace_retries_total", {"what": "user states to Redis"}):
                done, _ = await asyncio.wait([saving], timeout=0.05)
                assert not done, saving
        await redis.config_set(setting, willing)
        await asyncio.wait_for(saving, 20)
        users.forget()
        assert (await users.load(["u"]))["u"].events == 4


async def test_nothing_to_save_asks_nothing_of_redis(topic_prefix: str):
    async with store(make_settings("redis://127.0.0.1:1/0", topic_prefix)) as (users, _, _):
        await asyncio.wait_for(users.save({}, partitions={}), 5)
