"""The half-whitened space live: fitted with items enough, again with twice as many, and named in slates."""

from __future__ import annotations

import numpy as np

from schemas.arrays import unpack_float32
from schemas.decode import decode_item_vector, decode_vector_space
from stream_app.delivery.reading import read_to_end
from stream_app.serving import ServingState
from stream_app.settings import Settings
from tests.integration.pipeline import Live, live
from tests.waiting import eventually

WORDS = ("lamp", "rope", "cup", "novel", "drill", "violin", "tent", "bread", "scarf", "clock")


def configured(settings: Settings) -> Settings:
    spaces = settings.spaces.model_copy(update={"first_items": 6, "check_interval_s": 0.05})
    return settings.model_copy(update={"spaces": spaces})


async def items(pipeline: Live, start: int, end: int) -> None:
    for number in range(start, end):
        await pipeline.item(f"i{number}", f"{WORDS[number % 10]} {WORDS[number // 10]}")
    await pipeline.indexed(end)


def serving_of(pipeline: Live) -> ServingState:
    assert pipeline.tailrace.replica is not None
    return pipeline.tailrace.replica.serving


async def served(pipeline: Live, *, version: int) -> None:
    await eventually(lambda: serving_of(pipeline).served.version >= version, timeout_s=60, what=f"space {version}")


def settled(pipeline: Live, count: int) -> bool:
    """Whether every item is there and no other space will be fitted: one fitted while they arrived may be outgrown."""
    serving, growth = serving_of(pipeline), pipeline.settings.spaces.refit_growth
    return not serving.migrating and len(serving.index) == count < growth * serving.served.items


async def assert_nothing_lost(pipeline: Live, count: int) -> None:
    """Every vector of the topic is in the index, in the space that is served."""
    serving, seen = serving_of(pipeline), {}
    async for record in read_to_end(pipeline.settings, pipeline.topics.item_vectors):
        item_id, message = decode_item_vector(record.key, record.value)
        if message is not None:
            seen[item_id] = unpack_float32(message.vector)
    assert len(seen) == len(serving.index) == count
    rows = np.array([serving.catalogue.row(item_id) for item_id in seen], np.int32)
    expected = serving.served.from_model(np.stack(list(seen.values())))
    np.testing.assert_allclose(serving.index.vectors(rows), expected, atol=1e-4)


async def test_a_growing_catalogue_is_served_in_spaces_fitted_to_it(settings: Settings) -> None:
    settings = configured(settings)
    async with live(settings) as pipeline:
        await items(pipeline, 0, 5)
        model = serving_of(pipeline).space
        slate = await pipeline.slate_after("u", await pipeline.event("u", "i0"))
        assert slate.versions.space == model
        await items(pipeline, 5, 8)
        await served(pipeline, version=1)
        slate = await pipeline.slate_after("u", await pipeline.event("u", "i1"))
        assert slate.versions.space.startswith(f"{model}+w1-")
        await items(pipeline, 8, 30)
        await served(pipeline, version=2)
        await eventually(lambda: settled(pipeline, 30), timeout_s=60, what="a space that 30 items do not outgrow")
        slate = await pipeline.slate_after("u", await pipeline.event("u", "i2", kind="search", text="a warm light"))
        assert slate.versions.space == serving_of(pipeline).served.name
        assert {item.item_id for item in slate.items} <= {f"i{number}" for number in range(30)}
        await assert_nothing_lost(pipeline, 30)
        name, version = serving_of(pipeline).served.name, serving_of(pipeline).served.version
    # A restart serves the same space and fits none.
    async with live(settings) as pipeline:
        assert serving_of(pipeline).served.name == name
        await assert_nothing_lost(pipeline, 30)
        versions = [
            message.version
            async for record in read_to_end(settings, pipeline.topics.spaces)
            if (message := decode_vector_space(record.key, record.value)[1]) is not None
        ]
        assert versions[-1] == version
