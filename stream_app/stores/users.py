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

A Redis that fails over, or starts again with less than it had, goes back in time. Two things stand against it. With
``redis_connection.replicas`` nothing that is read or written here counts before so many replicas have it
(``redis_calls``). And whatever is in the cache is written again when the history of Redis is another than before
(``taken_back``); that costs nothing as long as nothing happens, and knows only what this process knows.

What is left of a user who was forgotten goes away by itself after ``users.forgotten_keep_s``.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from typing import Any, Final, TypeVar

from redis.exceptions import NoScriptError, ResponseError

from stream_app.delivery.retry import until_it_works
from stream_app.errors import Forbidden, Unavailable
from stream_app.logs import get_logger
from stream_app.metrics import Metrics
from stream_app.settings import Settings
from stream_app.stores.cache import UserCache
from stream_app.stores.redis_calls import Call, Calls, NotAllowed, refusal
from stream_app.stores.redis_client import (
    REDIS_TRANSIENT,
    RedisClient,
    connect_redis,
    connections_begun,
    histories,
    look_again,
)
from stream_app.stores.taken_back import write_again
from stream_app.users.state import STATE_VERSION, UserState, decode_state, encode_state, newer_state

__all__ = ["REDIS_TRANSIENT", "UserStore", "connect_redis", "raise_errors"]

T = TypeVar("T")
_log = get_logger(__name__)

_SAVE: Final = """
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
if #fields == 2 then
  if stored[1] == ARGV[4] then return 2 end
  return 0
end
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
_WRITTEN, _THE_SAME, _NEWER = 1, 2, -1
"""What the script answers; 0: there is something newer, or as new and not the same."""


class UserStore:
    """States of the users a process owns: a bounded cache of the most recent in front of Redis.

    The cache belongs to the owner of a partition: :meth:`forget` drops it when partitions move.
    """

    def __init__(self, redis: RedisClient, settings: Settings, metrics: Metrics) -> None:
        self._redis = redis
        self._settings = settings
        self._metrics = metrics
        self._prefix = f"{settings.topics.prefix}:user:"
        self._cache = UserCache(limit=settings.users.cache, unpacked=settings.users.unpacked)
        self._shrunk = 0
        self._save_sha = ""
        self._generation = 0
        given = settings.redis_connection
        self._calls = Calls(
            redis,
            fence=f"{settings.topics.prefix}:fence",
            replicas=given.replicas,
            timeout_ms=given.replicas_timeout_ms,
        )
        self._looking = asyncio.Lock()
        self._connections_seen = 0
        self._histories: frozenset[str] | None = None

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

    async def check(self) -> None:
        """Try what loading and saving need, on no user; waits while Redis is away.

        Raises:
            Forbidden: when Redis does not let our user do it; names the command.
        """
        key = f"{self._prefix}?"

        async def attempt() -> None:
            await self._histories_now()
            sha = await self._load_script()
            # With the offsets of a state that holds nothing it writes nothing.
            nothing = ("EVALSHA", sha, 1, key, 0, -1, -1, "", 0, STATE_VERSION, 0)
            probes = [Call(key, ("HGETALL", key)), Call(key, nothing)]
            for probe, reply in zip(probes, await self._calls.each(probes), strict=True):
                if isinstance(reply, BaseException):
                    raise refusal(reply, str(probe.command[0]), key) from reply

        async def permitted() -> None:
            try:
                await attempt()
            except NotAllowed as error:
                raise Forbidden(str(error)) from error

        await self._patiently(permitted, "Redis")

    async def _load_script(self) -> str:
        try:
            return str(await self._redis.script_load(_SAVE))
        except ResponseError as error:
            raise refusal(error, "SCRIPT LOAD", "the script that saves") from error

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
            for user_id, fields in zip(missing, await self._fetch(missing), strict=True):
                packed = fields.get(b"s")
                state = UserState(user_id) if packed is None else decode_state(user_id, packed)
                _as_fenced(state, fields)
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

    async def _fetch(self, user_ids: Sequence[str]) -> list[dict[bytes, bytes]]:
        """What is stored of each user, by field."""

        async def attempt() -> list[dict[bytes, bytes]]:
            keys = [self._prefix + user_id for user_id in user_ids]
            found = await self._calls.each([Call(key, ("HGETALL", key)) for key in keys])
            raise_errors(user_ids, found, "HGETALL")
            return found

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

        tries = 0

        async def attempt() -> list[Any]:
            nonlocal tries
            tries += 1
            if not self._save_sha:
                self._save_sha = await self._load_script()
            calls = []
            for user_id, state in states.items():
                key, partition = self._prefix + user_id, partitions[user_id]
                arguments = (
                    partition,
                    state.applied.get(partition, -1),
                    state.profile_applied.get(partition, -1),
                    packed[user_id],
                    self._settings.users.forgotten_keep_s if state.forgotten else 0,
                    STATE_VERSION,
                    state.generation,
                    *_others(state, partition),
                )
                calls.append(Call(key, ("EVALSHA", self._save_sha, 1, key, *arguments)))
            results = await self._calls.each(calls)
            if any(isinstance(result, NoScriptError) for result in results):
                # Redis was restarted, or is another one, and lacks the script: load it again.
                self._save_sha = ""
                raise Unavailable("Redis lost its scripts")
            raise_errors(states, results, "EVALSHA")
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
            # The same is there already: by an earlier try, the reply of which was lost or not enough.
            done = result == _WRITTEN or (result == _THE_SAME and tries > 1)
            if done and generation == self._generation:
                self._cache.put(user_id, state, packed[user_id])
            else:
                self._cache.drop(user_id)  # Read it again next time.
            if not done:
                refused.append(user_id)
        self._measure()
        return refused

    def _measure(self) -> None:
        self._metrics.users_cached.set(len(self._cache))

    async def _patiently(self, attempt: Callable[[], Awaitable[T]], what: str) -> T:
        async def once() -> T:
            try:
                result = await attempt()
                await self._write_again_what_was_lost()
            except REDIS_TRANSIENT as error:
                await look_again(self._redis, error)
                raise
            return result

        return await until_it_works(
            once,
            what=what,
            transient=REDIS_TRANSIENT,
            settings=self._settings.delivery,
            metrics=self._metrics,
        )

    async def _write_again_what_was_lost(self) -> None:
        """Where there are new connections, see whether Redis is another one, or began anew, and knows less than we."""
        if connections_begun(self._redis) == self._connections_seen:
            return
        async with self._looking:
            seen = connections_begun(self._redis)
            if seen == self._connections_seen:
                return
            found = await self._histories_now()
            if self._histories is not None and found != self._histories and len(self._cache):
                await self._write_again()
            self._histories, self._connections_seen = found, seen

    async def _histories_now(self) -> frozenset[str]:
        try:
            return await histories(self._redis)
        except ResponseError as error:
            raise refusal(error, "INFO", "replication") from error

    async def _write_again(self) -> None:
        generation = self._generation
        result = await write_again(
            self._redis,
            self._calls,
            self._cache.newest(),
            key=lambda user_id: self._prefix + user_id,
            forgotten_keep_s=self._settings.users.forgotten_keep_s,
            wanted=lambda: generation == self._generation,
        )
        for user_id in result.other:
            self._cache.drop(user_id)  # Read it again next time.
        self._metrics.users_taken_back.inc(result.written)
        _log.warning("Redis is another than before", states_written_again=result.written, of=len(self._cache))


def _as_fenced(state: UserState, fields: Mapping[bytes, bytes]) -> None:
    """The state says what the fields beside it say, too. They may be ahead: earlier releases compared the offsets of
    one partition only, and two owners of a user could write over each other. What was lost then a rebuild finds; a
    state that lags behind its fence could never be written again."""
    state.generation = int(fields.get(b"g", 0))
    for name, value in fields.items():
        applied = {b"o": state.applied, b"u": state.profile_applied}.get(name[:1])
        if applied is not None:
            partition, offset = int(name[1:]), int(value)
            if offset > applied.get(partition, -1):
                applied[partition] = offset


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


def raise_errors(user_ids: Iterable[str], results: Iterable[object], command: str) -> None:
    """Raise what came back instead of a reply.

    Only a key that is no state is a matter of its user (``ValueError``). Whatever else Redis refuses (no replicas,
    disk full, no permission, busy, loading, full) is the operator's to mend, and events wait for it: dead-lettering
    them would empty the stream into the dead letter topic within seconds.
    """
    for user_id, result in zip(user_ids, results, strict=True):
        if isinstance(result, ResponseError) and "WRONGTYPE" in str(result):
            raise ValueError(f"state of user {user_id!r} cannot be read or written: {result}") from result
        if isinstance(result, ResponseError) and not isinstance(result, REDIS_TRANSIENT):
            raise refusal(result, command, f"the state of user {user_id!r}") from result
        if isinstance(result, BaseException):
            raise result
