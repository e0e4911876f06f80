"""Why an item is in a slate, said in words: the kind of evidence that weighed most in its score.

What a kind of evidence contributes is how much lower the item would score if the features of that kind were those of
the request's middle candidate; for a linear model that is weight times distance from the median. The largest names the
reason. Nothing is made up afterwards, and nothing is said that is not so: of what others chose is spoken only where
others than the user did, more than once (:func:`_keep_what_is_so`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from schemas.messages import Reason
from stream_app.codes import code_products
from stream_app.compiled import compiled
from stream_app.lanes import LANES, count_up_to, least_above
from stream_app.ranking.features import FEATURE_LIMIT
from stream_app.ranking.network import contributions
from stream_app.ranking.slate import NEW, TAIL
from stream_app.retrieval.links import Lags, strongest_origins
from stream_app.retrieval.tables import Tables
from stream_app.unowned import on_stack

__all__ = ["CODES", "KINDS", "evidence_signs", "explain", "kind_columns", "medians", "phrase", "say", "strongest_kind"]

KINDS = ("similar", "taken_together", "taken_after", "similar_taste", "unlike", "trending", "popular", "new", "again")
"""Kinds of evidence, also the codes of reasons; ``pinned``, ``boosted``, ``new_for_you``, ``less_known``,
``less_known_for_you`` and ``recommended`` come on top."""

CODES = (*KINDS, "recommended", "boosted", "pinned", "new_for_you", "less_known", "less_known_for_you")
"""What :func:`explain` and :func:`say` say of an item; what comes from ``pinned`` on, only the latter."""
_RECOMMENDED, _BOOSTED, _PINNED, _NEW_FOR_YOU, _LESS_KNOWN, _LESS_KNOWN_FOR_YOU = range(len(KINDS), len(CODES))
_SIMILAR, _NEW = KINDS.index("similar"), KINDS.index("new")
_TOGETHER, _AFTER = KINDS.index("taken_together"), KINDS.index("taken_after")
_TRENDING = KINDS.index("trending")
_OF_OTHERS = tuple(
    KINDS.index(kind) for kind in ("taken_together", "taken_after", "similar_taste", "popular", "trending")
)
"""Kinds that say what others did."""
_LEAST = 1e-9
"""A contribution of less is none."""
_SOME = 1.5
"""Events of others, decayed, from which on others chose something: more than one of them."""
_NEARER = 0.02
"""Standard deviations: the rounding of codes is no difference."""
_WIDEST, _CLOSE = np.float32(FEATURE_LIMIT + 0.01), np.float32(1e-3)
"""Where medians are looked for, and how closely before one value is looked at after the other."""

_TEMPLATES: dict[str, dict[str, str]] = {
    "en": {
        "similar": "Similar to {title}",
        "similar_profile": "Close to what you have been looking at",
        "taken_together": "Chosen together with {title}",
        "taken_after": "Chosen after {title}",
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
        "taken_together": "有人将它与“{title}”一起选择",
        "taken_after": "有人在“{title}”之后选择了它",
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
    found = np.empty(len(contributions), np.int64)
    _strongest(contributions, np.zeros(len(contributions)) if boosts is None else boosts, found)
    return [CODES[kind] for kind in found.tolist()]


@compiled
def _strongest(contributions: NDArray[np.float64], boosts: NDArray[np.float64], found: NDArray[np.int64]) -> None:
    """:func:`strongest_kind` as indices of :data:`CODES`: int64 [items], overwritten."""
    for item in range(len(contributions)):
        kind = 0
        for other in range(1, contributions.shape[1]):
            if contributions[item, other] > contributions[item, kind]:
                kind = other
        most = contributions[item, kind]
        found[item] = kind if most > _LEAST else _RECOMMENDED
        if boosts[item] > max(most, 0.0):
            found[item] = _BOOSTED


@compiled
def _keep_what_is_so(
    rows: NDArray[np.int32],
    counts: NDArray[np.float64],
    stated: NDArray[np.float64],
    rising: int,
    rate: float,
    at: float,
    mine: NDArray[np.float64],
    amounts: NDArray[np.float64],
) -> None:
    """Take out of ``amounts`` (float64 [items, kinds]) what speaks of others where there are none: learned factors
    start from the text, and what the user did counts among what everybody did.

    Args:
        rows: int32 [items].
        counts, stated: by row, see ``Signals``; the last column is of all time.
        rising, rate: the column of what others choose of late, and its half-lives per second.
        at: event time of the request (seconds).
        mine: float64 [items], the user's part of the counts.
    """
    last = counts.shape[1] - 1
    for item, row in enumerate(rows):
        if counts[row, last] - mine[item] < _SOME:
            for kind in _OF_OTHERS:
                amounts[item, kind] = 0.0
        elif counts[row, rising] * 2.0 ** (-max(at - stated[row], 0.0) * rate) - mine[item] < _SOME:
            amounts[item, _TRENDING] = 0.0


@compiled
def medians(values: NDArray[np.float32], found: NDArray[np.float32]) -> None:
    """The (upper) median of each column, zeros for no rows.

    Args:
        values: float32 [k, columns], from -6 to 6 (scaled features).
        found: float32 [columns], overwritten.
    """
    rows, columns = values.shape
    found[:] = 0.0
    if not rows:
        return
    # Where they lie is cut in halves, which counts the values of many columns at once; from there on value by value.
    width = -(-columns // LANES) * LANES
    held = on_stack((rows, width), np.float32)
    for row in range(rows):
        for column in range(columns):
            held[row, column] = values[row, column]
        for column in range(columns, width):
            held[row, column] = np.float32(0.0)
    below, limits = on_stack(width, np.float32), on_stack(width, np.float32)
    counts, left = on_stack(width, np.int32), True
    below[:] = -_WIDEST
    step = _WIDEST
    while step > _CLOSE:
        for column in range(width):
            limits[column] = below[column] + step
        count_up_to(held, limits, counts)
        for column in range(width):
            below[column] = limits[column] if counts[column] <= rows // 2 else below[column]
        step *= np.float32(0.5)
    while left:
        least_above(held, below, limits)
        count_up_to(held, limits, counts)
        left = False
        for column in range(width):
            if counts[column] <= rows // 2 and limits[column] < np.inf:
                below[column] = limits[column]
                left = True
    found[:] = limits[:columns]


@compiled
def explain(
    rows: NDArray[np.int32],
    values: NDArray[np.float32],
    candidates: NDArray[np.float32],
    context: NDArray[np.float32],
    boosts: NDArray[np.float64],
    mine: NDArray[np.float64],
    rising: int,
    kinds: NDArray[np.int64],
    signs: NDArray[np.float32],
    count: int,
    near_columns: NDArray[np.int64],
    skip: NDArray[np.float64],
    inner: NDArray[np.float64],
    outer: NDArray[np.float64],
    tables: Tables,
    liked: NDArray[np.float32],
    recent: NDArray[np.int32],
    lags: Lags,
    at: float,
    slot: NDArray[np.int32],
    codes: NDArray[np.int64],
    near: NDArray[np.bool_],
    origins: NDArray[np.int64],
) -> None:
    """Why each item of a slate is there, and which recent item it goes back to.

    Args:
        rows: int32 [n], the slate.
        values: float32 [n, features].
        candidates: float32 [k, features], of everything that was scored.
        context: float32 [c], of the request.
        boosts: float64 [n], what rules added.
        mine: float64 [n], what the user alone added to the counts of each.
        rising: the column of counts that says what others choose of late.
        kinds, signs, count: see :func:`kind_columns`, :func:`evidence_signs`, :data:`KINDS`.
        near_columns: int64, features whose sum above that of the middle candidate says "close to your interests".
        skip, inner, outer: of the network, see ``network.score_network``.
        tables: what is known by row.
        liked: float32 [l, dimensions], vectors of the newest recent items.
        recent, lags, at, slot: of the links, see ``retrieval.links``.
        codes: int64 [n], overwritten: indices of :data:`CODES`.
        near: bool [n], overwritten: whether it is close to the user's interests.
        origins: int64 [3, n], overwritten: places among the recent items, -1 for none: taken together with, taken
            after, similar to; as far as the code asks for them.
    """
    middle = on_stack(values.shape[1], np.float32)
    medians(candidates, middle)
    amounts = on_stack((len(rows), count), np.float64)
    contributions(values, middle, context, kinds, signs, skip, inner, outer, amounts)
    _keep_what_is_so(rows, tables.counts, tables.arena.stated, rising, tables.rates[rising], at, mine, amounts)
    _strongest(amounts, boosts, codes)
    for place in range(len(rows)):
        # Of what is closer than the middle candidate, and of nothing else.
        above = np.float32(0.0)
        for column in near_columns:
            above += values[place, column] - middle[column]
        near[place] = above > _NEARER
    origins[:] = -1
    # Looked for only where they are named.
    by_links = False
    similar, places = on_stack(len(rows), np.int32), on_stack(len(rows), np.int32)
    asked = 0
    for place, code in enumerate(codes):
        by_links = by_links or code in (_TOGETHER, _AFTER)
        if code == _SIMILAR:
            similar[asked], places[asked] = rows[place], place
            asked += 1
    if by_links:
        strongest_origins(recent, lags, at, tables.transition_rate, tables.arena, rows, slot, origins[:2])
    if len(liked):
        products = on_stack((asked, len(liked)), np.float32)
        code_products(similar[:asked], tables.codes, tables.steps, liked, products)
        for found in range(asked):
            best = -np.inf
            for other in range(len(liked)):
                if products[found, other] > best:
                    best, origins[2, places[found]] = products[found, other], other


@compiled
def say(
    codes: NDArray[np.int64],
    near: NDArray[np.bool_],
    origins: NDArray[np.int64],
    kept_for: NDArray[np.int8],
    pinned: NDArray[np.bool_],
    searched: NDArray[np.bool_],
    recent: NDArray[np.int32],
    named: NDArray[np.int32],
) -> None:
    """The reason of each item of a slate: how it got its place where that was not by its score, otherwise what
    :func:`explain` found.

    Args:
        codes, near, origins: as :func:`explain` leaves them; ``codes`` are overwritten.
        kept_for: int8 [n], what the place was kept for, see ``slate.compose``.
        pinned, searched: bool [n], whether a rule put the item there, and whether it is what the user searched for.
        recent: int32, rows of the recent items.
        named: int32 [n], overwritten: the row of the recent item that the reason names, -1: none.
    """
    named[:] = -1
    for place in range(len(codes)):
        if pinned[place]:
            codes[place] = _PINNED
        elif searched[place]:
            codes[place] = _SIMILAR
        elif kept_for[place] == NEW:
            codes[place] = _NEW_FOR_YOU if near[place] else _NEW
        elif kept_for[place] == TAIL:
            codes[place] = _LESS_KNOWN_FOR_YOU if near[place] else _LESS_KNOWN
        else:
            code = codes[place]
            origin = -1
            if code == _TOGETHER:
                origin = origins[0, place]
            elif code == _AFTER:
                origin = origins[1, place]
            elif code == _SIMILAR:
                origin = origins[2, place]
            if origin >= 0:
                named[place] = recent[origin]


def phrase(code: str, params: dict[str, Any], language: str) -> Reason:
    """A reason with its sentence, in the language (its first subtag) or English."""
    templates = _TEMPLATES.get(language.split("-")[0].lower(), _TEMPLATES["en"])
    title = params.get("title")
    key = "similar_profile" if code == "similar" and not title else code
    if code in ("taken_together", "taken_after") and not title:
        # The other item has no catalogue entry (any more), so it cannot be named.
        key = "recommended"
    return Reason(code=code, params=params, text=templates[key].replace("{title}", str(title or "")))
