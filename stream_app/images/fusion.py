"""Two spaces as one: what a text and an image say of an item, in one vector. Pure functions on arrays.

Late fusion by weighted concatenation: of unit vectors ``t`` (text) and ``v`` (image) and the weight ``w`` of the image,

    fused = [ sqrt(1 - w) * t,  sqrt(w) * v ]        cosine of two = (1 - w) * cos(t, t') + w * cos(v, v')

so one index of one space searches both, and the cosine is the weighted sum that late fusion ranks by (Snoek et al.
2005, doi 10.1145/1101149.1101236).

What has no image has the image model's vector of its text as ``v``. Vectors of texts and of images lie in two narrow
cones apart (Liang et al. 2022, "Mind the Gap", arXiv 2203.02053), so such items are nearer to each other, and to every
search, than to items with an image. In the space that is served this is mostly gone: the gap is the strongest axis of
the catalogue, and half-whitening evens it out (tests/unit/test_image_gap.py measures it, and that zeros instead of the
text's vector are worse). Without half-whitening it is not.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from stream_app.spaces.comparison import nearest, taken_near
from stream_app.spaces.whitening import Statistics, fit

__all__ = ["WEIGHTS", "fuse", "recall_by_weight", "split"]

WEIGHTS = tuple(round(0.05 * step, 2) for step in range(21))
"""Of the image: those that are compared, the text alone (0) and the image alone (1) among them."""


def fuse(
    text: NDArray[np.float32], image: NDArray[np.float32], has_image: NDArray[np.bool_], weight: float
) -> NDArray[np.float32]:
    """The fused vectors: float32 [n, text dimensions + image dimensions], unit length.

    Args:
        text: float32 [n, text dimensions], unit length.
        image: float32 [n, image dimensions], unit length where there is one; the other rows are not looked at.
        has_image: bool [n]; where there is none, the vector is the text alone, ``[t, 0]``.
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


def recall_by_weight(
    text: NDArray[np.float32],
    image: NDArray[np.float32],
    has_image: NDArray[np.bool_],
    taken: Mapping[int, Sequence[int]],
    *,
    near: int = 50,
    whiten: bool = True,
    weights: Sequence[float] = WEIGHTS,
) -> list[tuple[float, float]]:
    """For each weight of the image, how much of what people take together is near to each other: of the items taken
    together with an item the share among its ``near`` nearest, averaged over items. The best weight is learned so.

    A weight moves the axes of the space that is served, so each is judged in the space half-whitened with it, as it
    would be served; a formula for the models' own cosines would answer another question.

    Args:
        text: float32 [n, text dimensions], unit length; more than ``near`` items.
        image: float32 [n, image dimensions], unit length where there is one.
        has_image: bool [n], as :func:`fuse` takes it.
        taken: rows by row, none empty.
        near: neighbours (count).
        whiten: whether the space is served half-whitened.
        weights: 0 to 1 each.

    Returns:
        (weight, recall) in the order of ``weights``.

    Raises:
        ValueError: when there are too few items, or nothing was taken together.
    """
    if not taken:
        raise ValueError("nothing was taken together of the items that are compared")
    found = {item: list(others) for item, others in taken.items()}
    recalls = []
    for weight in weights:
        vectors = fuse(text, image, has_image, weight)
        if whiten:
            statistics = Statistics(vectors.shape[1])
            statistics.add(vectors)
            vectors = fit(statistics).apply(vectors)
        recalls.append((weight, taken_near(nearest(vectors, near), found)))
    return recalls
