"""How many tokens a model makes of a text, and how much of it the model reads; without the model itself."""

from __future__ import annotations

import os

# As in ``transformer.py``: nothing is looked up on the network.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TRANSFORMERS_OFFLINE"] = "1"
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

from transformers import AutoTokenizer

from stream_app.errors import SettingsError
from workers.folders import MULTILINGUAL
from workers.models import describe_model

__all__ = ["ModelTokens"]


class ModelTokens:
    """The tokenizer of a model, used as its encoder processes use it.

    Args:
        model: as the setting ``encoder.model``.
        max_tokens: as the setting ``encoder.max_tokens``; the model may read less.

    Raises:
        SettingsError: when there is no such model, or its tokenizer cannot be used here.
    """

    def __init__(self, model: str, *, max_tokens: int) -> None:
        info = describe_model(model)
        if info.name == MULTILINGUAL:
            raise SettingsError(
                f"encoder.model = {model!r}: its package does not count tokens; they can only be estimated here"
            )
        self.max_tokens = min(max_tokens, info.max_tokens)
        try:
            self._tokenizer = AutoTokenizer.from_pretrained(
                info.folder, local_files_only=True, trust_remote_code=False, use_fast=True
            )
        except (OSError, ValueError) as error:
            raise SettingsError(f"encoder.model = {model!r}: its tokenizer cannot be loaded: {error}") from error
        self._tokenizer.truncation_side = "right"
        if not self._tokenizer.is_fast:
            raise SettingsError(f"encoder.model = {model!r}: its tokenizer does not say which characters a token is of")

    def read(self, text: str) -> tuple[int, int]:
        """How many tokens ``text`` has, those the model adds included, and how many of its characters are read."""
        found = self._tokenizer(text, truncation=False, return_offsets_mapping=True, verbose=False)
        tokens = len(found["input_ids"])
        if tokens <= self.max_tokens:
            return tokens, len(text)
        kept = self._tokenizer(
            text, truncation=True, max_length=self.max_tokens, return_offsets_mapping=True, verbose=False
        )
        return tokens, max((end for _, end in kept["offset_mapping"]), default=0)
