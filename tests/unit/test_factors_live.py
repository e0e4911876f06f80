"""Factors of a catalogue that changes while they are learned: when there is a basis, what joins, what leaves, and what
another owner goes on with."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest

from schemas.arrays import pack_float32, unpack_float32
from schemas.messages import ItemFactors, ItemVector, TrainingExample, TrainingExamples
from stream_app.factors.basis import FactorBasis, extend_basis, fit_basis
from stream_app.factors.live import LiveFactors, holds_less
from stream_app.settings import FactorSettings

SETTINGS = FactorSettings(dimensions=8, negatives=6, history=5)
VECTORS = np.random.default_rng(7).normal(size=(60, 16)).astype(np.float32)
VECTORS /= np.linalg.norm(VECTORS, axis=1, keepdims=True)


Topic = dict[str, ItemFactors | None]
"""What compaction keeps of item-factors.v1."""


def vector(number: int, *, space: str = "s") -> ItemVector:
    return ItemVector(
        item_id=f"i{number}", space=space, text_hash="", dimensions=16, vector=pack_float32(VECTORS[number]), text=""
    )


def fresh() -> LiveFactors:
    return LiveFactors(SETTINGS, space="s", dimensions=16)


def load(live: LiveFactors, numbers: Sequence[int]) -> None:
    for number in numbers:
        live.apply_item(f"i{number}", there=True)
        live.apply_vector(f"i{number}", vector(number))


def batch(*choices: tuple[int, int, list[int]], partition: int = 0) -> TrainingExamples:
    """Choices: offset, item taken, items before it."""
    examples = [
        TrainingExample(
            offset=offset, at=0, weight=1, rows=0, features="", item_id=f"i{item}", previous=[f"i{n}" for n in previous]
        )
        for offset, item, previous in choices
    ]
    return TrainingExamples(source_topic="t", source_partition=partition, feature_names=[], examples=examples)


def chain(first: int, count: int, *, items: int = 40) -> TrainingExamples:
    rng = np.random.default_rng(first)
    draws = rng.integers(0, items, (count, 3)).tolist()
    return batch(*((first + place, draw[0], draw[1:]) for place, draw in enumerate(draws)))


def learn(live: LiveFactors, message: TrainingExamples, *, offset: int) -> int:
    basis = live.due(wanted=True)
    if basis is not None:
        live.adopt(basis)
    return live.learn(message, offset=offset)


def broadcast(live: LiveFactors, topic: Topic, *, limit: int = 1_000) -> None:
    while live.waiting:
        topic.update(live.take(limit))
        live.taken_are_durable()


def rows(topic: Topic) -> dict[str, ItemFactors]:
    return {item_id: row for item_id, row in topic.items() if row is not None}


def same(one: dict[str, ItemFactors], two: dict[str, ItemFactors]) -> None:
    assert one.keys() == two.keys()
    for item_id, row in one.items():
        assert row.applied == two[item_id].applied
        for name in ("context", "target"):
            np.testing.assert_allclose(
                unpack_float32(getattr(row, name)), unpack_float32(getattr(two[item_id], name)), rtol=1e-5, atol=1e-6
            )


def taken_over(old_basis: FactorBasis, topic: Topic, items: Sequence[int]) -> LiveFactors:
    live = fresh()
    assert live.restore_basis(old_basis.message())
    load(live, items)
    live.restore(rows(topic))
    return live


def test_an_item_has_factors_when_it_is_described_and_embedded_in_either_order() -> None:
    live = fresh()
    live.apply_vector("i0", vector(0))
    live.apply_item("i1", there=True)
    assert len(live) == 0
    live.apply_item("i0", there=True)
    live.apply_vector("i1", vector(1, space="other"))
    assert len(live) == 1
    live.apply_vector("i1", vector(1))
    assert len(live) == 2
    live.apply_item("i0", there=False)
    assert len(live) == 1


def test_items_that_are_not_embedded_yet_are_not_drawn_and_keep_their_start() -> None:
    live = fresh()
    topic: Topic = {}
    load(live, range(30))
    live.apply_item("i30", there=True)
    assert learn(live, chain(0, 50, items=30), offset=0) == 50
    live.apply_vector("i30", vector(30))
    live.learn(batch((100, 30, [])), offset=1)
    broadcast(live, topic)
    assert topic["i30"].applied == {"0": 100}


def test_the_basis_waits_for_the_catalogue_and_for_something_to_learn() -> None:
    live = fresh()
    for number in range(14):
        live.apply_item(f"i{number}", there=True)
    for number in range(6):
        live.apply_vector(f"i{number}", vector(number))
    assert live.due(wanted=True) is None, "the catalogue is being loaded"
    assert live.learn(chain(0, 5), offset=3) == 0
    assert live.commit_offset() == 4, "what comes before there is a basis is read, and teaches nothing"
    for number in range(6, 14):
        live.apply_vector(f"i{number}", vector(number))
    assert live.due(wanted=False) is None
    basis = live.due(wanted=True)
    assert basis is not None
    assert basis.found == 7
    live.adopt(basis)
    assert live.commit_offset() == 4
    assert live.due(wanted=True) is None


def test_an_extended_basis_keeps_its_directions_and_adds_others_across_them() -> None:
    small = fit_basis(VECTORS[:6], space="s", factors=8, length=1.2)
    assert small.found == 3
    large = extend_basis(small, VECTORS, length=1.2)
    assert large.found == 8
    np.testing.assert_array_equal(large.matrix[:, :3], small.matrix[:, :3])
    np.testing.assert_array_equal(large.mean, small.mean)
    np.testing.assert_allclose(large.matrix[:, :3].T @ large.matrix[:, 3:], 0.0, atol=1e-4)
    added = large.project(VECTORS)[:, 3:]
    np.testing.assert_allclose(added.mean(axis=0), 0.0, atol=1e-4)
    assert np.sqrt((added**2).sum(axis=1).mean()) == pytest.approx(1.2 * (5 / 8) ** 0.5, rel=1e-3)


def test_extending_with_nothing_new_changes_nothing() -> None:
    basis = fit_basis(VECTORS, space="s", factors=8, length=1.2)
    assert extend_basis(basis, VECTORS, length=1.2) is basis
    alike = np.repeat(VECTORS[:1], 9, axis=0)
    flat = fit_basis(alike, space="s", factors=8, length=1.2)
    assert extend_basis(flat, alike, length=1.2).same_as(flat)


def test_a_catalogue_that_grows_extends_the_basis_and_nothing_learned_is_lost() -> None:
    live = fresh()
    topic: Topic = {}
    load(live, range(8))
    learn(live, chain(0, 40, items=8), offset=0)
    broadcast(live, topic)
    before, basis = rows(topic), live.basis
    assert basis is not None
    assert basis.found == 4
    load(live, range(8, 40))
    wider = live.due(wanted=False)
    assert wider is not None
    live.adopt(wider)
    assert live.due(wanted=True) is None, "it is final"
    assert live.commit_offset() == 1, "offsets before the extension are not held back by it"
    broadcast(live, topic)
    for item_id, row in rows(topic).items():
        old, new = unpack_float32(before[item_id].target), unpack_float32(row.target)
        np.testing.assert_array_equal(new[:4], old[:4])
        start = wider.project(VECTORS[int(item_id[1:])][None, :])[0]
        np.testing.assert_allclose(new[4:], start[4:], rtol=1e-5, atol=1e-6)
        assert row.applied == before[item_id].applied


def test_an_owner_killed_between_the_wider_basis_and_its_rows_leaves_the_same_rows() -> None:
    whole = fresh()
    topic: Topic = {}
    left: Topic = {}
    load(whole, range(8))
    learn(whole, chain(0, 40, items=8), offset=0)
    broadcast(whole, left)
    load(whole, range(8, 40))
    wider = whole.due(wanted=False)
    assert wider is not None
    whole.adopt(wider)
    broadcast(whole, topic)
    live = taken_over(wider, left, range(40))
    broadcast(live, left)
    same(rows(topic), rows(left))


def test_another_owner_goes_on_with_equal_rows_whatever_was_broadcast_and_in_whatever_order_items_come() -> None:
    whole = fresh()
    topic: Topic = {}
    load(whole, range(40))
    for place in range(3):
        learn(whole, chain(40 * place, 40), offset=place)
    assert whole.basis is not None

    first = fresh()
    left: Topic = {}
    load(first, range(40))
    learn(first, chain(0, 40), offset=0)
    broadcast(first, left)
    learn(first, chain(40, 40), offset=1)  # and is killed before it broadcasts any of it
    live = taken_over(whole.basis, left, range(39, -1, -1))
    for place in range(3):
        live.learn(chain(40 * place, 40), offset=place)
    broadcast(whole, topic)
    broadcast(live, left)
    same(rows(topic), rows(left))


def test_rows_of_several_source_partitions_are_taken_over() -> None:
    first = fresh()
    topic: Topic = {}
    load(first, range(40))
    for partition in range(5):
        learn(first, batch((partition, 1, [2]), partition=partition), offset=partition)
    broadcast(first, topic)
    assert first.basis is not None
    live = taken_over(first.basis, topic, range(40))
    live.learn(batch((9, 1, [2])), offset=5)
    row = dict(live.take(100))["i1"]
    assert row is not None
    assert row.applied == {"0": 9, "1": 1, "2": 2, "3": 3, "4": 4}


def test_rows_that_were_broadcast_in_part_take_every_offset_once() -> None:
    whole = fresh()
    topic: Topic = {}
    load(whole, range(40))
    learn(whole, chain(0, 40), offset=0)
    assert whole.basis is not None
    left: Topic = dict(whole.take(7))
    whole.taken_are_lost()
    broadcast(whole, topic)
    live = taken_over(whole.basis, left, range(40))
    live.learn(chain(0, 40), offset=0)
    broadcast(live, left)
    assert {key: row.applied for key, row in rows(left).items()} == {
        key: row.applied for key, row in rows(topic).items()
    }


def test_what_left_the_catalogue_while_nobody_owned_it_is_broadcast_as_gone() -> None:
    first = fresh()
    topic: Topic = {}
    load(first, range(40))
    learn(first, chain(0, 40), offset=0)
    broadcast(first, topic)
    assert first.basis is not None
    gone = next(iter(topic))
    live = taken_over(first.basis, topic, [n for n in range(40) if f"i{n}" != gone])
    assert live.take(10) == [(gone, None)]
    live.taken_are_durable()
    assert live.waiting == 0


def test_rows_whose_basis_is_lost_are_broadcast_as_gone_before_new_ones() -> None:
    first = fresh()
    topic: Topic = {}
    load(first, range(40))
    learn(first, chain(0, 40), offset=0)
    broadcast(first, topic)
    live = fresh()
    load(live, range(40))
    assert live.restore(rows(topic)) == 0
    learn(live, chain(40, 10), offset=1)
    taken: list[tuple[str, ItemFactors | None]] = []
    while len(taken) < len(topic):
        taken += live.take(7)
        live.taken_are_durable()
    assert {item_id for item_id, _ in taken} == set(topic)
    assert all(row is None for _, row in taken)
    assert live.waiting > 0


def test_a_deleted_item_that_comes_back_begins_anew_and_its_row_does_not_overtake_the_end_of_the_old_one() -> None:
    live = fresh()
    load(live, range(40))
    learn(live, batch((0, 3, [4])), offset=0)
    broadcast(live, {})
    live.apply_item("i3", there=False)
    load(live, [3])
    live.learn(batch((1, 3, [4])), offset=1)
    first = dict(live.take(100))
    assert first["i3"] is None
    live.taken_are_lost()
    assert live.commit_offset() == 1
    assert dict(live.take(100))["i3"] is None
    live.taken_are_durable()
    row = dict(live.take(100))["i3"]
    assert row is not None
    assert row.applied == {"0": 1}


def test_a_row_deleted_while_it_is_broadcast_is_gone_afterwards() -> None:
    live = fresh()
    load(live, range(40))
    learn(live, batch((0, 3, [4])), offset=5)
    assert "i3" in dict(live.take(100))
    live.apply_item("i3", there=False)
    live.taken_are_durable()
    assert live.commit_offset() == 5
    assert live.take(100) == [("i3", None)]
    live.taken_are_durable()
    assert live.commit_offset() == 6


@pytest.mark.parametrize(("offset", "partition"), [(-1, 0), (2**70, 0), (0, -1), (0, 2**40)])
def test_an_example_from_a_place_that_cannot_be_is_refused(offset: int, partition: int) -> None:
    live = fresh()
    load(live, range(40))
    learn(live, chain(0, 1), offset=0)
    with pytest.raises(ValueError, match="place"):
        live.learn(batch((offset, 3, [4]), partition=partition), offset=1)
    broadcast(live, {})
    assert live.commit_offset() == 2


def test_rows_that_are_not_finite_are_left_out() -> None:
    first = fresh()
    topic: Topic = {}
    load(first, range(40))
    learn(first, chain(0, 40), offset=0)
    broadcast(first, topic)
    broken = {"i1": ItemFactors(
        item_id="i1", space="s", context=pack_float32(np.full(8, np.nan)), target=pack_float32(np.ones(8)), bias=0.0,
        accumulators=[1.0] * 3, applied={"0": 9},
    )}  # fmt: skip
    assert first.basis is not None
    live = taken_over(first.basis, {}, range(40))
    assert live.restore(broken) == 0
    live.learn(batch((20, 1, [])), offset=1)
    broadcast(live, topic)
    assert np.isfinite(unpack_float32(topic["i1"].context)).all()


@pytest.mark.parametrize(
    ("applied", "less"),
    [({"0": 4}, True), ({"0": 5}, False), ({"0": 6}, False), ({"1": 9}, False), ({"0": 4, "1": 0}, False), ({}, True)],
)
def test_a_row_that_came_late_is_known_by_what_it_holds(applied: dict[str, int], less: bool) -> None:
    def row(places: dict[str, int], space: str = "s") -> ItemFactors:
        return ItemFactors(
            item_id="i", space=space, context="", target="", bias=0.0, accumulators=[1.0] * 3, applied=places
        )

    assert holds_less(row(applied), row({"0": 5})) == less
    assert not holds_less(row(applied, "of a new model"), row({"0": 5}))


def test_vectors_of_items_nobody_described_are_bounded() -> None:
    live = fresh()
    for number in range(10_050):
        live.apply_vector(f"i{number}", vector(number % 60))
    assert len(live._early) == 10_000


def test_learning_rate_zero_needs_no_basis() -> None:
    live = LiveFactors(FactorSettings(dimensions=8, learning_rate=0), space="s", dimensions=16)
    load(live, range(40))
    assert learn(live, chain(0, 5), offset=2) == 0
    assert live.basis is None
    assert live.commit_offset() == 3
