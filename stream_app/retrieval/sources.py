"""The sources of a process, in the order of their bits in a candidate's source mask."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from stream_app.compiled import compiled
from stream_app.retrieval.again import again
from stream_app.retrieval.ann import near_interest
from stream_app.retrieval.cold import new_items
from stream_app.retrieval.factors import similar_taste
from stream_app.retrieval.interests import FAST, SLOW
from stream_app.retrieval.source import Context
from stream_app.retrieval.transitions import taken_together
from stream_app.retrieval.trending import trending
from stream_app.settings import Settings

__all__ = ["FACTORS", "FACTORS_FAST", "TEXT_FAST", "TEXT_SLOW", "Source", "default_sources", "propose_all"]

TEXT_SLOW, TEXT_FAST, TRANSITIONS, FACTORS, FACTORS_FAST, FIRST_TRENDING = range(6)
"""Places of the sources; after those of trending come ``again`` and ``new``."""


@dataclass(frozen=True, slots=True)
class Source:
    """A source as the process is set up.

    Attributes:
        name: stable; published in slates.
        wanted: how many rows it may propose.
        personal: whether it looks at the user, and not only at what is popular.
    """

    name: str
    wanted: int
    personal: bool = True


def default_sources(settings: Settings) -> tuple[Source, ...]:
    """Every source, in the order of :func:`propose_all`; at most 30."""
    retrieval, half_lives = settings.retrieval, settings.items.half_lives_days
    return (
        Source("text_slow", retrieval.slow),
        Source("text_fast", retrieval.fast),
        Source("transitions", retrieval.transitions),
        Source("factors", retrieval.factors),
        Source("factors_fast", retrieval.factors_fast),
        *(Source(f"trending_{days:g}d", retrieval.trending, personal=False) for days in half_lives),
        Source("popular", retrieval.trending, personal=False),
        Source("again", retrieval.again),
        Source("new", retrieval.cold),
    )


@compiled
def propose_all(
    context: Context, wanted: NDArray[np.int64], found: NDArray[np.int32], lengths: NDArray[np.int64]
) -> None:
    """What each source proposes.

    Args:
        wanted: int64 [sources], see :class:`Source`.
        found: int32 [sources, most that is wanted], overwritten.
        lengths: int64 [sources], overwritten.
    """
    lengths[TEXT_SLOW] = near_interest(context, SLOW, wanted[TEXT_SLOW], found[TEXT_SLOW])
    lengths[TEXT_FAST] = near_interest(context, FAST, wanted[TEXT_FAST], found[TEXT_FAST])
    lengths[TRANSITIONS] = taken_together(context, wanted[TRANSITIONS], found[TRANSITIONS])
    lengths[FACTORS] = similar_taste(context, SLOW, wanted[FACTORS], found[FACTORS])
    lengths[FACTORS_FAST] = similar_taste(context, FAST, wanted[FACTORS_FAST], found[FACTORS_FAST])
    place = FIRST_TRENDING
    for column in range(len(context.tables.top_counts)):
        lengths[place] = trending(context, column, wanted[place], found[place])
        place += 1
    lengths[place] = again(context, wanted[place], found[place])
    place += 1
    lengths[place] = new_items(context, wanted[place], found[place])
