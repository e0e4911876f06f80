"""The encoder pool's counts as metrics, and its progress through the catalogue as lines of the log."""

from __future__ import annotations

import asyncio
import copy
import time
from collections import Counter
from collections.abc import Callable

from stream_app.embedding_progress import EmbeddingProgress
from stream_app.encoders import Encoders
from stream_app.logs import get_logger
from stream_app.metrics import Metrics
from workers.pool import EncoderPool, PoolStats, Priority

__all__ = ["count_pool", "watch_pools"]

_log = get_logger(__name__)
_EVERY_S = 1.0


async def watch_pools(encoders: Encoders, metrics: Metrics, remaining: Callable[[], int] | None) -> None:
    """Once a second, for ever: metrics of all pools together; and a line of the log every few seconds while
    ``remaining`` says that many records of the catalogue are not done yet. None: this process does not embed it."""
    counted: dict[EncoderPool, PoolStats] = {}
    images: Counter[str] = Counter()
    progress = EmbeddingProgress()
    texts = 0
    while True:
        pools = encoders.pools
        before = {pool: counted.get(pool, PoolStats()) for pool in pools}
        counted = {pool: count_pool(pool, metrics, before[pool]) for pool in pools}
        # Of a fused space the image model has the same items once more.
        texts += sum(_texts(counted[pool]) - _texts(before[pool]) for pool in encoders.text_pools)
        for priority in Priority:
            waiting = sum(pool.waiting(priority) for pool in pools)
            metrics.encoder_queue.labels(priority.name.lower()).set(waiting)
        for outcome, count in encoders.image_outcomes().items():
            metrics.item_images.labels(outcome).inc(count - images[outcome])
            images[outcome] = count
        if remaining is not None:
            line = progress.report(time.monotonic(), texts=texts, remaining=remaining())
            if line is not None:
                _log.info(
                    "embedding the catalogue" if line.remaining else "the catalogue is embedded",
                    remaining=line.remaining,
                    texts_per_s=round(line.texts_per_s),
                    seconds_left=None if line.seconds_left is None else round(line.seconds_left),
                )
        await asyncio.sleep(_EVERY_S)


def _texts(stats: PoolStats) -> int:
    return stats.texts_encoded + stats.cache_hits


def count_pool(pool: EncoderPool, metrics: Metrics, counted: PoolStats) -> PoolStats:
    """Add to ``metrics`` what happened since ``counted``; what is counted now."""
    stats = copy.deepcopy(pool.stats)
    metrics.encoder_texts.inc(stats.texts_encoded - counted.texts_encoded)
    metrics.encoder_batches.inc(stats.batches - counted.batches)
    read = stats.tokens_read - counted.tokens_read
    metrics.encoder_tokens.labels("read").inc(read)
    # The two are counted one after the other, and read in between.
    metrics.encoder_tokens.labels("padding").inc(max(0, stats.tokens_computed - counted.tokens_computed - read))
    for process, seconds in stats.seconds_encoding.items():
        metrics.encoder_seconds.labels(str(process)).inc(seconds - counted.seconds_encoding.get(process, 0.0))
    metrics.encoder_cache.labels("hit").inc(stats.cache_hits - counted.cache_hits)
    metrics.encoder_cache.labels("miss").inc(stats.cache_misses - counted.cache_misses)
    metrics.encoder_late.inc(stats.texts_late - counted.texts_late)
    metrics.encoder_poison.inc(stats.poison_texts - counted.poison_texts)
    metrics.encoder_restarts.inc(stats.restarts - counted.restarts)
    return stats
