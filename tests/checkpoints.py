"""Tiny models with random weights, made by the tests: real architectures and layouts, nothing learned.

Each function writes a folder in the layout of its kind and returns it. The same seed gives the same weights.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from transformers import (
    BertConfig,
    BertModel,
    Gemma3TextConfig,
    Gemma3TextModel,
    ModernBertConfig,
    ModernBertModel,
    MPNetConfig,
    MPNetModel,
    Qwen3Config,
    Qwen3ForCausalLM,
    XLMRobertaConfig,
    XLMRobertaModel,
)

__all__ = [
    "add_dense",
    "make_bert",
    "make_gemma3",
    "make_modernbert",
    "make_mpnet",
    "make_qwen3",
    "make_xlm_roberta",
    "write_json",
]

SIZE = 32
"""Dimensions of a token's vector."""
_END = "<|endoftext|>"
_ROBERTA_TOKENS = {
    **{f"{name}_token": "<s>" for name in ("bos", "cls")},
    **{f"{name}_token": "</s>" for name in ("eos", "sep")},
    **{f"{name}_token": f"<{name}>" for name in ("pad", "unk", "mask")},
}
_SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]


def write_json(file: Path, content: object) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(content), "utf-8")


def make_bert(
    folder: Path,
    *,
    pooling: str | None = "mean_tokens",
    normalize: bool = True,
    inner: int = 64,
    tokens: int = 64,
    save: Mapping[str, Any] | None = None,
) -> Path:
    """A BERT of two layers over letters, laid out as E5 (mean) or BGE (cls); ``pooling`` None: plain transformers.
    ``inner`` numbers of each token are in memory between the two halves of a layer; it reads ``tokens`` of a text."""
    letters = [chr(code) for code in range(33, 127)]
    vocabulary = {piece: number for number, piece in enumerate([*_SPECIAL, *letters, *(f"##{one}" for one in letters)])}
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]", max_input_chars_per_word=100))  # noqa: S106
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    torch.manual_seed(1)
    config = BertConfig(
        vocab_size=len(vocabulary),
        hidden_size=SIZE,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=inner,
        max_position_embeddings=tokens,
        initializer_range=0.3,  # far from zero, so that what a token is and where it stands is seen in the vectors
    )
    BertModel(config, add_pooling_layer=False).save_pretrained(folder, **(save or {}))
    tokenizer.save(str(folder / "tokenizer.json"))
    named = {f"{name[1:-1].lower()}_token": name for name in _SPECIAL}
    write_json(
        folder / "tokenizer_config.json",
        {"tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": tokens, **named},
    )
    if pooling is not None:
        _lay_out(folder, f"pooling_mode_{pooling}", normalize=normalize)
    return folder


def make_qwen3(folder: Path, *, padding_side: str = "left", prompts: Mapping[str, str] | None = None) -> Path:
    """A Qwen3 of two layers over bytes, laid out as Qwen3-Embedding: last token, end of text added by the tokenizer."""
    tokenizer = _bytes_tokenizer([_END, "<|im_end|>"])
    end = tokenizer.token_to_id(_END)
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"$A {_END}", pair=f"$A {_END} $B {_END}", special_tokens=[(_END, end)]
    )
    torch.manual_seed(2)
    config = Qwen3Config(
        vocab_size=tokenizer.get_vocab_size(),
        hidden_size=SIZE,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        max_position_embeddings=128,
        initializer_range=0.3,
    )
    Qwen3ForCausalLM(config).save_pretrained(folder)
    tokenizer.save(str(folder / "tokenizer.json"))
    write_json(
        folder / "tokenizer_config.json",
        {
            "tokenizer_class": "Qwen2Tokenizer",
            "pad_token": _END,
            "eos_token": "<|im_end|>",
            "padding_side": padding_side,
            "model_max_length": 131_072,
        },
    )
    _lay_out(folder, "pooling_mode_lasttoken", normalize=True)
    write_json(folder / "config_sentence_transformers.json", {"prompts": prompts or {}, "default_prompt_name": None})
    return folder


def make_xlm_roberta(folder: Path, *, pooling: str = "mean_tokens") -> Path:
    """An XLM-RoBERTa of two layers over SentencePiece's unigrams, laid out as multilingual E5 (mean) or BGE-M3 (cls).

    It has 64 positions for tokens: like the real ones it counts them from 2 on, so its table has 66.
    """
    words = ["\u2581blue", "\u2581mug", "\u2581red", "\u2581lunch", "\u2581bag", "ed", "ag", "蓝色", "马克杯", "كوب"]
    letters = ["\u2581", *(chr(code) for code in range(33, 127)), *"蓝色马克杯كوبأزرق"]
    pieces = [(one, 0.0) for one in ("<s>", "<pad>", "</s>", "<unk>")]
    pieces += [(word, -2.0) for word in words] + [(letter, -8.0) for letter in dict.fromkeys(letters)]
    tokenizer = Tokenizer(models.Unigram([*pieces, ("<mask>", 0.0)], unk_id=3))
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Lowercase()])
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    tokenizer.add_special_tokens(["<s>", "<pad>", "</s>", "<unk>", "<mask>"])
    _ends(tokenizer, "<s>", "</s>")
    torch.manual_seed(4)
    config = XLMRobertaConfig(
        vocab_size=tokenizer.get_vocab_size(),
        hidden_size=SIZE,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=64,
        max_position_embeddings=66,
        type_vocab_size=1,
        pad_token_id=1,
        initializer_range=0.3,
    )
    XLMRobertaModel(config, add_pooling_layer=False).save_pretrained(folder)
    tokenizer.save(str(folder / "tokenizer.json"))
    write_json(
        folder / "tokenizer_config.json",
        {"tokenizer_class": "XLMRobertaTokenizer", "model_max_length": 512, **_ROBERTA_TOKENS},
    )
    _lay_out(folder, f"pooling_mode_{pooling}", normalize=True)
    return folder


def make_mpnet(folder: Path) -> Path:
    """An MPNet of two layers over letters, laid out as all-mpnet-base-v2: mean, relative positions beside absolute ones
    that are counted from 2 on, of which there are 64 for tokens."""
    letters = [chr(code) for code in range(33, 127)]
    named = ["<s>", "<pad>", "</s>", "[UNK]", *letters, *(f"##{one}" for one in letters), "<mask>"]
    vocabulary = {piece: number for number, piece in enumerate(named)}
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]", max_input_chars_per_word=100))  # noqa: S106
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    _ends(tokenizer, "<s>", "</s>")
    torch.manual_seed(5)
    config = MPNetConfig(
        vocab_size=len(vocabulary),
        hidden_size=SIZE,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=64,
        max_position_embeddings=66,
        pad_token_id=1,
        initializer_range=0.3,
    )
    MPNetModel(config, add_pooling_layer=False).save_pretrained(folder)
    tokenizer.save(str(folder / "tokenizer.json"))
    write_json(
        folder / "tokenizer_config.json",
        {
            "tokenizer_class": "MPNetTokenizer",
            "model_max_length": 512,
            **_ROBERTA_TOKENS,
            "unk_token": "[UNK]",
            "do_lower_case": True,
        },
    )
    _lay_out(folder, "pooling_mode_mean_tokens", normalize=True)
    return folder


def make_modernbert(folder: Path, *, pooling: str = "cls_token") -> Path:
    """A ModernBERT of four layers over bytes: the first and the last see the whole text, the others four tokens on
    either side."""
    tokenizer = _bytes_tokenizer(_SPECIAL)
    _ends(tokenizer, "[CLS]", "[SEP]")
    torch.manual_seed(6)
    config = ModernBertConfig(
        vocab_size=tokenizer.get_vocab_size(),
        hidden_size=SIZE,
        num_hidden_layers=4,
        num_attention_heads=4,
        intermediate_size=64,
        max_position_embeddings=128,
        local_attention=8,
        global_attn_every_n_layers=3,
        pad_token_id=tokenizer.token_to_id("[PAD]"),
        cls_token_id=tokenizer.token_to_id("[CLS]"),
        sep_token_id=tokenizer.token_to_id("[SEP]"),
        initializer_range=0.3,
    )
    ModernBertModel(config).save_pretrained(folder)
    tokenizer.save(str(folder / "tokenizer.json"))
    named = {f"{name[1:-1].lower()}_token": name for name in _SPECIAL}
    write_json(
        folder / "tokenizer_config.json",
        {"tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": 8_192, **named},
    )
    _lay_out(folder, f"pooling_mode_{pooling}", normalize=True)
    return folder


def make_gemma3(folder: Path) -> Path:
    """A Gemma 3 whose attention looks both ways, laid out as EmbeddingGemma: mean, a window of four tokens in every
    other layer."""
    tokenizer = _bytes_tokenizer(["<pad>", "<eos>", "<bos>", "<unk>"])
    _ends(tokenizer, "<bos>", "<eos>")
    torch.manual_seed(7)
    config = Gemma3TextConfig(
        vocab_size=tokenizer.get_vocab_size(),
        hidden_size=SIZE,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        intermediate_size=64,
        max_position_embeddings=128,
        sliding_window=4,
        layer_types=["sliding_attention", "full_attention"],
        use_bidirectional_attention=True,
        pad_token_id=tokenizer.token_to_id("<pad>"),
        eos_token_id=tokenizer.token_to_id("<eos>"),
        bos_token_id=tokenizer.token_to_id("<bos>"),
        initializer_range=0.3,
    )
    Gemma3TextModel(config).save_pretrained(folder)
    tokenizer.save(str(folder / "tokenizer.json"))
    named = {f"{name}_token": f"<{name}>" for name in ("pad", "eos", "bos", "unk")}
    write_json(
        folder / "tokenizer_config.json",
        {"tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": 2_048, "padding_side": "right", **named},
    )
    _lay_out(folder, "pooling_mode_mean_tokens", normalize=True)
    return folder


def _bytes_tokenizer(special: Sequence[str]) -> Tokenizer:
    """A token per byte."""
    vocabulary = {piece: number for number, piece in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(list(special))
    return tokenizer


def _ends(tokenizer: Tokenizer, first: str, last: str) -> None:
    """Every text begins and ends with these."""
    numbers = [(name, tokenizer.token_to_id(name)) for name in (first, last)]
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{first} $A {last}", pair=f"{first} $A {last} $B {last}", special_tokens=numbers
    )


def add_dense(folder: Path, *, outputs: int, activation: str = "torch.nn.modules.activation.Tanh") -> torch.nn.Linear:
    """A dense layer between pooling and normalisation; returns it."""
    modules = json.loads((folder / "modules.json").read_text())
    modules.insert(2, {"name": "2", "path": "2_Dense", "type": "sentence_transformers.models.Dense"})
    write_json(folder / "modules.json", modules)
    torch.manual_seed(3)
    layer = torch.nn.Linear(SIZE, outputs)
    write_json(
        folder / "2_Dense" / "config.json",
        {"in_features": SIZE, "out_features": outputs, "bias": True, "activation_function": activation},
    )
    save_file(
        {f"linear.{name}": value for name, value in layer.state_dict().items()}, folder / "2_Dense/model.safetensors"
    )
    return layer


def _lay_out(folder: Path, mode: str, *, normalize: bool) -> None:
    kinds = ["Transformer", "Pooling", *(["Normalize"] if normalize else [])]
    write_json(
        folder / "modules.json",
        [
            {"name": str(n), "path": f"{n}_{kind}" if n else "", "type": f"sentence_transformers.models.{kind}"}
            for n, kind in enumerate(kinds)
        ],
    )
    write_json(
        folder / "1_Pooling" / "config.json", {"word_embedding_dimension": SIZE, mode: True, "include_prompt": True}
    )
