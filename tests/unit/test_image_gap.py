"""Why nothing stands in for a missing image: with the gap between texts and images that such models have, the text
tower's vector would put every item without an image in front. The numbers of docs/images.md."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from stream_app.images.fusion import fuse

ITEMS, SEARCHES, DIMENSIONS, WEIGHT, NEAREST = 1_000, 200, 256, 0.5, 50


def unit(vectors: NDArray[np.float64]) -> NDArray[np.float32]:
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


def share_without_image(*, tower: bool) -> float:
    """Of the nearest to a search, the share that has no image."""
    rng = np.random.default_rng(0)
    meaning, asked = rng.normal(size=(ITEMS, DIMENSIONS)), rng.normal(size=(SEARCHES, DIMENSIONS))
    cones = 1.4 * np.sqrt(DIMENSIONS) * unit(rng.normal(size=(2, DIMENSIONS)) + 0.35 * rng.normal(size=DIMENSIONS))

    def seen(what: NDArray[np.float64], cone: int) -> NDArray[np.float32]:
        return unit(what + 0.5 * rng.normal(size=what.shape) + cones[cone])

    texts = unit(np.concatenate([meaning, asked]) + 0.5 * rng.normal(size=(ITEMS + SEARCHES, DIMENSIONS)))
    read, images = seen(np.concatenate([meaning, asked]), 0), seen(meaning, 1)
    assert abs(np.mean(read[:100] @ read[100:200].T) - 0.6) < 0.05
    assert abs(np.mean(read[:100] @ images[100:200].T) - 0.1) < 0.05
    has_image = np.arange(ITEMS) % 2 == 0
    half = np.where(has_image[:, None], images, read[:ITEMS])
    items = fuse(texts[:ITEMS], half, has_image | tower, WEIGHT)
    searches = fuse(texts[ITEMS:], read[ITEMS:], np.ones(SEARCHES, bool), WEIGHT)
    best = np.argsort(-(searches @ items.T), axis=1)[:, :NEAREST]
    return float(np.mean(~has_image[best]))


def test_the_text_tower_in_place_of_images_would_put_items_without_one_in_front() -> None:
    assert share_without_image(tower=True) > 0.9


def test_nothing_in_place_of_images_keeps_both_kinds_of_items_within_reach() -> None:
    assert 0.3 < share_without_image(tower=False) < 0.7
