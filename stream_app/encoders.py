"""The encoder pools of a process: one for each vector space that it needs vectors of."""

from __future__ import annotations

import asyncio
from collections import Counter
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from schemas.messages import ModelSpace
from stream_app.adapters.file import AdapterFile
from stream_app.adapters.pool import AdaptedPool
from stream_app.encoder_space import EncoderSpace, describe_encoder
from stream_app.errors import SettingsError
from stream_app.images.pool import FusedPool, image_pool, image_source
from stream_app.settings import EncoderSettings, Settings
from stream_app.spaces.control import EncoderValue
from stream_app.stores.embedding_cache import EmbeddingCache
from stream_app.stores.redis_client import RedisClient
from workers.image_models import describe_image_model
from workers.models import describe_model
from workers.pool import EncoderPool
from workers.vector_pool import VectorPool

__all__ = ["Encoders", "deciding_settings", "encoder_settings"]

_DECIDING = (
    "model", "pooling", "dimensions", "query_prefix", "document_prefix", "max_tokens", "adapter", "image_model",
    "image_weight",
)  # fmt: skip
"""Settings of the encoder that decide what vector a text gets. The others move it by rounding errors."""


def deciding_settings(settings: EncoderSettings) -> dict[str, EncoderValue]:
    """The encoder settings that decide its vectors: a space is kept by them, whatever processes have later."""
    values = {name: getattr(settings, name) for name in _DECIDING}
    return {name: str(value) if isinstance(value, Path) else value for name, value in values.items()}


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

    def __init__(self, settings: Settings, redis: RedisClient) -> None:
        self._settings = settings
        self._redis = redis
        self._pools: dict[str, VectorPool] = {}
        self._holders: dict[str, set[str]] = {}
        self._ending: asyncio.Future[None] | None = None
        self._serving = ""
        self._outcomes = Counter[str]()  # of pools that are gone

    @property
    def pools(self) -> list[EncoderPool]:
        """Those there are; of a fused space both."""
        return [part for pool in self._pools.values() for part in pool.parts]

    @property
    def text_pools(self) -> list[EncoderPool]:
        """Of each space that of texts."""
        return [pool.parts[0] for pool in self._pools.values()]

    def image_outcomes(self) -> Counter[str]:
        """How often an item's image was used, or why it was not, see :class:`~stream_app.images.pool.FusedPool`."""
        fused = (pool.outcomes for pool in self._pools.values() if isinstance(pool, FusedPool))
        return sum(fused, start=self._outcomes.copy())

    def held(self, space: str) -> VectorPool | None:
        """The pool of a space, if there is one."""
        return self._pools.get(space)

    async def describe(self, space: ModelSpace) -> None:
        """Look at the model of a space in a thread: reading gigabytes of weights holds nobody up, and :meth:`pool` need
        not read them again.

        Raises:
            SettingsError: when the model is not here.
        """
        await asyncio.to_thread(describe_encoder, encoder_settings(self._settings, space))

    def pool(self, space: ModelSpace, holder: str) -> VectorPool:
        """The pool of a space; not started when it is new.

        Args:
            holder: who needs it, until :meth:`release`.

        Raises:
            SettingsError: when the model is not here, or is another one than the space was built with.
        """
        held = self._pools.get(space.space)
        if held is not None and held.error is None:
            self._holders[space.space].add(holder)
            return held
        settings = encoder_settings(self._settings, space)
        model = describe_encoder(settings)
        if (model.space, model.dimensions) != (space.space, space.dimensions):
            more = f" with encoder.image_model = {settings.image_model!r}" if settings.image_model else ""
            more += f" with encoder.adapter = {str(settings.adapter)!r}" if settings.adapter else ""
            raise SettingsError(
                f"encoder.model = {settings.model!r}{more} spans {model.space} here, and the space was built as "
                f"{space.space}; put the same files there on every machine, with the same encoder.pooling, dimensions "
                "and document_prefix"
            )
        pool = self._pools[space.space] = self._fused(settings, model) if settings.image_model else self._text(settings)
        self._holders.setdefault(space.space, set()).add(holder)
        self._share(space.space)
        if held is not None:  # It gave up: whoever comes gets another one.
            self._ending = asyncio.ensure_future(held.close())
        return pool

    def _text(self, settings: EncoderSettings) -> EncoderPool:
        model = describe_model(settings)
        cache = self._cache(settings, model.space, model.dimensions)
        if settings.adapter is None:
            return EncoderPool(settings, cache=cache)
        adapter = AdapterFile.load(settings.adapter.expanduser(), base_space=model.space)
        return AdaptedPool(settings, adapter=adapter, cache=cache)

    def _fused(self, settings: EncoderSettings, space: EncoderSpace) -> FusedPool:
        """Each half has a cache of its own space: another weight, or the text alone, embeds nothing anew."""
        model, source = describe_image_model(settings.image_model), image_source(settings)
        return FusedPool(
            self._text(settings),
            image_pool(settings, source, cache=self._cache(settings, model.space, model.dimensions)),
            space=space,
            weight=settings.image_weight,
            source=source,
        )

    def _cache(self, settings: EncoderSettings, space: str, dimensions: int) -> EmbeddingCache:
        return EmbeddingCache(
            self._redis,
            prefix=self._settings.topics.prefix,
            space=space,
            dimensions=dimensions,
            ttl_s=settings.cache_ttl_s,
            memory=settings.cache,
        )

    def serve(self, space: str) -> None:
        """From now on texts of this space are waited for; those of others have a bounded share of the time."""
        self._serving = space
        for name in self._pools:
            self._share(name)

    def _share(self, space: str) -> None:
        self._pools[space].share = 1.0 if space == self._serving else self._settings.spaces.build_share

    async def release(self, space: str, holder: str) -> None:
        """Somebody needs the pool of a space no more; with the last it ends."""
        holders = self._holders.get(space, set())
        holders.discard(holder)
        if not holders:
            await self._end(space)

    async def _end(self, space: str) -> None:
        pool = self._pools.pop(space, None)
        self._holders.pop(space, None)
        if pool is not None:
            if isinstance(pool, FusedPool):
                self._outcomes += pool.outcomes
            await pool.close()

    async def close(self) -> None:
        """End all of them."""
        for space in list(self._pools):
            await self._end(space)
