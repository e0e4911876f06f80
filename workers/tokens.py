"""How many tokens a model makes of a text, and how much of it the model reads; without the model itself."""

from __future__ import annotations

import workers.environment  # noqa: F401 - before torch and transformers

# isort: split
from bisect import bisect_left
from itertools import accumulate
from typing import TYPE_CHECKING

from stream_app.errors import SettingsError
from workers.folders import MULTILINGUAL
from workers.models import describe_model
from workers.tokenizer import load_tokenizer

if TYPE_CHECKING:
    from stream_app.settings import EncoderSettings

__all__ = ["ModelTokens"]


class ModelTokens:
    """The tokenizer of a model, used as its encoder processes use it for documents.

    Args:
        settings: those of the encoder; ``max_tokens`` is the most of a text, without its prefix, and the model may read
            less.

    Attributes:
        max_tokens: the most that is read, prefix and the tokens the model adds included.

    Raises:
        SettingsError: when there is no such model, or its tokenizer cannot be used here.
    """

    def __init__(self, settings: EncoderSettings) -> None:
        info = describe_model(settings)
        if info.name == MULTILINGUAL:
            raise SettingsError(
                f"encoder.model = {info.name!r}: its package does not count tokens; they can only be estimated here"
            )
        self._tokenizer = load_tokenizer(info)
        if not self._tokenizer.is_fast:
            raise SettingsError(
                f"encoder.model = {info.name!r}: its tokenizer does not say which characters a token is of"
            )
        self._prefix = info.prefix("document")
        self._lowercase = info.lowercase
        taken = len(self._tokenizer(self._prefix, add_special_tokens=False)["input_ids"]) if self._prefix else 0
        self.max_tokens = min(settings.max_tokens + taken, info.max_tokens)

    def read(self, text: str) -> tuple[int, int]:
        """How many tokens ``text`` has, prefix and those the model adds included, and how many of its characters are
        read."""
        whole = self._prefix + text
        told = whole.lower() if self._lowercase else whole
        found = self._tokenizer(told, truncation=False, return_offsets_mapping=True, verbose=False)
        tokens = len(found["input_ids"])
        if tokens <= self.max_tokens:
            return tokens, len(text)
        kept = self._tokenizer(
            told, truncation=True, max_length=self.max_tokens, return_offsets_mapping=True, verbose=False
        )
        end = max((end for _, end in kept["offset_mapping"]), default=0)
        if len(told) != len(whole):  # a few capitals, as those of Turkish, are two characters when they are small
            end = bisect_left(list(accumulate(len(one.lower()) for one in whole)), end) + 1 if end else 0
        return tokens, max(end - len(self._prefix), 0)
