"""User states in Redis as a rebuild sees them: what is held, and a replacement that goes through only if nothing moved.

The owners write while a rebuild runs (``stream_app.stores.users``). A rebuilt state was folded to exactly the offsets
that Redis held when it was asked, and replaces the state if it holds them still, in one atomic script. The owner, who
may have computed on the state before, notices by the generation.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, TypeVar

from redis.exceptions import NoScriptError

from stream_app.delivery.retry import until_it_works
from stream_app.errors import Unavailable
from stream_app.settings import Settings
from stream_app.stores.redis_calls import Call, Calls
from stream_app.stores.redis_client import REDIS_TRANSIENT, RedisClient, look_again
from stream_app.stores.users import raise_errors
from stream_app.users.state import STATE_VERSION, UserState, decode_state, newer_state

__all__ = ["Held", "RebuiltStates", "Replacement"]

T = TypeVar("T")

_REPLACE = """
local stored = redis.call('HMGET', KEYS[1], 's', 'g')
local version = stored[1] and string.byte(stored[1]) or 0
if version > tonumber(ARGV[4]) and version <= 31 then return -1 end
if tonumber(stored[2] or '0') >= tonumber(ARGV[2]) then return 2 end
local held = tonumber(ARGV[5])
local fields = redis.call('HLEN', KEYS[1])
if stored[1] then fields = fields - 1 end
if stored[2] then fields = fields - 1 end
if fields ~= held then return 0 end
for i = 6, 4 + 2 * held, 2 do
  if redis.call('HGET', KEYS[1], ARGV[i]) ~= ARGV[i + 1] then return 0 end
end
redis.call('HSET', KEYS[1], 's', ARGV[1], 'g', ARGV[2], unpack(ARGV, 6 + 2 * held))
if ARGV[3] ~= '0' then redis.call('EXPIRE', KEYS[1], ARGV[3]) else redis.call('PERSIST', KEYS[1]) end
return 1
"""
Outcome = Literal["written", "moved", "newer"]
"""``moved``: the owner has written since. ``newer``: a later rebuild has been here."""
_OUTCOMES: dict[object, Outcome] = {0: "moved", 1: "written", 2: "newer"}


@dataclass(frozen=True, slots=True)
class Held:
    """What Redis has of a user.

    Attributes:
        packed: the state, empty when there is none.
        generation: of the rebuild it comes from, 0 for none.
        fences: its offsets, by fence (see ``stream_app.rebuild.folding``).
    """

    packed: bytes = b""
    generation: int = 0
    fences: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Replacement:
    """A state to be written in place of what is held.

    Attributes:
        state: folded to at least the offsets of ``held``.
        packed: the same as bytes.
        fences: its offsets, by fence.
        held: what it replaces, if that is still there.
    """

    state: UserState
    packed: bytes
    fences: Mapping[str, int]
    held: Held


class RebuiltStates:
    """The states of all users, for a rebuild. Waits while Redis is away.

    Args:
        generation: of this rebuild: greater than those before (milliseconds since 1970, when it began).

    Attributes:
        generation: to be raised before users are written that were written before.
    """

    def __init__(self, redis: RedisClient, settings: Settings, *, generation: int) -> None:
        self._redis = redis
        self._settings = settings
        self._prefix = f"{settings.topics.prefix}:user:"
        given = settings.redis_connection
        self._calls = Calls(
            redis,
            fence=f"{settings.topics.prefix}:fence",
            replicas=given.replicas,
            timeout_ms=given.replicas_timeout_ms,
        )
        self.generation = generation
        self._sha = ""

    async def held(self, user_ids: Sequence[str]) -> list[Held]:
        """What is held of each user.

        Raises:
            ValueError: when a key is none of ours; names the user.
        """

        async def attempt() -> list[Held]:
            keys = [self._prefix + user_id for user_id in user_ids]
            found = await self._calls.each([Call(key, ("HGETALL", key)) for key in keys])
            raise_errors(user_ids, found, "HGETALL")
            return [_held(fields) for fields in found]

        return await self._patiently(attempt, "user states from Redis")

    async def forgotten(self, user_ids: Sequence[str]) -> dict[str, float]:
        """Who was forgotten as far as Redis knows, and when (seconds since 1970). A state that cannot be read says
        nothing: it is to be replaced.

        Raises:
            NewerVersion: when a newer release wrote a state; names the user.
        """
        found = {}
        for user_id, held in zip(user_ids, await self.held(user_ids), strict=True):
            if not held.packed:
                continue
            try:
                state = decode_state(user_id, held.packed)
            except ValueError:
                continue
            if state.forgotten_at:
                found[user_id] = state.forgotten_at
        return found

    async def replace(self, replacements: Sequence[Replacement]) -> list[Outcome]:
        """Write each state unless its owner, or a later rebuild, has written since ``held``.

        Raises:
            NewerVersion: when a newer release wrote a state; names the user. The others are written.
        """
        users = [one.state.user_id for one in replacements]

        async def attempt() -> list[object]:
            if not self._sha:
                self._sha = str(await self._redis.script_load(_REPLACE))
            calls = []
            for one in replacements:
                key = self._prefix + one.state.user_id
                calls.append(Call(key, ("EVALSHA", self._sha, 1, key, *self._arguments(one))))
            results = await self._calls.each(calls)
            if any(isinstance(result, NoScriptError) for result in results):
                self._sha = ""
                raise Unavailable("Redis lost its scripts")
            raise_errors(users, results, "EVALSHA")
            return results

        results = await self._patiently(attempt, "user states to Redis")
        for user_id, result in zip(users, results, strict=True):
            if result == -1:
                raise newer_state(user_id)
        return [_OUTCOMES[result] for result in results]

    def _arguments(self, one: Replacement) -> list[bytes | int | str]:
        keep_s = self._settings.users.forgotten_keep_s if one.state.forgotten else 0
        arguments: list[bytes | int | str] = [one.packed, self.generation, keep_s, STATE_VERSION, len(one.held.fences)]
        for fences in (one.held.fences, one.fences):
            for name, offset in fences.items():
                arguments += [name, offset]
        return arguments

    async def _patiently(self, attempt: Callable[[], Awaitable[T]], what: str) -> T:
        async def once() -> T:
            try:
                return await attempt()
            except REDIS_TRANSIENT as error:
                await look_again(self._redis, error)
                raise

        return await until_it_works(once, what=what, transient=REDIS_TRANSIENT, settings=self._settings.delivery)


def _held(fields: Mapping[bytes, bytes]) -> Held:
    fences = {name.decode(): int(value) for name, value in fields.items() if name not in (b"s", b"g")}
    return Held(fields.get(b"s", b""), int(fields.get(b"g", 0)), fences)
