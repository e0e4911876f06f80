"""A space of text and image is built beside the served one, served, and left again, while events come."""

from __future__ import annotations

import asyncio
from contextlib import aclosing
from pathlib import Path

import numpy as np
import pytest

from schemas.arrays import unpack_float32
from schemas.decode import decode_item_vector
from schemas.messages import ItemVector, ModelSpace
from stream_app.delivery.reading import read_to_end
from stream_app.errors import SpaceError
from stream_app.images.fusion import WEIGHTS
from stream_app.images.pool import FusedPool
from stream_app.images.weight import LearnedWeight, weight_of_images
from stream_app.settings import Settings
from stream_app.space_operations import (
    build_space,
    cut_over_to,
    follow_build,
    hindrances,
    present_control,
    roll_back_space,
)
from stream_app.spaces.control import served_space
from stream_app.topics import Topics
from tests.integration.pipeline import Live, live
from tests.tiny_image_models import picture, tiny_clip
from tests.waiting import eventually

ITEMS = 60
TEXT = 384
DIMENSIONS = TEXT + 24


@pytest.fixture(name="folder")
def _folder(tmp_path: Path) -> Path:
    folder = tmp_path / "images"
    folder.mkdir()
    for number in range(ITEMS - 2):
        (folder / f"i{number}.png").write_bytes(picture(seed=number))
    (folder / "broken.png").write_bytes(picture(size=(200, 200))[:300])
    return folder


@pytest.fixture(name="settings")
def _settings(settings: Settings, folder: Path) -> Settings:
    spaces = settings.spaces.model_copy(update={"first_items": 6, "check_interval_s": 0.05})
    encoder = settings.encoder.model_copy(update={"image_folder": folder})
    return settings.model_copy(update={"spaces": spaces, "encoder": encoder})


def served(pipeline: Live) -> str:
    """The half-whitened space."""
    assert pipeline.tailrace.replica is not None
    return pipeline.tailrace.replica.serving.versions.space


def model_space(pipeline: Live) -> str:
    """The space that it was fitted in."""
    return served(pipeline).partition("+")[0]


async def vectors(settings: Settings, number: int) -> dict[str, ItemVector]:
    found: dict[str, ItemVector] = {}
    async for record in read_to_end(settings, Topics(settings).vectors_of(number)):
        item_id, vector = decode_item_vector(record.key, record.value)
        assert vector is not None
        found[item_id] = vector
    return found


async def complete(settings: Settings, space: ModelSpace) -> None:
    async with asyncio.timeout(120), aclosing(follow_build(settings, space)) as told:
        async for progress in told:
            if progress.complete and progress.items and not await hindrances(settings, space):
                return


async def test_a_space_of_text_and_image_is_built_served_and_left(
    settings: Settings, folder: Path, tmp_path: Path
) -> None:
    model = tiny_clip(tmp_path / "clip")
    async with live(settings) as pipeline:
        for number in range(ITEMS):
            image = (f"i{number}.png", "broken.png", None)[max(0, number - (ITEMS - 3))]
            await pipeline.item(f"i{number}", f"thing number {number}", image_url=image)
        await pipeline.indexed(ITEMS)
        await eventually(lambda: "+w" in served(pipeline), timeout_s=60, what="a fitted space")
        first = model_space(pipeline)

        space = await build_space(settings, {"image_model": str(model), "image_weight": 0.25})
        assert (space.number, space.dimensions) == (1, DIMENSIONS)
        await complete(settings, space)
        assert model_space(pipeline) == first
        found, plain = await vectors(settings, 1), await vectors(settings, 0)
        assert {one.dimensions for one in found.values()} == {DIMENSIONS}
        for item_id, message in plain.items():
            fused, text = unpack_float32(found[item_id].vector), unpack_float32(message.vector)
            np.testing.assert_allclose(fused[:TEXT], np.sqrt(0.75) * text, atol=1e-5)
            assert np.linalg.norm(fused[TEXT:]) == pytest.approx(0.5, abs=1e-5)
        metrics = pipeline.tailrace.metrics.registry
        await eventually(
            lambda: metrics.get_sample_value("tailrace_item_images_total", {"outcome": "damaged"}) == 1,
            what="the count",
        )

        # What images should count, from what people take together.
        for number in range(24):
            place = await pipeline.event(f"t{number % 3}", f"i{number % 3 * 10 + number // 3}")
        await pipeline.slate_after("t2", place)

        async def learned() -> LearnedWeight | None:
            try:
                return await weight_of_images(settings, space, count=1_000)
            except SpaceError:
                return None

        weight = await eventually(learned, timeout_s=60, interval_s=0.2, what="items taken together")
        assert (weight.items, weight.built_with) == (ITEMS, 0.25)
        assert weight.taken_items > 0
        assert [one for one, _ in weight.recalls] == list(WEIGHTS)
        assert weight.weight in WEIGHTS
        with pytest.raises(SpaceError, match="of texts alone"):
            await weight_of_images(settings, served_space((await present_control(settings))[0]), count=1_000)

        await cut_over_to(settings, space.space)
        await eventually(lambda: model_space(pipeline) == space.space, timeout_s=60, what="the cut-over")
        replica = pipeline.tailrace.replica
        assert replica is not None
        assert replica.serving.index.dimensions == DIMENSIONS
        # Whoever searches is answered in the fused space: both models read the words.
        assert isinstance(pipeline.tailrace.pool, FusedPool)
        seen = pipeline.tailrace.pool.images.stats.cache_misses
        slate = await pipeline.slate_after("u", await pipeline.event("u", "i3", kind="search", text="a warm light"))
        assert slate.items
        assert slate.versions.space.partition("+")[0] == space.space
        assert pipeline.tailrace.pool.images.stats.cache_misses > seen

        # Only the image changes: the item is embedded anew.
        (folder / "other.png").write_bytes(picture(color="red"))
        await pipeline.item("i3", "thing number 3", image_url="other.png")

        async def changed() -> bool:
            after = (await vectors(settings, 1))["i3"].vector
            return bool(np.abs(unpack_float32(after) - unpack_float32(found["i3"].vector)).max() > 1e-3)

        await eventually(changed, timeout_s=60, interval_s=0.2, what="the new image")

        await roll_back_space(settings)
        await eventually(lambda: model_space(pipeline) == first, timeout_s=60, what="the way back")
        slate = await pipeline.slate_after("u", await pipeline.event("u", "i4"))
        assert slate.versions.space.partition("+")[0] == first
        assert not await pipeline.dead_letters(0)
