"""What commands share: consoles, running a coroutine, logs that do not get in the way, waiting for the broker."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Coroutine
from typing import TYPE_CHECKING, Any, TypeVar

from rich.console import Console

if TYPE_CHECKING:
    from stream_app.settings import Settings

__all__ = ["PATIENCE_S", "errors", "output", "run", "to_json", "wait_for_kafka"]

T = TypeVar("T")

PATIENCE_S = 10.0
"""How long commands that look something up wait for the broker (seconds)."""
_REPORT_EVERY_S = 5.0
_ASK_EVERY_S = 0.5


def output() -> Console:
    """Standard output, for results. Not wrapped where it is not a terminal: lines are for programs there."""
    console = Console(highlight=False)
    return console if console.is_terminal else Console(highlight=False, width=240, soft_wrap=True)


def errors() -> Console:
    """Standard error, for progress, warnings and errors."""
    return Console(stderr=True, highlight=False, soft_wrap=True)


def run(work: Coroutine[Any, Any, T]) -> T:
    """Run ``work`` to its end with quiet logs: libraries do not log what the command says itself."""
    from stream_app.logs import configure_logs
    from stream_app.settings import LogSettings

    configure_logs(LogSettings(level="warning", format="text"))
    for name in ("aiokafka", "kafka", "asyncio"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    return asyncio.run(work)


def to_json(value: Any) -> str:
    """``value`` (msgspec structs, dataclasses and plain data) as one line of JSON."""
    import msgspec

    return msgspec.json.encode(value).decode()


async def wait_for_kafka(settings: Settings) -> None:
    """Return when a broker answers; until then say where it was tried, at once and every few seconds."""
    from aiokafka.admin import AIOKafkaAdminClient
    from aiokafka.errors import KafkaError

    from stream_app.delivery.connections import close_client, kafka_options

    loop = asyncio.get_running_loop()
    started, reported_at = loop.time(), None
    while True:
        client = AIOKafkaAdminClient(**kafka_options(settings))
        try:
            await client.start()
        except (KafkaError, OSError) as error:
            now = loop.time()
            if reported_at is None or now - reported_at >= _REPORT_EVERY_S:
                reported_at = now
                errors().print(
                    f"waiting for Kafka at {settings.kafka} since {now - started:.0f} s ({error}); Ctrl-C ends",
                    style="yellow",
                )
        else:
            if reported_at is not None:
                errors().print(f"Kafka at {settings.kafka} answers", style="green")
            return
        finally:
            await close_client(client.close())
        await asyncio.sleep(_ASK_EVERY_S)
