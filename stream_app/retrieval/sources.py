"""The sources of a process, in the order of their bits in a candidate's source mask."""

from __future__ import annotations

from stream_app.retrieval.again import Again
from stream_app.retrieval.ann import NearInterests
from stream_app.retrieval.cold import NewItems
from stream_app.retrieval.factors import SimilarTaste
from stream_app.retrieval.interests import FAST, SLOW
from stream_app.retrieval.source import Source
from stream_app.retrieval.transitions import TakenTogether
from stream_app.retrieval.trending import Trending
from stream_app.settings import Settings

__all__ = ["default_sources"]


def default_sources(settings: Settings) -> tuple[Source, ...]:
    """Every source, bound to the settings; at most 32."""
    return (
        NearInterests(SLOW),
        NearInterests(FAST),
        TakenTogether(),
        SimilarTaste(SLOW),
        SimilarTaste(FAST),
        *(Trending(column, days) for column, days in enumerate(settings.items.half_lives_days)),
        Trending(len(settings.items.half_lives_days), None),
        Again(),
        NewItems(),
    )
