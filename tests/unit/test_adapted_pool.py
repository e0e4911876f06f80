"""An adapter as a vector space of its own: what the settings span, and a pool that embeds nothing anew for it."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

from schemas.messages import ModelSpace
from stream_app.adapters.adapter import Adapter
from stream_app.adapters.file import AdapterFile, Training
from stream_app.adapters.pool import AdaptedPool
from stream_app.adapters.prequential import catalogue_whitening
from stream_app.encoder_space import describe_encoder
from stream_app.encoders import Encoders
from stream_app.errors import EncodeError, SettingsError
from stream_app.settings import EncoderSettings, Settings
from stream_app.spaces.indexed import SpaceIndex
from stream_app.stores.embedding_cache import EmbeddingCache
from stream_app.stores.redis_client import connect_redis
from tests.unit.encoder_process import vector_of
from workers.models import describe_model
from workers.pool import Priority

COMMAND = (sys.executable, "-m", "tests.unit.encoder_process")
DIMENSIONS = 384
TRAINING = Training(
    data="made up", events=1, examples={"click": 1}, items=1, first=None, last=None, windows=1, seed=0, options={}
)


def an_adapter() -> Adapter:
    rng = np.random.default_rng(3)
    units = rng.normal(size=(60, DIMENSIONS)).astype(np.float32)
    units /= np.linalg.norm(units, axis=1, keepdims=True)
    return Adapter(
        whitening=catalogue_whitening(units),
        trunk=rng.normal(size=(DIMENSIONS, 6)).astype(np.float32),
        bias=np.zeros(6, np.float32),
        heads={"click": rng.normal(size=(6, DIMENSIONS)).astype(np.float32)},
        shares={"click": 1.0},
    )


@pytest.fixture(name="file")
def _file(tmp_path: Path) -> Path:
    path = tmp_path / "adapter.safetensors"
    AdapterFile(adapter=an_adapter(), base_space=describe_model("minilm").space, training=TRAINING).save(path)
    return path


def test_the_settings_span_the_adapted_space(file: Path) -> None:
    base = describe_encoder(EncoderSettings())
    found = describe_encoder(EncoderSettings(adapter=file))
    assert found.space == f"{base.space}+a-{an_adapter().fingerprint}"
    assert found.dimensions == DIMENSIONS


def test_an_adapter_of_another_space_and_one_for_images_are_refused(file: Path) -> None:
    with pytest.raises(SettingsError, match="minilm"):
        describe_encoder(EncoderSettings(adapter=file, dimensions=64))
    with pytest.raises(SettingsError, match="an adapter is for texts alone"):
        describe_encoder(EncoderSettings(adapter=file, image_model="/models/clip"))
    with pytest.raises(SettingsError, match="gone"):
        describe_encoder(EncoderSettings(adapter=file.with_name("gone")))


async def test_vectors_are_adapted_and_those_of_the_model_are_cached(file: Path) -> None:
    model = describe_model("minilm")
    cache = EmbeddingCache(None, prefix="t", space=model.space, dimensions=DIMENSIONS, ttl_s=60, memory=10)
    raw = np.stack([vector_of("mug"), vector_of("lamp")])
    adapter = AdapterFile.load(file, base_space=model.space)
    pool = AdaptedPool(EncoderSettings(threads=1), adapter=adapter, cache=cache, command=COMMAND)
    await pool.start()
    try:
        found = await pool.encode(["mug", "lamp"], Priority.CATALOGUE)
        np.testing.assert_allclose(found, adapter.adapter.apply(raw), atol=1e-6)
        assert not np.allclose(found, raw)
        outcomes = await pool.encode_each(["lamp"], Priority.QUERY, kind="query")
        assert not isinstance(outcomes[0], EncodeError)
        np.testing.assert_allclose(outcomes[0], found[1], atol=1e-6)
        assert await pool.encode_each([], Priority.QUERY) == []
    finally:
        await pool.close()
    # A catalogue that is embedded already needs no process.
    again = AdaptedPool(EncoderSettings(threads=1), adapter=adapter, cache=cache, command=COMMAND)
    np.testing.assert_allclose(await again.encode(["mug"], Priority.CATALOGUE), found[:1], atol=1e-6)
    assert again.stats.texts_encoded == 0


def test_a_process_makes_the_pool_that_the_space_says(file: Path) -> None:
    settings = Settings()
    found = describe_encoder(EncoderSettings(adapter=file))
    encoders = Encoders(settings, connect_redis(settings))
    space = ModelSpace(space=found.space, dimensions=DIMENSIONS, number=1, encoder={"adapter": str(file)})
    pool = encoders.pool(space, "test")
    assert isinstance(pool, AdaptedPool)
    assert pool.space == found.space
    other = ModelSpace(space="other", dimensions=DIMENSIONS, number=2, encoder={"adapter": str(file)})
    with pytest.raises(SettingsError, match="put the same files there on every machine"):
        encoders.pool(other, "test")


def test_an_adapted_space_is_not_whitened_again(file: Path) -> None:
    settings = Settings()
    rng = np.random.default_rng(0)
    for space, due in ((describe_encoder(EncoderSettings(adapter=file)).space, False), ("model/mean", True)):
        index = SpaceIndex(settings, space=space, dimensions=8)
        for row in range(60):
            vector = rng.normal(size=8).astype(np.float32)
            index.put(row, vector / np.linalg.norm(vector))
        assert index.due() == due
