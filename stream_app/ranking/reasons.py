"""Why an item is in a slate, said in words: the kind of evidence that weighed most in its score.

The contribution of a feature is its weight times how far the item lies from the request's middle candidate. Kinds
of evidence are sums over related features; the largest names the reason. Nothing is made up afterwards.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from schemas.messages import Reason

__all__ = ["KINDS", "kind_matrix", "phrase", "strongest_kind"]

KINDS = ("similar", "taken_together", "taken_after", "unlike", "trending", "popular", "new")
"""Kinds of evidence, also the codes of reasons; ``pinned``, ``boosted``, ``new_for_you`` and ``recommended``
come on top."""

_TEMPLATES: dict[str, dict[str, str]] = {
    "en": {
        "similar": "Similar to {title}",
        "similar_profile": "Close to what you have been looking at",
        "taken_together": "Often chosen together with {title}",
        "taken_after": "Often chosen after {title}",
        "unlike": "Unlike what you turned down",
        "trending": "Trending now",
        "popular": "Popular with others",
        "new": "New",
        "pinned": "Featured",
        "boosted": "Promoted",
        "new_for_you": "New, and close to your interests",
        "recommended": "Recommended for you",
    },
    "zh": {
        "similar": "与“{title}”相似",
        "similar_profile": "符合您最近的兴趣",
        "taken_together": "常与“{title}”一起被选择",
        "taken_after": "选择“{title}”之后常被选择",
        "unlike": "与您不喜欢的内容不同",
        "trending": "近期热门",
        "popular": "广受欢迎",
        "new": "新品",
        "pinned": "精选置顶",
        "boosted": "推广",
        "new_for_you": "新品，符合您的兴趣",
        "recommended": "为您推荐",
    },
}

_SHORT_DAYS = 7.0


def _kind(name: str) -> str:
    base = name.removesuffix("_x_history")
    if base == "text_negative":
        return "unlike"
    if base.startswith("text_"):
        return "similar"
    if base == "links_directed":
        return "taken_after"
    if base.startswith("links_"):
        return "taken_together"
    if base == "popularity_all":
        return "popular"
    if base.startswith("popularity_"):
        days = float(base.removeprefix("popularity_").removesuffix("d"))
        return "trending" if days <= _SHORT_DAYS else "popular"
    return "new"


def kind_matrix(names: Sequence[str]) -> NDArray[np.float64]:
    """Which feature belongs to which kind: float64 [features, kinds] of zeros and ones."""
    matrix = np.zeros((len(names), len(KINDS)))
    for row, name in enumerate(names):
        matrix[row, KINDS.index(_kind(name))] = 1.0
    return matrix


def strongest_kind(
    values: NDArray[np.float64],
    middle: NDArray[np.float64],
    weights: NDArray[np.float64],
    kinds: NDArray[np.float64],
    *,
    boosts: NDArray[np.float64] | None = None,
) -> list[str]:
    """The kind with the largest contribution for each item; ``recommended`` where none speaks for it.

    Only evidence counts: a feature above the median that raises the score. One below it with a negative weight
    raises the score too, but "popular" must not be said of what nobody bought. For ``unlike`` it is the other way
    round: being unlike what the user turned down is the evidence.

    Args:
        values: float64 [items, features], scaled.
        middle: float64 [features], the medians over the request's candidates.
        weights: float64 [features].
        kinds: from :func:`kind_matrix`.
        boosts: float64 [items], what rules added; ``boosted`` where that is more than any kind contributed.
    """
    above = values - middle
    evidence = np.where(kinds[:, KINDS.index("unlike")] > 0, -above, above) > 0
    contributions = np.where(evidence, above * weights, 0.0) @ kinds
    best = contributions.argmax(axis=1)
    strongest = contributions[np.arange(len(best)), best]
    codes = [KINDS[kind] if amount > 0 else "recommended" for kind, amount in zip(best, strongest, strict=True)]
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
