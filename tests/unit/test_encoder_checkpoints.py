"""Models of each kind against a plain computation, one text at a time; and folders that are wrong, each refused."""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file
from transformers import AutoModel, AutoTokenizer

from schemas.messages import Interaction, Item
from stream_app.errors import SettingsError
from stream_app.evaluation.files import Log
from stream_app.evaluation.run import encode_log
from stream_app.settings import EncoderSettings, Settings
from stream_app.textify import item_text
from tests.checkpoints import (
    SIZE,
    add_dense,
    make_bert,
    make_gemma3,
    make_modernbert,
    make_mpnet,
    make_qwen3,
    make_xlm_roberta,
    write_json,
)
from workers.head import pool
from workers.models import describe_model, load_model
from workers.pool import EncoderPool, Priority
from workers.process import Encoder
from workers.shapes import check_weights
from workers.texts import TextKind
from workers.tokens import ModelTokens

pytestmark = pytest.mark.model

TEXTS = [
    "Blue mug",
    "",
    "a",
    "Red retrospot lunch bag, with a handle",
    "x" * 500,
    "\U0001f389\U0001f469",
    "كوب أزرق and 蓝色马克杯",
    "null\x00byte",
]
MINILM_SPACE = "minilm-l6-v2/mean/384/raw/72e9a3ef"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with one model of each kind; copied before it is changed."""
    root = tmp_path_factory.mktemp("models")
    make_bert(root / "mean")
    make_bert(root / "cls", pooling="cls_token")
    make_bert(root / "plain", pooling=None)
    make_bert(root / "parts", save={"max_shard_size": "20KB"})
    make_qwen3(root / "left")
    make_qwen3(root / "right", padding_side="right")
    make_xlm_roberta(root / "xlm-roberta")
    make_xlm_roberta(root / "bge-m3", pooling="cls_token")
    make_mpnet(root / "mpnet")
    make_modernbert(root / "modernbert")
    make_gemma3(root / "gemma3")
    return root


@pytest.fixture
def bert(made: Path, tmp_path: Path) -> Path:
    return shutil.copytree(made / "mean", tmp_path / "bert")


@pytest.fixture
def qwen3(made: Path, tmp_path: Path) -> Path:
    return shutil.copytree(made / "left", tmp_path / "qwen3")


def load(folder: Path, **options: Any) -> Encoder:
    names = ("pooling", "dimensions", "query_prefix", "document_prefix", "max_tokens")
    said = {"max_tokens": 32, **{name: options.pop(name) for name in names if name in options}}
    chosen = EncoderSettings(model=str(folder), **said)
    return load_model(chosen, **{"device": "cpu", "precision": "float32", "batch": 3, **options})


def plainly(
    folder: Path,
    texts: list[str],
    pooling: str,
    *,
    max_tokens: int = 32,
    then: Callable[[torch.Tensor], torch.Tensor] = lambda vector: vector,
) -> NDArray[np.float32]:
    """The vectors as the model's card computes them: one text at a time, no padding, nothing of ours."""
    tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    model = AutoModel.from_pretrained(
        folder, local_files_only=True, dtype=torch.float32, attn_implementation="eager"
    ).eval()
    pick = {
        "mean": lambda hidden: hidden.mean(dim=0),
        "cls": lambda hidden: hidden[0],
        "last": lambda hidden: hidden[-1],
    }
    vectors = []
    with torch.inference_mode():
        for text in texts:
            tokens = tokenizer(text, truncation=True, max_length=max_tokens, return_tensors="pt")
            vector = then(pick[pooling](model(**tokens).last_hidden_state[0]))
            vectors.append((vector / vector.norm()).numpy())
    return np.stack(vectors)


@pytest.mark.parametrize(
    ("kind", "pooling"),
    [
        *(("mean", "mean"), ("cls", "cls"), ("plain", "mean"), ("parts", "mean"), ("left", "last"), ("right", "last")),
        *(("xlm-roberta", "mean"), ("bge-m3", "cls"), ("mpnet", "mean"), ("modernbert", "cls"), ("gemma3", "mean")),
    ],
)
@pytest.mark.parametrize("batch", [1, 3, 32])
def test_vectors_are_those_of_one_text_at_a_time_whatever_the_batch(
    made: Path, kind: str, pooling: str, batch: int
) -> None:
    encoder = load(made / kind, batch=batch)
    vectors = encoder.encode(TEXTS)
    assert (vectors.dtype, vectors.shape) == (np.float32, (len(TEXTS), SIZE))
    np.testing.assert_allclose(vectors, plainly(made / kind, TEXTS, pooling), atol=2e-6)
    assert f"/{pooling}/{SIZE}/raw/" in encoder.space


@pytest.mark.parametrize(
    ("kind", "pooling", "reads"),
    [("mean", "mean", 64), ("xlm-roberta", "mean", 64), ("mpnet", "mean", 64), ("modernbert", "cls", 128)],
)
def test_a_text_may_be_as_long_as_the_model_reads(made: Path, kind: str, pooling: str, reads: int) -> None:
    """Where positions are counted from the padding token's id on, the last one is the last row of a longer table."""
    texts = ["mug " * length for length in (200, 1, 30)]
    encoder = load(made / kind, max_tokens=512)
    expected = plainly(made / kind, texts, pooling, max_tokens=reads)
    np.testing.assert_allclose(encoder.encode(texts), expected, atol=2e-6)
    assert np.abs(expected - plainly(made / kind, texts, pooling, max_tokens=reads - 1)).max() > 1e-4
    assert encoder.tokens_read >= reads


def test_the_pooling_is_seen_in_the_vectors(made: Path) -> None:
    """Else the test above would compare nothing."""
    for kind, right, wrong in (
        ("mean", "mean", "cls"),
        ("cls", "cls", "mean"),
        ("left", "last", "mean"),
        ("bge-m3", "cls", "mean"),
        ("modernbert", "cls", "mean"),
        ("mpnet", "mean", "cls"),
    ):
        vectors = load(made / kind).encode(TEXTS)
        assert np.abs(vectors - plainly(made / kind, TEXTS, wrong)).max() > 0.05, (kind, right)


def test_a_text_that_is_cut_still_ends_with_the_token_its_vector_is_taken_from(made: Path) -> None:
    tokens = AutoTokenizer.from_pretrained(made / "left")("x" * 500, truncation=True, max_length=32)["input_ids"]
    assert len(tokens) == 32
    long, longer = load(made / "left").encode(["x" * 31, "x" * 400])
    np.testing.assert_allclose(long, longer, atol=2e-6)


@pytest.mark.parametrize("kind", ["mean", "cls", "left", "xlm-roberta", "mpnet", "modernbert", "gemma3"])
@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
def test_half_precision_is_near_and_of_unit_length(made: Path, kind: str, precision: str) -> None:
    exact = load(made / kind).encode(TEXTS)
    encoder = load(made / kind, precision=precision)
    vectors = encoder.encode(TEXTS)
    assert (encoder.precision, encoder.space) == (precision, load(made / kind).space)
    assert (vectors * exact).sum(axis=1).min() > 0.98
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1.0, atol=1e-6)


def test_attention_is_computed_fused(made: Path) -> None:
    for kind in ("mean", "left", "xlm-roberta", "modernbert", "gemma3"):  # MPNet has none in transformers
        assert load(made / kind)._model.config._attn_implementation == "sdpa"  # type: ignore[attr-defined]


@pytest.mark.parametrize("kind", ["mean", "left"])
def test_lone_surrogates_null_bytes_and_a_megabyte_have_a_vector(made: Path, kind: str) -> None:
    vectors = load(made / kind).encode(["\ud800", "a\ud800b", "\x00", "word " * 200_000, "\u200f\u202e", " "])
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1.0, atol=1e-6)
    assert load(made / kind).encode([]).shape == (0, SIZE)


def test_a_tokenizer_that_adds_nothing_and_has_no_padding_still_gives_the_empty_text_a_vector(qwen3: Path) -> None:
    tokenizer = json.loads((qwen3 / "tokenizer.json").read_text())
    write_json(qwen3 / "tokenizer.json", {**tokenizer, "post_processor": None})
    config = json.loads((qwen3 / "tokenizer_config.json").read_text())
    del config["pad_token"]
    write_json(qwen3 / "tokenizer_config.json", {**config, "tokenizer_class": "PreTrainedTokenizerFast"})
    vectors = load(qwen3).encode(["", "mug", "a longer text"])
    np.testing.assert_allclose(vectors[1:], plainly(qwen3, ["mug", "a longer text"], "last"), atol=2e-6)
    assert np.linalg.norm(vectors[0]) == pytest.approx(1.0)


@given(
    lengths=st.lists(st.integers(1, 6), min_size=1, max_size=5),
    left=st.booleans(),
    pooling=st.sampled_from(("mean", "cls", "last")),
    seed=st.integers(0, 9),
)
def test_pooling_sees_no_padding_on_either_side(lengths: list[int], left: bool, pooling: Any, seed: int) -> None:
    width = max(lengths) + 2
    hidden = torch.tensor(np.random.default_rng(seed).standard_normal((len(lengths), width, 3)))
    mask = torch.zeros(len(lengths), width, dtype=torch.int64)
    wanted = []
    for row, length in enumerate(lengths):
        of_text = slice(width - length, width) if left else slice(0, length)
        mask[row, of_text] = 1
        tokens = hidden[row, of_text]
        wanted.append({"mean": tokens.mean(dim=0), "cls": tokens[0], "last": tokens[-1]}[pooling])
    torch.testing.assert_close(pool(hidden, mask, pooling), torch.stack(wanted))


def test_texts_are_cut_on_the_right_whatever_the_folder_says(made: Path, bert: Path) -> None:
    change_json("tokenizer_config.json", truncation_side="left")(bert)
    text = "".join(f"{letter} " * 40 for letter in "ab")
    np.testing.assert_allclose(load(bert).encode([text]), plainly(made / "mean", [text], "mean"), atol=2e-6)
    counted = ModelTokens(EncoderSettings(model=str(bert), max_tokens=32))
    assert 0 < counted.read(text)[1] < len(text)


# Dense layers, fewer dimensions.


@pytest.mark.parametrize("activation", ["activation.Tanh", "linear.Identity"])
def test_a_dense_layer_follows_the_pooling(bert: Path, activation: str) -> None:
    before = describe_model(str(bert)).space
    layer = add_dense(bert, outputs=12, activation=f"torch.nn.modules.{activation}")
    encoder = load(bert)

    def then(vector: torch.Tensor) -> torch.Tensor:
        return layer(vector).tanh() if activation.endswith("Tanh") else layer(vector)

    np.testing.assert_allclose(encoder.encode(TEXTS), plainly(bert, TEXTS, "mean", then=then), atol=2e-6)
    assert encoder.dimensions == 12
    save_file({"linear.weight": layer.weight * 2, "linear.bias": layer.bias}, bert / "2_Dense/model.safetensors")
    assert len({before, encoder.space, describe_model(str(bert)).space}) == 3


def test_fewer_dimensions_are_the_first_ones_at_unit_length_and_another_space(made: Path) -> None:
    whole, cut = load(made / "left"), load(made / "left", dimensions=8)
    expected = whole.encode(TEXTS)[:, :8]
    np.testing.assert_allclose(cut.encode(TEXTS), expected / np.linalg.norm(expected, axis=1, keepdims=True), atol=2e-6)
    assert (cut.dimensions, "/last/8/raw/" in cut.space) == (8, True)
    assert load(made / "left", dimensions=SIZE).space == whole.space
    with pytest.raises(SettingsError, match=rf"encoder.dimensions = 33: .* have {SIZE}"):
        load(made / "left", dimensions=SIZE + 1)


# Prefixes.

KINDS: dict[TextKind, str] = {"query": "q: ", "document": "d: "}
PROMPTS = {"query": "Instruct: find it\nQuery:", "document": ""}


def test_prefixes_are_those_of_the_folder_and_settings_win(made: Path, tmp_path: Path) -> None:
    folder = make_qwen3(tmp_path / "m", prompts=PROMPTS)
    info = describe_model(str(folder))
    assert (info.prefix("query"), info.prefix("document")) == (PROMPTS["query"], "")
    chosen = EncoderSettings(model=str(folder), query_prefix="", document_prefix="passage: ")
    info = describe_model(chosen)
    assert (info.prefix("query"), info.prefix("document")) == ("", "passage: ")


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ({}, ("", "")),
        ({"prompts": {"passage": "p: "}}, ("", "p: ")),
        ({"prompts": {"query": "q: ", "all": "a: "}, "default_prompt_name": "all"}, ("q: ", "a: ")),
    ],
)
def test_prompts_of_any_naming_are_understood(bert: Path, content: object, expected: tuple[str, str]) -> None:
    write_json(bert / "config_sentence_transformers.json", content)
    info = describe_model(str(bert))
    assert (info.query_prefix, info.document_prefix) == expected


def test_only_the_prefix_of_documents_is_part_of_the_space(made: Path) -> None:
    def space(**settings: str) -> str:
        return describe_model(EncoderSettings(model=str(made / "mean"), **settings)).space

    assert space() == space(query_prefix="query: ") == space(document_prefix="") != space(document_prefix="passage: ")


def test_where_texts_are_cut_is_part_of_the_space(made: Path) -> None:
    def space(**settings: Any) -> str:
        return describe_model(EncoderSettings(**settings)).space

    assert len({space(), space(max_tokens=64), space(max_tokens=256)}) == 3
    assert space() == space(max_tokens=128) == MINILM_SPACE
    # It reads 256 tokens, whatever is asked for beyond; the other model 64, which is less than the usual limit.
    assert space(max_tokens=256) == space(max_tokens=512)
    small = str(made / "mean")
    assert space(model=small) == space(model=small, max_tokens=64) == space(model=small, max_tokens=512)
    assert space(model=small) != space(model=small, max_tokens=63)
    assert load(made / "mean", max_tokens=63).space == space(model=small, max_tokens=63)


def test_a_prefix_takes_no_tokens_from_the_text(made: Path) -> None:
    """The byte-level model has a token per letter, so 16 tokens are 15 letters and the end of text."""
    encoder = load(made / "left", max_tokens=16, query_prefix="query: ")
    cut, longer, shorter = encoder.encode(
        ["query: " + "abcdefghijklmno" + more for more in ("", "pqrst")] + ["query: a"]
    )
    np.testing.assert_allclose(cut, longer, atol=2e-6)
    np.testing.assert_allclose(cut, plainly(made / "left", ["query: abcdefghijklmno"], "last")[0], atol=2e-6)
    assert cut @ shorter < 0.999
    document, cut_document = encoder.encode(["abcdefghijklmno", "abcdefghijklmnopqrst"])
    np.testing.assert_allclose(document, cut_document, atol=2e-6)


def test_a_prefix_that_fills_the_model_is_refused(made: Path) -> None:
    with pytest.raises(SettingsError, match=r"60 tokens.*reads 64.*encoder.query_prefix"):
        load(made / "mean", query_prefix="q" * 60)


# Where models are found.


def test_the_space_of_minilm_is_what_stored_vectors_say() -> None:
    assert describe_model("minilm").space == describe_model(EncoderSettings()).space == MINILM_SPACE


@pytest.fixture
def cache(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A Hugging Face cache that holds acme/tiny at main."""
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub._snapshot_download.HF_HUB_CACHE", str(tmp_path), raising=False)
    repository = tmp_path / "models--acme--tiny"
    commit = "0123456789abcdef0123456789abcdef01234567"
    shutil.copytree(made / "mean", repository / "snapshots" / commit)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(commit)
    return tmp_path


def test_a_model_in_the_hugging_face_cache_is_found_by_its_name(cache: Path, made: Path) -> None:
    info = describe_model("acme/tiny")
    assert info.space.startswith("acme-tiny/mean/32/raw/")
    assert info.space.rpartition("/")[2] == describe_model(str(made / "mean")).space.rpartition("/")[2]
    commit = info.folder.name
    assert describe_model(f"acme/tiny@{commit}").space == info.space


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("acme/other", "hf download acme/other"),
        ("acme/tiny@v2", "hf download acme/tiny --revision v2"),
        ("/no/such/folder", r"encoder.model = '/no/such/folder': there is no such folder; set it to .*hf download"),
        ("./models/e5", "there is no such folder"),
        ("~/no such folder", "there is no such folder"),
        (__file__, "is a file; set encoder.model to the folder it is in"),
        ("minilm2", "multilingual"),
        ("a/b/c", "neither"),
    ],
)
def test_a_model_that_is_nowhere_is_refused_with_what_to_do(cache: Path, name: str, said: str) -> None:
    with pytest.raises(SettingsError, match=said):
        describe_model(name)


# The whole way, through a process.


async def test_what_the_settings_say_reaches_the_process(made: Path) -> None:
    chosen = EncoderSettings(
        model=str(made / "left"), pooling="mean", dimensions=8, query_prefix="q: ", document_prefix="d: ", device="cpu"
    )
    settings = chosen.model_copy(update={"precision": "float32", "max_tokens": 32})
    encoder_pool = EncoderPool(settings)
    await encoder_pool.start()
    await encoder_pool.ready()  # which may take longer than a query waits
    try:
        # A process with another vector space would be refused; the vectors say the rest.
        for kind, prefix in KINDS.items():
            vectors = await encoder_pool.encode(["mug", "lamp"], Priority.QUERY, kind=kind)
            expected = plainly(made / "left", [f"{prefix}mug", f"{prefix}lamp"], "mean")[:, :8]
            expected /= np.linalg.norm(expected, axis=1, keepdims=True)
            np.testing.assert_allclose(vectors, expected, atol=2e-6)
    finally:
        await encoder_pool.close()


def test_an_evaluation_encodes_items_and_what_users_say_as_live_processes_do(made: Path, tmp_path: Path) -> None:
    said = Interaction(event_id="1", user_id="u", type="search", text="mug", occurred_at=datetime.now(UTC))
    log = Log(name="t", items=[Item(item_id="a", title="Blue mug")], interactions=[said])
    chosen = {"model": str(made / "mean"), "query_prefix": "q: ", "document_prefix": "d: ", "precision": "float32"}
    encoded = encode_log(log, Settings(encoder=EncoderSettings(**chosen, device="cpu")), cache=tmp_path)
    item, text = plainly(made / "mean", ["d: " + item_text(log.items[0]), "q: mug"], "mean", max_tokens=64)
    np.testing.assert_allclose(encoded.items["a"], item, atol=2e-6)
    np.testing.assert_allclose(encoded.texts["mug"], text, atol=2e-6)


async def test_what_only_loading_shows_ends_the_pool_with_the_reason(bert: Path) -> None:
    change_json("config.json", num_hidden_layers=3)(bert)
    encoder_pool = EncoderPool(EncoderSettings(model=str(bert), device="cpu"))
    await encoder_pool.start()
    try:
        with pytest.raises(SettingsError, match=r"encoder.model = .*16 weights missing.*fetch the model again"):
            await encoder_pool.ready()
    finally:
        await encoder_pool.close()


# Folders that are wrong. Those seen from the small files are refused before torch is imported.


def change_json(file: str, **changes: object) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        path = folder / file
        content = json.loads(path.read_text()) if path.is_file() else {}
        write_json(path, {**content, **changes})

    return change


def only_pickled(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")


def a_part_missing(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "model-00001-of-00002.safetensors")
    parts = {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}
    write_json(folder / "model.safetensors.index.json", {"weight_map": parts})


def modules(*types: str) -> Callable[[Path], None]:
    return lambda folder: write_json(
        folder / "modules.json", [{"type": kind, "path": f"{n}_{kind}"} for n, kind in enumerate(types)]
    )


ST = "sentence_transformers.models."


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda folder: (folder / "tokenizer.json").unlink(), "no tokenizer"),
        (only_pickled, r"pytorch_model.bin.*run code.*convert"),
        (a_part_missing, r"1 parts of the weights are missing.*model-00002-of-00002"),
        (
            lambda folder: (folder / "model.safetensors").rename(folder / "part.safetensors"),
            "neither model.safetensors",
        ),
        (change_json("model.safetensors.index.json", weight_map=[]), "no weight_map"),
        (change_json("config.json", auto_map={"AutoModel": "modeling.Mine"}), "auto_map"),
        (change_json("tokenizer_config.json", auto_map={"AutoTokenizer": ["t.Mine", None]}), "auto_map"),
        (change_json("config.json", is_encoder_decoder=True), "encoder with a decoder"),
        (change_json("config.json", hidden_size="32"), "no hidden_size"),
        (change_json("adapter_config.json", peft_type="LORA"), "adapter"),
        (modules("custom_st.Transformer", f"{ST}Pooling"), "no foreign code"),
        (modules(f"{ST}Transformer"), "not supported"),
        (modules(f"{ST}Transformer", f"{ST}Pooling", f"{ST}Normalize", f"{ST}Dense"), "not supported"),
        (modules(f"{ST}Transformer", f"{ST}Pooling", f"{ST}LSTM"), "LSTM"),
        (change_json("1_Pooling/config.json", pooling_mode_cls_token=True), r"cls_token.*mean_tokens"),
        (change_json("1_Pooling/config.json", include_prompt=False), "prefix out of the pooling"),
        (change_json("config_sentence_transformers.json", prompts=["query"]), "not texts by name"),
        (change_json("config_sentence_transformers.json", default_prompt_name="x"), "default_prompt_name 'x'"),
    ],
)
def test_a_folder_that_is_wrong_is_refused_from_its_small_files(
    bert: Path, change: Callable[[Path], None], said: str
) -> None:
    describe_model(str(bert))
    change(bert)
    with pytest.raises(SettingsError, match=said):
        describe_model(str(bert))


def test_a_part_that_is_a_link_to_nowhere_is_refused(made: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(made / "parts", tmp_path / "parts")
    part = min(folder.glob("*.safetensors"))
    part.unlink()
    part.symlink_to("blob")
    with pytest.raises(SettingsError, match=rf"{part.name}.*in {folder} are links to files that are not there.*fetch"):
        describe_model(str(folder))


@pytest.mark.skipif(sys.platform != "linux", reason="needs a file that opens and cannot be read")
def test_a_file_that_cannot_be_read_is_refused(bert: Path) -> None:
    (bert / "vocab.txt").unlink(missing_ok=True)
    (bert / "vocab.txt").symlink_to("/proc/self/mem")
    with pytest.raises(SettingsError, match=r"cannot be read: .*fetch the model again"):
        describe_model(str(bert))


def test_weights_that_this_user_may_not_read_are_not_said_to_be_missing(
    bert: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As the test after this one for whoever may read everything."""
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path).name != "model.safetensors")
    with pytest.raises(SettingsError, match=r"model\.safetensors cannot be read; let this user read it"):
        describe_model(str(bert))


@pytest.mark.parametrize("closed", ["model.safetensors", "."])
def test_what_this_user_may_not_read_is_refused(bert: Path, closed: str) -> None:
    (bert / closed).chmod(0)
    try:
        if os.access(bert / closed, os.R_OK):
            pytest.skip("nothing is closed to this user")
        with pytest.raises(SettingsError, match=rf"{bert}.*cannot be read"):
            describe_model(str(bert))
    finally:
        (bert / closed).chmod(0o700)


@pytest.mark.parametrize("name", ["~no-such-user/model", "x" * 5_000])
def test_a_name_that_cannot_be_a_path_is_refused(name: str) -> None:
    with pytest.raises(SettingsError, match=r"encoder.model = "):
        describe_model(name)


@pytest.mark.parametrize(
    ("limits", "expected"),
    [
        ({}, 64),
        ({"model_type": "xlm-roberta", "pad_token_id": 1}, 62),  # positions are counted from 2 on
        ({"max_position_embeddings": 16}, 16),
        ({"max_position_embeddings": None}, 64),  # the tokenizer's
    ],
)
def test_the_token_limit_is_the_least_of_those_the_folder_names(
    bert: Path, limits: dict[str, object], expected: int
) -> None:
    change_json("config.json", **limits)(bert)
    assert describe_model(str(bert)).max_tokens == expected


def test_texts_are_made_lower_case_where_the_folder_says_so(qwen3: Path) -> None:
    before = describe_model(str(qwen3)).space
    change_json("sentence_bert_config.json", do_lower_case=True)(qwen3)
    encoder = load(qwen3)
    np.testing.assert_allclose(encoder.encode(["MUG"]), plainly(qwen3, ["mug"], "last"), atol=2e-6)
    assert encoder.space != before


def test_a_decoder_that_does_not_say_its_pooling_needs_the_setting(qwen3: Path) -> None:
    (qwen3 / "modules.json").unlink()
    shutil.rmtree(qwen3 / "1_Pooling")
    with pytest.raises(SettingsError, match=r"set encoder\.pooling"):
        describe_model(str(qwen3))
    np.testing.assert_allclose(load(qwen3, pooling="last").encode(TEXTS), plainly(qwen3, TEXTS, "last"), atol=2e-6)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (change_json("2_Dense/config.json", in_features=99), "99 to 12 dimensions, but gets 32"),
        (change_json("2_Dense/config.json", activation_function="torch.nn.GELU"), "GELU"),
        (lambda folder: (folder / "2_Dense/model.safetensors").unlink(), "no model.safetensors in .*2_Dense"),
        (change_json("2_Dense/config.json", out_features=13), r"holds .*12.* says .*13"),
        (change_json("2_Dense/config.json", bias=False), "linear.bias"),
    ],
)
def test_a_dense_layer_that_does_not_fit_is_refused(bert: Path, change: Callable[[Path], None], said: str) -> None:
    add_dense(bert, outputs=12)
    change(bert)
    with pytest.raises(SettingsError, match=said):
        load(bert)


def cut_off(folder: Path) -> None:
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (cut_off, r"model.safetensors is cut off or damaged .*; fetch it again"),
        (lambda folder: (folder / "model.safetensors").write_bytes(b"{}"), "cut off or damaged"),
        (
            change_json("config.json", hidden_size=48),
            r"word_embeddings.weight is \[193, 32\] and has to be \[193, 48\];",
        ),
        (
            change_json("config.json", vocab_size=500),
            r"word_embeddings.weight is \[193, 32\] and has to be \[500, 32\]",
        ),
    ],
)
def test_weights_that_are_seen_to_be_wrong_without_torch_are_refused_before_any_process_starts(
    bert: Path, change: Callable[[Path], None], said: str
) -> None:
    change(bert)
    with pytest.raises(SettingsError, match=rf"encoder.model = '{bert}'.*{said}"):
        describe_model(str(bert))


@pytest.mark.parametrize("kind", ["left", "xlm-roberta", "mpnet", "modernbert", "gemma3"])
def test_the_table_of_embeddings_is_known_of_each_family(made: Path, tmp_path: Path, kind: str) -> None:
    folder = shutil.copytree(made / kind, tmp_path / kind)
    change_json("config.json", vocab_size=7)(folder)
    with pytest.raises(SettingsError, match=r"is \[\d+, 32\] and has to be \[7, 32\]"):
        describe_model(str(folder))


def test_every_tensor_s_shape_is_looked_at_without_loading_any(bert: Path) -> None:
    """Of a model that no machine could hold."""
    assert check_weights(str(bert)) == describe_model(str(bert))
    change_json("config.json", max_position_embeddings=10**13, intermediate_size=96)(bert)
    named = r"embeddings.position_embeddings.weight is \[64, 32\] and has to be \[10000000000000, 32\]"
    inner = r"encoder.layer.0.intermediate.dense.bias is \[64\] and has to be \[96\]"
    with pytest.raises(SettingsError, match=rf"encoder.model = '{bert}'.*{named}, {inner}.* and 4 more; .*fetch"):
        check_weights(str(bert))
    with pytest.raises(SettingsError, match=named):
        load(bert)


@pytest.mark.parametrize("kind", ["mean", "left", "parts", "xlm-roberta", "mpnet", "modernbert", "gemma3"])
def test_weights_that_fit_are_not_refused_for_their_shapes(made: Path, kind: str) -> None:
    check_weights(str(made / kind))


def test_shapes_of_a_checkpoint_with_a_head_on_top_are_looked_at_too(bert: Path) -> None:
    weights = load_file(bert / "model.safetensors")
    with_head = {f"bert.{name}": weight for name, weight in weights.items()}
    save_file(with_head | {"cls.bias": torch.zeros(3)}, bert / "model.safetensors", metadata={"format": "pt"})
    assert check_weights(str(bert)).dimensions == SIZE
    change_json("config.json", intermediate_size=96)(bert)
    with pytest.raises(SettingsError, match=r"layer.0.intermediate.dense.bias is \[64\] and has to be \[96\]"):
        check_weights(str(bert))


def change_weights(change: Callable[[dict[str, torch.Tensor]], None]) -> Callable[[Path], None]:
    def changed(folder: Path) -> None:
        weights = load_file(folder / "model.safetensors")
        change(weights)
        save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})

    return changed


def renamed(folder: Path) -> None:
    """As in old checkpoints, whose names transformers changes on loading; and of another shape."""
    weights = load_file(folder / "model.safetensors")
    del weights["embeddings.LayerNorm.weight"]
    weights["embeddings.LayerNorm.gamma"] = torch.zeros(7)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


DAMAGED = r"tokenizer in .* cannot be loaded: tokenizer.json is damaged .*; fetch the model's tokenizer again"


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (cut_off, r"model.safetensors is cut off or damaged"),
        (lambda folder: (folder / "model.safetensors").write_bytes(b"{}"), "cut off or damaged"),
        (change_weights(lambda weights: weights.pop("encoder.layer.1.output.dense.weight")), "1 weights missing"),
        (change_weights(dict.clear), "weights missing"),
        (
            change_weights(lambda w: w.update({"embeddings.word_embeddings.weight": torch.zeros(193, 16)})),
            r"embeddings.word_embeddings.weight is \[193, 16\] and has to be \[193, 32\]",
        ),
        (
            change_weights(lambda w: w.update({"encoder.layer.1.output.dense.bias": torch.zeros(7)})),
            r"encoder.layer.1.output.dense.bias is \[7\] and has to be \[32\]",
        ),
        (renamed, r"embeddings.LayerNorm.weight is \[7\] and has to be \[32\]"),
        (change_json("config.json", num_hidden_layers=3), "weights missing"),
        (change_json("config.json", hidden_size=48), r"is \[193, 32\] and has to be \[193, 48\]"),
        (change_json("config.json", model_type="never-heard-of"), "never-heard-of"),
        (lambda folder: (folder / "tokenizer.json").write_text("{}"), DAMAGED),
        (lambda folder: (folder / "tokenizer.json").write_text('{"version": "1.0", '), DAMAGED),
        (change_json("tokenizer.json", model={"type": "Unheard"}), DAMAGED),
    ],
)
def test_weights_that_are_not_the_model_s_are_refused_and_never_made_up(
    bert: Path, change: Callable[[Path], None], said: str
) -> None:
    change(bert)
    with pytest.raises(SettingsError, match=rf"encoder.model = '{bert}'.*{said}"):
        load(bert)


def test_a_damaged_tokenizer_is_refused_where_tokens_are_only_counted(bert: Path) -> None:
    (bert / "tokenizer.json").write_text("{}")
    with pytest.raises(SettingsError, match=rf"encoder.model = '{bert}'.*{DAMAGED}"):
        ModelTokens(EncoderSettings(model=str(bert)))


def test_a_tokenizer_with_more_tokens_than_the_model_has_embeddings_is_refused(bert: Path) -> None:
    tokenizer = json.loads((bert / "tokenizer.json").read_text())
    tokenizer["model"]["vocab"]["mug"] = 5_000
    write_json(bert / "tokenizer.json", tokenizer)
    with pytest.raises(SettingsError, match=r"tokens up to 5000, and the model embeddings for 193"):
        load(bert)


def test_a_pooler_that_was_not_saved_is_not_missed(made: Path) -> None:
    """It is not used, and most folders of encoders lack it."""
    assert not any("pooler" in name for name in load_file(made / "mean" / "model.safetensors"))
    load(made / "mean")


@pytest.mark.parametrize("error", [torch.OutOfMemoryError("CUDA out of memory"), MemoryError("all gone")])
def test_no_room_on_the_device_says_what_to_do(made: Path, monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    def full(*_: object) -> None:
        raise error

    monkeypatch.setattr(torch.nn.Module, "to", full)
    with pytest.raises(SettingsError, match=r"no room on cpu .* free the device or set another encoder.device"):
        load(made / "mean")


@pytest.mark.parametrize("device", ["cuda:63", "cuda"])
def test_a_device_that_is_not_there_is_refused(made: Path, monkeypatch: pytest.MonkeyPatch, device: str) -> None:
    monkeypatch.setattr(torch, "cuda", SimpleNamespace(is_available=lambda: False, device_count=lambda: 0))
    with pytest.raises(SettingsError, match=rf"encoder.device = '{device}'.*cpu or auto"):
        load(made / "mean", device=device)


def test_a_model_without_finite_vectors_is_refused(bert: Path) -> None:
    change_weights(lambda weights: weights["embeddings.LayerNorm.weight"].fill_(float("nan")))(bert)
    with pytest.raises(SettingsError, match="no finite vectors in float32"):
        load(bert)
