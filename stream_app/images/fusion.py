"""Two spaces as one: what a text and an image say of an item, in one vector. Pure functions on arrays.

Late fusion by weighted concatenation: of unit vectors ``t`` (text) and ``v`` (image) and the weight ``w`` of the image,

    fused = [ sqrt(1 - w) * t,  sqrt(w) * v ]        cosine of two = (1 - w) * cos(t, t') + w * cos(v, v')

so one index of one space searches both, and the cosine is the weighted sum that late fusion ranks by (Snoek et al.
2005, doi 10.1145/1101149.1101236). What has no image has its text alone, ``[t, 0]``: no number is invented for what is
not there. Its cosine with what has one is ``sqrt(1 - w) * cos(t, t')``.

Why not the image model's vector of the *text* in that place: vectors of texts and of images lie in two narrow cones
apart (Liang et al. 2022, "Mind the Gap", arXiv 2203.02053), so items without an image would be near to each other, and
to every search, because they have none, whatever they are.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

__all__ = ["LearnedWeight", "fuse", "learn_weight", "split"]

_STEPS = 100
_RIDGE = 1e-3
"""Of the mean loss: enough that the coefficients are finite where one side tells everything apart."""


def fuse(
    text: NDArray[np.float32], image: NDArray[np.float32], has_image: NDArray[np.bool_], weight: float
) -> NDArray[np.float32]:
    """The fused vectors: float32 [n, text dimensions + image dimensions], unit length.

    Args:
        text: float32 [n, text dimensions], unit length.
        image: float32 [n, image dimensions], unit length where there is one; the other rows are not looked at.
        has_image: bool [n].
        weight: of the image, 0 (text alone) to 1 (image alone, where there is one).

    Raises:
        ValueError: when the weight is not from 0 to 1.
    """
    if not 0.0 <= weight <= 1.0:
        raise ValueError(f"a weight of {weight}: it is from 0 to 1")
    fused = np.zeros((len(text), text.shape[1] + image.shape[1]), np.float32)
    fused[:, : text.shape[1]] = np.where(has_image, np.sqrt(1.0 - weight), 1.0)[:, None] * text
    fused[has_image, text.shape[1] :] = np.sqrt(weight) * image[has_image]
    return fused


def split(
    fused: NDArray[np.float32], text_dimensions: int, weight: float
) -> tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.bool_]]:
    """What :func:`fuse` was given, but for rounding: text, image (zero where there is none), has_image.

    Raises:
        ValueError: when the weight is 0 or 1: one of the two is not in the vectors then.
    """
    if not 0.0 < weight < 1.0:
        raise ValueError(f"vectors fused with a weight of {weight} hold one side only")
    text, image = fused[:, :text_dimensions], fused[:, text_dimensions:]
    has_image: NDArray[np.bool_] = np.linalg.norm(image, axis=1) > 0.5 * np.sqrt(weight)
    scale = np.where(has_image, np.sqrt(1.0 - weight), 1.0)[:, None].astype(np.float32)
    return text / scale, np.where(has_image[:, None], image / np.float32(np.sqrt(weight)), np.float32(0.0)), has_image


@dataclass(frozen=True, slots=True)
class LearnedWeight:
    """Which weight ranks best what people take together.

    Attributes:
        weight: of the image, 0 to 1.
        comparisons: of an item taken and one that was not, that it was learned from.
        by_text, by_image, fused: share of comparisons in which the item taken is nearer: by the text alone, by the
            image alone, by both with ``weight``. A half is chance.
    """

    weight: float
    comparisons: int
    by_text: float
    by_image: float
    fused: float


def learn_weight(
    text: NDArray[np.float32],
    image: NDArray[np.float32],
    pairs: NDArray[np.int64],
    *,
    negatives: int = 20,
    seed: int = 0,
) -> LearnedWeight:
    """The weight under which items that were taken together are nearer than items at random.

    Logistic regression on pairs, as in Bayesian personalised ranking (Rendle et al. 2009, arXiv 1205.2618): of the pair
    (a, b) and a random item c, the two features are by how much the text's and the image's cosine with a is larger for
    b than for c; with coefficients ``p`` and ``q``, both at least 0, the weight is ``q / (p + q)``. The loss is convex,
    so there is one answer and no grid. How sure the cosines are (their scale) is learned along with it and left out.

    Args:
        text: float32 [n, text dimensions], unit length, of items that all have an image.
        image: float32 [n, image dimensions], unit length.
        pairs: int64 [m, 2], rows of items taken together; repeated ones count as often.
        negatives: random items that each pair is compared with.
        seed: of the choice of these.

    Raises:
        ValueError: when nothing can be learned: fewer than three items, no pairs, or neither side tells the items that
            were taken together from others.
    """
    if len(text) < 3 or len(pairs) == 0:
        raise ValueError(f"{len(pairs)} pairs of {len(text)} items with images; nothing can be learned of these")
    first, second = np.repeat(pairs, negatives, axis=0).T
    other = np.random.default_rng(seed).integers(len(text), size=len(first))
    told = (other != first) & (other != second)
    first, second, other = first[told], second[told], other[told]
    if not len(first):
        raise ValueError("no item to compare the pairs with")
    features = np.stack([_nearer(side, first, second, other) for side in (text, image)], axis=1)
    by_text, by_image = _won(features[:, 0]), _won(features[:, 1])
    p, q = _coefficients(features)
    if p + q == 0.0:
        raise ValueError(
            "neither text nor image is nearer among items taken together than among others "
            f"(by text in {by_text:.3f} of comparisons, by image in {by_image:.3f})"
        )
    weight = float(q / (p + q))
    fused = _won((1.0 - weight) * features[:, 0] + weight * features[:, 1])
    return LearnedWeight(weight, len(first), by_text, by_image, fused)


def _nearer(
    side: NDArray[np.float32], first: NDArray[np.int64], second: NDArray[np.int64], other: NDArray[np.int64]
) -> NDArray[np.float64]:
    """By how much the cosine with ``second`` is larger than that with ``other``: float64 [m], in slices."""
    parts = [
        np.einsum("ij,ij->i", side[first[rows]], side[second[rows]] - side[other[rows]])
        for rows in np.array_split(np.arange(len(first)), len(first) // 4_096 + 1)
    ]
    return np.concatenate(parts).astype(np.float64)


def _won(differences: NDArray[np.float64]) -> float:
    return float(np.mean((differences > 0.0) + 0.5 * (differences == 0.0)))


def _coefficients(features: NDArray[np.float64]) -> NDArray[np.float64]:
    """Float64 [2], at least 0, of the least mean log(1 + exp(-features @ x)) + ridge * |x|^2 / 2."""
    both = _fitted(features)
    if (both >= 0.0).all():
        return both
    # The loss is convex: with one of two beyond the bound, the least within the bounds is on an edge.
    edges = np.zeros((2, 2))
    for side in range(2):
        edges[side, side] = max(0.0, _fitted(features[:, side : side + 1])[0])
    best: NDArray[np.float64] = min(edges, key=lambda x: _loss(features, x))
    return best


def _fitted(features: NDArray[np.float64]) -> NDArray[np.float64]:
    """The same without the bounds, by Newton's method with halved steps."""
    x = np.zeros(features.shape[1])
    for _ in range(_STEPS):
        wrong = 1.0 / (1.0 + np.exp(np.clip(features @ x, -500.0, 500.0)))
        gradient = _RIDGE * x - features.T @ wrong / len(features)
        curvature = (features * (wrong * (1.0 - wrong))[:, None]).T @ features / len(features)
        step = np.linalg.solve(curvature + _RIDGE * np.eye(len(x)), gradient)
        before, size = _loss(features, x), 1.0
        while _loss(features, x - size * step) > before and size > 1e-6:
            size /= 2.0
        x = x - size * step
        if np.abs(step).max() < 1e-9 * (1.0 + np.abs(x).max()):
            break
    return x


def _loss(features: NDArray[np.float64], x: NDArray[np.float64]) -> float:
    return float(np.mean(np.logaddexp(0.0, -(features @ x))) + _RIDGE * (x @ x) / 2.0)
