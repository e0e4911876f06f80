"""Raw catalogue and user text made plain: no markup, no control characters, nothing unseen, one space between words.

Every expression here runs in time linear in its input: each alternative either fails at its first characters or
consumes what it looked at (an unclosed comment reaches to the end), so hostile input costs no more than kind input.
What is taken out may bring together what was kept apart ("<<b>script>", an entity of an entity), so it is done until
nothing changes.
"""

from __future__ import annotations

import re
import unicodedata
from html import unescape

__all__ = ["clean", "clip", "shortened"]

# Elements whose content is not prose, then comments, declarations and tags. A quoted value may hold the sign that ends
# a tag; it holds no other bracket, and what was looked at once is not looked at again, so that time stays linear.
_MARKUP = re.compile(
    r"<(?P<skipped>script|style|head|template)\b.*?(?:</(?P=skipped)\s*>|\Z)"
    r"|<!--.*?(?:-->|\Z)"
    r"|<!\[CDATA\[|\]\]>"
    r"|<[!?][^<>]*>"
    r"""|</?(?P<tag>[a-z][a-z0-9:_-]*)(?:[\s/](?:[^<>=]++|=\s*+(?:"[^"<]*+"|'[^'<]*+')?+)*+)?>""",
    re.IGNORECASE | re.DOTALL,
)
# These stand inside words and phrases ("H<sub>2</sub>O"); every other tag separates words.
_INLINE = frozenset(
    ("a", "abbr", "b", "em", "font", "i", "mark", "q", "s", "small", "span", "strong", "sub", "sup", "u")
)
_CONTROL = re.compile(r"[\x00-\x08\x0e-\x1b\x7f-\x84\x86-\x9f]+")
# Scripts that spell with zero-width joiners: Arabic, Syriac, N'Ko, Mandaic, those of India and of the lands around it,
# Mongolian. A digit is joined to nothing.
_JOINED = (
    "\u0620-\u065f\u066e-\u06ef\u06fa-\u074f\u0750-\u077f\u07ca-\u07ff\u0840-\u08ff\u0900-\u109f\u1780-\u18af\u1900-\u1cff"
    "\ua800-\uab2f\ufb50-\ufdff\ufe70-\ufefc\U00010a00-\U00011fff"
)
_EMOJI = "\u00a9\u00ae\u2190-\u2bff\U0001f000-\U0001faff"
# What a reader does not see: Default_Ignorable_Code_Point (Unicode, DerivedCoreProperties), annotation marks,
# surrogates and private use.
_HIDDEN = re.compile(
    "[\u00ad\u034f\u061c\u115f\u1160\u17b4\u17b5\u180b-\u180f\u200b-\u200f\u202a-\u202e\u2060-\u206f\u3164\ud800-\uf8ff"
    "\ufe00-\ufe0f\ufeff\uffa0\ufff0-\ufffb\U0001bca0-\U0001bca3\U0001d173-\U0001d17a\U000e0000-\U000e0fff"
    "\U000f0000-\U0010ffff]"
)
_UNSEEN = re.compile(
    # Kept: a flag of a region (UTS #51), a joiner where one is written, one variation selector after what varies.
    "(?P<kept>\U0001f3f4[\U000e0030-\U000e0039\U000e0061-\U000e007a]{3,6}\U000e007f"
    rf"|(?<=[{_JOINED}])(?<!\d)[\u200c\u200d]"
    rf"|(?<=[{_EMOJI}\ufe0f])\u200d(?=[{_EMOJI}])"
    rf"|(?<=[{_EMOJI}\u203c\u2049\u3030\u303d\u3297\u3299\u1000-\u109f\u4e00-\u9fff])[\ufe00-\ufe0f]"
    "|(?<=[0-9#*])\ufe0f(?=\u20e3)"
    "|(?<=[\u3400-\u9fff\uf900-\ufaff\U00020000-\U0003ffff])[\U000e0100-\U000e01ef]"
    "|(?<=[\u1820-\u18aa])[\u180b-\u180f])"
    rf"|{_HIDDEN.pattern}+"
)
_LONGEST_WORD = 256
"""Text without spaces for so long (Chinese, Japanese) is cut where it is."""
_MOST_ROUNDS, _LAST_ROUNDS = 12, 4
"""Feeds escape twice or three times. What is wrapped so often that the last rounds begin loses its brackets and
ampersands; then there is nothing more to unwrap."""
# What may be a part of a number, read backwards, to the sign it begins with.
_NUMBER_BACKWARDS = re.compile(
    r"(?:[\d\s()./\-\u2010-\u2015\u2212]|;(?:psbn|psniht|061#|0ax#)&|>[a-z]{1,6}/?<)*+\+?\(?", re.IGNORECASE
)
_NO_MARKUP = str.maketrans("<>&", "   ")


def clean(text: str, *, lines: bool = False) -> str:
    """``text`` without HTML, control and invisible characters, in Unicode form C, whitespace collapsed.

    Comparison signs survive ("5 < 6", "I <3 you"): a tag needs a letter after its bracket. Joiners survive where
    emoji, Persian and Indic scripts spell with them. Clean text stays as it is.

    Args:
        text: any.
        lines: whether lines stay apart, by one line feed each; what separates paragraphs in HTML does, too.
    """
    for left in range(_MOST_ROUNDS, 0, -1):
        if left == _LAST_ROUNDS:
            text = text.translate(_NO_MARKUP)
        before, text = text, _unwrapped(text)
        if text == before or (text.isascii() and not any(sign in text for sign in ("&", "<", "]]>"))):
            break
    return text if lines else " ".join(text.split())


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
    number that goes on. Half an address or a telephone number would not be known for one, so digits at its end go, all
    groups of them."""
    if len(text) <= max_chars:
        return text
    cut = max(text.rfind(space, 0, max_chars + 1) for space in (" ", "\n", "\t", ">"))
    text = text[: cut + 1 if cut >= max_chars - _LONGEST_WORD else max_chars]
    number = _NUMBER_BACKWARDS.match(text[::-1])
    if number is None or not any(map(str.isdigit, number[0])):
        return text
    return text[: len(text) - number.end()]


def _unwrapped(text: str) -> str:
    """One layer less; lines stay apart."""
    if "&" in text:
        text = unescape(text)
    if not text.isprintable():  # Nor is a line feed, nor anything unseen but selectors of variants.
        text = _CONTROL.sub(" ", text)
    if not text.isascii():
        # In form C some characters are others, an ampersand's semicolon among them: before anything is looked for.
        if _HIDDEN.search(text):
            text = _UNSEEN.sub(_kept, text)
        text = unicodedata.normalize("NFC", text)
    if "<" in text or "]]>" in text:
        text = _MARKUP.sub(_replacement, text)
    if text.isprintable():
        return " ".join(text.split())
    return "\n".join(filter(None, (" ".join(line.split()) for line in text.splitlines())))


def _kept(match: re.Match[str]) -> str:
    return match["kept"] or ""


def _replacement(match: re.Match[str]) -> str:
    return "" if (match["tag"] or "").lower() in _INLINE else "\n"
