"""The catalogue role, beyond the first vector space: an agent for each further one that is kept.

What goes wrong with one of these (its model is not on this machine, its processes do not start) is logged, and tried
again; it does not end the process, which serves others.
"""

from __future__ import annotations

import asyncio

from schemas.messages import ModelSpace, SpaceControl
from stream_app.agents.catalogue import CatalogueAgent
from stream_app.delivery.publisher import Publisher
from stream_app.encoders import Encoders
from stream_app.logs import get_logger
from stream_app.metrics import Metrics
from stream_app.settings import Settings

__all__ = ["HOLDER", "CatalogueSpaces"]

_log = get_logger(__name__)
HOLDER = "catalogue"
"""Who holds the pools, of a process."""
_AGAIN_S = 30.0
"""After so long a space that could not be worked on is tried again."""


class CatalogueSpaces:
    """Agents that come and go with the spaces.

    Args:
        settings, publisher, metrics: as for every agent.
        encoders: of the process.
        first: the agent of the first space, which is there as long as the role is.
    """

    def __init__(
        self, settings: Settings, publisher: Publisher, metrics: Metrics, *, encoders: Encoders, first: CatalogueAgent
    ) -> None:
        self._settings = settings
        self._publisher = publisher
        self._metrics = metrics
        self._encoders = encoders
        self._first = first
        self._first_space = ""
        self._tasks: dict[int, asyncio.Task[None]] = {}
        self._spaces: dict[int, ModelSpace] = {}
        self._agents: dict[int, CatalogueAgent] = {}

    @property
    def agents(self) -> list[CatalogueAgent]:
        """Those that have begun to join."""
        return list(self._agents.values())

    async def spaces_changed(self, control: SpaceControl) -> None:
        """Work on the spaces that are kept, and on no others."""
        kept = {one.number: one for one in control.spaces}
        for number, space in list(self._spaces.items()):
            if kept.get(number) != space:
                await self._end(number)
        for number in kept.keys() - self._tasks.keys() - {0}:
            self._spaces[number] = kept[number]
            self._tasks[number] = asyncio.create_task(self._work_on(kept[number]), name=f"catalogue-{number}")
        if 0 in kept:
            self._first_space = kept[0].space
        elif self._first.pool is not None:
            await self._first.without_vectors()
            await self._encoders.release(self._first_space, HOLDER)
        self._encoders.serve(control.serving)

    async def stop(self) -> None:
        """Leave every group."""
        await asyncio.gather(*(self._end(number) for number in list(self._tasks)))

    async def _end(self, number: int) -> None:
        task = self._tasks.pop(number)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        await self._encoders.release(self._spaces.pop(number).space, HOLDER)

    async def _work_on(self, space: ModelSpace) -> None:
        while True:
            try:
                await self._until_it_fails(space)
            except Exception as error:  # whatever it is, the other spaces go on
                _log.error(
                    "a vector space cannot be worked on here",
                    space=space.space,
                    error=f"{type(error).__name__}: {error}",
                    again_s=_AGAIN_S,
                )
            await self._encoders.release(space.space, HOLDER)
            await asyncio.sleep(_AGAIN_S)

    async def _until_it_fails(self, space: ModelSpace) -> None:
        await self._encoders.describe(space)
        pool = self._encoders.pool(space, HOLDER)
        if not pool.started:
            await pool.start()
        agent = CatalogueAgent(self._settings, self._publisher, self._metrics, pool, number=space.number)
        try:
            # Not before: a member of the group that cannot work would keep its partitions from those that can.
            await pool.ready()
            self._agents[space.number] = agent
            await agent.start()
            _log.info("working on a further vector space", space=space.space, number=space.number)
            await agent.failed
        finally:
            self._agents.pop(space.number, None)
            await agent.stop()
