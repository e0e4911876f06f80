"""E-mail addresses in a text: of any script, and as people write them to hide them ("anna [at] example [dot] org").

The sign is looked for first, then what follows it, and only then, backwards, what stands before: a text without the
sign costs nothing, and no other takes more than time linear in its length.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

__all__ = ["email_spans"]

_AT = re.compile(
    r"\s?(?:@|[\[({]\s?at\s?[\])}]|(?<=\s)at(?=\s[a-z0-9-]{1,63}\sdot\s(?:com|net|org|edu)\b))\s?", re.IGNORECASE
)
_DOT = r"(?:\.|\s?[\[({]\s?dot\s?[\])}]\s?|\sdot\s)"
# What no name has: spaces, ASCII but letters and digits, punctuation, symbols, pictures. Marks of Indic and Thai
# spelling are no \w, so letters are what is left.
_NO_LETTER = (
    r"\s\x00-\x2f\x3a-\x40\x5b-\x60\x7b-\xa9\xab-\xb4\xb6-\xb9\xbb-\xbf\xd7\xf7\u2000-\u200b\u200e-\u2bff"
    r"\u3000-\u3004\u3008-\u3020\u3030\ufe10-\ufe6b\uff00-\uff0f\uff1a-\uff20\uff3b-\uff40\uff5b-\uff65"
    r"\U0001f000-\U0001faff"
)
# The Latin alphabet goes first: Chinese puts addresses between its words without a space.
_DOMAIN = re.compile(
    rf"[a-z0-9](?:[a-z0-9-]{{0,62}}{_DOT}){{1,8}}[a-z]{{2,24}}(?![a-z0-9@-])"
    rf"|(?:(?:[^{_NO_LETTER}]|-(?!{_DOT})){{1,63}}{_DOT}){{1,8}}[^{_NO_LETTER}\d]{{2,24}}(?!@)",
    re.IGNORECASE,
)
# Scripts without spaces between words: Thai, Lao, Tibetan, Burmese, Khmer, Chinese and Japanese.
_UNSPACED = (
    r"\u0e00-\u109f\u1780-\u17ff\u2e80-\u2fff\u3005-\u3007\u3021-\u302f\u3031-\u9fff\uf900-\ufaff"
    r"\U00020000-\U0003ffff"
)
_BEFORE = re.compile(  # read backwards
    r'"[^"@\[\]]{1,64}"'
    rf"|[\d._+-]{{0,4}}[{_UNSPACED}]+"
    rf"|(?:[a-z0-9_.+%'&~!#$*^-]|[^{_NO_LETTER}{_UNSPACED}])+",
    re.IGNORECASE,
)
_LIKE_A_NAME = re.compile(r"(?=.*[^\W\d_])(?:.*\w[._+]\w|.*\d)")
"""With spaces around the sign an address is one only if its name looks like one: "lamps @ example.com" is where they
are sold."""
_LONGEST_NAME = 320
"""Of a name more than is allowed (64, RFC 5321) is taken out, but something is the most."""
_AROUND = "'!*#&~$^.-"


def email_spans(text: str) -> Iterator[tuple[int, int]]:
    """Where the addresses of a folded text (:func:`stream_app.textify.folding.folded`) begin and end, in order."""
    if "@" not in text:  # As nearly always.
        lower = text.lower()
        if not ("at" in lower and any(sign in lower for sign in (")", "]", "}", " dot "))):
            return
    done = 0
    for sign in _AT.finditer(text):
        if sign.start() < done or (domain := _DOMAIN.match(text, sign.end())) is None:
            continue
        before = text[max(done, sign.start() - _LONGEST_NAME) : sign.start()]
        found = _BEFORE.match(before[::-1])
        if found is None or not (name := before[-found.end() :].lstrip(_AROUND)):
            continue
        if "@" in sign[0] and sign[0][0] != "@" and (sign[0][-1] == "@" or not _LIKE_A_NAME.match(name)):
            continue  # "Photo by @anna.b": a name in a social network.
        done = domain.end()
        yield sign.start() - len(name), done
