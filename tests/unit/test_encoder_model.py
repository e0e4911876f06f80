"""The language model: which space it spans, and that the pool's vectors are the ones the model is meant to give."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import numpy as np
import pytest
import pytest_asyncio
from numpy.typing import NDArray
from safetensors.numpy import save_file

from stream_app.errors import SettingsError
from stream_app.settings import EncoderSettings
from tests.waiting import eventually
from workers.models import ModelInfo, describe_model, load_model
from workers.pool import EncoderPool, Priority

MINILM_SPACE = "minilm-l6-v2/mean/384/raw/"
TITLES = [
    "White hanging heart t-light holder",
    "Set 7 babushka nesting boxes",
    "Mug",
    "Jumbo bag red retrospot",
    "Hand warmer union jack",
    "A much longer description, of a lamp that is meant for the garden and keeps burning in wind and rain. " * 3,
]
ODD = {
    "empty": "",
    "blank": " \n\t ",
    "emoji": "\U0001f389\U0001f469‍\U0001f467",
    "right to left": "كوب سيراميك أزرق",
    "chinese": "蓝色陶瓷马克杯",
    "mixed scripts": "Blue 蓝色 синяя أزرق כחול नीला mug 马克杯 кружка كوب ספל मग",
    "mixed scripts in one word": "mugкружка马克杯كوبमग",
    "null bytes": "blue\x00mug\x00",
    "lone surrogate": "\ud800",
    "long": "word " * 20_000,
    "one long word": "x" * 100_000,
    "special tokens": "[CLS] [SEP] [MASK] [PAD]",
}


@pytest.fixture(scope="module")
def info() -> ModelInfo:
    return describe_model("minilm")


@pytest.fixture
def folder(info: ModelInfo, tmp_path: Path) -> Path:
    """A copy of the model's small files with small weights, to be changed."""
    for file in info.folder.rglob("*.json"):
        target = tmp_path / "My Model" / file.relative_to(info.folder)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(file, target)
    table = np.zeros((30_522, 384), np.int8)  # as long and as wide as config.json says
    save_file({"embeddings.word_embeddings.weight": table}, tmp_path / "My Model" / "model.safetensors")
    return tmp_path / "My Model"


def test_minilm_is_described_from_its_files(info: ModelInfo) -> None:
    assert info.space.startswith(MINILM_SPACE)
    assert len(info.space) == len(MINILM_SPACE) + 8
    assert (info.dimensions, info.max_tokens, info.pooling) == (384, 256, "mean")


def test_neither_describing_a_model_nor_the_pool_imports_torch() -> None:
    code = (
        "import sys; from workers.models import describe_model; import workers.pool; "
        "describe_model('minilm'); sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


@pytest.mark.parametrize("file", ["model.safetensors", "tokenizer.json", "config.json"])
def test_the_space_changes_with_any_file_that_changes_vectors(folder: Path, file: str) -> None:
    before = describe_model(str(folder)).space
    assert before.startswith("my-model/mean/384/raw/")
    with (folder / file).open("r+b") as content:  # nothing but white space, or the last of the weights
        content.seek(-1 if file == "model.safetensors" else 0, os.SEEK_END)
        content.write(b" ")
    assert describe_model(str(folder)).space != before


def test_the_space_does_not_depend_on_where_the_model_lies(folder: Path, tmp_path: Path) -> None:
    before = describe_model(str(folder)).space
    moved = tmp_path / "elsewhere" / folder.name
    shutil.copytree(folder, moved)
    assert describe_model(str(moved)).space == before


def test_a_model_with_first_token_pooling_is_described_so(folder: Path) -> None:
    (folder / "1_Pooling" / "config.json").write_text('{"pooling_mode_cls_token": true}')
    assert describe_model(str(folder)).pooling == "cls"


def empty(folder: Path) -> None:
    shutil.rmtree(folder)
    folder.mkdir()


def a_folder_too_high(folder: Path) -> None:
    moved = folder.rename(folder.with_name("inside"))
    folder.mkdir()
    moved.rename(folder / "inside")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda folder: shutil.rmtree(folder), "My Model': there is no such folder; .*hf download"),
        (empty, r"config.json is missing, .*My Model is empty; fetch the whole model .*hf download"),
        (a_folder_too_high, r"config.json is missing; a model is in .*My Model/inside: set encoder.model to that"),
        (
            lambda folder: (folder / "config.json").unlink(),
            r"config.json is missing, .* no transformers model folder \(it holds .*\); fetch the whole model",
        ),
        (lambda folder: (folder / "config.json").write_text("{"), "cannot be read"),
        (lambda folder: (folder / "config.json").write_text("{}"), "no hidden_size"),
        (lambda folder: (folder / "model.safetensors").unlink(), "safetensors"),
        (lambda folder: (folder / "1_Pooling" / "config.json").write_text('{"pooling_mode_max_tokens": true}'), "max"),
        (lambda folder: (folder / "modules.json").write_text(json.dumps([{"type": "x.Dense"}])), "Dense"),
        (lambda folder: (folder / "modules.json").write_text("{}"), "not a list"),
        (lambda folder: (folder / "tokenizer_config.json").write_text("[]"), "not a JSON object"),
    ],
)
def test_a_model_that_cannot_be_used_is_refused_with_the_reason(folder: Path, change: object, said: str) -> None:
    change(folder)  # type: ignore[operator]
    with pytest.raises(SettingsError, match=said):
        describe_model(str(folder))


def straight(info: ModelInfo, texts: list[str], max_tokens: int) -> NDArray[np.float64]:
    """The vectors of ``texts`` as the model's card computes them: one at a time, no padding, nothing of ours."""
    import torch
    from transformers import AutoModel, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(info.folder, local_files_only=True)
    model = AutoModel.from_pretrained(info.folder, local_files_only=True, use_safetensors=True, dtype=torch.float32)
    vectors = []
    with torch.inference_mode():
        for text in texts:
            tokens = tokenizer(text, return_tensors="pt", truncation=True, max_length=max_tokens)
            mean = model.eval()(**tokens).last_hidden_state[0].mean(dim=0).double()
            vectors.append((mean / mean.norm()).numpy())
    return np.stack(vectors)


@pytest.mark.model
def test_vectors_equal_those_of_the_model_computed_one_by_one_without_padding(info: ModelInfo) -> None:
    odd = [text for name, text in ODD.items() if name != "lone surrogate"]  # the tokenizer itself refuses that
    texts = TITLES + odd
    chosen = EncoderSettings(max_tokens=64)
    encoder = load_model(chosen, device="cpu", precision="float32", batch=4)
    vectors = encoder.encode(texts)
    assert vectors.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1.0, atol=1e-6)
    np.testing.assert_allclose(vectors, straight(info, texts, max_tokens=64), atol=2e-6)
    assert encoder.space == describe_model(chosen).space


@pytest.mark.model
def test_a_device_that_is_not_there_is_refused() -> None:
    with pytest.raises(SettingsError, match="cuda:63"):
        load_model("minilm", device="cuda:63")


@pytest.mark.model
def test_hardware_bfloat16_is_read_from_the_processor_flags(tmp_path: Path) -> None:
    from workers.devices import cpu_has_bfloat16

    file = tmp_path / "cpuinfo"
    assert not cpu_has_bfloat16(file)
    file.write_text("processor\t: 0\nflags\t\t: fpu avx512f avx512_bf16\n")
    assert cpu_has_bfloat16(file)
    file.write_text("processor\t: 0\nflags\t\t: fpu avx512f\n")
    assert not cpu_has_bfloat16(file)
    file.write_text("processor\t: 0\nFeatures\t: fp asimd bf16 i8mm\n")
    assert cpu_has_bfloat16(file)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def pool() -> AsyncIterator[EncoderPool]:
    """One real encoder process for the tests below."""
    pool = EncoderPool(EncoderSettings(batch=4))
    await pool.start()
    await pool.ready()
    yield pool
    await pool.close()


@pytest.mark.model
@pytest.mark.asyncio(loop_scope="module")
async def test_the_pool_gives_the_model_s_vectors_in_the_order_of_the_texts(pool: EncoderPool, info: ModelInfo) -> None:
    vectors = await pool.encode(TITLES, Priority.CATALOGUE)
    cosines = (vectors * straight(info, TITLES, max_tokens=128)).sum(axis=1)
    assert cosines.min() > 0.999  # auto: bfloat16 where the processor has it
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1.0, atol=1e-5)


@pytest.mark.model
@pytest.mark.asyncio(loop_scope="module")
async def test_related_texts_are_nearer_than_others(pool: EncoderPool) -> None:
    mug, cup, lawnmower = await pool.encode(["ceramic mug", "porcelain tea cup", "petrol lawnmower"], Priority.QUERY)
    assert mug @ cup > mug @ lawnmower + 0.2


@pytest.mark.model
@pytest.mark.asyncio(loop_scope="module")
async def test_any_text_has_a_finite_vector_of_unit_length(pool: EncoderPool) -> None:
    vectors = await pool.encode(list(ODD.values()), Priority.EVENT)
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1.0, atol=1e-5)
    assert pool.stats.restarts == 0


@pytest.mark.model
@pytest.mark.asyncio(loop_scope="module")
async def test_ten_thousand_identical_texts_are_embedded_once(pool: EncoderPool) -> None:
    text = "A text that ten thousand items have"
    before = pool.stats.texts_encoded
    calls = [pool.encode([text] * size, Priority.CATALOGUE) for size in (9_000, *(100 for _ in range(10)))]
    vectors = np.concatenate(await asyncio.gather(*calls))
    assert pool.stats.texts_encoded == before + 1
    assert vectors.shape == (10_000, 384)
    assert (vectors == vectors[0]).all()
    np.testing.assert_allclose(np.linalg.norm(vectors[0]), 1.0, atol=1e-5)


@pytest.mark.model
@pytest.mark.asyncio(loop_scope="module")
async def test_the_process_killed_in_mid_batch_leaves_no_trace_in_the_vectors(pool: EncoderPool) -> None:
    texts = [f"{title} number {number}" for number in range(20) for title in TITLES[:5]]
    before = await pool.encode(TITLES, Priority.CATALOGUE)
    task = asyncio.create_task(pool.encode(texts + TITLES, Priority.CATALOGUE))
    done = pool.stats.batches
    await eventually(lambda: pool.stats.batches > done + 1 and pool.queue_length, interval_s=0.001)
    os.kill(pool.pids[0], signal.SIGKILL)
    vectors = await task
    assert pool.stats.restarts == 1
    assert ((vectors[-len(TITLES) :] * before).sum(axis=1)).min() > 0.999
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1.0, atol=1e-5)
