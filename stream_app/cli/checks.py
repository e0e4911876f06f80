"""What ``tailrace doctor`` looks at: each check gives lines that say what is so, and what to do where it is not."""

from __future__ import annotations

import asyncio
import os
import shutil
import sys
import time
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Final, Literal

from redis.exceptions import RedisError

from stream_app.delivery.admin import copartition_difference, describe_topics
from stream_app.errors import TailraceError
from stream_app.settings import EncoderSettings, Settings
from stream_app.stores.redis_client import REDIS_TRANSIENT, connect_redis, evicts_states, place, primaries_info

__all__ = ["Finding", "broker", "libraries", "model", "redis", "snapshots"]

_BROKER_PATIENCE_S: Final = 10.0
_OLDEST_REDIS: Final = (6, 2)
_CLOCK_TOLERANCE_S: Final = 30.0
_DISK_WARN_BYTES: Final = 1 << 30
_LIBRARIES: Final = (
    *("faust-streaming", "aiokafka", "redis", "hnswlib", "torch", "transformers"),
    *("numpy", "orjson", "msgspec", "pydantic"),
)
_ADDRESS_HINT: Final = "is it running, and is the address right (setting {0}, TAILRACE_{1}, --{0})?"


@dataclass(frozen=True, slots=True)
class Finding:
    """One line: ``ok``, ``warn`` (works, and somebody should know) or ``fail`` (Tailrace cannot work like this)."""

    status: Literal["ok", "warn", "fail"]
    what: str
    text: str


def libraries() -> Iterator[Finding]:
    """Python and the libraries that matter."""
    from stream_app import __version__
    from stream_app.delivery.engine import FAUST_VERSION

    yield Finding("ok", "tailrace", f"{__version__} on Python {sys.version.split()[0]}")
    found, missing = [], []
    for name in _LIBRARIES:
        try:
            found.append(f"{name} {version(name)}")
        except PackageNotFoundError:
            missing.append(name)
    yield Finding("ok", "libraries", ", ".join(found))
    if missing:
        yield Finding(
            "fail", "libraries", f"not installed: {', '.join(missing)}; install tailrace with its dependencies"
        )
    if "faust-streaming" not in missing and version("faust-streaming") != FAUST_VERSION:
        yield Finding(
            "warn", "libraries", f"Tailrace was tested with faust-streaming {FAUST_VERSION}; install that version"
        )


async def broker(settings: Settings) -> AsyncIterator[Finding]:
    """Whether Kafka answers, and whether its topics are as the contract has them."""
    where = f"Kafka at {settings.kafka}"
    hint = _ADDRESS_HINT.format("kafka", "KAFKA")
    started = time.monotonic()
    try:
        async with asyncio.timeout(_BROKER_PATIENCE_S):
            states = await describe_topics(settings)
    except TimeoutError:
        yield Finding("fail", "broker", f"{where} does not answer within {_BROKER_PATIENCE_S:g} s; {hint}")
        return
    except TailraceError as error:
        yield Finding("fail", "broker", str(error))  # which says what to look at
        return
    yield Finding("ok", "broker", f"{where} answers ({(time.monotonic() - started) * 1e3:.0f} ms)")
    if all(state.partitions is None for state in states):
        prefix = settings.topics.prefix
        yield Finding("fail", "topics", f"no topic {prefix}.* is there; create them with: tailrace topics create")
        return
    fine = 0
    for state in states:
        fine += not state.differences
        for one in state.differences:
            yield Finding("fail" if one.severity == "wrong" else "warn", "topics", f"{state.name} {one.text}")
    if unequal := copartition_difference(states):
        yield Finding("fail", "topics", unequal.text)
    yield Finding("ok", "topics", f"{fine} of {len(states)} are as the contract has them")
    if untold := [state.name for state in states if state.partitions and not state.config]:
        yield Finding("warn", "topics", f"the broker does not tell the configuration of {', '.join(untold)}")


async def redis(settings: Settings) -> AsyncIterator[Finding]:
    """Whether Redis answers, keeps what it is given, and agrees with our clock."""
    where = place(settings)
    try:
        client = connect_redis(settings)
    except TailraceError as error:
        yield Finding("fail", "redis", str(error))
        return
    try:
        servers = await primaries_info(client)
        seconds, micros = await client.time()
    except (RedisError, *REDIS_TRANSIENT) as error:
        hint = _ADDRESS_HINT.format("redis", "REDIS")
        yield Finding("fail", "redis", f"{where} does not answer: {error}; {hint}")
        return
    finally:
        await client.aclose()
    for number, info in enumerate(servers, 1):
        of = f" ({number} of {len(servers)} primaries)" if len(servers) > 1 else ""
        for finding in _server(info, where + of, settings.redis_connection.replicas):
            yield finding
    skew = abs(seconds + micros / 1e6 - time.time())
    if skew > _CLOCK_TOLERANCE_S:
        yield Finding("warn", "clock", f"ours and Redis' differ by {skew:.0f} s; synchronise them (NTP)")


def _server(info: dict[str, Any], where: str, replicas: int) -> Iterator[Finding]:
    number = str(info["redis_version"])
    parts = tuple(int(part) for part in number.split(".")[:2])
    if parts < _OLDEST_REDIS:
        oldest = ".".join(map(str, _OLDEST_REDIS))
        yield Finding("fail", "redis", f"{where}: version {number}, Tailrace needs {oldest} or newer")
    else:
        yield Finding("ok", "redis", f"{where} answers, version {number}")
    yield _persistence(info)
    yield _eviction(info)
    connected = int(info.get("connected_slaves", 0))
    if connected < replicas:
        yield Finding(
            "fail",
            "redis",
            f"has {connected} replicas, redis_connection.replicas waits for {replicas}: nothing is done",
        )
    elif connected and not replicas:
        yield Finding(
            "warn",
            "redis",
            "has replicas that nobody waits for: a failover may lose writes; see redis_connection.replicas",
        )


def _persistence(info: dict[str, Any]) -> Finding:
    if info.get("aof_enabled"):
        return Finding("ok", "redis", "keeps an append-only file")
    if info.get("rdb_last_save_time") and info.get("rdb_saves"):
        return Finding(
            "warn", "redis", "saves snapshots only: a crash loses the newest user states; set appendonly yes"
        )
    return Finding("warn", "redis", "has no append-only file: a restart loses user states; set appendonly yes")


def _eviction(info: dict[str, Any]) -> Finding:
    policy, limit = str(info.get("maxmemory_policy", "")), int(info.get("maxmemory", 0))
    used = int(info.get("used_memory", 0))
    if evicts_states(info):
        return Finding(
            "fail", "redis", f"maxmemory-policy {policy} throws user states away; set volatile-lru or noeviction"
        )
    if limit and used > 0.9 * limit:
        return Finding("warn", "redis", f"uses {used / limit:.0%} of maxmemory; give it more")
    bound = f"{limit / 1e6:,.0f} MB" if limit else "no limit"
    return Finding("ok", "redis", f"uses {used / 1e6:,.0f} MB, {bound}, maxmemory-policy {policy}")


def model(settings: Settings) -> Iterator[Finding]:
    """Whether the language model loads and embeds a text."""
    from workers.models import load_model

    encoder = settings.encoder
    started = time.monotonic()
    try:
        loaded = load_model(
            encoder,
            device=encoder.device,
            precision=encoder.precision,
            threads=encoder.threads,
            compile=encoder.compile,
        )
        vector = loaded.encode(["a blue mug"])[0]
    except (TailraceError, OSError, RuntimeError, ValueError) as error:
        yield Finding("fail", "model", f"{encoder.model} does not load: {error} (settings encoder.*)")
        return
    seconds = time.monotonic() - started
    yield Finding("ok", "model", f"{loaded.space}, {len(vector)} dimensions, loaded and used in {seconds:.1f} s")
    if encoder.image_model:
        yield _image_model(encoder)


def _image_model(encoder: EncoderSettings) -> Finding:
    """Whether the image model loads and embeds a text, and its folder of images is there."""
    from stream_app.images.pool import image_source
    from workers.image_models import describe_image_model

    started = time.monotonic()
    try:
        source = image_source(encoder)
        info = describe_image_model(encoder.image_model)
        from workers.images import ImageEncoder

        loaded = ImageEncoder(
            info,
            folder=source.folder,
            max_bytes=encoder.image_max_bytes,
            max_pixels=encoder.image_max_pixels,
            device=encoder.device,
            precision=encoder.precision,
            threads=encoder.threads,
        )
        vector = loaded.encode_texts(["a blue mug"])[0]
    except (TailraceError, OSError, RuntimeError, ValueError) as error:
        return Finding("fail", "images", str(error))
    seconds = time.monotonic() - started
    if source.folder is None:
        return Finding(
            "warn", "images", f"{loaded.space} loads, but encoder.image_folder is unset: only data: URIs are images"
        )
    return Finding("ok", "images", f"{loaded.space}, {len(vector)} dimensions, loaded and used in {seconds:.1f} s")


def snapshots(settings: Settings) -> Iterator[Finding]:
    """Whether there is a place for snapshots, and room in it."""
    directory = settings.replica.folder
    if directory is None:
        yield Finding(
            "warn", "snapshots", "replica.directory is off: every start reads the topics from their beginning"
        )
        return
    existing = _nearest_existing(directory)
    if not os.access(existing, os.W_OK):
        yield Finding("fail", "snapshots", f"{directory} cannot be written; correct its rights or replica.directory")
        return
    free = shutil.disk_usage(existing).free
    text = f"{directory} has {free / 1e9:,.1f} GB free"
    yield (
        Finding("ok", "snapshots", text)
        if free >= _DISK_WARN_BYTES
        else Finding("warn", "snapshots", f"{text}; snapshots of large catalogues need more")
    )


def _nearest_existing(path: Path) -> Path:
    path = path.absolute()
    while not path.exists():
        path = path.parent
    return path
