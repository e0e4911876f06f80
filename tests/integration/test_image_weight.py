"""``tailrace spaces image-weight``: from a fused space and what people take together to the weight that finds it."""

from __future__ import annotations

import asyncio
import json
import shlex
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from schemas.arrays import pack_float32, pack_float64
from schemas.decode import encode
from schemas.messages import ItemSignals, ItemVector
from stream_app.cli import main
from stream_app.delivery.admin import create_topics
from stream_app.delivery.publisher import OutRecord, Publisher
from stream_app.images.fusion import fuse
from stream_app.metrics import Metrics
from stream_app.settings import Settings
from stream_app.space_operations import build_space
from stream_app.topics import Topics
from tests.environment import to_environment
from tests.image_checkpoints import make_clip

ITEMS, KINDS = 90, 30
WEIGHT = 0.3


def unit(vectors: NDArray[np.float64]) -> NDArray[np.float32]:
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


@pytest.fixture(name="model")
def _model(settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder; the command reads its settings as people give them, from the environment."""
    monkeypatch.chdir(tmp_path)
    to_environment(settings, monkeypatch)
    return make_clip(tmp_path / "a clip's folder")


def publish(settings: Settings, model: Path, *, signals: bool) -> None:
    """A fused space in which the images of three items each are alike, and these three are taken together."""
    rng = np.random.default_rng(0)
    text = unit(rng.normal(size=(ITEMS, 384)))
    image = unit(rng.normal(size=(KINDS, 24))[np.arange(ITEMS) % KINDS] + 0.2 * rng.normal(size=(ITEMS, 24)))
    fused = fuse(text, image, np.ones(ITEMS, bool), WEIGHT)

    async def work() -> None:
        await create_topics(settings)
        space = await build_space(settings, {"image_model": str(model), "image_weight": WEIGHT})
        topics = Topics(settings)
        records = [
            OutRecord(
                topics.vectors_of(space.number),
                f"i{item}".encode(),
                encode(
                    ItemVector(
                        item_id=f"i{item}",
                        space=space.space,
                        text_hash="",
                        dimensions=space.dimensions,
                        vector=pack_float32(vector),
                    )
                ),
            )
            for item, vector in enumerate(fused)
        ]
        if signals:
            for item in range(ITEMS):
                others = [f"i{(item + KINDS) % ITEMS}", f"i{(item + 2 * KINDS) % ITEMS}"]
                message = ItemSignals(
                    item_id=f"i{item}",
                    at=datetime(2026, 1, 1, tzinfo=UTC).timestamp(),
                    counts=[1.0, 1.0, 1.0],
                    neighbours=others,
                    symmetric=pack_float64(np.array([2.0, 1.0])),
                    directed=pack_float64(np.array([0.0, 0.0])),
                    applied={},
                )
                records.append(OutRecord(topics.item_signals, f"i{item}".encode(), encode(message)))
        publisher = Publisher(settings, Metrics())
        await publisher.start()
        try:
            await publisher.publish(records)
        finally:
            await publisher.stop()

    asyncio.run(work())


def test_the_weight_that_brings_together_what_is_taken_together_is_found(
    settings: Settings, model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    publish(settings, model, signals=True)
    assert main(["spaces", "image-weight", "1", "--json"]) == 0
    learned = json.loads(capsys.readouterr().out)
    assert (learned["items"], learned["taken_items"], learned["built_with"]) == (ITEMS, ITEMS, WEIGHT)
    recalls = dict(learned["recalls"])
    assert recalls[1.0] == 1.0
    assert recalls[0.0] < 0.8
    assert recalls[learned["weight"]] == max(recalls.values())
    assert learned["weight"] > 0.1
    assert main(["spaces", "image-weight", "1"]) == 0
    shown = capsys.readouterr().out
    assert "text alone" in shown
    # The command that is printed is one: it builds a space that differs in the weight alone.
    words = shlex.split(shown.rpartition("build anew with: ")[2])
    assert words[:3] == ["tailrace", "spaces", "build"]
    assert main([*words[1:], "--no-wait"]) == 0, capsys.readouterr().err
    capsys.readouterr()
    assert main(["spaces", "list", "--json"]) == 0
    before, built = [json.loads(line)["space"] for line in capsys.readouterr().out.splitlines()][1:]
    assert built["encoder"] == {**before["encoder"], "image_weight": min(learned["weight"], 0.99)}


def test_what_nothing_can_be_learned_from_is_said(
    settings: Settings, model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    publish(settings, model, signals=False)
    assert main(["spaces", "image-weight", "1"]) != 0
    assert "what is taken together" in capsys.readouterr().err
    assert main(["spaces", "image-weight", "0"]) != 0
    assert "of texts alone" in capsys.readouterr().err
    make_clip(model.with_name("other"), seed=5).joinpath("model.safetensors").rename(model / "model.safetensors")
    assert main(["spaces", "image-weight", "1"]) != 0
    assert "other models than those here" in capsys.readouterr().err
