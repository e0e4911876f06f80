"""Raw catalogue and user text made plain: no markup, no control characters, one space between words.

Every expression here runs in time linear in its input: each alternative either fails at its first characters or
consumes what it looked at (an unclosed comment reaches to the end), so hostile input costs no more than kind input.
"""

from __future__ import annotations

import re
import unicodedata
from html import unescape

__all__ = ["clean", "clip", "shortened"]

# Elements whose content is not prose, then comments, declarations and tags.
_MARKUP = re.compile(
    r"<(?P<skipped>script|style|head|template)\b.*?(?:</(?P=skipped)\s*>|\Z)"
    r"|<!--.*?(?:-->|\Z)"
    r"|<!\[CDATA\[|\]\]>"
    r"|<[!?][^<>]*>"
    r"|</?(?P<tag>[a-z][a-z0-9:-]*)(?:[\s/][^<>]*)?>",
    re.IGNORECASE | re.DOTALL,
)
# These stand inside words and phrases ("H<sub>2</sub>O"); every other tag separates words.
_INLINE = frozenset(
    ("a", "abbr", "b", "em", "font", "i", "mark", "q", "s", "small", "span", "strong", "sub", "sup", "u")
)
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]+")
# Soft hyphen, zero-width space, direction marks, byte order mark, surrogates and private use: not seen by a reader.
# The zero-width joiners stay: emoji, Persian and Indic scripts spell with them.
_INVISIBLE = re.compile(
    "[\u00ad\u061c\u200b\u200e\u200f\u202a-\u202e\u2060-\u2064\u2066-\u206f\ud800-\udfff\ue000-\uf8ff\ufeff\ufff9-\ufffb]+"
)
_WHITESPACE = re.compile(r"\s+")
_LONGEST_WORD = 256
"""Text without spaces for so long (Chinese, Japanese) is cut where it is."""
_FEED_ESCAPES = 2
"""Shop feeds are often escaped twice: markup as entities inside markup."""


def clean(text: str) -> str:
    """``text`` without HTML, control and invisible characters, in Unicode form C, whitespace collapsed.

    Comparison signs survive ("5 < 6", "I <3 you"): a tag needs a letter after its bracket.
    """
    for _ in range(_FEED_ESCAPES):
        if "&" in text:
            text = unescape(text)
        if "<" in text:
            text = _MARKUP.sub(_replacement, text)
    text = _INVISIBLE.sub("", _CONTROL.sub(" ", text))
    return _WHITESPACE.sub(" ", unicodedata.normalize("NFC", text)).strip()


def clip(text: str, max_chars: int) -> str:
    """``text`` cut to at most ``max_chars`` characters, at a space when one lies in the last third.

    Text without spaces (Chinese, Japanese, a very long word) is cut where it is.
    """
    if len(text) <= max_chars:
        return text
    cut = text[: max_chars + 1].rfind(" ")
    return text[: cut if cut > max_chars * 2 // 3 else max_chars].rstrip()


def shortened(text: str, max_chars: int) -> str:
    """The beginning of a long text, before it is cleaned: at most ``max_chars`` characters, and no part of a word or
    number that goes on. Half an address or a telephone number would not be known for one."""
    if len(text) <= max_chars:
        return text
    cut = max(text.rfind(space, 0, max_chars + 1) for space in (" ", "\n", "\t", ">"))
    return text[: cut + 1 if cut >= max_chars - _LONGEST_WORD else max_chars]


def _replacement(match: re.Match[str]) -> str:
    return "" if (match["tag"] or "").lower() in _INLINE else " "
