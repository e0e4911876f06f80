"""What each role may do in Redis, and no more: rules for its ACLs.

The file ``deploy/redis/users.acl`` is :func:`acl_file` of the default prefix. A role is a user, off and without a
password until somebody gives it one. Rules are such that Redis 6.2 understands them.
"""

from __future__ import annotations

from typing import Final, Literal, get_args

__all__ = ["REDIS_USERS", "RedisUser", "acl_file", "acl_rules"]

RedisUser = Literal["interactions", "catalogue", "operator"]
"""Who uses Redis: two roles, and people with the ``tailrace`` command. Items and ranker do not."""
REDIS_USERS: Final[tuple[RedisUser, ...]] = get_args(RedisUser)

_CONNECTING: Final = ("ping", "select", "client|setinfo")
_IN_CLUSTER: Final = ("cluster|slots", "command", "asking")
_CONFIRMING: Final = ("set", "wait")
_CACHING: Final = ("mget", "set")
_READING: Final = ("hgetall", "hget", "info")
_KEEPING: Final = ("evalsha", "script|load", "hmget", "hkeys", "hset", "expire", "persist")
_ASKED: Final = ("get",)
_REBUILDING: Final = ("evalsha", "script|load", "hmget", "hlen", "hset", "expire", "persist")
_ASKING: Final = ("get", "set", "del", "eval")
_COMMANDS: Final[dict[RedisUser, tuple[str, ...]]] = {
    "interactions": (*_READING, *_KEEPING, *_CONFIRMING, *_CACHING, *_ASKED),
    "catalogue": _CACHING,
    "operator": (*_READING, *_CONFIRMING, "time", *_REBUILDING, *_ASKING),
}
_KEYS: Final[dict[RedisUser, tuple[str, ...]]] = {
    "interactions": ("user:*", "fence*", "emb:*", "rebuild:*"),
    "catalogue": ("emb:*",),
    "operator": ("user:*", "fence*", "rebuild:*"),
}


def acl_rules(user: RedisUser, *, prefix: str) -> tuple[str, ...]:
    """Rules for ``ACL SETUSER``: keys first, then commands; everything else is forbidden.

    Args:
        prefix: the setting ``topics.prefix``.
    """
    commands = dict.fromkeys((*_CONNECTING, *_IN_CLUSTER, *_COMMANDS[user]))
    return (
        "resetkeys",
        *(f"~{prefix}:{keys}" for keys in _KEYS[user]),
        "resetchannels",
        "-@all",
        *(f"+{command}" for command in commands),
    )


def acl_file(*, prefix: str) -> str:
    """An ACL file of Redis (``aclfile``): a line for each user. Such a file takes no comments."""
    return "".join(f"user {prefix}-{user} off {' '.join(acl_rules(user, prefix=prefix))}\n" for user in REDIS_USERS)
