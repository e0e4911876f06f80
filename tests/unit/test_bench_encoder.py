"""``tailrace bench encoder``: that it measures what it says, not how fast it is."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from stream_app.bench import encoder_loop
from stream_app.bench.encoder import overlap, pool_figures, query_figures
from stream_app.bench.titles import made_up_items, shipped_titles
from stream_app.cli import main
from stream_app.settings import load_settings
from stream_app.textify import item_text
from tests.checkpoints import make_bert
from workers.models import load_model


def test_made_up_titles_all_differ_and_a_price_does_not_change_them() -> None:
    titles = ["red lamp", "blue cup", "green chair"]
    items = made_up_items(titles, 100)
    texts = [item_text(item) for item in items]
    assert len(set(texts)) == len({item.item_id for item in items}) == 100
    assert items == made_up_items(titles, 100)
    cheaper = made_up_items(titles, 100, price=1.0)
    assert [item_text(item) for item in cheaper] == texts
    assert cheaper != items


def test_the_shipped_titles_are_a_catalogue_of_four_thousand() -> None:
    titles = shipped_titles()
    assert len(titles) == 3_862
    assert all(titles)


def test_overlap_is_the_share_of_the_nearest_that_both_know() -> None:
    rng = np.random.default_rng(0)
    vectors = rng.standard_normal((50, 8)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    assert overlap(vectors, vectors, 10) == 1.0
    rotated = vectors @ np.linalg.qr(rng.standard_normal((8, 8)))[0].astype(np.float32)
    assert overlap(vectors, rotated, 10) > 0.99  # the angles are the same
    assert overlap(vectors, vectors[rng.permutation(50)], 10) < 0.5
    # By hand: of four on a line, the nearest of each by the one and by the other.
    one = np.array([[1, 0], [0.99, 0.14], [0, 1], [0.14, 0.99]], np.float32)
    other = one[[0, 2, 1, 3]]
    assert overlap(one, other, 1) == 0.0


@pytest.mark.model
def test_the_bare_loop_has_the_model_of_all_the_settings(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Pooling and prefix decide vectors: with others it would be compared with another model."""
    model = str(make_bert(tmp_path / "m"))
    chosen = {"model": model, "pooling": "cls", "document_prefix": "d: ", "precision": "float32", "device": "cpu"}
    for name, value in chosen.items():
        monkeypatch.setenv(f"TAILRACE_ENCODER__{name.upper()}", value)
    encoder_loop._work(encoder_loop.EncoderLoopJob(titles=4, batches=(2,), vectors=str(tmp_path / "found.npy")))
    encoder = load_model(load_settings().encoder, device="cpu", precision="float32")
    expected = encoder.encode([f"d: {title}" for title in shipped_titles()[:64]])
    np.testing.assert_allclose(np.load(tmp_path / "found.npy")[:64], expected, atol=2e-6)
    other = load_model(model, device="cpu", precision="float32").encode(shipped_titles()[:64])
    assert np.abs(other - expected).max() > 0.01


@pytest.mark.parametrize("parts", ["pools", "", "pool,nothing"])
def test_parts_that_are_none_are_named(parts: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "encoder", "--parts", parts]) == 2
    assert "allowed are pool, queries, embedded, kafka, precision" in capsys.readouterr().err


@pytest.mark.model
@pytest.mark.slow
@pytest.mark.timeout(300)
async def test_pool_and_queries_are_measured_with_the_model() -> None:
    told: set[str] = set()

    def on_progress(what: str, done: int, total: int) -> None:
        assert 0 <= done <= total
        told.add(what)

    settings = load_settings()
    figures: dict[str, Any] = await pool_figures(settings, titles=512, rounds=1, on_progress=on_progress)
    assert figures["pool_texts_per_s"] > 0
    assert figures["share"] == pytest.approx(figures["pool_texts_per_s"] / figures["bare_texts_per_s"], rel=0.05)
    assert 0 <= figures["padding"] < 0.5
    assert 10 < figures["tokens"] < 25
    waited = await query_figures(settings, titles=512, queries=10, on_progress=on_progress)
    assert waited["alone_p50_ms"] <= waited["alone_p99_ms"]
    assert {"through the pool", "queries alone", "queries beside the catalogue"} <= told


@pytest.mark.stack
@pytest.mark.slow
@pytest.mark.timeout(300)
def test_items_go_from_topic_to_topic_and_a_price_embeds_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    command = ["bench", "encoder", "--parts", "embedded", "--titles", "512", "--json", "figures.json"]
    assert main(command) == 0
    assert "items_per_s" in capsys.readouterr().out
    (figures,) = json.loads(Path("figures.json").read_text())
    assert figures["repriced_texts"] == 0
    assert figures["embedded_texts"] >= 512
    assert figures["items_per_s"] > 0
