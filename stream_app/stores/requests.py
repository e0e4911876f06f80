"""What people ask of the owners of users: a key in Redis that they look at every few seconds."""

from __future__ import annotations

from typing import Annotated

import msgspec

from stream_app.logs import get_logger
from stream_app.settings import Settings
from stream_app.stores.redis_client import RedisClient

__all__ = ["SlateRebuild", "SlateRebuilds"]

_log = get_logger(__name__)
_KEPT_S = 86_400
"""What nobody takes back is forgotten after a day."""
_Count = Annotated[int, msgspec.Meta(ge=0)]


class SlateRebuild(msgspec.Struct, frozen=True):
    """Every slate before ``ends`` is to be made again.

    Attributes:
        id: of the request, another one each time.
        ends: by partition of ``recommendations.v1``, the offset from which on slates are new.
        users_per_s: how many users each process ranks for it per second; events go first.
    """

    id: str
    ends: dict[_Count, _Count]
    users_per_s: Annotated[float, msgspec.Meta(gt=0.0, le=1e6)]


class SlateRebuilds:
    """The request there is, if any."""

    def __init__(self, redis: RedisClient, settings: Settings) -> None:
        self._redis = redis
        self._key = f"{settings.topics.prefix}:rebuild:recommendations"

    async def asked(self) -> SlateRebuild | None:
        """The request; None when there is none, or none that this release understands.

        Raises:
            RedisError: when Redis does not answer.
        """
        found = await self._redis.get(self._key)
        if found is None:
            return None
        try:
            return msgspec.json.decode(found, type=SlateRebuild, strict=False)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            _log.warning("request not understood", key=self._key, error=str(error))
            return None

    async def ask(self, request: SlateRebuild) -> SlateRebuild:
        """Ask, unless something is asked already; what is asked now.

        Raises:
            RedisError: when Redis does not answer.
        """
        await self._redis.set(self._key, msgspec.json.encode(request), nx=True, ex=_KEPT_S)
        return await self.asked() or request

    async def take_back(self) -> bool:
        """Ask no more; whether something was asked.

        Raises:
            RedisError: when Redis does not answer.
        """
        return bool(await self._redis.delete(self._key))
