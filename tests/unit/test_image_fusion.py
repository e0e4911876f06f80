"""Two spaces in one vector: its cosine is the weighted sum, and the weight is learned from what is taken together."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from stream_app.images.fusion import fuse, learn_weight, split

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


def groups(seed: int, noise: float, *, items: int = 200, kinds: int = 10) -> NDArray[np.float32]:
    """Vectors of which those with the same number modulo ``kinds`` are alike, the more so the less ``noise``."""
    rng = np.random.default_rng(seed)
    vectors = rng.normal(size=(kinds, 16))[np.arange(items) % kinds] + noise * rng.normal(size=(items, 16))
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


def taken(items: int = 200, kinds: int = 10) -> NDArray[np.int64]:
    return np.array([(item, (item + kinds) % items) for item in range(items)], np.int64)


def test_where_the_image_alone_says_what_is_taken_together_it_gets_the_weight() -> None:
    learned = learn_weight(unit(0, 200, 16), groups(1, 0.5), taken())
    assert learned.weight > 0.9
    assert learned.by_image > 0.9
    assert abs(learned.by_text - 0.5) < 0.05
    assert learned.comparisons > 3_000


def test_where_the_text_alone_says_it_the_image_gets_none() -> None:
    assert learn_weight(groups(1, 0.5), unit(0, 200, 16), taken()).weight < 0.1


def test_where_both_say_a_part_of_it_both_together_say_more() -> None:
    learned = learn_weight(groups(1, 1.5), groups(2, 1.5), taken())
    assert 0.2 < learned.weight < 0.8
    assert learned.fused > max(learned.by_text, learned.by_image)


def test_the_worse_side_gets_the_smaller_weight() -> None:
    assert learn_weight(groups(1, 1.0), groups(2, 3.0), taken()).weight < 0.4
    assert learn_weight(groups(1, 3.0), groups(2, 1.0), taken()).weight > 0.6


def test_a_side_that_says_the_opposite_gets_nothing() -> None:
    """Its coefficient would be negative: far in the image, taken together."""
    image = groups(2, 0.1, kinds=2)
    pairs = np.array([(item, (item + 1) % 200) for item in range(200)], np.int64)
    kinds = np.arange(200) // 2 * 2 % 20  # the text says which two belong together
    text = groups(1, 0.1, items=200, kinds=20)[kinds]
    learned = learn_weight(text, image, pairs[::2])
    assert learned.by_image < 0.5
    assert learned.weight == 0.0


@given(seed=seeds, noise=st.floats(0.1, 5.0))
def test_exchanging_the_sides_exchanges_the_weight(seed: int, noise: float) -> None:
    one, other, pairs = groups(seed, noise, items=60), groups(seed + 1, 1.0, items=60), taken(60)
    learned, exchanged = learn_weight(one, other, pairs), learn_weight(other, one, pairs)
    assert learned.weight == pytest.approx(1.0 - exchanged.weight, abs=1e-4)
    assert (learned.by_text, learned.by_image) == (exchanged.by_image, exchanged.by_text)


def test_it_is_the_least_loss_of_all_weights_and_scales() -> None:
    """Against a plain grid over both coefficients."""
    from stream_app.images.fusion import _coefficients, _loss

    rng = np.random.default_rng(3)
    features = rng.normal([0.3, 0.1], [0.5, 0.4], size=(2_000, 2))
    found = _loss(features, _coefficients(features))
    grid = [_loss(features, np.array([p, q])) for p in np.linspace(0, 6, 61) for q in np.linspace(0, 6, 61)]
    assert found <= min(grid) + 1e-12


def test_chance_alone_teaches_nothing() -> None:
    text = np.repeat(unit(0, 1, 8), 50, axis=0)
    with pytest.raises(ValueError, match="neither text nor image"):
        learn_weight(text, text, taken(50))


@pytest.mark.parametrize("items", [0, 2])
def test_too_few_items_are_refused(items: int) -> None:
    with pytest.raises(ValueError, match="nothing can be learned"):
        learn_weight(unit(0, items, 4), unit(1, items, 4), np.array([(0, 1)], np.int64))
