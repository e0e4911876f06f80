"""User states in Redis, behind the owner's cache; writes are fenced by offset, so a late owner changes nothing.

One hash per user: field ``s`` is the packed state, field ``o<partition>`` the last offset applied from that
partition of ``interactions.v1``, ``u<partition>`` the same of ``users.v1``. A write goes through only when one of
the two is greater than what is held and none is less, of any partition (a Lua script, atomic in Redis): the state is a
deterministic fold, so greater offsets always hold more, and a process that was paused and comes back cannot set a user
back. Nor can the owner of a user's old partition, when the topic was given more and the user's events go to another: it
is refused, reads what is held, and applies what of its own that lacks. Offsets of two partitions are never compared.

Field ``g`` is the generation: when the state was rebuilt last (``stream_app.rebuild``). A write based on a state
of an older one is refused: its owner reads the rebuilt one and applies what it lacks. What a newer release wrote
is not written over at all.

What is left of a user who was forgotten goes away by itself after ``users.forgotten_keep_s``.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from typing import TypeVar

from redis.asyncio import Redis
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import NoScriptError, OutOfMemoryError, ReadOnlyError, ResponseError
from redis.exceptions import TimeoutError as RedisTimeoutError

from stream_app.delivery.retry import until_it_works
from stream_app.errors import Unavailable
from stream_app.metrics import Metrics
from stream_app.settings import Settings
from stream_app.stores.cache import UserCache
from stream_app.users.state import STATE_VERSION, UserState, decode_state, encode_state, newer_state

__all__ = ["REDIS_TRANSIENT", "UserStore", "connect_redis", "raise_errors"]

REDIS_TRANSIENT = (RedisConnectionError, RedisTimeoutError, ReadOnlyError, OutOfMemoryError, OSError, Unavailable)
"""Errors of Redis that pass: away, slow, failing over, full, or loading its data (a kind of ConnectionError)."""

T = TypeVar("T")

_TIMEOUT_S = 5.0
"""Without a reply for this long the connection is given up and the command is sent again."""

_NEWER = -1
_SAVE = """
local names = {'o' .. ARGV[1], 'u' .. ARGV[1]}
local stored = redis.call('HMGET', KEYS[1], 's', 'g', names[1], names[2])
local version = stored[1] and string.byte(stored[1]) or 0
if version > tonumber(ARGV[6]) and version <= 31 then return -1 end
local generation = tonumber(stored[2] or '0')
if generation > tonumber(ARGV[7]) then return 0 end
local fields = {'s', ARGV[4]}
for i, name in ipairs(names) do
  local held = tonumber(stored[2 + i] or '-1')
  local given = tonumber(ARGV[1 + i])
  if held > given then return 0 end
  if held < given then
    fields[#fields + 1] = name
    fields[#fields + 1] = ARGV[1 + i]
  end
end
if #fields == 2 then return 0 end
local others = {}
for i = 8, #ARGV, 2 do others[ARGV[i]] = tonumber(ARGV[i + 1]) end
for _, name in ipairs(redis.call('HKEYS', KEYS[1])) do
  if name:find('^[ou]%d') and name ~= names[1] and name ~= names[2] then
    if tonumber(redis.call('HGET', KEYS[1], name)) > (others[name] or -1) then return 0 end
  end
end
if generation < tonumber(ARGV[7]) then
  fields[#fields + 1] = 'g'
  fields[#fields + 1] = ARGV[7]
end
redis.call('HSET', KEYS[1], unpack(fields))
if ARGV[5] ~= '0' then redis.call('EXPIRE', KEYS[1], ARGV[5]) else redis.call('PERSIST', KEYS[1]) end
return 1
"""


def connect_redis(settings: Settings) -> Redis:
    """A client for the configured Redis; connects at first use."""
    return Redis.from_url(
        settings.redis.get_secret_value(),
        decode_responses=False,
        socket_timeout=_TIMEOUT_S,
        socket_connect_timeout=2.0,
        health_check_interval=15,
    )


class UserStore:
    """States of the users a process owns: a bounded cache of the most recent in front of Redis.

    The cache belongs to the owner of a partition: :meth:`forget` drops it when partitions move.
    """

    def __init__(self, redis: Redis, settings: Settings, metrics: Metrics) -> None:
        self._redis = redis
        self._settings = settings
        self._metrics = metrics
        self._prefix = f"{settings.topics.prefix}:user:"
        self._cache = UserCache(limit=settings.users.cache, unpacked=settings.users.unpacked)
        self._shrunk = 0
        self._save_sha = ""
        self._generation = 0

    def __len__(self) -> int:
        return len(self._cache)

    def forget(self) -> None:
        """Drop every cached state: the partitions have moved, others may have written since.

        Also those on their way: a load or save that began before does not fill the cache any more.
        """
        self._cache.clear()
        self._generation += 1

    def shrink(self) -> bool:
        """Keep half as many users in memory as before; False where no more than a batch's would be."""
        users = self._settings.users
        if min(users.cache, users.unpacked) >> (self._shrunk + 1) < self._settings.delivery.batch:
            return False
        self._resize(self._shrunk + 1)
        return True

    def restore(self) -> bool:
        """Keep twice as many again; False where it is what the settings say."""
        if not self._shrunk:
            return False
        self._resize(self._shrunk - 1)
        return True

    def _resize(self, shrunk: int) -> None:
        self._shrunk = shrunk
        users = self._settings.users
        self._cache.resize(limit=users.cache >> shrunk, unpacked=users.unpacked >> shrunk)
        self._measure()

    async def load(self, user_ids: Iterable[str]) -> dict[str, UserState]:
        """The state of each user; a user never seen has an empty one. Waits while Redis is away.

        Raises:
            NewerVersion: when a newer release wrote a state; names the user.
            ValueError: when a stored state cannot be read; names the user.
        """
        generation = self._generation
        states: dict[str, UserState] = {}
        missing: list[str] = []
        for user_id in user_ids:
            state = self._cache.get(user_id)
            if state is None:
                missing.append(user_id)
            else:
                states[user_id] = state
        if missing:
            for user_id, (packed, rebuilt) in zip(missing, await self._fetch(missing), strict=True):
                state = UserState(user_id) if packed is None else decode_state(user_id, packed)
                state.generation = int(rebuilt or 0)
                states[user_id] = state
                if generation == self._generation:
                    self._cache.put(user_id, state, packed or b"")
            self._measure()
        return states

    async def load_stored(self, user_ids: Iterable[str]) -> dict[str, UserState]:
        """As :meth:`load`, but what is cached is not believed: where a topic was given more partitions, somebody else
        may have a user by now whom this process had."""
        wanted = list(user_ids)
        for user_id in wanted:
            self._cache.drop(user_id)
        return await self.load(wanted)

    async def _fetch(self, user_ids: Sequence[str]) -> list[list[bytes | None]]:
        """Of each user the packed state and its generation."""

        async def attempt() -> list[list[bytes | None]]:
            async with self._redis.pipeline(transaction=False) as pipe:
                for user_id in user_ids:
                    pipe.hmget(self._prefix + user_id, "s", "g")
                found = await pipe.execute(raise_on_error=False)
            raise_errors(user_ids, found)
            return list(found)

        return await self._patiently(attempt, "user states from Redis")

    async def save(self, states: Mapping[str, UserState], *, partitions: Mapping[str, int]) -> list[str]:
        """Write the states and put them into the cache; waits while Redis is away.

        Returns:
            the users of whom Redis holds as much, or something newer: somebody else has them by now, or they were
            rebuilt. Nothing was written of them.

        Args:
            states: new states by user id.
            partitions: the partition whose events or profiles made each state new; its applied offsets are the fence.

        Raises:
            NewerVersion: when a newer release has written a user since; names the user. The others are written.
            ValueError: when what is stored of a user is no state; names the user. The others are written.
        """
        if not states:
            return []
        generation = self._generation
        packed = {user_id: encode_state(state) for user_id, state in states.items()}

        async def attempt() -> list[object]:
            if not self._save_sha:
                self._save_sha = str(await self._redis.script_load(_SAVE))
            async with self._redis.pipeline(transaction=False) as pipe:
                for user_id, state in states.items():
                    partition = partitions[user_id]
                    pipe.evalsha(
                        self._save_sha,
                        1,
                        self._prefix + user_id,
                        partition,
                        state.applied.get(partition, -1),
                        state.profile_applied.get(partition, -1),
                        packed[user_id],
                        self._settings.users.forgotten_keep_s if state.forgotten else 0,
                        STATE_VERSION,
                        state.generation,
                        *_others(state, partition),
                    )
                results = list(await pipe.execute(raise_on_error=False))
            if any(isinstance(result, NoScriptError) for result in results):
                # Redis was restarted and lost its script cache: load it again.
                self._save_sha = ""
                raise Unavailable("Redis lost its scripts")
            raise_errors(states, results)
            return results

        try:
            written = await self._patiently(attempt, "user states to Redis")
        except ValueError:
            for user_id in states:  # Some were written, and the cache knows nothing of it.
                self._cache.drop(user_id)
            raise
        refused = []
        for (user_id, state), result in zip(states.items(), written, strict=True):
            if result == _NEWER:
                self.forget()  # Some were written, and the cache knows nothing of it.
                raise newer_state(user_id)
            if result and generation == self._generation:
                self._cache.put(user_id, state, packed[user_id])
            else:
                self._cache.drop(user_id)  # Read it again next time.
            if not result:
                refused.append(user_id)
        self._measure()
        return refused

    def _measure(self) -> None:
        self._metrics.users_cached.set(len(self._cache))

    async def _patiently(self, attempt: Callable[[], Awaitable[T]], what: str) -> T:
        return await until_it_works(
            attempt,
            what=what,
            transient=REDIS_TRANSIENT,
            settings=self._settings.delivery,
            metrics=self._metrics,
        )


def _others(state: UserState, partition: int) -> list[str | int]:
    """What the state holds of other partitions, as names of fields and offsets; of most users nothing."""
    if len(state.applied) <= 1 and len(state.profile_applied) <= 1:
        places = {*state.applied, *state.profile_applied}
        if places <= {partition}:
            return []
    held: list[str | int] = []
    for letter, applied in (("o", state.applied), ("u", state.profile_applied)):
        for number, offset in applied.items():
            if number != partition:
                held += [f"{letter}{number}", offset]
    return held


def raise_errors(user_ids: Iterable[str], results: Iterable[object]) -> None:
    """Raise what came back instead of a reply.

    Only a key that is no state is a matter of its user (``ValueError``). Whatever else Redis refuses (no replicas,
    disk full, no permission, busy, loading, full) is the operator's to mend, and events wait for it: dead-lettering
    them would empty the stream into the dead letter topic within seconds.
    """
    for user_id, result in zip(user_ids, results, strict=True):
        if isinstance(result, ResponseError) and "WRONGTYPE" in str(result):
            raise ValueError(f"state of user {user_id!r} cannot be read or written: {result}") from result
        if isinstance(result, ResponseError) and not isinstance(result, REDIS_TRANSIENT):
            raise Unavailable(f"Redis refuses: {result}") from result
        if isinstance(result, BaseException):
            raise result
