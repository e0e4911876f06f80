"""How many tokens a text has, about, and texts of parts that keep within so many.

Counting exactly takes the tokenizer of the model, which belongs to its process. Where a text is made an estimate does:
what it decides is where a text ends, and the model cuts what is too long anyway. Who has the tokenizer gives it instead
(:data:`Tokens`).
"""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Callable, Iterable
from typing import NamedTuple

__all__ = ["Piece", "Tokens", "estimated_tokens", "within"]

Tokens = Callable[[str], int]
"""From a text to how many tokens it has. A longer text never has fewer."""

# Chinese, Japanese and Korean characters; words of the Latin alphabet or digits; words of another; anything else seen.
_PIECES = re.compile(
    "(?P<ideograph>[\u1100-\u11ff\u2e80-\u9fff\uac00-\ud7af\uf900-\ufaff\U00020000-\U0003ffff])"
    "|(?P<latin>[A-Za-z0-9\u00c0-\u024f]+)|(?P<other>\\w)|(?P<mark>[^\\w\\s])"
)
_LATIN_CHARS = 6
"""Of a word, one token each: 5 % more than WordPiece makes of Online Retail and of our documents."""
_BREAK = re.compile("\\s+|(?<=[\u1100-\u11ff\u2e80-\u9fff\uac00-\ud7af\uf900-\ufaff\U00020000-\U0003ffff])")


class Piece(NamedTuple):
    """A part of a text. Where it is cut more than ``least`` characters of it stay, or none: "By" alone says nothing."""

    text: str
    least: int = 0


def estimated_tokens(text: str) -> int:
    """About how many tokens WordPiece and SentencePiece vocabularies make of ``text``; linear in its length."""
    count = 0
    letters = 0
    for match in _PIECES.finditer(text):
        if match.lastgroup == "latin":
            count += 1 + (match.end() - match.start() - 1) // _LATIN_CHARS
        elif match.lastgroup == "other":
            letters += 1
        else:
            count += 1
    return count + (letters + 1) // 2


def within(parts: Iterable[Piece], sentence: str, max_tokens: int, *, ends: str = "", count: Tokens) -> str:
    """``parts`` one after the other until the budget is used; the last one ends with a whole word.

    Args:
        parts: none empty, the most important first; not looked at beyond the budget.
        sentence: what stands between two parts.
        max_tokens: the budget; 0: none.
        ends: characters taken off the end of a part that was cut.
        count: how many tokens a text has.

    Returns:
        a text of at most ``max_tokens`` tokens, as ``count`` has it.
    """
    if not max_tokens:
        return sentence.join(part.text for part in parts)
    text = ""
    for part in parts:
        before = f"{text}{sentence}" if text else ""
        if count(before + part.text) > max_tokens:
            kept = _beginning(part, before, max_tokens, count).rstrip(f"{ends} ")
            return before + kept if len(kept) > part.least else text
        text = before + part.text
    return text


def _beginning(part: Piece, before: str, most: int, count: Tokens) -> str:
    """The whole words of a part that fit behind ``before``. Where there would be no text at all, as much of the first
    word as fits: Thai has none between spaces that would."""

    def needed(place: int) -> int:
        return count(before + part.text[:place])

    words = [match.start() for match in _BREAK.finditer(part.text)]
    fits = bisect_right(words, most, key=needed)
    if fits:
        return part.text[: words[fits - 1]]
    return "" if before else part.text[: bisect_right(range(1, len(part.text)), most, key=needed)]
