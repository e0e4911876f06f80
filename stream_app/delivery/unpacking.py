"""A bound for what a compressed batch unpacks to: kilobytes become gigabytes, and brokers bound only the former.

aiokafka unpacks a batch as a whole, whatever it becomes. With :func:`bound_unpacking` it stops at a limit, and a batch
beyond it is passed on as one record without key and value that says so in a header: the agents make a dead letter of it
(``too_large``), replicas leave it out, and the partition goes on behind it. Without that the same batch would end every
process that takes over from the one before.

Zstandard and gzip are bounded to the byte, being the ones that pack without end. LZ4 packs at most 255 times, Snappy 21
times, so what a broker takes as one batch has a bound with them already.

It replaces names inside aiokafka; ``tests/unit/test_unpacking.py`` fails when they are not looked up there any more.
"""

from __future__ import annotations

import gzip
import io
import sys
from collections.abc import Callable, Iterator
from typing import Any

import aiokafka.consumer.fetcher as fetcher
import zstandard

from stream_app.logs import get_logger

__all__ = ["TOO_LARGE_HEADER", "BatchTooLarge", "bound_unpacking"]

TOO_LARGE_HEADER = "tailrace_batch_too_large"
"""Of the record that stands for a batch; its content is a sentence."""

_log = get_logger(__name__)
_MODULES = tuple(
    f"aiokafka.record.{part}{name}" for part in ("_crecords.", "") for name in ("default_records", "legacy_records")
)
"""Of aiokafka, imported with its fetcher."""
_PART = 1 << 20
_WINDOW = 1 << 27
"""What a frame may ask to be kept while it is unpacked: as much as any level of the ``zstd`` tool does."""


class BatchTooLarge(Exception):
    """A batch unpacks to more than the limit."""


def bound_unpacking(limit: int) -> None:
    """Let no batch unpack to more than ``limit`` bytes, in all of this process's Kafka clients. May be called again."""
    decoders = {"zstd_decode": _zstd(limit), "gzip_decode": _gzip(limit)}
    for name in _MODULES:
        module = sys.modules.get(name)  # the compiled ones are not there on every system
        for function, decoder in decoders.items():
            if hasattr(module, function):
                setattr(module, function, decoder)
    fetcher.PartitionRecords = _PartitionRecords


def _zstd(limit: int) -> Callable[[Any], bytes]:
    def decode(payload: Any) -> bytes:
        with zstandard.ZstdDecompressor(max_window_size=_WINDOW).stream_reader(
            payload, read_across_frames=True
        ) as reader:
            return _bounded(reader, limit)

    return decode


def _gzip(limit: int) -> Callable[[Any], bytes]:
    def decode(payload: Any) -> bytes:
        with gzip.GzipFile(fileobj=io.BytesIO(payload), mode="r") as reader:
            return _bounded(reader, limit)

    return decode


def _bounded(reader: Any, limit: int) -> bytes:
    parts, size = [], 0
    while part := reader.read(_PART):
        size += len(part)
        if size > limit:
            raise BatchTooLarge(
                f"a compressed batch of records unpacks to more than {limit:,} bytes (setting "
                "connection.max_unpacked_bytes) and was left out; send smaller batches"
            )
        parts.append(part)
    return b"".join(parts)


class _Instead:
    """The record that stands for a batch, as aiokafka has records before they are the consumer's."""

    __slots__ = ("checksum", "headers", "key", "offset", "timestamp", "timestamp_type", "value")

    def __init__(self, batch: Any, why: str) -> None:
        self.offset = batch.base_offset
        self.timestamp, self.timestamp_type = batch.first_timestamp, batch.timestamp_type
        self.key = self.value = self.checksum = None
        self.headers = [(TOO_LARGE_HEADER, why.encode())]


class _Batch:
    """A batch that is never too large: then it has the one record."""

    def __init__(self, batch: Any) -> None:
        self._batch = batch

    def __getattr__(self, name: str) -> Any:
        return getattr(self._batch, name)

    def __next__(self) -> Any:  # of control batches
        return next(self._batch)

    def __iter__(self) -> Iterator[Any]:
        try:
            yield from self._batch
        except BatchTooLarge as error:
            _log.error("batch left out", offset=self._batch.base_offset, error=str(error))
            yield _Instead(self._batch, str(error))


class _Batches:
    def __init__(self, records: Any) -> None:
        self._records = records

    def has_next(self) -> bool:
        return bool(self._records.has_next())

    def next_batch(self) -> _Batch | None:
        batch = self._records.next_batch()
        return None if batch is None else _Batch(batch)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._records, name)


class _PartitionRecords(fetcher.PartitionRecords):  # type: ignore[misc]
    def __init__(self, tp: Any, records: Any, *rest: Any, **named: Any) -> None:
        super().__init__(tp, _Batches(records), *rest, **named)
