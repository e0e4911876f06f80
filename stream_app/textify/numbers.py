"""Card and telephone numbers in a text, told from what a catalogue is full of: prices, sizes, dates, ISBN, bar codes.

A card's number has a check digit, so nearly nothing else is taken for one. A telephone's has not: it is known by a
country's code, by the way a country groups its digits, or by a word before it ("tel."). Ten digits alone may be a
telephone's or an article's. A number says nothing to a model that reads sentences, so one too many taken out costs
little, and one too few is somebody's: those that a country would write so are taken out, but for those that the word
before them calls something else ("ISBN", "order no.").
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import Final

__all__ = ["called_phone_spans", "card_spans", "phone_spans"]

# Where a number of seven digits or more may begin; the patterns are tried only there. Within digits in groups only one
# of three or more begins one: a megabyte of "1 1 1" is not half a million numbers.
_STARTS = re.compile(
    r"(?:\d(?<!\d\d)(?:(?<!\d[ .\-/]\d)|(?=\d\d))|\((?=\+|\d\d)|\+(?=[(\d]))(?=(?:[ ().\-/+]{0,3}\d){6})", re.ASCII
)

_CARD = re.compile(
    r"\d{4}[./]\d{4}[./]\d{4}[./]\d{4}(?:[./]\d{3})?|\d{4}[./]\d{6}[./]\d{4,5}|\d(?:[ -]?\d){13,18}", re.ASCII
)
_NO_GAPS = str.maketrans("", "", " -./")
_DOUBLED = str.maketrans("0123456789", "0246813579")
"""Twice a digit, and the sum of its digits."""
_CARD_LENGTHS: Final = {"34": (15,), "37": (15,), "36": (14,), "38": (14,), "30": (14,), "35": (16,)}
"""By the first two digits; see ISO/IEC 7812. What begins with 4, 5 or 6 has 16 digits, or 19."""

_BOUND = r"(?![A-Za-z0-9_]|[.\-]\d|/\d(?!\d{6}))"
_PHONE = re.compile(
    # With the country's code.
    r"(?:(?<![0-9_])(?:\(\+[1-9]\d{0,2}\)|\+[1-9]\d{0,2})[ .\-/]?(?:\(0?\d{1,4}\)[ .\-/]?)?\d(?:[ .\-/]?\d){5,13}"
    r"|(?P<national>00 ?[1-9]\d{0,2}[ .\-/]?(?:\(0?\d{1,4}\)[ .\-/]?)?\d(?:[ .\-/]?\d){5,13}"
    # (020) 7946 0958, 020 7946 0958: an area code, and two groups or more; 010-62781234, 030/1234567, 089 123456.
    r"|\(0\d{1,4}\)[ .\-/]?\d{2,4}(?:[ .\-/]?\d{2,5}){1,4}"
    # A day, a month and a year are none.
    r"|(?!\d\d[./\-]\d\d[./\-]\d{4}(?!\d))0\d{1,4}(?:[ .\-/]\d{2,5}){2,4}"
    r"|0[1-9]\d{1,3}[ \-/]\d{5,8}|0[1-9][ \-/]\d{7,8}"
    r"|0[1-9]\d{8,9}"
    # (212) 555-0123, 212-555-0123, and with the 1 of long distance.
    r"|(?:1[ .\-]?)?\(\d{3}\) ?\d{3}[ .\-]\d{4}"
    r"|(?:1[ .\-])?\d{3}[.\-]\d{3}[.\-]\d{4}"
    r"|(?:1 ?)?[2-9][0-8]\d(?P<gap> ?)[2-9]\d\d(?P=gap)\d{4}"
    # 8 (495) 123-45-67 in Russia.
    r"|[78](?:[ \-]?\([3489]\d\d\)|[ \-][3489]\d\d)[ \-]?\d{3}[ \-]?\d\d[ \-]?\d\d|8[3489]\d{9}"
    # A mobile telephone in China.
    rf"|1[3-9]\d[ \-]?\d{{4}}[ \-]?\d{{4}})){_BOUND}",
    re.ASCII,
)
# What, before a number without a country's code, makes it a part of something longer.
_INSIDE = re.compile(r"(?:[A-Za-z0-9_]|\d\.|[A-Za-z0-9_]-|[A-Za-z_]/)\Z", re.ASCII)
_IN_GROUPS = re.compile(r"\d[ /]\Z", re.ASCII)
# Any number after a word that makes it a telephone's, but a row of sizes: "mobile phone 128 256 512 GB".
_CALLED = re.compile(
    rf"\(?\+?\(?\d(?: ?[ ().\-/]?\d){{6,14}}{_BOUND}(?! ?(?:[GMTK]B|mAh|MP|Hz|[cm]m|x \d)\b)", re.ASCII | re.IGNORECASE
)
_CALLING: Final = (
    "tel", "telephone", "telephones", "telefon", "telefono", "teléfono", "telefone", "téléphone", "telef", "tlf",
    "phone", "phones", "cell", "cellphone", "mobile", "mobil", "mob", "handy", "fax", "whatsapp", "whats app", "viber",
    "wechat", "hotline", "call", "sms", "gsm", "телефон", "тел", "моб",
    "电话", "手机", "手提", "座机", "热线", "传真", "微信", "電話", "手機", "携帯",
    "전화", "هاتف", "جوال", "واتساب", "फ़ोन", "फोन",
)  # fmt: skip
"""Words before a number that make it a telephone's."""
_CALLING_WITH: Final = (
    "is", "no", "nr", "num", "number", "numbers", "me at", "me on", "#", "号码", "号", "番号", "番號", "是", "为", "為",
)  # fmt: skip
_ARTICLES: Final = (
    "isbn", "issn", "ean", "upc", "gtin", "asin", "sku", "mpn", "item", "article", "artikel", "art", "model", "part",
    "ref", "reference", "order", "serial", "batch", "lot", "product", "code", "id", "#", "№",
    "货号", "条码", "条形码", "编号", "型号", "订单", "订单号", "单号", "编码",
)  # fmt: skip
"""Words before a number that make it something else's."""
_ARTICLES_WITH: Final = ("is", "no", "nr", "number", "10", "13", "是", "为")
_BETWEEN = " .:=-_('\""
_CHARS_BEFORE = 40
"""Looked at for words before a number."""
_FEWEST_PHONE_DIGITS, _FEWEST_CALLED_DIGITS, _MOST_PHONE_DIGITS = 8, 7, 20
"""One number has at most 15 (ITU-T E.164); the groups of two may follow one another."""


def card_spans(text: str) -> Iterator[tuple[int, int]]:
    """Where the card numbers of a folded text (:func:`stream_app.textify.folding.folded`) begin and end, in order."""
    return _spans(text, _CARD, _card_end)


def phone_spans(text: str) -> Iterator[tuple[int, int]]:
    """Where the telephone numbers of a folded text begin and end that are known for ones by themselves, in order."""
    return _spans(text, _PHONE, _phone_end)


def called_phone_spans(text: str) -> Iterator[tuple[int, int]]:
    """Where numbers of a folded text begin and end that the word before them says are telephones', in order."""
    return _spans(text, _CALLED, _called_end)


def _spans(text: str, pattern: re.Pattern[str], end: Callable[[re.Match[str], str], int]) -> Iterator[tuple[int, int]]:
    """What ``pattern`` finds. ``end`` is given the match and what stands before it and after the last that was taken,
    and says where it ends; 0: it is none."""
    done = 0
    for found in _STARTS.finditer(text):
        start = found.start()
        # One that is none may hold another: two of 4111 1111 1111 1111.
        if start < done or (match := pattern.match(text, start)) is None:
            continue
        if ends := end(match, text[max(done, start - _CHARS_BEFORE) : start]):
            done = ends
            yield start, done


def _card_end(match: re.Match[str], before: str) -> int:
    del before
    digits = match[0].translate(_NO_GAPS)
    lengths = _CARD_LENGTHS.get(digits[:2], (19, 16) if digits[0] in "456" or "22" <= digits[:2] <= "27" else ())
    for length in lengths:  # What follows may be when it expires, or its code.
        if len(digits) >= length and _valid(digits[:length]):
            places = [place for place, sign in enumerate(match[0], match.start() + 1) if sign.isdigit()]
            end = places[length - 1]
            if not match.string[end : end + 1].isdigit():
                return end
    return 0


def _phone_end(match: re.Match[str], before: str) -> int:
    if not _FEWEST_PHONE_DIGITS <= sum(map(str.isdigit, match[0])) <= _MOST_PHONE_DIGITS:
        return 0
    if match["national"] and (
        _INSIDE.search(before[-2:])
        or (_IN_GROUPS.search(before[-2:]) and not match[0].isdigit())
        or _follows(_ARTICLES, _ARTICLES_WITH, before)
    ):
        return 0
    return match.end()


def _called_end(match: re.Match[str], before: str) -> int:
    return match.end() if _follows(_CALLING, _CALLING_WITH, before) else 0


def _follows(words: tuple[str, ...], between: tuple[str, ...], before: str) -> bool:
    """Whether ``before`` ends with one of ``words``, perhaps with two of those that stand between."""
    before = before.lower().rstrip(_BETWEEN)
    for _ in range(2):
        if _ends(before, words):
            return True
        if not before.endswith(between):
            return False
        before = before.removesuffix(max(filter(before.endswith, between), key=len)).rstrip(_BETWEEN)
    return _ends(before, words)


def _ends(text: str, words: tuple[str, ...]) -> bool:
    # Words are bounded by the Latin alphabet alone: Chinese has no spaces, and a hotel is no telephone.
    return text.endswith(words) and any(
        not (word.isascii() and word[0].isalpha() and re.match(r"[a-z]", text[-len(word) - 1 : -len(word)]))
        for word in filter(text.endswith, words)
    )


def _valid(digits: str) -> bool:
    """The check digit of Luhn (US patent 2,950,048)."""
    return sum(map(int, digits[-1::-2] + digits[-2::-2].translate(_DOUBLED))) % 10 == 0
