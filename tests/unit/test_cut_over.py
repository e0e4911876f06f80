"""Another model's space takes over: afterwards everything is as if it had been served from the beginning."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from schemas.arrays import pack_float32
from schemas.messages import Item, ItemVector, VectorSpace
from stream_app.bench.shop import ShopPlan as Plan
from stream_app.bench.shop import clustered, made_up_past, served
from stream_app.factors.basis import FactorBasis, carry_basis, fit_basis
from stream_app.ranking.recommender import RankRequest, Recommender
from stream_app.serving import ServingState
from stream_app.settings import IndexSettings, Settings
from stream_app.users.state import UserState

ITEMS, USERS = 300, 40
PLAN = Plan(items=ITEMS, users=USERS, events=0, history=10, dimensions=32)
OTHER, OTHER_DIMENSIONS = "other/24/raw", 24
SETTINGS = Settings()
PAST = made_up_past(SETTINGS, PLAN)
OTHER_VECTORS = clustered(ITEMS, OTHER_DIMENSIONS, seed=7)
NOW = PLAN.starts_at + PLAN.span_s
CARRIED = carry_basis(PAST.learner.basis, PAST.vectors, OTHER_VECTORS, space=OTHER)


def item_id(number: int) -> str:
    return PLAN.item(number).item_id


def other_vector(number: int) -> ItemVector:
    return ItemVector(
        item_id=item_id(number),
        space=OTHER,
        text_hash="",
        dimensions=OTHER_DIMENSIONS,
        vector=pack_float32(OTHER_VECTORS[number]),
    )


def shop(settings: Settings = SETTINGS) -> ServingState:
    """The shop in its first space, with learned factors."""
    return served(settings, PAST, whiten=True)


def with_other(serving: ServingState, numbers: Sequence[int] = range(ITEMS), *, whiten: bool = True) -> ServingState:
    """The same with the other space kept beside it, fitted and with a basis."""
    serving.keep_beside(OTHER, OTHER_DIMENSIONS)
    for number in numbers:
        serving.apply_vector(item_id(number), other_vector(number), space=OTHER)
    if whiten:
        fitted = serving.fit_space(OTHER)()
        assert fitted is not None
        assert serving.apply_space(fitted)
        serving.beside[OTHER].advance(wait=True)
    serving.apply_basis(CARRIED.message())
    return serving


def from_the_beginning() -> ServingState:
    """The shop as it is when the other space was served at all times."""
    serving = ServingState(SETTINGS, space=OTHER, dimensions=OTHER_DIMENSIONS)
    serving.apply_basis(CARRIED.message())
    for number in range(ITEMS):
        serving.apply_item(item_id(number), PLAN.item(number))
        serving.apply_vector(item_id(number), other_vector(number))
    fitted = serving.fit_space()()
    assert fitted is not None
    serving.apply_space(fitted)
    serving.advance_space(wait=True)
    serving.apply_statistics(made_up_past(SETTINGS, PLAN).statistics)
    rows = np.arange(ITEMS, dtype=np.int32)
    PAST.learner.copy_to(serving.factors, rows, np.arange(ITEMS))
    return serving


def slates(serving: ServingState, recommender: Recommender) -> list[list[tuple[str, float]]]:
    requests = [
        RankRequest(user=state, at=NOW, now=NOW, n=20) for _, state in sorted(PAST.states.items()) if state.history
    ]
    assert len(requests) == USERS
    return [
        [(one.item_id, one.score) for one in recommender.slate_items(ranking)] for ranking in recommender.rank(requests)
    ]


def test_after_the_cut_over_slates_are_those_of_a_process_that_knew_no_other_space() -> None:
    serving = with_other(shop())
    recommender = Recommender(SETTINGS, serving)
    before = slates(serving, recommender)  # whatever is remembered between rankings is of the first space now
    assert serving.versions.space.startswith(PLAN.space)
    serving.cut_over(OTHER)
    assert serving.versions.space.startswith(f"{OTHER}+w1-")
    after = slates(serving, recommender)
    fresh = from_the_beginning()
    assert serving.versions.space == fresh.versions.space
    wanted = slates(fresh, Recommender(SETTINGS, fresh))
    assert [[name for name, _ in slate] for slate in after] == [[name for name, _ in slate] for slate in wanted]
    np.testing.assert_allclose(
        [score for slate in after for _, score in slate], [score for slate in wanted for _, score in slate], rtol=1e-5
    )
    assert after != before


def test_and_the_way_back_leads_to_what_was() -> None:
    serving = with_other(shop())
    recommender = Recommender(SETTINGS, serving)
    before, space = slates(serving, recommender), serving.versions.space
    serving.cut_over(OTHER)
    slates(serving, recommender)
    serving.cut_over(PLAN.space)
    assert serving.versions.space == space
    assert slates(serving, recommender) == before


def test_the_version_of_the_index_never_goes_back() -> None:
    serving = with_other(shop())
    versions = [serving.index.version]
    for space in (OTHER, PLAN.space, OTHER):
        serving.cut_over(space)
        versions.append(serving.index.version)
    assert versions == sorted(set(versions))


def test_what_happens_to_the_catalogue_happens_in_every_space() -> None:
    serving = with_other(shop())
    serving.apply_item(item_id(3), None)
    serving.apply_vector(item_id(4), None, space=OTHER)
    other = serving.beside[OTHER].index
    rows = np.array([3, 4, 5], np.int32)
    assert other.has(rows).tolist() == [False, False, True]
    assert serving.index.has(rows).tolist() == [False, True, True]


def test_a_vector_goes_where_its_topic_belongs() -> None:
    serving = shop()
    serving.apply_vector(item_id(0), other_vector(0), space=OTHER)
    assert serving.counters["vectors_of_other_spaces"] == 1
    serving.keep_beside(OTHER, OTHER_DIMENSIONS)
    serving.apply_vector(item_id(0), PLAN.item_vector(0, PAST.vectors[0]), space=OTHER)  # in the wrong topic
    assert len(serving.beside[OTHER].index) == 0
    serving.apply_vector(item_id(0), other_vector(0), space=OTHER)
    assert len(serving.beside[OTHER].index) == 1
    serving.drop_beside(OTHER)
    assert serving.beside == {}
    serving.drop_beside(PLAN.space)
    assert serving.space == PLAN.space


def test_a_space_is_fitted_when_it_is_whole() -> None:
    serving = with_other(shop(), range(ITEMS - 4), whiten=False)
    assert not serving.covered(OTHER)
    assert not serving.space_due(OTHER)
    with_other(serving, range(ITEMS - 4, ITEMS - 2), whiten=False)
    assert serving.covered(OTHER)
    assert serving.space_due(OTHER)
    assert not serving.space_due("unheard of")


def test_the_basis_is_carried_over_once() -> None:
    serving = shop()
    serving.keep_beside(OTHER, OTHER_DIMENSIONS)
    assert not serving.basis_due(OTHER)
    for number in range(ITEMS):
        serving.apply_vector(item_id(number), other_vector(number), space=OTHER)
    assert serving.basis_due(OTHER)
    carried = serving.carry_basis(OTHER)()
    np.testing.assert_allclose(FactorBasis.of(carried).matrix, CARRIED.matrix, atol=1e-3)
    assert not serving.apply_basis(carried), "it is not the one in force"
    assert not serving.basis_due(OTHER)
    serving.cut_over(OTHER)
    assert serving.frame == PLAN.space


def test_new_items_start_where_the_carried_basis_says() -> None:
    serving = with_other(shop())
    serving.apply_item("new", Item(item_id="new", title="New"))
    row = serving.catalogue.row("new")
    serving.cut_over(OTHER)
    assert not serving.factors.has[row]
    serving.apply_vector("new", other_vector(5), space=OTHER)
    np.testing.assert_allclose(serving.factors.context[row], CARRIED.project(OTHER_VECTORS[5:6])[0], atol=1e-5)


def test_without_a_carried_basis_what_was_learned_is_kept_and_what_comes_is_taken() -> None:
    serving = shop()
    serving.keep_beside(OTHER, OTHER_DIMENSIONS)
    learned = serving.factors.context[:ITEMS].copy()
    serving.cut_over(OTHER)
    np.testing.assert_array_equal(serving.factors.context[:ITEMS], learned)


def test_what_was_learned_from_another_beginning_goes() -> None:
    serving = shop()
    serving.keep_beside(OTHER, OTHER_DIMENSIONS)
    serving.apply_basis(fit_basis(OTHER_VECTORS, space=OTHER, factors=64, length=1.2).message())
    serving.cut_over(OTHER)
    assert serving.frame == OTHER
    assert not serving.factors.learned.any()


@pytest.mark.parametrize("exact_below", [10_000, 0])
def test_a_snapshot_remembers_what_is_known_of_the_spaces_beside(tmp_path: Path, exact_below: int) -> None:
    settings = Settings(index=IndexSettings(exact_below=exact_below))
    serving = with_other(shop(settings))
    with serving.saving():
        serving.save(tmp_path)
    loaded = ServingState.load(tmp_path, settings, space=PLAN.space, dimensions=PLAN.dimensions)
    assert loaded.beside == {}
    loaded.keep_beside(OTHER, OTHER_DIMENSIONS)  # its vectors are read again from their topic
    for number in range(ITEMS):
        loaded.apply_vector(item_id(number), other_vector(number), space=OTHER)
    loaded.advance_space(wait=True)
    loaded.cut_over(OTHER)
    serving.cut_over(OTHER)
    assert loaded.versions.space == serving.versions.space
    np.testing.assert_allclose(
        loaded.index.vectors(np.arange(ITEMS, dtype=np.int32)), serving.index.vectors(np.arange(ITEMS, dtype=np.int32))
    )
    assert loaded.factors.basis is not None
    assert loaded.factors.basis.same_as(serving.factors.basis)


def test_records_of_a_space_that_is_not_kept_yet_wait_for_it() -> None:
    serving, source = shop(), with_other(shop())
    fitted = source.beside[OTHER].served.message
    assert fitted is not None
    assert not serving.apply_space(fitted)
    assert serving.served.version == 1
    serving.keep_beside(OTHER, OTHER_DIMENSIONS)
    assert serving.beside[OTHER].coming.name == source.beside[OTHER].served.name
    serving.apply_space(None, space=OTHER)
    assert serving.beside[OTHER].coming.name == OTHER


def test_records_of_spaces_are_remembered_of_a_few() -> None:
    serving = shop()
    fitted = serving.served.message
    assert fitted is not None
    for number in range(50):
        fields = {name: getattr(fitted, name) for name in ("version", "items", "dimensions", "mean", "axes", "scales")}
        serving.apply_space(VectorSpace(space=f"space-{number}", **fields))
    assert len(serving._whitenings) == 8


def _share(basis: FactorBasis, vectors: NDArray[np.float32], wanted: NDArray[np.float32]) -> float:
    """Of the variance of the wanted factors, what the basis explains."""
    off = ((basis.project(vectors) - wanted) ** 2).sum()
    return 1.0 - float(off / ((wanted - wanted.mean(axis=0)) ** 2).sum())


def test_a_basis_carried_over_starts_items_where_they_started() -> None:
    rng = np.random.default_rng(5)
    old = clustered(2_000, 48, seed=3)
    basis = fit_basis(old, space="old", factors=16, length=1.2)
    wanted = basis.project(old)
    # The same texts by another model: turned, with noise, longer vectors, off centre.
    turn = np.linalg.qr(rng.normal(size=(64, 48)))[0].astype(np.float32)
    new = old @ turn.T + 0.02 * rng.normal(size=(2_000, 64)).astype(np.float32) + 0.1
    new /= np.linalg.norm(new, axis=1, keepdims=True)
    carried = carry_basis(basis, old[:1_500], new[:1_500], space="new")
    assert (carried.space, carried.frame) == ("new", "old")
    assert _share(carried, new[1_500:], wanted[1_500:]) > 0.8
    np.testing.assert_allclose(carried.project(new[:1_500]).mean(axis=0), wanted[:1_500].mean(axis=0), atol=1e-4)
    again = carry_basis(carried, new, old, space="third")
    assert again.frame == "old"
    # Vectors that say nothing of the old ones start items in the middle.
    noise = rng.permutation(clustered(2_000, 64, seed=11))
    nothing = carry_basis(basis, old, noise, space="noise").project(noise)
    assert float(np.square(nothing - wanted.mean(axis=0)).sum(axis=1).mean()) < 0.2


def test_directions_not_found_yet_stay_free() -> None:
    few = clustered(20, 48, seed=3)
    basis = fit_basis(few, space="old", factors=16, length=1.2)
    assert basis.found == 10
    carried = carry_basis(basis, few, clustered(20, 24, seed=1), space="new")
    assert (carried.columns == basis.columns).all()


def test_a_basis_is_not_carried_over_by_nothing() -> None:
    basis = fit_basis(clustered(100, 8, seed=0), space="old", factors=4, length=1.2)
    for old, new in ((0, 0), (5, 4)):
        with pytest.raises(ValueError, match=f"not {old} and {new}"):
            carry_basis(basis, clustered(30, 8, seed=0)[:old], clustered(30, 8, seed=0)[:new], space="new")


def test_a_user_without_history_is_ranked_in_the_new_space_too() -> None:
    serving = with_other(shop())
    recommender = Recommender(SETTINGS, serving)
    request = RankRequest(user=UserState("nobody"), at=NOW, now=NOW, n=20)
    recommender.rank([request])
    serving.cut_over(OTHER)
    (ranking,) = recommender.rank([request])
    assert len(recommender.slate_items(ranking)) == 20


def test_an_empty_catalogue_is_covered_by_nothing() -> None:
    serving = ServingState(SETTINGS, space=PLAN.space, dimensions=PLAN.dimensions)
    serving.keep_beside(OTHER, OTHER_DIMENSIONS)
    assert not serving.covered(OTHER)
    assert not serving.basis_due(OTHER)


def test_a_fit_under_way_at_the_cut_over_is_there_on_the_way_back() -> None:
    serving = with_other(shop())
    fitted = serving.fit_space()()
    assert fitted is not None
    serving.apply_space(fitted)
    assert serving.live.coming.version == 2
    serving.cut_over(OTHER)
    assert serving._whitenings[PLAN.space] == fitted
    serving.drop_beside(PLAN.space)
    serving.keep_beside(PLAN.space, PLAN.dimensions)
    assert serving.beside[PLAN.space].coming.version == 2


def test_another_beginning_told_of_after_the_cut_over_ends_what_was_learned_from_the_first() -> None:
    serving = shop()
    serving.keep_beside(OTHER, OTHER_DIMENSIONS)
    serving.cut_over(OTHER)
    assert serving.frame == PLAN.space
    assert serving.factors.learned.any()
    assert serving.apply_basis(fit_basis(OTHER_VECTORS, space=OTHER, factors=64, length=1.2).message())
    assert serving.frame == OTHER
    assert not serving.factors.learned.any()


def test_a_basis_carried_over_that_comes_after_the_cut_over_keeps_what_was_learned() -> None:
    serving = shop()
    serving.keep_beside(OTHER, OTHER_DIMENSIONS)
    serving.cut_over(OTHER)
    learned = serving.factors.learned.copy()
    row = next(one for one in PAST.learner.take(1) if one[1] is not None)
    assert row[1] is not None
    assert serving.apply_factors(row[0], row[1])
    assert serving.apply_basis(CARRIED.message())
    assert serving.frame == PLAN.space
    assert (serving.factors.learned >= learned).all()


def test_a_space_beside_that_fails_is_given_up_and_the_served_one_goes_on() -> None:
    serving = with_other(shop())
    fitted = serving.fit_space(OTHER)()
    assert fitted is not None
    serving.apply_space(fitted)
    migration = serving.beside[OTHER]._migration
    assert migration is not None
    migration.wait()
    migration._error = MemoryError("no room")
    assert not serving.advance_space(wait=True)
    assert not serving.beside[OTHER].migrating
    assert len(serving.beside[OTHER].index) == ITEMS
    assert serving.counters["spaces_given_up"] == 1
