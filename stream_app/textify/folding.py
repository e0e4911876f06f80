"""A text as a reader sees it, character for character: what patterns are looked for in.

Full-width letters, the digits of every script and the many dashes are the plain ones there. A place in the folded text
is the same place in the text it was made of, so what is found in the one is taken out of the other.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable
from functools import cache, lru_cache
from itertools import chain
from typing import Final

__all__ = ["folded", "replaced"]

_DASHES: Final = "\u00ad\u2010\u2011\u2012\u2013\u2014\u2015\u2043\u2212\ufe58\ufe63\uff0d"
# Scripts with small alphabets and compatibility forms; Chinese and Korean characters between them have no other form.
_LOOKED_AT: Final = ((0x80, 0x3400), (0xA600, 0xAC00), (0xF900, 0x12000), (0x16A00, 0x17000), (0x1D000, 0x20000))


def folded(text: str) -> str:
    """``text`` with every character that has a plain form of one character (NFKC, UAX #15) replaced by it, decimal
    digits of any script by 0 to 9, and dashes by ``-``. As long as ``text``."""
    return text if text.isascii() else _folded(text)


# Each mask asks for the same text.
@lru_cache(maxsize=4)
def _folded(text: str) -> str:
    return text.translate(_forms())


@cache
def _forms() -> dict[int, str]:
    forms = {}
    for code in chain.from_iterable(range(*between) for between in _LOOKED_AT):
        character = chr(code)
        digit = unicodedata.decimal(character, None)
        form = unicodedata.normalize("NFKC", character) if digit is None else str(digit)
        # 5² is no 52, and ① no 1.
        if form != character and len(form) == 1 and unicodedata.category(character) != "No":
            forms[code] = form
    return forms | {ord(dash): "-" for dash in _DASHES}


def replaced(text: str, spans: Iterable[tuple[int, int]], word: str) -> str:
    """``text`` with ``word`` for each of ``spans``: where each begins and ends, in order; none overlap. The same object
    when there are none."""
    pieces: list[str] = []
    at = 0
    for start, end in spans:
        pieces += text[at:start], word
        at = end
    return "".join((*pieces, text[at:])) if at else text
