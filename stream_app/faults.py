"""Faults on demand in a process of Tailrace, for tests of what it says of itself. Nothing of this is active, nor looked
at, without the environment variable.

``TAILRACE_FAULTS`` names a folder. While it holds a file of one of these names, the fault is there:

``stick-loop``
    the event loop does not turn.
``end-consumer``
    nothing is fetched any more; heartbeats go on, so the group keeps its member (it stays so).
``crash-consumer``
    fetching fails with an error that Faust does not expect; the process ends.
``end-agents``
    the coroutines that take records have ended (they stay so).
``pause-replica``
    the replica gets no records.

Of those that stay, a file with ``.done`` after the name says that they have happened.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from stream_app.agents.base import Agent
    from stream_app.replicas.replica import Replica

__all__ = ["ENVIRONMENT", "faults_folder", "watch_faults"]

ENVIRONMENT = "TAILRACE_FAULTS"
_LOOK_EVERY_S = 0.05


def faults_folder() -> Path | None:
    """Where faults are told; None: nowhere, as in every process but a test's."""
    named = os.environ.get(ENVIRONMENT)
    return Path(named) if named else None


async def watch_faults(
    folder: Path, agents: Callable[[], Iterable[Agent]], replica: Callable[[], Replica | None]
) -> None:
    """Do what the folder says, for ever."""
    done: set[str] = set()
    paused = False
    while True:
        while "stick-loop" in (asked := _asked(folder)):
            time.sleep(_LOOK_EVERY_S)  # noqa: ASYNC251 - that is the fault
        for fault in (asked & _STRIKES.keys()) - done:
            done.add(fault)
            for agent in agents():
                await _STRIKES[fault](agent)
            (folder / f"{fault}.done").touch()
        reading = replica()
        client = None if reading is None else reading.client
        if client is not None and ("pause-replica" in asked) != paused:
            paused = not paused
            (client.pause if paused else client.resume)(*client.assignment())
        await asyncio.sleep(_LOOK_EVERY_S)


def _asked(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


async def _end_consumer(agent: Agent) -> None:
    assert agent._app is not None  # noqa: S101 - faults come when the process has started
    await agent._app._fetcher.stop()


async def _crash_consumer(agent: Agent) -> None:
    assert agent._app is not None  # noqa: S101 - as above
    await agent._app._fetcher.crash(RuntimeError("test fault"))


async def _end_agents(agent: Agent) -> None:
    assert agent._app is not None  # noqa: S101 - as above
    for one in agent._app.agents.values():
        for actor in one._actors:
            await actor.stream.channel.queue.throw(StopAsyncIteration())


_STRIKES = {"end-consumer": _end_consumer, "crash-consumer": _crash_consumer, "end-agents": _end_agents}
