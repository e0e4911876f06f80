"""A model's tokenizer, loaded with transformers. No code from the folder is run, nothing is looked up elsewhere."""

from __future__ import annotations

import workers.environment  # noqa: F401 - before torch and transformers

# isort: split
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer
from transformers import AutoTokenizer

from workers.layout import TOKENIZERS
from workers.models import ModelInfo

__all__ = ["load_tokenizer"]

_FAST = "tokenizer.json"


def load_tokenizer(info: ModelInfo) -> Any:
    """The tokenizer in the model's folder. It cuts on the right, whatever the folder says: texts have the parts that
    count first, and prefixes stay.

    Raises:
        SettingsError: when it cannot be loaded; names the file that is damaged.
    """
    try:
        tokenizer = AutoTokenizer.from_pretrained(
            info.folder, local_files_only=True, trust_remote_code=False, use_fast=True
        )
    except Exception as error:  # a folder may be wrong in ways that transformers does not foresee
        raise info.refusal(
            f"the tokenizer in {info.folder} cannot be loaded: {_blamed(info.folder)} ({error!r}); fetch the model's "
            "tokenizer again"
        ) from error
    tokenizer.truncation_side = "right"
    return tokenizer


def _blamed(folder: Path) -> str:
    """What is wrong: the fast tokenizer's file can be read by itself, others only together."""
    if (folder / _FAST).is_file():
        try:
            Tokenizer.from_file(str(folder / _FAST))
        except Exception as error:  # tokenizers raises nothing more precise
            return f"{_FAST} is damaged or of no kind that tokenizers reads ({error})"
    found = [file for file in (*TOKENIZERS, "tokenizer_config.json") if (folder / file).is_file()]
    return f"one of {', '.join(found)} is damaged, or they do not belong together"
