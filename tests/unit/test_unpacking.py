"""Batches that unpack to far more than they are: left out as one record that says so, without taking the memory."""

from __future__ import annotations

import tracemalloc
from collections.abc import Iterator
from typing import Any

import aiokafka.consumer.fetcher as fetcher
import pytest
from aiokafka.record.default_records import DefaultRecordBatchBuilder
from aiokafka.record.memory_records import MemoryRecords
from aiokafka.structs import TopicPartition

from schemas.decode import decode_dead_letter
from stream_app.agents.items import ItemsAgent
from stream_app.delivery.records import InRecord
from stream_app.delivery.unpacking import TOO_LARGE_HEADER, bound_unpacking
from stream_app.errors import InvalidMessage
from stream_app.metrics import Metrics
from stream_app.settings import load_settings

LIMIT = 1 << 20
GZIP, SNAPPY, LZ4, ZSTD = 1, 2, 3, 4


@pytest.fixture(autouse=True)
def bounded() -> Iterator[None]:
    bound_unpacking(LIMIT)
    yield
    bound_unpacking(load_settings().connection.max_unpacked_bytes)


def batch(first: int, *values: bytes, codec: int = ZSTD) -> bytes:
    builder = DefaultRecordBatchBuilder(2, codec, 0, -1, -1, -1, 1 << 40)
    for number, value in enumerate(values):
        builder.append(number, 1_700_000_000_000, b"k", value, [])
    made = bytearray(builder.build())
    made[:8] = first.to_bytes(8, "big")  # as the broker does
    return bytes(made)


def read(data: bytes) -> list[Any]:
    """As the fetcher of every consumer does."""
    return list(fetcher.PartitionRecords(TopicPartition("t", 0), MemoryRecords(data), None, 0, None, None, True, 0))


@pytest.mark.parametrize("codec", [GZIP, ZSTD])
def test_a_batch_that_unpacks_to_too_much_is_one_record_and_those_beside_it_are_read(codec: int):
    bomb = batch(2, b"\0" * (40 << 20), b"second", codec=codec)
    assert len(bomb) < LIMIT
    data = batch(0, b"a", b"b", codec=codec) + bomb + batch(4, b"c", codec=codec)
    tracemalloc.start()
    try:
        records = read(data)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert [(record.offset, record.value) for record in records] == [(0, b"a"), (1, b"b"), (2, None), (4, b"c")]
    assert peak < 8 * LIMIT, "it stopped at the limit"
    instead = records[2]
    assert instead.key is None
    ((name, content),) = instead.headers
    assert name == TOO_LARGE_HEADER
    assert b"connection.max_unpacked_bytes" in content


@pytest.mark.parametrize("codec", [0, GZIP, SNAPPY, LZ4, ZSTD])
def test_what_fits_is_read_as_before(codec: int):
    values = [bytes([number]) * 1_000 for number in range(100)]
    assert [record.value for record in read(batch(7, *values, codec=codec))] == values


def test_up_to_the_limit_is_not_too_much():
    (record,) = read(batch(0, b"x" * (LIMIT - 100)))
    assert len(record.value) == LIMIT - 100


async def test_its_letter_says_why_and_where():
    settings = load_settings()
    publisher: Any = None
    agent = ItemsAgent(settings, publisher, Metrics())
    try:
        (record,) = read(batch(5, b"\0" * (2 * LIMIT)))
        found = InRecord("t", 3, record.offset, record.key, record.value, record.headers, 0.0)
        letter = decode_dead_letter(agent.letter(found, InvalidMessage("null_key", "no key")).value)
        assert (letter.reason, letter.partition, letter.offset) == ("too_large", 3, 5)
        assert "max_unpacked_bytes" in letter.detail
        # Whoever sets the header on a record of its own gets what that record deserves.
        own = InRecord("t", 3, 6, b"k", b"{", record.headers, 0.0)
        assert decode_dead_letter(agent.letter(own, InvalidMessage("not_json", "x")).value).reason == "not_json"
    finally:
        await agent.stop()
