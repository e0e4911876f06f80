"""Benchmarks on a broker: that every event is known to a slate, not how soon."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from stream_app.cli import main
from stream_app.stores.redis_client import connect_redis
from tests.stacks import Stack

pytestmark = [pytest.mark.stack, pytest.mark.slow]

FIGURES = {"p50_ms", "p99_ms", "p999_ms", "max_ms", "achieved", "sent_per_s", "lag", "most_lag", "lost", "events"}
HOT = {"hot_user_p99_ms", "others_p99_ms", "same_partition_p99_ms", "hot_user_history", "hot_item_neighbours"}
SMALL = ["--items", "200", "--users", "20", "--warm", "40"]


@pytest.mark.timeout(600)
def test_every_event_is_known_to_a_slate_and_nothing_is_left_on_the_cluster(
    stack: Stack, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    for name, value in stack.overrides["connection"].items():
        monkeypatch.setenv(f"TAILRACE_CONNECTION__{name.upper()}", str(value))
    cluster = ["--kafka", stack.kafka, "--redis", stack.redis]
    hot = ["--hot-item", "0.3", "--hot-user", "0.2"]
    command = ["bench", "latency", "--rates", "20", "--seconds", "2", "--processes", "2", *SMALL, *hot, *cluster]
    assert main([*command, "--json", "figures.json"]) == 0
    assert "p99_ms" in capsys.readouterr().out
    (figures,) = json.loads(Path("figures.json").read_text())
    assert set(figures) >= FIGURES | HOT
    # Both are bounded: by users.history, and by items.neighbours and the items there are.
    assert 0 < figures["hot_user_history"] <= 50
    assert 0 < figures["hot_item_neighbours"] < 200
    assert (figures["benchmark"], figures["rate"], figures["broker"]) == ("latency", 20.0, "given")
    assert (figures["events"], figures["lost"], figures["items_per_slate"]) == (40, 0, 20.0)
    assert {"items": 200, "users": 20, "seed": 0, "processes": 2}.items() <= figures.items()
    assert bench_topics(stack) == []


@pytest.mark.timeout(600)
def test_a_soak_loses_nothing_and_says_what_each_process_holds(
    stack: Stack, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name, value in stack.overrides["connection"].items():
        monkeypatch.setenv(f"TAILRACE_CONNECTION__{name.upper()}", str(value))
    command = ["bench", "soak", "--minutes", "0.2", "--rate", "20", "--churn", "3", "--items", "100", "--users", "20"]
    assert main([*command, "--kafka", stack.kafka, "--redis", stack.redis, "--json", "figures.json"]) == 0
    (figures,) = json.loads(Path("figures.json").read_text())
    assert (figures["benchmark"], figures["events"], figures["lost"]) == ("soak", 240, 0)
    assert figures["samples"].keys() == {"items and ranker", "catalogue", "interactions", "all", "redis"}
    for name, series in figures["samples"].items():
        assert len(series) > 10
        assert set(figures[f"{name}, MB"]) == {"start", "middle", "end", "growth"}
    assert bench_topics(stack) == []


def bench_topics(stack: Stack) -> list[str]:
    """Topics and keys of benchmarks."""
    import asyncio

    from aiokafka.admin import AIOKafkaAdminClient

    from stream_app.settings import load_settings

    async def look() -> list[str]:
        admin = AIOKafkaAdminClient(bootstrap_servers=stack.kafka)
        redis = connect_redis(load_settings(kafka=stack.kafka, redis=stack.redis))
        try:
            await admin.start()
            keys = [key.decode() async for key in redis.scan_iter("bench-*:user:*")]
            return keys + [name for name in await admin.list_topics() if name.startswith("bench-")]
        finally:
            await admin.close()
            await redis.aclose()

    return asyncio.run(look())
