"""Small model folders, made by the tests: random weights, the tokenizer of the shipped model."""

from __future__ import annotations

import shutil
from pathlib import Path

from workers.models import describe_model

__all__ = ["tiny_bert"]


def tiny_bert(folder: Path, *, seed: int = 0, hidden: int = 32) -> Path:
    """A BERT of one layer in ``folder``, which is made. Imports torch."""
    import torch
    from transformers import BertConfig, BertModel

    source = describe_model("minilm").folder
    folder.mkdir(parents=True)
    for name in ("tokenizer.json", "tokenizer_config.json", "vocab.txt", "special_tokens_map.json"):
        if (source / name).is_file():
            shutil.copy(source / name, folder / name)
    torch.manual_seed(seed)
    config = BertConfig(
        vocab_size=30_522,
        hidden_size=hidden,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=2 * hidden,
        max_position_embeddings=128,
    )
    BertModel(config).save_pretrained(folder, safe_serialization=True)
    return folder
