"""Personal data taken out of text before it leaves the process: e-mail addresses, telephone and card numbers.

What is masked is replaced by a word in brackets, so that a sentence stays one ("write to [email]"). It is looked for as
a reader sees the text (:mod:`stream_app.textify.folding`): in the letters and digits of any script. All masks take time
linear in the text.

    mask("Call +45 31 22 11 00 or mail anna@example.org")  ->  "Call [phone] or mail [email]"
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Final

from stream_app.textify.emails import email_spans
from stream_app.textify.folding import folded, replaced
from stream_app.textify.numbers import called_phone_spans, card_spans, phone_spans

__all__ = ["MASKS", "Mask", "Masks", "mask", "pattern_mask"]

Mask = Callable[[str], str]
"""Takes a text and returns it without something: a hook for what else is personal somewhere."""
Masks = Sequence[Mask]


def mask(text: str, masks: Masks | None = None) -> str:
    """``text`` without what the masks know (:data:`MASKS` by default), one after the other."""
    for one in MASKS if masks is None else masks:
        text = one(text)
    return text


def pattern_mask(name: str, pattern: str) -> Mask:
    """A mask that replaces whatever matches a regular expression by ``[name]``.

    Raises:
        ValueError: when the pattern is not a regular expression, or matches the empty text.
    """
    try:
        compiled = re.compile(pattern)
    except re.error as error:
        raise ValueError(f"mask {name!r}: {pattern!r} is not a regular expression: {error}") from error
    if compiled.match(""):
        raise ValueError(f"mask {name!r}: {pattern!r} matches the empty text, which would mask everything")
    word = f"[{name}]"
    # Not within what it put there before: a text may be masked twice.
    return lambda text: word.join(compiled.sub(lambda _: word, piece) for piece in text.split(word))


def _emails(text: str) -> str:
    return replaced(text, email_spans(folded(text)), "[email]")


def _cards(text: str) -> str:
    return replaced(text, card_spans(folded(text)), "[card]")


def _phones(text: str) -> str:
    text = replaced(text, called_phone_spans(folded(text)), "[phone]")
    return replaced(text, phone_spans(folded(text)), "[phone]")


MASKS: Final[tuple[Mask, ...]] = (_emails, _cards, _phones)
"""What is masked unless other masks are given."""
