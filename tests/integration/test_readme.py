"""The two programs in the README run as they stand there, against a running pipeline."""

from __future__ import annotations

import asyncio
import re
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from stream_app.settings import Settings
from tests.integration.pipeline import live

pytestmark = [pytest.mark.stack, pytest.mark.model, pytest.mark.timeout(240)]

README = Path(__file__).parents[2] / "README.md"
ADDRESS = 'kafka="127.0.0.1:9092", prefix="tailrace"'
"""The one place in each program that says where Kafka is: all that is changed here."""


def program(name: str, settings: Settings) -> str:
    """The Python block after the comment ``readme: name``, led to the test's broker and topics."""
    found = re.search(rf"<!-- readme: {name} -->\n```python\n(.*?)```", README.read_text(encoding="utf-8"), re.DOTALL)
    assert found, f"README.md has no block marked 'readme: {name}'"
    text = found[1]
    assert text.count(ADDRESS) == 1
    return text.replace(ADDRESS, f'kafka="{settings.kafka}", prefix="{settings.topics.prefix}"')


@asynccontextmanager
async def running(text: str) -> AsyncIterator[asyncio.subprocess.Process]:
    """The program as a process of its own; ended with the context."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-u", "-c", text, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
    )
    try:
        yield process
    finally:
        if process.returncode is None:
            process.kill()
        await process.communicate()


async def produce(text: str) -> None:
    async with running(text) as process:
        output, errors = await asyncio.wait_for(process.communicate(), 60)
        assert process.returncode == 0, errors.decode()
        assert not output


def test_each_program_has_at_most_ten_lines(settings: Settings) -> None:
    for name in ("producer", "consumer"):
        assert len(program(name, settings).splitlines()) <= 10, name


async def test_the_producer_and_the_consumer_of_the_readme_run(settings: Settings) -> None:
    async with live(settings) as pipeline, running(program("consumer", settings)) as consumer:
        await produce(program("producer", settings))
        await pipeline.indexed(2)
        await produce(program("producer", settings))

        assert consumer.stdout is not None
        async with asyncio.timeout(60):
            while line := (await consumer.stdout.readline()).decode():
                assert line.startswith("ann")
                if "lamp (" in line and "mug (" in line:
                    break
        assert line, (await consumer.communicate())[1].decode()
