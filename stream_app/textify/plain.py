"""What every text goes through before anything else is made of it."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache, lru_cache

from stream_app.textify.clean import clean
from stream_app.textify.masking import MASKS, Mask, Masks, mask
from stream_app.textify.prompts import Prompts, PromptWords
from stream_app.textify.templates import Language, load_languages

__all__ = ["plain", "prompt_mask", "without_prompts"]

_KEPT_PROMPTS = 8
_MOST_ROUNDS = 8


def plain(text: str, masks: Masks | None = None) -> str:
    """``text`` without markup and characters nobody sees (:mod:`stream_app.textify.clean`), and without what ``masks``
    take out.

    What is taken out may bring together what it kept apart (a tag in two halves, an order in an order), so it is done
    until nothing changes, at most eight times: what is nested deeper keeps its core.

    Args:
        text: any.
        masks: one after the other, the first of which sees lines apart; None: what speaks to the model in the words of
            the languages that are shipped (:mod:`stream_app.textify.prompts`), and personal data
            (:data:`stream_app.textify.masking.MASKS`).
    """
    masks = _usual() if masks is None else masks
    for _ in range(_MOST_ROUNDS if text else 0):
        before, text = text, " ".join(mask(clean(text, lines=True), masks).split())
        if text == before:
            break
    return text


def without_prompts(text: str) -> str:
    """``text``, cleaned before, without what speaks to the model in the languages that are shipped."""
    return prompt_mask(load_languages())(text)


def prompt_mask(languages: Mapping[str, Language]) -> Mask:
    """A mask of what speaks to the model in the words of any of ``languages``."""
    return _prompts(tuple(language.prompts for language in languages.values())).without


@lru_cache(maxsize=_KEPT_PROMPTS)
def _prompts(words: tuple[PromptWords, ...]) -> Prompts:
    return Prompts(words)


@cache
def _usual() -> Masks:
    return (prompt_mask(load_languages()), *MASKS)
