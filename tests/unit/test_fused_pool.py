"""Two pools as one: items by text and image, what people say by both models, and images that are none."""

from __future__ import annotations

import base64
import json
import sys
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from schemas.messages import ModelSpace
from stream_app.cli import checks
from stream_app.encoder_space import describe_encoder
from stream_app.encoders import Encoders, encoder_settings
from stream_app.errors import PoisonText, SettingsError
from stream_app.images.pool import FusedPool, VectorsOnly, image_pool, image_source
from stream_app.images.sources import ImageSource
from stream_app.settings import EncoderSettings, load_settings
from stream_app.stores.embedding_cache import EmbeddingCache
from tests.image_checkpoints import make_clip, make_siglip, picture
from tests.unit.encoder_process import vector_of
from tests.unit.picture_process import picture_vector, text_vector
from workers.faults import ENVIRONMENT
from workers.image_models import describe_image_model
from workers.models import describe_model
from workers.picture_requests import Reason, Unusable, ask_for_text, refusal
from workers.pool import EncoderPool, Priority

pytestmark = pytest.mark.model

COMMAND = (sys.executable, "-m", "tests.unit.encoder_process")
WEIGHT = 0.3
TEXT, IMAGE = 384, 24
"""Numbers of a text's and of an image's vector."""


@pytest.fixture(name="model", scope="module")
def _model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_clip(tmp_path_factory.mktemp("models") / "clip")


@pytest.fixture(name="folder")
def _folder(tmp_path: Path) -> Path:
    folder = tmp_path / "images"
    folder.mkdir()
    for seed, name in enumerate(("lamp", "rope", "cup")):
        (folder / f"{name}.png").write_bytes(picture(seed=seed))
    return folder


def settings_of(model: Path, folder: Path | None, **changes: Any) -> EncoderSettings:
    return EncoderSettings(
        image_model=str(model), image_folder=folder, image_weight=WEIGHT, precision="float32", **changes
    )


@asynccontextmanager
async def running(
    settings: EncoderSettings,
    *,
    source: Any = None,
    module: str = "tests.unit.picture_process",
    patience_s: float = 60.0,
    **caches: Any,
) -> AsyncIterator[FusedPool]:
    """A fused pool, both of whose processes have no model."""
    where = image_source(settings)
    pool = FusedPool(
        EncoderPool(settings, cache=caches.get("text"), command=COMMAND),
        image_pool(settings, where, cache=caches.get("images"), module=module),
        space=describe_encoder(settings),
        weight=settings.image_weight,
        source=source or where,
        patience_s=patience_s,
    )
    await pool.start()
    try:
        await pool.ready()
        yield pool
    finally:
        await pool.close()


def image_half(*pictures: bytes) -> NDArray[np.float32]:
    return np.sqrt(WEIGHT) * np.stack([picture_vector(one, IMAGE) for one in pictures])


def tower_half(*texts: str) -> NDArray[np.float32]:
    return np.sqrt(WEIGHT) * np.stack([text_vector(one, IMAGE) for one in texts])


def text_half(*texts: str) -> NDArray[np.float32]:
    return np.sqrt(1.0 - WEIGHT) * np.stack([vector_of(one) for one in texts])


async def test_items_and_what_people_say_are_of_both_models(model: Path, folder: Path) -> None:
    texts = ["a lamp", "a rope", "a thing"]
    async with running(settings_of(model, folder)) as pool:
        assert (pool.dimensions, len(pool.pids), len(pool.devices), pool.started) == (TEXT + 24, 2, 2, True)
        items = np.stack(await pool.encode_items(texts, ["lamp.png", "rope.png", None]))
        queries = await pool.encode(texts, Priority.QUERY)
        assert pool.outcomes == {"used": 2, "none": 1}
    assert items.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(items, axis=1), 1.0, atol=1e-5)
    np.testing.assert_allclose(items[:, :TEXT], text_half(*texts), atol=1e-6)
    np.testing.assert_allclose(items[:2, TEXT:], image_half(picture(seed=0), picture(seed=1)), atol=1e-6)
    np.testing.assert_allclose(items[2:, TEXT:], tower_half("a thing"), atol=1e-6)
    np.testing.assert_allclose(queries[:, :TEXT], text_half(*texts), atol=1e-6)
    np.testing.assert_allclose(queries[:, TEXT:], tower_half(*texts), atol=1e-6)


async def test_with_the_model_itself(model: Path, folder: Path) -> None:
    """The real process of an image model, against the model in this one."""
    from workers.images import ImageEncoder

    async with running(settings_of(model, folder), module="workers.image_process") as pool:
        items = np.stack(await pool.encode_items(["a lamp", "a rope"], ["lamp.png", None]))
    encoder = ImageEncoder(
        describe_image_model(str(model)),
        folder=None,
        max_bytes=10**6,
        max_pixels=10**6,
        device="cpu",
        precision="float32",
    )
    expected = np.concatenate([encoder.encode_images([picture(seed=0)]), encoder.encode_texts(["a rope"])])
    np.testing.assert_allclose(items[:, TEXT:], np.sqrt(WEIGHT) * expected, atol=1e-5)


async def test_an_image_that_is_none_costs_its_item_nothing_else_and_is_counted(model: Path, folder: Path) -> None:
    (folder / "broken.jpg").write_bytes(picture(kind="JPEG", size=(200, 200))[:400])
    (folder / "page.png").write_bytes(b"<html>")
    (folder / "large.png").write_bytes(bytes(3_000))
    (folder / "wide.png").write_bytes(picture(size=(80, 80)))
    urls = ["lamp.png", "broken.jpg", "page.png", "large.png", "wide.png", "../lamp.png", "gone.png", "http://a/b.png"]
    texts = [f"text {number}" for number in range(len(urls))]
    async with running(settings_of(model, folder, image_max_bytes=2_000, image_max_pixels=4_000)) as pool:
        found = await pool.encode_items(texts, urls)
        assert pool.outcomes == {
            "used": 1,
            "none": 0,
            "damaged": 1,
            "format": 1,
            "too_large": 1,
            "too_many_pixels": 1,
            "outside": 1,
            "missing": 1,
            "elsewhere": 1,
        }
    assert all(isinstance(vector, np.ndarray) for vector in found)
    np.testing.assert_allclose(np.stack(found)[:, :TEXT], text_half(*texts), atol=1e-6)
    np.testing.assert_allclose(np.stack(found)[1:, TEXT:], tower_half(*texts[1:]), atol=1e-6)


async def test_another_picture_under_the_same_name_is_another_vector_although_vectors_are_cached(
    model: Path, folder: Path
) -> None:
    settings = settings_of(model, folder)
    info = describe_image_model(str(model))
    cache = EmbeddingCache(
        None, prefix="t", space=info.space, dimensions=info.dimensions, ttl_s=60, memory=settings.cache
    )
    async with running(settings, images=cache) as pool:
        (before,) = await pool.encode_items(["a lamp"], ["lamp.png"])
        encoded = pool.images.stats.texts_encoded
        (again,) = await pool.encode_items(["a lamp"], ["lamp.png"])
        assert pool.images.stats.texts_encoded == encoded, "the same bytes come from the cache"
        np.testing.assert_array_equal(before, again)
        (folder / "lamp.png").write_bytes(picture(color="red"))
        (after,) = await pool.encode_items(["a lamp"], ["lamp.png"])
    np.testing.assert_array_equal(before[:TEXT], after[:TEXT])
    assert np.abs(before[TEXT:] - after[TEXT:]).max() > 1e-3


class LateSource:
    """Finds the file as it was before somebody wrote another, the first ``times``."""

    def __init__(self, source: ImageSource, content: bytes, times: int) -> None:
        self._source = source
        self._content = content
        self._times = times
        self.folder = source.folder

    def request(self, url: str) -> str:
        request = self._source.request(url)
        if self._times:
            self._times -= 1
            assert self._source.folder is not None
            (self._source.folder / url).write_bytes(self._content)
        return request


@pytest.mark.parametrize(("times", "outcome"), [(1, "used"), (2, "changed")])
async def test_a_file_that_changes_meanwhile_is_looked_at_once_more(
    model: Path, folder: Path, times: int, outcome: str
) -> None:
    settings = settings_of(model, folder)

    class Other(LateSource):
        def request(self, url: str) -> str:
            self._content += b" "  # still the same picture to a decoder, and other bytes
            return super().request(url)

    source = Other(image_source(settings), picture(color="green"), times)
    async with running(settings, source=source) as pool:
        (vector,) = await pool.encode_items(["a lamp"], ["lamp.png"])
        assert isinstance(vector, np.ndarray)
        assert pool.outcomes[outcome] == 1
        assert pool.outcomes["used"] == (outcome == "used")
    expected = image_half(picture(color="green")) if outcome == "used" else tower_half("a lamp")
    np.testing.assert_allclose(vector[TEXT:], expected[0], atol=1e-6)


async def test_a_folder_that_hangs_costs_items_their_images_and_nothing_else(model: Path, folder: Path) -> None:
    settings, back = settings_of(model, folder), threading.Event()

    class Hanging:
        folder = settings.image_folder

        def request(self, _url: str) -> str:
            back.wait()
            raise Unusable(Reason.OUTSIDE)

    async with running(settings, source=Hanging(), patience_s=0.01) as pool:
        found = await pool.encode_items(["a lamp", "a rope"], ["lamp.png", None])
        back.set()
        assert pool.outcomes == {"missing": 1, "used": 0, "none": 1}
    np.testing.assert_allclose(np.stack(found)[:, TEXT:], tower_half("a lamp", "a rope"), atol=1e-6)


async def test_a_picture_that_ends_processes_costs_its_image_and_others_nothing(
    model: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = settings_of(model, folder)
    poison = image_source(settings).request("rope.png")
    monkeypatch.setenv(ENVIRONMENT, json.dumps({"exit_on": poison}))
    async with running(settings) as pool:
        found = await pool.encode_items(["a lamp", "a rope", "a cup"], ["lamp.png", "rope.png", "cup.png"])
        assert all(isinstance(vector, np.ndarray) for vector in found)
        assert pool.outcomes == {"used": 2, "none": 0, "poison": 1}
        assert pool.images.stats.poison_texts == 1
        assert pool.text.stats.restarts == 0
    np.testing.assert_allclose(found[0][TEXT:], image_half(picture(seed=0))[0], atol=1e-6)
    np.testing.assert_allclose(found[1][TEXT:], tower_half("a rope")[0], atol=1e-6)


async def test_a_text_that_only_the_image_model_cannot_read_is_the_text_model_s_alone(
    model: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(ENVIRONMENT, json.dumps({"exit_on": ask_for_text("odd")}))
    async with running(settings_of(model, folder)) as pool:
        (vector,) = await pool.encode_each(["odd"], Priority.EVENT)
        (item,) = await pool.encode_items(["odd"], [None])
    for one in (vector, item):
        assert isinstance(one, np.ndarray)
        np.testing.assert_allclose(one[:TEXT], vector_of("odd"), atol=1e-6)
        assert not one[TEXT:].any()


async def test_a_text_that_ends_processes_is_the_outcome_of_its_item(
    model: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(ENVIRONMENT, '{"exit_on": "bad"}')
    async with running(settings_of(model, folder)) as pool:
        good, bad = await pool.encode_items(["good", "bad"], ["lamp.png", "rope.png"])
        assert isinstance(good, np.ndarray)
        assert isinstance(bad, PoisonText)


async def test_refusals_are_not_kept() -> None:
    cache = EmbeddingCache(None, prefix="t", space="s", dimensions=3, ttl_s=60, memory=10)
    kept = VectorsOnly(cache)
    vector = np.array([-1.0, 0.0, 0.0], np.float32)
    await kept.put_many({"picture": vector, "none": refusal(Reason.DAMAGED, 3)})
    assert list(await kept.get_many(["picture", "none"])) == ["picture"]


async def test_a_request_that_is_long_reaches_the_model_whole(model: Path) -> None:
    content = picture(seed=3, size=(16, 16), kind="PNG")
    uri = "data:image/png;" + "x=" + "y" * 3_000 + ";base64," + base64.b64encode(content).decode()
    async with running(settings_of(model, None)) as pool:
        (vector,) = await pool.encode_items(["a lamp"], [uri])
        assert pool.outcomes["used"] == 1
        (query,) = await pool.images.encode_each([ask_for_text("x" * 20_000)], Priority.QUERY)
    np.testing.assert_allclose(vector[TEXT:], image_half(content)[0], atol=1e-6)
    assert isinstance(query, np.ndarray)


def test_the_name_says_both_models_and_the_weight(model: Path, tmp_path: Path) -> None:
    settings = settings_of(model, None)
    text, image = describe_model("minilm"), describe_image_model(str(model))
    space = describe_encoder(settings)
    assert space.space == f"{text.space}&{image.space}/0.3"
    assert (space.dimensions, space.text_dimensions) == (TEXT + 24, TEXT)
    others = [
        settings.model_copy(update={"image_weight": 0.31}),
        settings.model_copy(update={"image_model": str(make_clip(tmp_path / "clip", seed=1))}),
        settings.model_copy(update={"image_model": str(make_siglip(tmp_path / "siglip"))}),
        settings.model_copy(update={"image_model": ""}),
    ]
    assert len({space.space, *(describe_encoder(other).space for other in others)}) == 5
    assert describe_encoder(others[-1]).space == text.space, "off: nothing changes"


def test_a_weight_has_four_places() -> None:
    assert EncoderSettings(image_weight=0.1 + 0.2).image_weight == 0.3
    for wrong in (0.0, 1.0, -0.1, float("nan")):
        with pytest.raises(ValueError, match="image_weight"):
            EncoderSettings(image_weight=wrong)


def test_a_folder_of_images_that_is_not_there_is_named(model: Path, tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"encoder\.image_folder = .*gone"):
        image_source(settings_of(model, tmp_path / "gone"))


async def test_a_process_has_the_pools_of_a_space_as_the_space_says(model: Path, folder: Path) -> None:
    settings = load_settings(encoder={"image_folder": str(folder)})
    wanted = {"image_model": str(model), "image_weight": 0.4}
    named = describe_encoder(encoder_settings(settings, ModelSpace(space="x", dimensions=1, number=1, encoder=wanted)))
    encoders = Encoders(settings, None)  # type: ignore[arg-type] - the cache goes on without Redis
    fused = encoders.pool(ModelSpace(space=named.space, dimensions=named.dimensions, number=1, encoder=wanted), "test")
    plain = describe_encoder(settings.encoder)
    alone = encoders.pool(ModelSpace(space=plain.space, dimensions=plain.dimensions, number=0), "test")
    assert isinstance(fused, FusedPool)
    assert isinstance(alone, EncoderPool)
    assert encoders.pools == [fused.text, fused.images, alone]
    encoders.serve(plain.space)
    assert (fused.share, alone.share) == (settings.spaces.build_share, 1.0)
    assert fused.images.share == settings.spaces.build_share
    fused.outcomes["used"] += 3
    assert encoders.image_outcomes() == {"used": 3}
    await encoders.release(named.space, "test")
    assert encoders.image_outcomes() == {"used": 3}, "a counter does not go back"
    with pytest.raises(SettingsError, match="image_model"):
        encoders.pool(ModelSpace(space="another", dimensions=7, number=2, encoder=wanted), "test")
    await encoders.close()


def test_the_doctor_looks_at_the_image_model_and_the_folder(model: Path, folder: Path) -> None:
    def said(**encoder: Any) -> list[tuple[str, str]]:
        settings = load_settings(encoder={"image_model": str(model), "device": "cpu", **encoder})
        return [(finding.status, finding.text) for finding in checks.model(settings) if finding.what == "images"]

    ((status, text),) = said(image_folder=str(folder))
    assert (status, "24 dimensions" in text) == ("ok", True)
    ((status, text),) = said()
    assert (status, "encoder.image_folder is unset" in text) == ("warn", True)
    ((status, text),) = said(image_folder=str(folder / "gone"))
    assert (status, "not a folder" in text) == ("fail", True)
    ((status, text),) = said(image_model=str(folder))
    assert (status, "config.json is missing" in text) == ("fail", True)
    assert said(image_model="") == []
