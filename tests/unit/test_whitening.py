"""Half-whitening: it evens variances out, keeps unit length, can be undone, and never hurts with little data."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from schemas.messages import VectorSpace
from stream_app.spaces.served import ServedSpace, axes_within, describe
from stream_app.spaces.whitening import Statistics, Whitening, fit

DIMENSIONS = 24
Vectors = NDArray[np.float32]


def unit(vectors: NDArray[np.floating]) -> Vectors:
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


def embeddings(count: int, *, seed: int = 0, dimensions: int = DIMENSIONS) -> Vectors:
    """Unit vectors as language models make them: a large common part, variances that fall off fast."""
    random = np.random.default_rng(seed)
    basis = np.linalg.qr(np.random.default_rng(99).normal(size=(dimensions, dimensions)))[0]
    spread = 0.8 ** np.arange(dimensions)
    return unit(random.normal(size=(count, dimensions)) * spread @ basis + 1.5 * basis[0])


def fitted(vectors: Vectors, *, axes: int | None = None) -> Whitening:
    statistics = Statistics(vectors.shape[1])
    statistics.add(vectors)
    return fit(statistics, axes=axes)


def variances(vectors: Vectors) -> NDArray[np.float64]:
    return np.linalg.eigvalsh(np.cov(vectors.T.astype(np.float64)))


def test_variances_are_closer_to_each_other_and_the_mean_is_gone() -> None:
    raw = embeddings(2_000)
    white = fitted(raw).apply(raw)
    before, after = variances(raw), variances(white)
    assert after[-1] / after[0] < before[-1] / before[0] / 5
    assert (after.sum() / np.linalg.norm(after)) ** 2 > 1.5 * (before.sum() / np.linalg.norm(before)) ** 2
    assert 3 * np.linalg.norm(white.mean(axis=0)) < np.linalg.norm(raw.mean(axis=0))


def test_cosines_are_those_of_the_textbook_formula() -> None:
    raw = embeddings(5_000)
    centred = raw - raw.mean(axis=0)
    values, axes = np.linalg.eigh(np.cov(centred.T.astype(np.float64), bias=True))
    formula = unit((centred @ axes) * (values + 0.005 * values[-1]) ** -0.25)
    white = fitted(raw).apply(raw)
    # The difference is the shrinkage, which goes with the number of vectors.
    assert np.abs(white[:200] @ white[:200].T - formula[:200] @ formula[:200].T).max() < 0.05


@given(st.integers(1, 60), st.integers(0, 5), st.integers(1, DIMENSIONS))
def test_unit_length_and_invertible_whatever_the_number_of_items(count: int, seed: int, axes: int) -> None:
    raw = embeddings(count, seed=seed)
    whitening = fitted(raw, axes=axes)
    for vectors in (raw, embeddings(20, seed=77), -raw):
        white = whitening.apply(vectors)
        np.testing.assert_allclose(np.linalg.norm(white, axis=1), 1.0, atol=1e-5)
        np.testing.assert_allclose(whitening.invert(white), vectors, atol=2e-5)


def test_many_changes_of_space_lose_nothing() -> None:
    raw = vectors = embeddings(300)
    for seed in range(20):
        whitening = fitted(embeddings(100, seed=seed))
        vectors = whitening.invert(whitening.apply(vectors))
    np.testing.assert_allclose(vectors, raw, atol=2e-5)


def test_axes_are_orthonormal_and_their_signs_are_fixed() -> None:
    axes = fitted(embeddings(500)).axes.astype(np.float64)
    np.testing.assert_allclose(axes @ axes.T, np.eye(DIMENSIONS), atol=2e-3)  # float16
    assert np.all(np.take_along_axis(axes, np.abs(axes).argmax(axis=1)[:, None], axis=1) > 0)


@given(st.permutations(range(40)), st.integers(0, 40))
def test_the_order_of_items_and_how_they_are_split_do_not_matter(order: list[int], split: int) -> None:
    raw = embeddings(40)
    statistics = Statistics(DIMENSIONS)
    statistics.add(raw[order[:split]])
    statistics.add(raw[order[split:]])
    np.testing.assert_allclose(fit(statistics).apply(raw), fitted(raw).apply(raw), atol=5e-4)


@pytest.mark.parametrize("count", [1, 2, 5, 100])
def test_equal_items_leave_the_space_as_it_is(count: int) -> None:
    others = embeddings(10, seed=3)
    whitening = fitted(np.repeat(embeddings(1), count, axis=0))
    np.testing.assert_allclose(whitening.apply(others), others, atol=2e-3)


def test_nothing_leaves_the_space_as_it_is() -> None:
    others = embeddings(10)
    np.testing.assert_allclose(fit(Statistics(DIMENSIONS)).apply(others), others, atol=1e-5)


def test_few_items_change_little_and_keep_who_is_nearest() -> None:
    raw = embeddings(3, dimensions=384)
    white = fitted(raw).apply(raw)
    queries = unit(raw + 0.3 * embeddings(3, seed=5, dimensions=384))
    assert (fitted(raw).apply(queries) @ white.T).argmax(axis=1).tolist() == [0, 1, 2]
    assert np.abs(np.einsum("nd,nd->n", raw, white)).min() > 0.9


def test_few_axes_come_close_to_all() -> None:
    raw = embeddings(2_000)
    every, some = fitted(raw).apply(raw), fitted(raw, axes=12).apply(raw)
    assert np.einsum("nd,nd->n", every, some).mean() > 0.97


def test_the_mean_itself_keeps_its_direction_and_zeros_stay_zeros() -> None:
    raw = np.concatenate([embeddings(500), -embeddings(500)])
    whitening = Whitening(mean=raw[0] * 0.999999, axes=np.eye(DIMENSIONS, dtype=np.float16), scales=np.ones(24, "f4"))
    np.testing.assert_allclose(whitening.apply(raw[:1]), raw[:1], atol=1e-3)
    zero = np.zeros((1, DIMENSIONS), np.float32)
    assert not whitening.apply(zero).any()
    assert not whitening.invert(zero).any()


def test_a_message_carries_the_whole_space() -> None:
    raw = embeddings(200)
    whitening = fitted(raw)
    space = ServedSpace("model/raw", describe(whitening, model="model/raw", version=3, items=200))
    np.testing.assert_array_equal(space.from_model(raw), whitening.apply(raw))
    np.testing.assert_allclose(space.to_model(space.from_model(raw)), raw, atol=2e-5)
    assert space.name.startswith("model/raw+w3-")
    assert (space.version, space.items) == (3, 200)


def test_the_models_own_space_is_served_unchanged() -> None:
    space, raw = ServedSpace("model/raw"), embeddings(3)
    assert (space.name, space.version, space.items) == ("model/raw", 0, 0)
    assert space.from_model(raw) is raw
    assert space.to_model(raw) is raw


def test_two_fits_of_one_version_have_two_names() -> None:
    names = {
        ServedSpace("m", describe(fitted(embeddings(50, seed=seed)), model="m", version=1, items=50)).name
        for seed in range(3)
    }
    assert len(names) == 3


@pytest.mark.parametrize("field", ["mean", "axes", "scales"])
def test_arrays_that_do_not_fit_are_refused(field: str) -> None:
    message = describe(fitted(embeddings(50)), model="m", version=1, items=50)
    parts = {name: getattr(message, name) for name in message.__struct_fields__}
    with pytest.raises(ValueError, match=r"fit 24 dimensions|positive"):
        ServedSpace("m", VectorSpace(**parts | {field: parts["scales" if field == "axes" else "axes"]}))


@pytest.mark.parametrize(("limit", "dimensions"), [(1_048_576, 384), (1_048_576, 1_024), (16_384, 384), (65_536, 768)])
def test_as_many_axes_as_a_record_has_room_for(limit: int, dimensions: int) -> None:
    axes = min(axes_within(limit, dimensions), dimensions)
    assert axes > 0
    whitening = Whitening(
        mean=np.zeros(dimensions, np.float32),
        axes=np.zeros((axes, dimensions), np.float16),
        scales=np.ones(axes, np.float32),
    )
    message = describe(whitening, model="m", version=1, items=1)
    assert len(message.mean) + len(message.axes) + len(message.scales) < 0.8 * limit
    assert axes_within(16_384, 4_096) < 1
