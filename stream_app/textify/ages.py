"""How long ago something was, as people say it: one unit, and never more exact than it matters."""

from __future__ import annotations

from typing import Final

__all__ = ["age"]

_DAY_S: Final = 86_400.0
_UNITS: Final = (
    # Unit, seconds, from how many of them on it is used: 13 days are days, 14 are two weeks.
    ("years", 365.25 * _DAY_S, 2),
    ("months", 365.25 / 12 * _DAY_S, 2),
    ("weeks", 7 * _DAY_S, 2),
    ("days", _DAY_S, 1),
    ("hours", 3_600.0, 1),
    ("minutes", 60.0, 1),
)


def age(seconds: float) -> tuple[str, int]:
    """The largest unit (one of ``templates.AGES``) there is enough of, and how many whole ones of it.

    Below a minute, in the future, and where it is not known (nan) it is ``now``, 0.
    """
    for unit, length, least in _UNITS:
        if length * least <= seconds < float("inf"):
            return unit, int(seconds // length)
    return "now", 0
