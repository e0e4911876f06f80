"""Learned factors in the serving state: whatever comes first, rows that change hands, snapshots, what is not for us."""

from __future__ import annotations

import itertools
from pathlib import Path

import msgspec
import numpy as np
import pytest

from schemas.arrays import pack_float32
from schemas.messages import Item, ItemFactors, ItemVector
from stream_app.factors.basis import FactorBasis, fit_basis
from stream_app.serving import ServingState
from stream_app.settings import FactorSettings, ReplicaSettings, Settings
from stream_app.spaces.served import describe
from stream_app.spaces.whitening import Statistics, fit

SPACE = "test/8/raw"
SETTINGS = Settings(factors=FactorSettings(dimensions=4), replica=ReplicaSettings(unknown_items=3))
VECTORS = np.random.default_rng(1).normal(size=(30, 8)).astype(np.float32)
VECTORS /= np.linalg.norm(VECTORS, axis=1, keepdims=True)
BASIS = fit_basis(VECTORS, space=SPACE, factors=4, length=1.2)


def new_state() -> ServingState:
    return ServingState(SETTINGS, space=SPACE, dimensions=8)


def item(item_id: str) -> Item:
    return Item(item_id=item_id, title=item_id)


def vector(item_id: str, place: int) -> ItemVector:
    return ItemVector(
        item_id=item_id, space=SPACE, text_hash="", dimensions=8, vector=pack_float32(VECTORS[place]), text=""
    )


def factors(item_id: str, value: float, *, space: str = SPACE, dimensions: int = 4) -> ItemFactors:
    values = pack_float32(np.full(dimensions, value))
    return ItemFactors(
        item_id=item_id, space=space, context=values, target=values, bias=value, accumulators=[1.0] * 3, applied={}
    )


def step(state: ServingState, name: str) -> None:
    match name:
        case "item":
            state.apply_item("a", item("a"))
        case "vector":
            state.apply_vector("a", vector("a", 0))
        case "basis":
            state.apply_basis(BASIS.message())
        case "factors":
            state.apply_factors("a", factors("a", 0.5))


@pytest.mark.parametrize("order", list(itertools.permutations(["item", "vector", "basis", "factors"])), ids="-".join)
def test_whatever_comes_first_what_was_learned_counts(order: tuple[str, ...]) -> None:
    state = new_state()
    for name in order:
        step(state, name)
    row = state.catalogue.row("a")
    assert state.factors.learned[row]
    np.testing.assert_array_equal(state.factors.target[row], np.full(4, 0.5, np.float32))


@pytest.mark.parametrize("order", list(itertools.permutations(["item", "vector", "basis"])), ids="-".join)
def test_without_anything_learned_an_item_starts_from_its_vector(order: tuple[str, ...]) -> None:
    state = new_state()
    for name in order:
        step(state, name)
    row = state.catalogue.row("a")
    assert state.factors.has[row]
    assert not state.factors.learned[row]
    np.testing.assert_allclose(state.factors.context[row], BASIS.project(VECTORS[:1])[0], rtol=1e-5)


def test_the_start_is_the_model_s_vector_whatever_space_is_served() -> None:
    state = new_state()
    for place in range(30):
        state.apply_item(str(place), item(str(place)))
        state.apply_vector(str(place), vector(str(place), place))
    statistics = Statistics(8)
    statistics.add(VECTORS)
    state.apply_space(describe(fit(statistics, axes=8), model=SPACE, version=1, items=30))
    assert state.advance_space(wait=True)
    state.apply_basis(BASIS.message())
    rows = [state.catalogue.row(str(place)) for place in range(30)]
    np.testing.assert_allclose(state.factors.context[rows], BASIS.project(VECTORS), atol=5e-3)


def test_factors_dropped_by_the_learner_start_again() -> None:
    state = new_state()
    for name in ("item", "vector", "basis", "factors"):
        step(state, name)
    state.apply_factors("a", None)
    row = state.catalogue.row("a")
    assert not state.factors.learned[row]
    np.testing.assert_allclose(state.factors.context[row], BASIS.project(VECTORS[:1])[0], rtol=1e-5)


def test_a_deleted_item_leaves_no_factors() -> None:
    state = new_state()
    for name in ("item", "vector", "basis", "factors"):
        step(state, name)
    row = state.catalogue.row("a")
    state.apply_item("a", None)
    assert not state.factors.has[row]
    assert not state.factors.target[row].any()


def test_a_withdrawn_vector_takes_with_it_only_what_it_started() -> None:
    state = new_state()
    for name in ("item", "vector", "basis"):
        step(state, name)
    row = state.catalogue.row("a")
    state.apply_vector("a", None)
    assert not state.factors.has[row]
    step(state, "factors")
    state.apply_vector("a", None)
    assert state.factors.has[row]


def test_a_row_that_changes_hands_keeps_nothing() -> None:
    state = new_state()
    state.apply_basis(BASIS.message())
    for number in range(40):
        state.apply_factors(f"unknown-{number}", factors(f"unknown-{number}", 9.0))
    state.apply_item("new", item("new"))
    row = state.catalogue.row("new")
    assert state.counters["unknown_items_dropped"] > 0
    assert not state.factors.has[row]
    assert np.count_nonzero(state.factors.learned) <= 3


def test_what_is_of_another_space_or_size_is_ignored() -> None:
    state = new_state()
    assert not state.apply_factors("a", factors("a", 1.0, space="other"))
    assert not state.apply_factors("a", factors("a", 1.0, dimensions=6))
    other = fit_basis(VECTORS, space="other", factors=4, length=1.2)
    assert not state.apply_basis(other.message())
    wider = fit_basis(VECTORS, space=SPACE, factors=5, length=1.2)
    assert not state.apply_basis(wider.message())
    assert state.apply_basis(BASIS.message())
    assert not state.apply_basis(BASIS.message())
    assert not state.factors.has.any()


def test_factors_that_are_not_finite_are_refused_by_name() -> None:
    state = new_state()
    with pytest.raises(ValueError, match="'a' are not finite"):
        state.apply_factors("a", factors("a", float("nan")))
    assert not state.factors.has.any()


def test_a_basis_survives_its_message() -> None:
    again = FactorBasis.of(BASIS.message())
    assert again.same_as(BASIS)
    assert not again.same_as(None)


def test_a_snapshot_keeps_them(tmp_path: Path) -> None:
    state = new_state()
    for name in ("item", "vector", "basis", "factors"):
        step(state, name)
    state.apply_item("b", item("b"))
    state.apply_vector("b", vector("b", 1))
    with state.saving():
        state.save(tmp_path)
    loaded = ServingState.load(tmp_path, SETTINGS, space=SPACE, dimensions=8)
    rows = [state.catalogue.row("a"), state.catalogue.row("b")]
    for name in ("context", "target", "bias", "learned", "has"):
        np.testing.assert_array_equal(getattr(loaded.factors, name)[rows], getattr(state.factors, name)[rows])
    assert BASIS.same_as(loaded.factors.basis)


def test_factors_applied_together_are_those_applied_one_by_one() -> None:
    messages = [("a", factors("a", 0.5)), ("b", factors("b", -0.25))]
    one, many = new_state(), new_state()
    for state in (one, many):
        state.apply_item("a", item("a"))
    for name, message in messages:
        one.apply_factors(name, message)
    many.apply_all_factors(messages)
    for name, _ in messages:
        row, other = many.catalogue.row(name), one.catalogue.row(name)
        for attribute in ("context", "target", "bias", "learned", "has"):
            held, expected = getattr(many.factors, attribute)[row], getattr(one.factors, attribute)[other]
            np.testing.assert_array_equal(held, expected)
        np.testing.assert_array_equal(many.factors.codes.values[row], one.factors.codes.values[other])
    assert one.counters == many.counters


@pytest.mark.parametrize(
    "wrong",
    [
        factors("b", 1.0, space="other/8/raw"),
        factors("b", 1.0, dimensions=3),
        factors("b", np.nan),
        factors("a", 1.0),
        msgspec.structs.replace(factors("b", 1.0), target=pack_float32(np.ones(3))),
        msgspec.structs.replace(factors("b", 1.0), context="?"),
    ],
    ids=["space", "size", "nan", "twice", "target", "base64"],
)
def test_of_factors_that_cannot_be_applied_together_none_are(wrong: ItemFactors) -> None:
    state = new_state()
    state.apply_item("a", item("a"))
    with pytest.raises(ValueError, match=r"together|finite|base64"):
        state.apply_all_factors([("a", factors("a", 0.5)), (wrong.item_id, wrong)])
    assert not state.factors.learned[state.catalogue.row("a")]
    assert not state.counters["factors"]
