"""``tailrace bench encoder``: that it measures what it says, not how fast it is."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file

from stream_app.bench import encoder as encoder_bench
from stream_app.bench import encoder_loop
from stream_app.bench.encoder import _all_ready, compile_figures, pool_figures, precision_figures, query_figures
from stream_app.bench.quality import LEAST_MEAN_COSINE, LEAST_OVERLAP, NEIGHBOURS, Quality, overlap, quality_of
from stream_app.bench.titles import made_up_items, shipped_titles
from stream_app.cli import main
from stream_app.cli.bench_encoder import failures
from stream_app.errors import SettingsError, Unavailable
from stream_app.settings import EncoderSettings, load_settings
from stream_app.textify import item_text
from tests.checkpoints import make_bert
from workers.models import load_model, reduced_precisions
from workers.pool import EncoderPool

FAKE = (sys.executable, "-m", "tests.unit.encoder_process")
"""Processes without a model, ready in a fraction of a second."""


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


def test_the_gate_is_that_of_the_issue_and_asks_for_both() -> None:
    assert (LEAST_MEAN_COSINE, LEAST_OVERLAP, NEIGHBOURS) == (0.99, 0.90, 10)

    def passes(mean_cosine: float, overlap: float) -> bool:
        return Quality(mean_cosine=mean_cosine, least_cosine=0.0, overlap=overlap).passes

    assert passes(0.99, 0.90)
    assert not passes(0.98999, 1.0)
    assert not passes(1.0, 0.8999)
    assert not passes(float("nan"), 1.0)
    assert not passes(1.0, float("nan"))


def test_quality_is_of_each_text_s_two_vectors_and_its_neighbours() -> None:
    rng = np.random.default_rng(1)
    exact = rng.standard_normal((60, 8)).astype(np.float32)
    exact /= np.linalg.norm(exact, axis=1, keepdims=True)
    same = quality_of(exact, exact)
    assert (same.mean_cosine, same.least_cosine, same.overlap) == pytest.approx((1.0, 1.0, 1.0))
    one_turned = exact.copy()
    one_turned[7] *= -1
    turned = quality_of(exact, one_turned)
    assert (turned.mean_cosine, turned.least_cosine) == pytest.approx((58 / 60, -1.0), abs=1e-5)
    assert 0.5 < turned.overlap < 1.0


@pytest.mark.model
def test_every_precision_on_offer_passes_the_gate_with_minilm_on_a_sample_of_titles() -> None:
    """A sample, so that it takes seconds: every 16th title. Among fewer texts the nearest lie farther apart: it is
    another gate, and an easier one; ``tailrace bench encoder --parts precision`` asks all 3,862."""
    titles = shipped_titles()[::16]
    exact = load_model("minilm", device="cpu", precision="float32", threads=1).encode(titles)
    offered = reduced_precisions("minilm")
    assert offered == ("bfloat16", "float16")
    for precision in offered:
        quality = quality_of(exact, load_model("minilm", device="cpu", precision=precision, threads=1).encode(titles))
        assert quality.passes, (precision, quality)
        assert quality.mean_cosine < 1.0, "it computed in float32"


def coarse(folder: Path) -> Path:
    """A model that needs float32: what tells its tokens apart is lost where numbers have ten bits or fewer."""
    make_bert(folder)
    weights = load_file(folder / "model.safetensors")
    weights["embeddings.word_embeddings.weight"] = 300.0 + 0.02 * weights["embeddings.word_embeddings.weight"]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


@pytest.mark.model
def test_the_gate_is_not_passed_by_a_model_that_needs_float32(tmp_path: Path) -> None:
    folder, titles = str(coarse(tmp_path / "coarse")), shipped_titles()[::40]
    exact = load_model(folder, device="cpu", precision="float32", threads=1).encode(titles)
    for precision in reduced_precisions(folder):
        vectors = load_model(folder, device="cpu", precision=precision, threads=1).encode(titles)
        assert not quality_of(exact, vectors).passes


@pytest.mark.model
@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_precision_below_the_gate_ends_the_command_with_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TAILRACE_ENCODER__DEVICE", "cpu")
    command = ["bench", "encoder", "--parts", "precision", "--titles", "512"]
    monkeypatch.setenv("TAILRACE_ENCODER__MODEL", str(coarse(tmp_path / "coarse")))
    assert main([*command, "--json", "figures.json"]) == 1
    lines = json.loads(Path("figures.json").read_text())
    assert [(line["precision"], line["titles"]) for line in lines] == [("bfloat16", 512), ("float16", 512)]
    said = " ".join(capsys.readouterr().err.split())
    for line in lines:
        assert not line["passes"]
        assert f"encoder.precision = '{line['precision']}' does not pass the quality gate: mean cosine" in said


def test_only_what_must_not_be_ends_the_command_with_1() -> None:
    passed = {"precision": "bfloat16", "mean_cosine": 0.9999, "overlap": 0.98, "passes": True}
    below = {"precision": "float16", "mean_cosine": 0.98, "overlap": 0.95, "passes": False}
    refused = {"precision": "float16", "refused": "it overflows", "passes": False}
    assert not failures([passed, {"share": 0.9}, {"repriced_texts": 0}])
    assert [said.split(":")[0] for said in failures([passed, below, refused, {"repriced_texts": 1_200}])] == [
        "encoder.precision = 'float16' does not pass the quality gate",
        "encoder.precision = 'float16' cannot be used",
        "1,200 texts were embedded for prices that changed",
    ]


@pytest.mark.model
@pytest.mark.slow
@pytest.mark.timeout(300)
async def test_a_precision_that_overflows_is_named_and_the_others_are_measured(tmp_path: Path) -> None:
    folder = make_bert(tmp_path / "m")
    weights = load_file(folder / "model.safetensors")
    weights["embeddings.LayerNorm.weight"] *= 100_000.0  # beyond float16, whose largest number is 65,504
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    settings = load_settings(encoder={"model": str(folder), "device": "cpu"})
    bfloat16, float16 = await precision_figures(settings, titles=32)
    assert "overlap" in bfloat16
    assert not float16["passes"]
    assert "no finite vectors in float16" in float16["refused"]


async def test_the_multilingual_model_offers_no_reduced_precision() -> None:
    assert await precision_figures(load_settings(encoder={"model": "multilingual"}), titles=32) == []


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


async def test_compiled_and_not_are_measured_in_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    """With processes that have no model and so nothing to compile: both are alike."""
    made: list[EncoderSettings] = []
    there: list[int] = []

    class Watched(EncoderPool):
        async def encode(self, *arguments: Any, **named: Any) -> NDArray[np.float32]:
            there.append(len(self.pids))
            return await super().encode(*arguments, **named)

    def pool(settings: EncoderSettings) -> EncoderPool:
        made.append(settings)
        return Watched(settings, command=FAKE)

    monkeypatch.setattr(encoder_bench, "EncoderPool", pool)
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", "/kept/elsewhere")
    told: list[str] = []
    figures = await compile_figures(
        load_settings(encoder={"compile": True, "threads": 1, "processes": 2}),
        titles=2_000,
        rounds=2,
        on_progress=lambda what, _done, _total: told.append(what),
    )
    assert [settings.compile for settings in made] == [True, False, True]
    assert set(there) == {2}, "the time of a process that comes later is not counted"
    assert os.environ["TORCHINDUCTOR_CACHE_DIR"] == "/kept/elsewhere"
    assert list(dict.fromkeys(told)) == [
        "pools started",
        *("compiled, round 1", "eager, round 1", "eager, round 2", "compiled, round 2"),
    ]
    assert 0 < figures["least_ratio"] <= figures["ratio"] <= figures["most_ratio"]
    assert figures["mean_cosine"] == figures["least_cosine"] == pytest.approx(1.0, abs=1e-5)
    assert min(figures[name] for name in ("eager_start_s", "compiled_start_s", "compiled_again_s")) > 0
    assert figures["device"] == "cpu float32"


async def test_a_process_that_never_comes_ends_the_benchmark() -> None:
    pool = EncoderPool(EncoderSettings(processes=1, threads=1), command=FAKE)
    await pool.start()
    try:
        await pool.ready()
        await _all_ready(pool, 1, within_s=0.0)
        with pytest.raises(Unavailable, match=r"1 of 2 encoder processes were ready 0 s after the first"):
            await _all_ready(pool, 2, within_s=0.0)
    finally:
        await pool.close()
    with pytest.raises(Unavailable, match="the encoder pool is closed"):
        await _all_ready(pool, 2, within_s=60.0)


@pytest.mark.model
def test_the_bare_loop_is_compiled_where_the_pool_is(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("TAILRACE_ENCODER__MODEL", str(make_bert(tmp_path / "m")))
    monkeypatch.setenv("TAILRACE_ENCODER__COMPILE", "true")
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "programs"))
    monkeypatch.setenv("TORCHDYNAMO_DISABLE", "1")  # what asks for compiling is told so, in no time
    with pytest.raises(SettingsError, match="TORCHDYNAMO_DISABLE=1"):
        encoder_loop._work(encoder_loop.EncoderLoopJob(titles=4, batches=(2,)))


@pytest.mark.parametrize("parts", ["pools", "", "pool,nothing"])
def test_parts_that_are_none_are_named(parts: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "encoder", "--parts", parts]) == 2
    assert "allowed are pool, queries, embedded, kafka, precision, compile" in capsys.readouterr().err


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
