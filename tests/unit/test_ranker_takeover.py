"""Taking the ranker over while an operator changes the spaces."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

from schemas.messages import ModelSpace
from stream_app.agents.ranker import RankerAgent
from stream_app.metrics import Metrics
from stream_app.settings import load_settings
from tests.waiting import eventually


async def test_a_takeover_begins_again_in_another_space_though_it_was_told_of_the_same_before():
    """The topic of the space before may be gone by then, and its end would never be reached."""
    agent = RankerAgent(load_settings(), SimpleNamespace(), Metrics(), space="s", dimensions=4)  # type: ignore[arg-type]
    began: list[str] = []

    async def take_over() -> Any:
        space = agent._space.space
        began.append(space)
        if space == "s":
            await asyncio.Event().wait()
        return space

    agent._take_over = take_over  # type: ignore[method-assign]
    taking = asyncio.create_task(agent._taken_over())
    await eventually(lambda: began == ["s"])
    agent.serve(ModelSpace(space="s", dimensions=4, number=0))  # a space was added, this one is served still
    await eventually(lambda: not agent._told.is_set(), what="it looked")
    agent.serve(ModelSpace(space="other", dimensions=8, number=1))
    async with asyncio.timeout(20):
        assert await taking == "other"
    assert began == ["s", "other"]
