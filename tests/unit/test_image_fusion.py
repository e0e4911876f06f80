"""Two spaces in one vector: its cosine is the weighted sum, and the weight is learned from what is taken together."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from stream_app.images.fusion import fuse, recall_by_weight, split

weights = st.floats(0.0, 1.0)
seeds = st.integers(0, 2**32 - 1)


def unit(seed: int, count: int, dimensions: int) -> NDArray[np.float32]:
    vectors = np.random.default_rng(seed).normal(size=(count, dimensions))
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


@given(seed=seeds, weight=weights, text=st.integers(1, 40), image=st.integers(1, 40))
def test_the_cosine_is_the_weighted_sum_of_both(seed: int, weight: float, text: int, image: int) -> None:
    texts, images = unit(seed, 5, text), unit(seed + 1, 5, image)
    fused = fuse(texts, images, np.ones(5, bool), weight)
    assert fused.dtype == np.float32
    assert fused.shape == (5, text + image)
    expected = (1.0 - weight) * (texts @ texts.T) + weight * (images @ images.T)
    np.testing.assert_allclose(fused @ fused.T, expected, atol=2e-6)


@given(seed=seeds, weight=weights, there=st.lists(st.booleans(), min_size=1, max_size=8))
def test_every_vector_has_unit_length_and_what_is_missing_is_not_looked_at(
    seed: int, weight: float, there: list[bool]
) -> None:
    has_image = np.array(there)
    texts, images = unit(seed, len(there), 7), unit(seed + 1, len(there), 5)
    images[~has_image] = np.nan
    fused = fuse(texts, images, has_image, weight)
    np.testing.assert_allclose(np.linalg.norm(fused, axis=1), 1.0, atol=1e-6)
    np.testing.assert_array_equal(fused[~has_image, :7], texts[~has_image])
    assert not fused[~has_image, 7:].any()
    # With and without an image: by the text, less what the image could have said.
    expected = np.sqrt(1.0 - weight) * (texts[has_image] @ texts[~has_image].T)
    np.testing.assert_allclose(fused[has_image] @ fused[~has_image].T, expected, atol=1e-6)


@given(seed=seeds, weight=st.floats(0.0001, 0.9999), there=st.lists(st.booleans(), min_size=1, max_size=8))
def test_what_was_fused_comes_apart_again(seed: int, weight: float, there: list[bool]) -> None:
    has_image = np.array(there)
    texts, images = unit(seed, len(there), 7), unit(seed + 1, len(there), 5)
    text, image, found = split(fuse(texts, images, has_image, weight), 7, weight)
    np.testing.assert_array_equal(found, has_image)
    np.testing.assert_allclose(text, texts, atol=1e-4)
    np.testing.assert_allclose(image[has_image], images[has_image], atol=1e-4)
    assert not image[~has_image].any()


@pytest.mark.parametrize("weight", [-0.1, 1.1, float("nan")])
def test_a_weight_beyond_the_bounds_is_refused(weight: float) -> None:
    with pytest.raises(ValueError, match="from 0 to 1"):
        fuse(unit(0, 2, 3), unit(1, 2, 3), np.ones(2, bool), weight)


@pytest.mark.parametrize("weight", [0.0, 1.0])
def test_of_one_side_alone_the_other_does_not_come_back(weight: float) -> None:
    with pytest.raises(ValueError, match="one side only"):
        split(fuse(unit(0, 2, 3), unit(1, 2, 3), np.ones(2, bool), weight), 3, weight)


KINDS = 20
ITEMS = 200
TAKEN = {item: [(item + KINDS) % ITEMS, (item + 2 * KINDS) % ITEMS] for item in range(ITEMS)}


def kinds(seed: int, noise: float) -> NDArray[np.float32]:
    """Vectors of which those that are taken together are alike, the more so the less ``noise``."""
    rng = np.random.default_rng(seed)
    vectors = rng.normal(size=(KINDS, 16))[np.arange(ITEMS) % KINDS] + noise * rng.normal(size=(ITEMS, 16))
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


def recalls(text: NDArray[np.float32], image: NDArray[np.float32], *, whiten: bool) -> dict[float, float]:
    return dict(recall_by_weight(text, image, np.ones(len(text), bool), TAKEN, near=10, whiten=whiten))


@pytest.mark.parametrize("whiten", [False, True])
def test_where_the_image_alone_says_what_is_taken_together_it_gets_the_weight(whiten: bool) -> None:
    found = recalls(unit(0, ITEMS, 16), kinds(1, 0.5), whiten=whiten)
    assert max(found, key=lambda weight: found[weight]) >= 0.7
    assert found[1.0] > 0.9
    assert found[0.0] < 0.1


@pytest.mark.parametrize("whiten", [False, True])
def test_where_the_text_alone_says_it_the_image_gets_little(whiten: bool) -> None:
    found = recalls(kinds(1, 0.5), unit(0, ITEMS, 16), whiten=whiten)
    assert max(found, key=lambda weight: found[weight]) <= 0.3
    assert found[0.0] > 0.9


@pytest.mark.parametrize("whiten", [False, True])
def test_where_both_say_a_part_of_it_both_together_find_more(whiten: bool) -> None:
    found = recalls(kinds(1, 1.5), kinds(2, 1.5), whiten=whiten)
    best = max(found, key=lambda weight: found[weight])
    assert 0.2 < best < 0.8
    assert found[best] > 1.2 * max(found[0.0], found[1.0])


@given(seed=seeds, noise=st.floats(0.1, 5.0))
def test_exchanging_the_sides_exchanges_the_weights(seed: int, noise: float) -> None:
    one, other = kinds(seed, noise), kinds(seed + 1, 1.0)
    found, exchanged = recalls(one, other, whiten=False), recalls(other, one, whiten=False)
    for weight in (0.0, 0.25, 0.5, 0.75, 1.0):
        assert found[weight] == pytest.approx(exchanged[1.0 - weight], abs=0.02)


def test_nothing_taken_together_teaches_nothing() -> None:
    with pytest.raises(ValueError, match="nothing was taken together"):
        recall_by_weight(unit(0, 20, 4), unit(1, 20, 4), np.ones(20, bool), {}, near=5)


def test_too_few_items_are_refused() -> None:
    with pytest.raises(ValueError, match="5 neighbours among 5 items"):
        recall_by_weight(unit(0, 5, 4), unit(1, 5, 4), np.ones(5, bool), {0: [1]}, near=5)
