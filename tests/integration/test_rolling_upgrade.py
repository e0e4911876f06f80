"""This release and the next side by side, processes of one consumer group: nothing is lost, refused or written over."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from schemas.messages import Interaction
from stream_app.delivery.admin import create_topics
from stream_app.delivery.reading import read_to_end
from stream_app.embedded.processes import Command
from stream_app.embedded.worker import WorkerProcess
from stream_app.settings import Settings, load_settings
from stream_app.stores.users import connect_redis
from stream_app.topics import Topics
from stream_app.users.state import STATE_VERSION
from tests.integration.next_release import NEXT, decode_next
from tests.integration.test_rebuild_users import caught_up, fold, make_events, produce, stored
from tests.stacks import Stack
from tests.waiting import eventually

pytestmark = [pytest.mark.stack, pytest.mark.model, pytest.mark.slow, pytest.mark.timeout(300)]

ROOT = Path(__file__).parents[2]


class NextWorker(WorkerProcess):
    """A process of the next release."""

    def _command(self) -> Command:
        command = super()._command()
        place = command.argv.index("stream_app.cli")
        argv = [*command.argv[:place], "tests.integration.next_release", *command.argv[place + 1 :]]
        path = os.pathsep.join([str(ROOT), command.env.get("PYTHONPATH", "")])
        return Command(argv=argv, env={**command.env, "PYTHONPATH": path}, cwd=command.cwd)


async def dead_letters(settings: Settings) -> int:
    return len([record async for record in read_to_end(settings, Topics(settings).dead_letter)])


async def test_two_releases_side_by_side_and_one_taken_back(stack: Stack, topic_prefix: str, tmp_path: Path) -> None:
    overrides: dict[str, Any] = {
        **stack.overrides,
        "topics": {"prefix": topic_prefix, "partitions": 2},
        "delivery": {"commit_interval_s": 0.2},
        "encoder": {"eager": False},
        "replica": {"directory": "off"},
        "log": {"level": "info", "format": "text"},
    }
    settings = load_settings(**overrides)
    redis = connect_redis(settings)
    await create_topics(settings)
    this = WorkerProcess(["interactions"], overrides=overrides, directory=tmp_path)
    later = NextWorker(["interactions"], overrides=overrides, directory=tmp_path)
    sent: list[Interaction] = make_events(1, 12, 600)

    async def send(count: int) -> None:
        part, sent[:] = sent[:count], sent[count:]
        await produce(settings, part)
        await caught_up(settings)

    async def versions() -> set[int]:
        return {state[0] for state in (await stored(settings, redis)).values()}

    async def shared_out() -> bool:
        await send(12)
        return await versions() == {STATE_VERSION, NEXT}

    try:
        await this.start()
        await send(100)
        assert await versions() == {STATE_VERSION}

        # Side by side: each writes its own version of its own users.
        await later.start()
        await eventually(shared_out, timeout_s=90, interval_s=0.2, what="both write")
        await send(100)
        assert this.running

        # Taken back: the users of the next release come to this one, which must not touch them.
        await later.stop()
        before = await stored(settings, redis)
        await produce(settings, sent[:30])
        del sent[:30]
        await eventually(lambda: not this.running, timeout_s=60, what="ends")
        assert f"version {NEXT}, written by a newer release" in this.output()
        after = await stored(settings, redis)
        newer = {user_id: state for user_id, state in before.items() if state[0] == NEXT}
        assert newer
        assert newer.items() <= after.items()
        assert await dead_letters(settings) == 0

        # Everybody upgraded: all goes on where it was.
        await later.start()
        await send(100)
        states = {user_id: decode_next(user_id, state) for user_id, state in (await stored(settings, redis)).items()}
        assert states == await fold(settings)
        assert await dead_letters(settings) == 0
    except BaseException:
        print(this.output(60), later.output(60))  # noqa: T201 - pytest shows it with the failure
        raise
    finally:
        await this.kill()
        await later.kill()
        await redis.aclose()
