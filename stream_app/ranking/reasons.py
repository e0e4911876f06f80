"""Why an item is in a slate, said in words: the kind of evidence that weighed most in its score.

What a kind of evidence contributes is how much lower the item would score if the features of that kind were those of
the request's middle candidate; for a linear model that is weight times distance from the median. The largest names the
reason. Nothing is made up afterwards.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from schemas.messages import Reason

__all__ = ["KINDS", "evidence_signs", "kind_columns", "phrase", "strongest_kind"]

KINDS = ("similar", "taken_together", "taken_after", "similar_taste", "unlike", "trending", "popular", "new", "again")
"""Kinds of evidence, also the codes of reasons; ``pinned``, ``boosted``, ``new_for_you``, ``less_known``,
``less_known_for_you`` and ``recommended`` come on top."""

_TEMPLATES: dict[str, dict[str, str]] = {
    "en": {
        "similar": "Similar to {title}",
        "similar_profile": "Close to what you have been looking at",
        "taken_together": "Often chosen together with {title}",
        "taken_after": "Often chosen after {title}",
        "similar_taste": "Chosen by people with similar taste",
        "unlike": "Unlike what you turned down",
        "trending": "Trending now",
        "popular": "Popular with others",
        "new": "New",
        "again": "You had this before",
        "pinned": "Featured",
        "boosted": "Promoted",
        "new_for_you": "New, and close to your interests",
        "less_known": "Less known",
        "less_known_for_you": "Less known, and close to your interests",
        "recommended": "Recommended for you",
    },
    "zh": {
        "similar": "与“{title}”相似",
        "similar_profile": "符合您最近的兴趣",
        "taken_together": "常与“{title}”一起被选择",
        "taken_after": "选择“{title}”之后常被选择",
        "similar_taste": "与您品味相近的人也选择了它",
        "unlike": "与您不喜欢的内容不同",
        "trending": "近期热门",
        "popular": "广受欢迎",
        "new": "新品",
        "again": "您之前关注过",
        "pinned": "精选置顶",
        "boosted": "推广",
        "new_for_you": "新品，符合您的兴趣",
        "less_known": "小众之选",
        "less_known_for_you": "小众之选，符合您的兴趣",
        "recommended": "为您推荐",
    },
}

_SHORT_DAYS = 7.0


def _kind(name: str) -> str:
    if name == "text_negative":
        return "unlike"
    if name.startswith("text_"):
        return "similar"
    if name in ("links_directed", "links_last"):
        return "taken_after"
    if name.startswith("links_"):
        return "taken_together"
    if name == "again":
        return "again"
    if name in ("factors", "factors_fast"):
        return "similar_taste"
    if name == "popularity_all":
        return "popular"
    if name == "since":
        return "trending"
    if name.startswith("popularity_"):
        days = float(name.removeprefix("popularity_").removesuffix("d"))
        return "trending" if days <= _SHORT_DAYS else "popular"
    return "new"


def kind_columns(names: Sequence[str]) -> NDArray[np.int64]:
    """Which kind each feature belongs to: int64 [features], indices of :data:`KINDS`."""
    return np.array([KINDS.index(_kind(name)) for name in names], np.int64)


def evidence_signs(names: Sequence[str]) -> NDArray[np.float32]:
    """Which side of the median is evidence: float32 [features], 1 above, -1 below.

    A feature below the median with a negative weight raises the score too, but "popular" must not be said of what
    nobody bought. For ``unlike`` it is the other way round: being unlike what the user turned down is the evidence.
    """
    return np.array([-1.0 if _kind(name) == "unlike" else 1.0 for name in names], np.float32)


def strongest_kind(contributions: NDArray[np.float64], *, boosts: NDArray[np.float64] | None = None) -> list[str]:
    """The kind with the largest contribution for each item; ``recommended`` where none speaks for it.

    Args:
        contributions: float64 [items, kinds], see ``SoftmaxRanker.contributions``.
        boosts: float64 [items], what rules added; ``boosted`` where that is more than any kind contributed.
    """
    best = contributions.argmax(axis=1)
    strongest = contributions[np.arange(len(best)), best]
    pairs = zip(best.tolist(), strongest.tolist(), strict=True)
    codes = [KINDS[kind] if amount > 1e-9 else "recommended" for kind, amount in pairs]
    if boosts is not None:
        for place in np.flatnonzero(boosts > np.maximum(strongest, 0.0)).tolist():
            codes[place] = "boosted"
    return codes


def phrase(code: str, params: dict[str, Any], language: str) -> Reason:
    """A reason with its sentence, in the language (its first subtag) or English."""
    templates = _TEMPLATES.get(language.split("-")[0].lower(), _TEMPLATES["en"])
    title = params.get("title")
    key = "similar_profile" if code == "similar" and not title else code
    if code in ("taken_together", "taken_after") and not title:
        # The other item has no catalogue entry (any more), so it cannot be named.
        key = "recommended"
    return Reason(code=code, params=params, text=templates[key].replace("{title}", str(title or "")))
