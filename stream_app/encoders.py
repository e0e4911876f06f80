"""The encoder pools of a process: one for each vector space that it needs vectors of."""

from __future__ import annotations

from typing import Any

from pydantic import ValidationError
from redis.asyncio import Redis

from schemas.messages import ModelSpace
from stream_app.errors import SettingsError
from stream_app.settings import EncoderSettings, Settings
from stream_app.stores.embedding_cache import EmbeddingCache
from workers.models import describe_model
from workers.pool import EncoderPool

__all__ = ["Encoders", "encoder_settings"]


def encoder_settings(settings: Settings, space: ModelSpace) -> EncoderSettings:
    """The encoder's settings for a space: those of the process, but where the space says otherwise.

    Raises:
        SettingsError: when what the space says is no setting.
    """
    fields: dict[str, Any] = settings.encoder.model_dump() | space.encoder
    try:
        return EncoderSettings.model_validate(fields)
    except ValidationError as error:
        wrong = "; ".join(f"encoder.{one['loc'][0]} = {one['input']!r}: {one['msg']}" for one in error.errors())
        raise SettingsError(
            f"the space {space.space} was built with other settings than this release has: {wrong}"
        ) from None


class Encoders:
    """Pools by space, made when they are first asked for. Use from one event loop.

    Args:
        settings: of this process.
        redis: where vectors are cached.
    """

    def __init__(self, settings: Settings, redis: Redis) -> None:
        self._settings = settings
        self._redis = redis
        self._pools: dict[str, EncoderPool] = {}

    @property
    def pools(self) -> list[EncoderPool]:
        """Those there are."""
        return list(self._pools.values())

    def held(self, space: str) -> EncoderPool | None:
        """The pool of a space, if there is one."""
        return self._pools.get(space)

    def pool(self, space: ModelSpace) -> EncoderPool:
        """The pool of a space; not started when it is new.

        Raises:
            SettingsError: when the model is not here, or is another one than the space was built with.
        """
        held = self._pools.get(space.space)
        if held is not None:
            return held
        settings = encoder_settings(self._settings, space)
        model = describe_model(settings)
        if (model.space, model.dimensions) != (space.space, space.dimensions):
            raise SettingsError(
                f"encoder.model = {settings.model!r} spans {model.space} here, and the space was built with "
                f"{space.space}; put the same model there on every machine"
            )
        cache = EmbeddingCache(
            self._redis,
            prefix=self._settings.topics.prefix,
            space=model.space,
            dimensions=model.dimensions,
            ttl_s=settings.cache_ttl_s,
            memory=settings.cache,
        )
        pool = self._pools[space.space] = EncoderPool(settings, cache=cache)
        return pool

    def serve(self, space: str) -> None:
        """From now on texts of this space are waited for; those of others have a bounded share of the time."""
        for name, pool in self._pools.items():
            pool.share = 1.0 if name == space else self._settings.spaces.build_share

    async def drop(self, space: str) -> None:
        """End the pool of a space, if there is one."""
        pool = self._pools.pop(space, None)
        if pool is not None:
            await pool.close()

    async def close(self) -> None:
        """End all of them."""
        for space in list(self._pools):
            await self.drop(space)
