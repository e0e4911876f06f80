"""What a catalogue writes as telephone numbers are: rows of sizes, dates, opening hours, bar codes."""

from __future__ import annotations

import re
from itertools import pairwise

__all__ = ["has_unit", "is_bar_code", "is_row", "is_time"]

_GROUP = re.compile(r"\d+", re.ASCII)
_HOUR = r"(?:[01]?\d|2[0-4])[.h][0-5]\d"
_DAY = r"(?:0[1-9]|[12]\d|3[01])"
_TIME = re.compile(
    rf"{_HOUR} ?- ?{_HOUR}(?!\d)"
    r"|(?:19|20)\d\d-[01]\d-[0-3]\d(?!\d)"
    # The day or the month first. After a year of two digits nothing goes on: 01.02.03.04.05 is a telephone's in France.
    rf"|{_DAY}(?P<between>[./\- ]){_DAY}(?P=between)(?:(?:1\d|2[01])\d\d(?!\d)|\d\d(?!\d|(?P=between)\d))",
    re.ASCII,
)
_UNIT = re.compile(
    r"(?:[ ./\-]\d{1,5}){0,4} ?(?:[GMTK]B|mAh|MP|[kMG]?Hz|[ckm]m|[cm]l|[km]g|lm|kW|x \d)\b", re.ASCII | re.IGNORECASE
)
_SMALL_STEP, _ROUND = 10, 50
_BAR_CODES = (8, 12, 13, 14)


def is_row(number: str) -> bool:
    """Whether groups of digits are a row of sizes: they grow by the same step, are round, or as wide as each
    other by a 0 before each."""
    groups = _GROUP.findall(number)
    sizes = [int(group) for group in groups]
    steps = {later - earlier for earlier, later in pairwise(sizes)}
    if len(sizes) < 3 or min(steps) <= 0:
        return False
    step = min(steps)
    # 01 23 45 67 89 grows by the same, too; no size begins there.
    return (
        (len(steps) == 1 and (step <= _SMALL_STEP or sizes[0] % step == 0))
        or all(size % _ROUND == 0 for size in sizes)
        or (all(group[0] == "0" for group in groups) and len(set(map(len, groups))) == 1)
    )


def is_time(text: str, start: int) -> bool:
    """Whether a date, or hours from one to another, begin at ``start``."""
    return _TIME.match(text, start) is not None


def has_unit(text: str, end: int) -> bool:
    """Whether what ends at ``end`` is measured, or the first of a row that is: "128 256 512 GB"."""
    return _UNIT.match(text, end) is not None


def is_bar_code(number: str) -> bool:
    """Whether a number in one piece has a bar code's length and its check digit (GS1 General Specifications, 7.9)."""
    return (
        number.isdigit()
        and len(number) in _BAR_CODES
        and (sum(map(int, number[::-2])) + 3 * sum(map(int, number[-2::-2]))) % 10 == 0
    )
