"""States that Redis took back: it was restarted with less than it had, or a replica was promoted that lacked them.

The owner of a user has the state in memory, and it is newer than what Redis holds: it is written again. Redis keeps
whatever is not older in every respect (a Lua script, atomic there), so nothing is set back by it, and writing twice
changes nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

from redis.exceptions import NoScriptError, ResponseError

from stream_app.errors import Unavailable
from stream_app.stores.redis_calls import Call, Calls, refusal
from stream_app.stores.redis_client import RedisClient
from stream_app.users.state import STATE_VERSION, UserState, decode_state

__all__ = ["TakenBack", "applied_fields", "write_again"]

_AT_ONCE: Final = 256
_WRITE_AGAIN: Final = """
local stored = redis.call('HGET', KEYS[1], 's')
local version = stored and string.byte(stored) or 0
if version > VERSION and version <= 31 then return 0 end
local known, newer = {}, false
for i = 3, #ARGV, 2 do
  local held, given = tonumber(redis.call('HGET', KEYS[1], ARGV[i]) or '-1'), tonumber(ARGV[i + 1])
  if held > given then return 0 end
  newer = newer or held < given
  known[ARGV[i]] = true
end
if not newer then return 0 end
for _, name in ipairs(redis.call('HKEYS', KEYS[1])) do
  if name ~= 's' and not known[name] then return 0 end
end
redis.call('HSET', KEYS[1], 's', ARGV[1], unpack(ARGV, 3))
if ARGV[2] ~= '0' then redis.call('EXPIRE', KEYS[1], ARGV[2]) else redis.call('PERSIST', KEYS[1]) end
return 1
""".replace("VERSION", str(STATE_VERSION))


@dataclass(frozen=True, slots=True)
class TakenBack:
    """What came of it: users whose state was written again, and those of whom Redis has something else by now."""

    written: int
    other: tuple[str, ...]


def applied_fields(state: UserState) -> dict[str, int]:
    """The fields of a user's hash that say which offsets the state holds, and of which rebuild it comes."""
    events = {f"o{partition}": offset for partition, offset in state.applied.items()}
    profiles = {f"u{partition}": offset for partition, offset in state.profile_applied.items()}
    return events | profiles | ({"g": state.generation} if state.generation else {})


async def write_again(
    redis: RedisClient,
    calls: Calls,
    states: Sequence[tuple[str, bytes, int]],
    *,
    key: Callable[[str], str],
    forgotten_keep_s: int,
    wanted: Callable[[], bool],
) -> TakenBack:
    """Write those of the states that are newer than what Redis holds.

    Args:
        states: user ids, packed states and their generations, the most important first.
        key: a user's key.
        wanted: asked before each part; when it says no, the rest is left.

    Raises:
        ValueError: when a state cannot be read; names the user.
        Unavailable: when Redis refuses; start again.
    """
    try:
        sha = str(await redis.script_load(_WRITE_AGAIN))
    except ResponseError as error:
        raise refusal(error, "SCRIPT LOAD", "the script that writes again") from error
    written, other = 0, []
    for start in range(0, len(states), _AT_ONCE):
        if not wanted():
            break
        part = []
        for user_id, packed, generation in states[start : start + _AT_ONCE]:
            if not packed:
                continue  # nothing is known of the user
            state = decode_state(user_id, packed)
            state.generation = generation
            part.append((user_id, packed, state, applied_fields(state)))
        asked = [Call(key(user_id), ("HMGET", key(user_id), *fields)) for user_id, _, _, fields in part]
        held = await calls.each(asked)
        _raise_errors(held, "HMGET")
        behind, again = [], []
        for (user_id, packed, state, fields), offsets in zip(part, held, strict=True):
            if isinstance(offsets, BaseException):  # no state under that key
                other.append(user_id)
                continue
            given = list(fields.values())
            found = [-1 if offset is None else int(offset) for offset in offsets]
            if any(one > two for one, two in zip(found, given, strict=True)):
                other.append(user_id)
            elif found != given:
                keep_s = forgotten_keep_s if state.forgotten else 0
                pairs = [value for pair in fields.items() for value in pair]
                behind.append(user_id)
                again.append(Call(key(user_id), ("EVALSHA", sha, 1, key(user_id), packed, keep_s, *pairs)))
        replies = await calls.each(again)
        _raise_errors(replies, "EVALSHA")
        written += replies.count(1)
        other += [user_id for user_id, reply in zip(behind, replies, strict=True) if reply != 1]
    return TakenBack(written, tuple(other))


def _raise_errors(replies: Sequence[object], command: str) -> None:
    for reply in replies:
        if isinstance(reply, NoScriptError):
            raise Unavailable("Redis lost its scripts") from reply
        if isinstance(reply, BaseException) and "WRONGTYPE" not in str(reply):
            raise refusal(reply, command, "the state of a user") from reply
