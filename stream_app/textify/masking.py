"""Personal data taken out of text before it leaves the process: e-mail addresses, telephone and card numbers.

What is masked is replaced by a word in brackets, so that a sentence stays one ("write to [email]"). Masks look for what
is surely one of these and leave other numbers alone: prices, sizes, years, ISBN and bar codes are what a catalogue is
full of. All of them take time linear in the text.

    mask("Call +45 31 22 11 00 or mail anna@example.org")  ->  "Call [phone] or mail [email]"
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Final

__all__ = ["MASKS", "Mask", "Masks", "mask", "pattern_mask"]

Mask = Callable[[str], str]
"""Takes a text and returns it without something: a hook for what else is personal somewhere."""
Masks = Sequence[Mask]

# Letters around them are those of the Latin alphabet alone: Chinese puts numbers and addresses between its words
# without a space.
_EMAIL = re.compile(
    r"(?<![A-Za-z0-9_.+%-])[A-Za-z0-9_.+%-]{1,64}\s?(?:@|\(at\)|\[at\])\s?(?:"
    r"[A-Za-z0-9](?:[A-Za-z0-9-]{0,62}\.){1,8}[A-Za-z]{2,24}(?![A-Za-z0-9@-])"
    r"|[^\W_](?:[\w-]{0,62}\.){1,8}[^\W\d_]{2,24}(?![\w@-]))",
    re.IGNORECASE,
)
_DIGITS = re.compile(r"(?<![A-Za-z0-9_.,/+-])\d(?:[ -]?\d){13,18}(?![A-Za-z0-9_]|[.,/-]\d)", re.ASCII)
_PHONE = re.compile(
    # With the country's code, 00 not where it is a group of a long number.
    r"(?<![A-Za-z0-9_.,/-])(?:(?:\+|(?<!\d )00)[1-9]\d{0,2}[ .\-/]?(?:\(0?\d{1,4}\)[ .\-/]?)?\d(?:[ .\-/]?\d){5,13}"
    r"|(?<!\d )(?:"
    # (020) 7946 0958, 020 7946 0958: an area code, and two groups or more; 010-62781234.
    r"\(0\d{1,4}\)[ .\-/]?\d{2,4}(?:[ .\-/]?\d{2,5}){1,4}"
    r"|0\d{1,4}(?:[ .\-/]\d{2,5}){2,4}"
    r"|0\d{2,3}-\d{7,8}"
    # (212) 555-0123, 212-555-0123.
    r"|\(\d{3}\) ?\d{3}[ .\-]\d{4}"
    r"|\d{3}[.\-]\d{3}[.\-]\d{4}"
    # A mobile telephone in China.
    r"|1[3-9]\d[ \-]?\d{4}[ \-]?\d{4}"
    r"))(?![A-Za-z0-9_]|[.,/\-]\d)",
    re.ASCII,
)
_CARD_LENGTHS: Final = {"34": (15,), "37": (15,), "36": (14,), "38": (14,), "30": (14,), "35": (16,)}
"""By the first two digits; see ISO/IEC 7812. What begins with 4, 5 or 6 has 16 digits, or 19."""
_FEWEST_PHONE_DIGITS, _MOST_PHONE_DIGITS = 8, 20
"""One number has at most 15 (ITU-T E.164); the groups of two may follow one another."""


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
    return lambda text: compiled.sub(f"[{name}]", text)


def _emails(text: str) -> str:
    # Nearly no text has one.
    return _EMAIL.sub("[email]", text) if "@" in text or "at)" in text.lower() or "at]" in text.lower() else text


def _cards(text: str) -> str:
    return _DIGITS.sub(_card, text)


def _card(match: re.Match[str]) -> str:
    digits = match[0].replace(" ", "").replace("-", "")
    lengths = _CARD_LENGTHS.get(digits[:2], (16, 19) if digits[0] in "456" or "22" <= digits[:2] <= "27" else ())
    return "[card]" if len(digits) in lengths and _valid(digits) else match[0]


def _valid(digits: str) -> bool:
    """The check digit of Luhn (US patent 2,950,048)."""
    total = 0
    for place, digit in enumerate(reversed(digits)):
        number = int(digit) * (1 + place % 2)
        total += number - 9 if number > 9 else number
    return total % 10 == 0


def _phones(text: str) -> str:
    return _PHONE.sub(_phone, text)


def _phone(match: re.Match[str]) -> str:
    count = sum(map(str.isdigit, match[0]))
    return "[phone]" if _FEWEST_PHONE_DIGITS <= count <= _MOST_PHONE_DIGITS else match[0]


MASKS: Final[tuple[Mask, ...]] = (_emails, _cards, _phones)
"""What is masked unless other masks are given."""
