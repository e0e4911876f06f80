"""What stands in for a missing image, with the gap between texts and images that such models have (Liang et al. 2022,
arXiv 2203.02053): the image model's vector of the text, in the half-whitened space. The numbers of docs/images.md."""

from __future__ import annotations

from functools import cache
from typing import Literal

import numpy as np
import pytest
from numpy.typing import NDArray

from stream_app.images.fusion import fuse
from stream_app.spaces.whitening import Statistics, fit

ITEMS, SEARCHES, DIMENSIONS, KINDS, NEAREST = 2_000, 200, 64, 50, 40
WEIGHTS = (0.3, 0.5, 0.7)


def unit(vectors: NDArray[np.float64]) -> NDArray[np.float32]:
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


@cache
def searched(instead: Literal["text", "zeros"], weight: float, *, whiten: bool) -> tuple[float, float]:
    """Of the nearest to a search, the share without an image (half of all items) and the share of its kind."""
    rng = np.random.default_rng(0)
    kind = rng.integers(KINDS, size=ITEMS + SEARCHES)
    meaning = rng.normal(size=(KINDS, DIMENSIONS))[kind] + 0.7 * rng.normal(size=(len(kind), DIMENSIONS))
    cones = unit(rng.normal(size=(3, DIMENSIONS)))
    cones[1] += 0.17 * cones[0]

    def seen(what: NDArray[np.float64], cone: int, depth: float) -> NDArray[np.float32]:
        noise = 0.5 * rng.normal(size=what.shape)
        return unit(what + noise + depth * np.sqrt(1.5 * DIMENSIONS) * cones[cone])

    texts, read, images = seen(meaning, 2, 0.5), seen(meaning, 0, 1.4), seen(meaning[:ITEMS], 1, 1.4)
    assert np.mean(read[:200] @ read[200:400].T) == pytest.approx(0.6, abs=0.1)
    assert np.mean(read[:200] @ images[200:400].T) == pytest.approx(0.1, abs=0.1)
    has_image = np.arange(ITEMS) % 2 == 0
    half = np.where(has_image[:, None], images, read[:ITEMS])
    items = fuse(texts[:ITEMS], half, has_image | (instead == "text"), weight)
    searches = fuse(texts[ITEMS:], read[ITEMS:], np.ones(SEARCHES, bool), weight)
    if whiten:
        statistics = Statistics(items.shape[1])
        statistics.add(items)
        served = fit(statistics)
        items, searches = served.apply(items), served.apply(searches)
    best = np.argsort(-(searches @ items.T), axis=1)[:, :NEAREST]
    return float(np.mean(~has_image[best])), float(np.mean(kind[best] == kind[ITEMS:, None]))


@pytest.mark.parametrize("weight", WEIGHTS)
def test_half_whitened_items_with_and_without_an_image_are_found_alike(weight: float) -> None:
    share, _ = searched("text", weight, whiten=True)
    assert 0.5 <= share < 0.75


@pytest.mark.parametrize("weight", WEIGHTS[1:])
def test_half_whitened_the_text_in_place_of_an_image_finds_more_than_zeros(weight: float) -> None:
    _, by_text = searched("text", weight, whiten=True)
    _, by_zeros = searched("zeros", weight, whiten=True)
    assert by_text > by_zeros + 0.05


def test_without_half_whitening_items_without_an_image_stand_in_front() -> None:
    """So docs/images.md says to leave spaces.whiten on."""
    share, _ = searched("text", 0.5, whiten=False)
    assert share > 0.85
