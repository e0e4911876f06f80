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

_SEVEN_DIGITS = re.compile(r"\d(?:\W{0,4}\d){6}", re.ASCII)
"""What a text without has no number of either kind."""
_STARTS = re.compile(r"(?<!\d)\d|[(+](?=[+\d])", re.ASCII)
"""Where a number may begin; the patterns are tried only there."""

_CARD = re.compile(
    r"(?<!\d[.,/+-])(?:\d{4}[./]\d{4}[./]\d{4}[./]\d{4}(?:[./]\d{3})?|\d{4}[./]\d{6}[./]\d{4,5}|\d(?:[ -]?\d){13,18})"
    r"(?!\d|[.,/-]\d)",
    re.ASCII,
)
_CARD_LENGTHS: Final = {"34": (15,), "37": (15,), "36": (14,), "38": (14,), "30": (14,), "35": (16,)}
"""By the first two digits; see ISO/IEC 7812. What begins with 4, 5 or 6 has 16 digits, or 19."""

_BOUND = r"(?![A-Za-z0-9_]|[.,/\-]\d)"
_PHONE = re.compile(
    # With the country's code, 00 not where it is a group of a long number.
    r"(?:(?<![0-9_])(?<!\d[.,/\-])(?:\(\+[1-9]\d{0,2}\)|\+[1-9]\d{0,2}|(?<![A-Za-z])(?<!\d )00[1-9]\d{0,2})[ .\-/]?"
    r"(?:\(0?\d{1,4}\)[ .\-/]?)?\d(?:[ .\-/]?\d){5,13}"
    r"|(?P<national>(?<![A-Za-z0-9_])(?<!\d[.,])(?<![A-Za-z0-9_][/\-])(?<!\d )(?:"
    # (020) 7946 0958, 020 7946 0958: an area code, and two groups or more; 010-62781234, 030/1234567, 089 123456.
    r"\(0\d{1,4}\)[ .\-/]?\d{2,4}(?:[ .\-/]?\d{2,5}){1,4}"
    r"|0\d{1,4}(?:[ .\-/]\d{2,5}){2,4}"
    r"|0[1-9]\d{1,3}[ \-/]\d{5,8}|0[1-9][ \-/]\d{7,8}"
    r"|0[1-9]\d{8,9}"
    # (212) 555-0123, 212-555-0123, and with the 1 of long distance.
    r"|(?:1[ .\-]?)?\(\d{3}\) ?\d{3}[ .\-]\d{4}"
    r"|(?:1[ .\-])?\d{3}[.\-]\d{3}[.\-]\d{4}"
    r"|(?:1 ?)?[2-9][0-8]\d(?P<gap> ?)[2-9]\d\d(?P=gap)\d{4}"
    # 8 (495) 123-45-67 in Russia.
    r"|[78](?:[ \-]?\([3489]\d\d\)|[ \-][3489]\d\d)[ \-]?\d{3}[ \-]?\d\d[ \-]?\d\d|8[3489]\d{9}"
    # A mobile telephone in China.
    r"|1[3-9]\d[ \-]?\d{4}[ \-]?\d{4}"
    rf")))(?:{_BOUND})",
    re.ASCII,
)
# Any number after a word that makes it a telephone's, but a row of sizes: "mobile phone 128 256 512 GB".
_CALLED = re.compile(
    rf"\(?\+?\(?\d(?: ?[ ().\-/]?\d){{6,14}}{_BOUND}(?! ?(?:[GMTK]B|mAh|MP|Hz|[cm]m|x \d)\b)", re.ASCII | re.IGNORECASE
)
# Letters around these words are those of the Latin alphabet alone.
_CALLING = re.compile(
    r"(?:(?<![A-Za-z])(?:tel|tele?phones?|t[eé]l[eé]phones?|tel[eé]fonos?|telefone?|telef|tlf|phones?|cell(?:phone)?"
    r"|mobil[ei]?|mob|handy|fax|whats ?app|viber|wechat|hotline|call|sms|gsm)|电话|手机|手提|座机|热线|传真|微信|電話|手機"
    r"|携帯|телефон|тел|моб|전화|هاتف|جوال|واتساب|फ़ोन|फोन)"
    r"(?:[ .]{0,2}(?:numbers?|no|nr|num|号码|号|番号|番號))?[ .:#=-]{0,3}(?:(?:is|是|为|為)[ :]?)?\Z",
    re.IGNORECASE,
)
_ARTICLE = re.compile(
    r"(?:(?<![A-Za-z])(?:isbn(?:[ -]?1[03])?|issn|ean|upc|gtin|asin|sku|mpn|item|article|artikel|art|model|part|ref"
    r"|reference|order|serial|batch|lot|product|code|id)(?:[ .]{0,2}(?:no|nr|number))?|#|№|货号|条码|条形码|编号|型号|订单号?"
    r"|单号|编码)[ .:#№=-]{0,3}\Z",
    re.IGNORECASE,
)
_CHARS_BEFORE = 40
"""Looked at for words before a number."""
_FEWEST_PHONE_DIGITS, _FEWEST_CALLED_DIGITS, _MOST_PHONE_DIGITS = 8, 7, 20
"""One number has at most 15 (ITU-T E.164); the groups of two may follow one another."""


def card_spans(text: str) -> Iterator[tuple[int, int]]:
    """Where the card numbers of a folded text (:func:`stream_app.textify.folding.folded`) begin and end, in order."""
    return _spans(text, _CARD, lambda match: _is_card("".join(filter(str.isdigit, match[0]))))


def phone_spans(text: str) -> Iterator[tuple[int, int]]:
    """Where the telephone numbers of a folded text begin and end that are known for ones by themselves, in order."""
    return _spans(text, _PHONE, _is_phone)


def called_phone_spans(text: str) -> Iterator[tuple[int, int]]:
    """Where numbers of a folded text begin and end that the word before them says are telephones', in order."""
    return _spans(text, _CALLED, lambda match: _follows(_CALLING, match))


def _spans(
    text: str, pattern: re.Pattern[str], accepted: Callable[[re.Match[str]], bool]
) -> Iterator[tuple[int, int]]:
    if _SEVEN_DIGITS.search(text) is None:
        return
    done = 0
    for start in _STARTS.finditer(text):
        if start.start() < done:
            continue
        # One that is not accepted may hold another: two of 4111 1111 1111 1111.
        match = pattern.match(text, start.start())
        if match is not None and accepted(match):
            done = match.end()
            yield match.span()


def _follows(words: re.Pattern[str], match: re.Match[str]) -> bool:
    return words.search(match.string[max(0, match.start() - _CHARS_BEFORE) : match.start()]) is not None


def _is_phone(match: re.Match[str]) -> bool:
    if not _FEWEST_PHONE_DIGITS <= sum(map(str.isdigit, match[0])) <= _MOST_PHONE_DIGITS:
        return False
    return not (match["national"] and _follows(_ARTICLE, match))


def _is_card(digits: str) -> bool:
    lengths = _CARD_LENGTHS.get(digits[:2], (16, 19) if digits[0] in "456" or "22" <= digits[:2] <= "27" else ())
    return len(digits) in lengths and _valid(digits)


def _valid(digits: str) -> bool:
    """The check digit of Luhn (US patent 2,950,048)."""
    total = 0
    for place, digit in enumerate(reversed(digits)):
        number = int(digit) * (1 + place % 2)
        total += number - 9 if number > 9 else number
    return total % 10 == 0
