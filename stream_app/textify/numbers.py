"""Card and telephone numbers in a text, told from what a catalogue is full of: prices, sizes, dates, ISBN, bar codes.

A card's number has a check digit, so nearly nothing else is taken for one. A telephone's has not: it is known by a
country's code, by the way a country groups its digits, or by a word before it ("tel."). Ten digits alone may be a
telephone's or an article's. A number says nothing to a model that reads sentences, so one too many taken out costs
little, and one too few is somebody's: those that a country would write so are taken out, but for those that the word
before them calls something else ("ISBN", "order no.": :mod:`stream_app.textify.callings`) and for what a catalogue
writes in groups, too (:mod:`stream_app.textify.catalogue`).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import Final

from stream_app.textify.callings import CHARS_BEFORE, calls_article, calls_telephone
from stream_app.textify.catalogue import has_unit, is_bar_code, is_row, is_time

__all__ = ["called_phone_spans", "card_spans", "phone_spans"]

# Where a number of seven digits or more may begin; the patterns are tried only there. Within digits in groups only one
# of three or more begins one: a megabyte of "1 1 1" is not half a million numbers.
_STARTS = re.compile(
    r"(?:\d(?<!\d\d)(?:(?<!\d[ .\-/]\d)|(?=\d\d))|\((?=\+|\d\d)|\+(?=[(\d]))(?=(?:[ ().\-/+]{0,4}\d){6})", re.ASCII
)
_GAP = r"(?: ?[.\-/] ?| )"
"""Between the groups of a number."""

_CARD = re.compile(
    # In the groups that cards have, or in one piece: a row of sizes is no card.
    rf"\d{{4}}{_GAP}?\d{{4}}{_GAP}?\d{{4}}{_GAP}?\d{{4}}(?:{_GAP}?\d{{3}})?"
    rf"|\d{{4}}{_GAP}?\d{{6}}{_GAP}?\d{{4,5}}|\d{{6}}{_GAP}?\d{{13}}",
    re.ASCII,
)
_NO_GAPS = str.maketrans("", "", " -./")
_DOUBLED = str.maketrans("0123456789", "0246813579")
"""Twice a digit, and the sum of its digits."""
_CARD_LENGTHS: Final = {"34": (15,), "37": (15,), "36": (14,), "38": (14,), "30": (14,), "35": (16,)}
"""By the first two digits; see ISO/IEC 7812. What begins with 4, 5 or 6 has 16 digits, or 19."""
_ARTICLE_DIGITS: Final = 14
"""So many a packet's bar code has (GTIN-14), and a card; the word before it says which it is. No bar code has more, so
a card that is called an order stays one."""

_BOUND = r"(?![A-Za-z0-9_]|[.\-]\d|/\d(?!\d{6}))"
_EXTENSION = r"(?i: ?(?:x|ext\.?|extension) ?\d{1,5})?"
# A digit alone is one among more ("+55 11 9 1234 5678"): after a number it counts something.
_GROUPS = rf"\d{{1,14}}(?:{_GAP}(?:\d{{2,12}}|\d(?:(?={_GAP}\d)|(?<=\D\d[ .\-/]\d)))){{0,12}}"
_ABROAD = rf"{_GAP}?(?:\(0?\d{{1,4}}\){_GAP}?)?{_GROUPS}"
_PHONE = re.compile(
    # With the country's code.
    rf"(?:(?<![0-9_])(?:\(\+[1-9]\d{{0,2}}\)|\+[1-9]\d{{0,2}}){_ABROAD}"
    rf"|(?P<national>00 ?[1-9]\d{{0,2}}{_ABROAD}"
    # (020) 7946 0958, 020 7946 0958: an area code, and two groups or more; 010-62781234, 030 / 1234567, 089 123456.
    rf"|\(0\d{{1,4}}\){_GAP}?\d{{2,4}}(?:{_GAP}?\d{{2,5}}){{1,4}}"
    # In pairs only as France writes, five alike: others are hours or days.
    r"|0[1-9](?P<pair>[ .\-])\d\d(?:(?P=pair)\d\d){3}"
    rf"|(?!\d\d{_GAP}\d\d{_GAP}\d\d(?!\d))0\d{{1,4}}(?:{_GAP}\d{{2,5}}){{2,4}}"
    r"|0[1-9]\d{1,3}(?: ?[\-/] ?| )\d{5,8}|0[1-9](?: ?[\-/] ?| )\d{7,8}"
    r"|0[1-9]\d{8,9}"
    # 0 532 123 45 67 in Turkey, (11) 91234-5678 in Brazil.
    r"|0 ?\(?[2-5]\d\d\)? \d{3} \d\d \d\d|\([1-9]\d\) ?9?\d{4}-\d{4}"
    # (212) 555-0123, 212-555-0123, and with the 1 of long distance.
    r"|(?:1[ .\-]?)?\(\d{3}\) ?\d{3}(?: ?- ?|[ .])\d{4}"
    r"|(?:1[ .\-])?\d{3}[.\-]\d{3}[.\-]\d{4}|(?:1 - )?[2-9]\d\d - [2-9]\d\d - \d{4}"
    r"|(?:1 ?)?[2-9][0-8]\d(?P<gap> ?)[2-9]\d\d(?P=gap)\d{4}"
    # 8 (495) 123-45-67 in Russia.
    r"|[78](?:[ \-]?\([3489]\d\d\)|[ \-][3489]\d\d)[ \-]?\d{3}[ \-]?\d\d[ \-]?\d\d|8[3489]\d{9}"
    # A mobile telephone in China.
    rf"|1[3-9]\d[ \-]?\d{{4}}[ \-]?\d{{4}})){_EXTENSION}{_BOUND}",
    re.ASCII,
)
# What, before a number without a country's code, makes it a part of something longer.
_INSIDE = re.compile(r"(?:[A-Za-z0-9_]|\d\.|[A-Za-z0-9_]-|[A-Za-z_]/)\Z", re.ASCII)
_IN_GROUPS = re.compile(r"\d[ /:]\Z", re.ASCII)
# Any number after a word that makes it a telephone's, but sizes: "phone 4.7 / 5.5 / 6.1 inch".
_CALLED = re.compile(rf"\(?\+?\(?\d(?:[ ().\-/]{{0,4}}\d){{6,14}}{_EXTENSION}{_BOUND}", re.ASCII)
_DECIMALS = re.compile(r"(?<!\d)\d{1,2}\.\d(?!\d).*(?<!\d)\d{1,2}\.\d(?!\d)", re.ASCII)
_GROUP = re.compile(r"\d+", re.ASCII)
_FEWEST_PHONE_DIGITS, _MOST_PHONE_DIGITS = 8, 25
"""One number has at most 15 (ITU-T E.164); the groups of two may follow one another, and an extension."""
_LONG_GROUP, _LAST_GROUP = 6, 4
_ENOUGH, _PLENTY = 8, 11
"""What follows so many digits and a space is another number, after a long group or one that ends a number."""


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
        if ends := end(match, text[max(done, start - CHARS_BEFORE) : start]):
            done = ends
            yield start, done


def _card_end(match: re.Match[str], before: str) -> int:
    digits = match[0].translate(_NO_GAPS)
    lengths = _CARD_LENGTHS.get(digits[:2], (19, 16) if digits[0] in "456" or "22" <= digits[:2] <= "27" else ())
    for length in lengths:  # What follows may be when it expires, or its code.
        if len(digits) >= length and _valid(digits[:length]):
            places = [place for place, sign in enumerate(match[0], match.start() + 1) if sign.isdigit()]
            end = places[length - 1]
            if not (
                match.string[end : end + 1].isdigit()
                or is_row(match[0])
                or (length == _ARTICLE_DIGITS and calls_article(before))
            ):
                return end
    return 0


def _phone_end(match: re.Match[str], before: str) -> int:
    end = _number_end(match)
    number = match.string[match.start() : end]
    if not _FEWEST_PHONE_DIGITS <= sum(map(str.isdigit, number)) <= _MOST_PHONE_DIGITS:
        return 0
    if match["national"] and (
        _INSIDE.search(before[-2:])
        or (_IN_GROUPS.search(before[-2:]) and not number.isdigit())
        or calls_article(before)
        or is_bar_code(number)
        or (not number.isdigit() and (is_row(number) or is_time(match.string, match.start())))
        or has_unit(match.string, end)
    ):
        return 0
    return end


def _called_end(match: re.Match[str], before: str) -> int:
    if not calls_telephone(before):
        return 0
    end = _number_end(match)
    if is_time(match.string, match.start()) or _DECIMALS.search(match[0]):
        return 0
    return 0 if end == match.end() and has_unit(match.string, end) else end


def _number_end(match: re.Match[str]) -> int:
    """Where a number ends that has another after it: "+45 31221100 20 pcs"."""
    code = 4 if match[0].startswith("00") else 2 if match[0].startswith(("+", "(+")) else 0
    digits = last = 0
    end = match.start()
    for group in _GROUP.finditer(match.string, match.start(), match.end()):
        gap = match.string[end : group.start()]
        if (
            " " in gap
            and not gap.strip(" .-/")
            and (
                (last >= _LONG_GROUP and digits >= _ENOUGH + code)
                or (last >= _LAST_GROUP and digits >= _PLENTY + max(code - 2, 0))
            )
        ):
            return end
        digits += len(group[0])
        last = len(group[0])
        end = group.end()
    return match.end()


def _valid(digits: str) -> bool:
    """The check digit of Luhn (US patent 2,950,048)."""
    return sum(map(int, digits[-1::-2] + digits[-2::-2].translate(_DOUBLED))) % 10 == 0
