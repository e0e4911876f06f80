"""How a model's folder says its vectors are made: pooling, dense layers, prefixes, limits; no weights are read.

The layout is that of sentence-transformers (``modules.json``, a folder per module, prompts in a file of their own) or
plain transformers (``config.json`` only). What is not understood is refused: a wrong pooling or a layer left out gives
vectors that look fine and rank badly.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from workers.folders import ModelFolder

__all__ = ["TOKENIZERS", "Activation", "DenseLayer", "Layout", "Pooling", "read_layout"]

Pooling = Literal["mean", "cls", "last"]
Activation = Literal["identity", "tanh"]

_POOLINGS: Mapping[str, Pooling] = {
    "mean_tokens": "mean",
    "mean": "mean",
    "cls_token": "cls",
    "cls": "cls",
    "lasttoken": "last",
}
_MODULES = re.compile("Transformer Pooling( Dense)*( Normalize)?")
_ACTIVATIONS: Mapping[str, Activation] = {"Identity": "identity", "Tanh": "tanh"}
TOKENIZERS = (
    "tokenizer.json",
    "vocab.txt",
    "vocab.json",
    "tokenizer.model",
    "spiece.model",
    "sentencepiece.bpe.model",
)
"""The files of a tokenizer; a folder has one of them at least."""
_SIZES = ("hidden_size", "dim", "n_embd", "d_model")
"""What the length of a token's vector is called in ``config.json`` of different architectures."""
_POSITIONS_AFTER_PADDING = frozenset(("roberta", "xlm-roberta", "xlm-roberta-xl", "camembert", "mpnet", "longformer"))
"""These count positions from the padding token's id on, so fewer remain than ``max_position_embeddings`` says."""
_DEFAULT_MAX_TOKENS = 512


@dataclass(frozen=True, kw_only=True)
class DenseLayer:
    """A linear layer after the pooling: weights float [out_features, in_features] in ``file``."""

    file: Path
    config: Path
    in_features: int
    out_features: int
    bias: bool
    activation: Activation


@dataclass(frozen=True, kw_only=True)
class Layout:
    """What follows the transformer.

    Attributes:
        pooling: which tokens' vectors make the text's.
        dense: layers applied to it, in order.
        dimensions: length of the vector in the end.
        max_tokens: the most the model reads of one text, special tokens included.
        lowercase: whether texts are made lower case before the tokenizer gets them.
        query_prefix, document_prefix: what the model was trained to see before each kind of text.
    """

    pooling: Pooling
    dense: tuple[DenseLayer, ...]
    dimensions: int
    max_tokens: int
    lowercase: bool
    query_prefix: str
    document_prefix: str


def read_layout(folder: ModelFolder, pooling: Pooling | Literal["auto"] = "auto") -> Layout:
    """The layout of the model in ``folder``; ``pooling`` other than auto is taken as the user's better knowledge.

    Raises:
        SettingsError: when the folder asks for code of its own, lacks a tokenizer, or holds what Tailrace does not
            compute.
    """
    config = folder.read_object("config.json")
    _refuse_foreign(folder, config)
    if not any(folder.has(file) for file in TOKENIZERS):
        raise folder.refusal(f"no tokenizer in {folder.path} ({', '.join(TOKENIZERS[:3])}, ...); copy the model's")
    modules = _modules(folder)
    dimensions = _hidden_size(folder, config)
    dense = []
    for path in (path for kind, path in modules if kind == "Dense"):
        layer = _dense(folder, path, dimensions)
        dense.append(layer)
        dimensions = layer.out_features
    pooling_path = next((path for kind, path in modules if kind == "Pooling"), "1_Pooling")
    bert = folder.read_object("sentence_bert_config.json", optional=True)
    query, document = _prefixes(folder)
    return Layout(
        pooling=_pooling(folder, f"{pooling_path}/config.json", config) if pooling == "auto" else pooling,
        dense=tuple(dense),
        dimensions=dimensions,
        max_tokens=_max_tokens(folder, config, bert),
        lowercase=bert.get("do_lower_case") is True,
        query_prefix=query,
        document_prefix=document,
    )


def _refuse_foreign(folder: ModelFolder, config: Mapping[str, Any]) -> None:
    for file, content in (
        ("config.json", config),
        ("tokenizer_config.json", folder.read_object("tokenizer_config.json", optional=True)),
    ):
        if content.get("auto_map"):
            raise folder.refusal(
                f"{folder.path / file} asks for code from the model's folder (auto_map), and Tailrace runs none; "
                "take a model that transformers itself knows"
            )
    if config.get("is_encoder_decoder") is True:
        raise folder.refusal(f"{folder.path} holds an encoder with a decoder (as T5); take a model that is one of both")


def _modules(folder: ModelFolder) -> list[tuple[str, str]]:
    """Kind and folder of each module, in order; none where the folder does not say."""
    if not folder.has("modules.json"):
        return []
    file = folder.path / "modules.json"
    listed = folder.read("modules.json")
    if not isinstance(listed, list) or not all(isinstance(module, dict) for module in listed):
        raise folder.refusal(f"{file} is not a list of modules")
    kinds = []
    for module in listed:
        package, _, kind = str(module.get("type", "")).rpartition(".")
        if package.partition(".")[0] != "sentence_transformers":
            raise folder.refusal(
                f"module {module.get('type')!r} of {file} is not supported; Tailrace runs no foreign code"
            )
        kinds.append(kind)
    # A trained model drops nothing out. Scaling to unit length anywhere but at the end would change what follows.
    if not _MODULES.fullmatch(" ".join(kind for kind in kinds if kind != "Dropout")):
        raise folder.refusal(f"modules {kinds} of {file} are not supported (Transformer, Pooling, Dense..., Normalize)")
    return [(kind, str(module.get("path", ""))) for kind, module in zip(kinds, listed, strict=True)]


def _hidden_size(folder: ModelFolder, config: Mapping[str, Any]) -> int:
    for key in _SIZES:
        if isinstance(size := config.get(key), int) and not isinstance(size, bool) and size > 0:
            return size
    raise folder.refusal(f"config.json in {folder.path} has no hidden_size; not a text encoder?")


def _dense(folder: ModelFolder, path: str, dimensions: int) -> DenseLayer:
    file = f"{path}/config.json"
    config = folder.read_object(file)
    activation = str(config.get("activation_function", "")).rpartition(".")[2]
    if activation not in _ACTIVATIONS:
        raise folder.refusal(f"activation {activation!r} of {folder.path / file} is not supported (Identity or Tanh)")
    sizes = config.get("in_features"), config.get("out_features")
    if sizes[0] != dimensions or not isinstance(sizes[1], int) or sizes[1] < 1:
        raise folder.refusal(f"{folder.path / file} says {sizes[0]} to {sizes[1]} dimensions, but gets {dimensions}")
    if not folder.has(f"{path}/model.safetensors"):
        raise folder.refusal(f"no model.safetensors in {folder.path / path}; convert its weights to safetensors")
    return DenseLayer(
        file=folder.path / path / "model.safetensors",
        config=folder.path / file,
        in_features=dimensions,
        out_features=sizes[1],
        bias=config.get("bias", True) is True,
        activation=_ACTIVATIONS[activation],
    )


def _pooling(folder: ModelFolder, file: str, config: Mapping[str, Any]) -> Pooling:
    """The pooling the model was trained with; mean where the folder of an encoder does not say."""
    if not folder.has(file):
        architectures = config.get("architectures") or []
        # A decoder's first tokens have not seen the last ones: its mean is hardly ever what was trained.
        if "num_key_value_heads" in config or any(str(name).endswith("ForCausalLM") for name in architectures):
            raise folder.refusal(
                f"{folder.path} holds a decoder and does not say its pooling ({file}); set encoder.pooling, "
                "most often 'last'"
            )
        return "mean"
    content = folder.read_object(file)
    if content.get("include_prompt") is False:
        raise folder.refusal(f"{folder.path / file} leaves the prefix out of the pooling, which is not supported")
    modes = {
        key.removeprefix("pooling_mode_")
        for key, value in content.items()
        if key.startswith("pooling_mode_") and value is True
    }
    if isinstance(mode := content.get("pooling_mode"), str):
        modes.add(mode)
    poolings = {_POOLINGS.get(mode) for mode in modes}
    if len(poolings) == 1 and (pooling := poolings.pop()) is not None:
        return pooling
    raise folder.refusal(
        f"pooling {sorted(modes)} of {folder.path / file} is not supported (mean, cls or last token, one of them)"
    )


def _prefixes(folder: ModelFolder) -> tuple[str, str]:
    """The prefixes of queries and of documents, chosen as sentence-transformers' encode_query, encode_document do."""
    file = "config_sentence_transformers.json"
    content = folder.read_object(file, optional=True)
    prompts = content.get("prompts") or {}
    if not isinstance(prompts, dict) or not all(isinstance(prompt, str) for prompt in prompts.values()):
        raise folder.refusal(f"prompts in {folder.path / file} are not texts by name")
    default = content.get("default_prompt_name")
    if default is not None and default not in prompts:
        raise folder.refusal(f"default_prompt_name {default!r} in {folder.path / file} is none of {sorted(prompts)}")
    otherwise: str = "" if default is None else prompts[default]
    query: str = prompts.get("query", otherwise)
    document = next((prompts[name] for name in ("document", "passage", "corpus") if name in prompts), otherwise)
    return query, document


def _max_tokens(folder: ModelFolder, config: Mapping[str, Any], bert: Mapping[str, Any]) -> int:
    positions = config.get("max_position_embeddings")
    if config.get("model_type") in _POSITIONS_AFTER_PADDING and isinstance(positions, int):
        padding = config.get("pad_token_id")
        positions -= 1 + (padding if isinstance(padding, int) else 1)
    tokenizer = folder.read_object("tokenizer_config.json", optional=True).get("model_max_length")
    limits = (positions, tokenizer, bert.get("max_seq_length"))
    return min((limit for limit in limits if isinstance(limit, int) and limit > 0), default=_DEFAULT_MAX_TOKENS)
