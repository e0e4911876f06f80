"""A change of the served space: in the shadow, at once, with nothing lost; in snapshots; at the right time."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from schemas.arrays import pack_float32
from schemas.messages import Item, ItemVector, VectorSpace
from stream_app.errors import SnapshotError
from stream_app.serving import ServingState
from stream_app.settings import IndexSettings, KafkaSettings, Settings, SpaceSettings
from stream_app.spaces.migration import Migration
from tests.unit.test_whitening import embeddings

MODEL = "test/24/raw"
DIMENSIONS = 24
Vectors = NDArray[np.float32]


def settings(*, exact_below: int = 10_000, **spaces: float) -> Settings:
    return Settings(index=IndexSettings(exact_below=exact_below), spaces=SpaceSettings(**spaces))  # type: ignore[arg-type]


def message(item_id: str, vector: Vectors) -> ItemVector:
    return ItemVector(item_id=item_id, space=MODEL, text_hash="", dimensions=len(vector), vector=pack_float32(vector))


def state(vectors: Vectors, configured: Settings | None = None) -> ServingState:
    serving = ServingState(configured or settings(), space=MODEL, dimensions=DIMENSIONS)
    put(serving, vectors)
    return serving


def put(serving: ServingState, vectors: Vectors, *, start: int = 0) -> None:
    for number, vector in enumerate(vectors, start=start):
        serving.apply_item(f"i{number}", Item(item_id=f"i{number}", title=f"Item {number}"))
        serving.apply_vector(f"i{number}", message(f"i{number}", vector))


def served(serving: ServingState, count: int) -> Vectors:
    """Vectors of ``i0`` to ``i<count>`` in the index; zeros where there is none."""
    return serving.index.vectors(np.array([serving.catalogue.row(f"i{number}") for number in range(count)], np.int32))


def new_space(serving: ServingState) -> VectorSpace:
    fitted = serving.fit_space()()
    assert fitted is not None
    return fitted


@pytest.mark.parametrize("exact_below", [10_000, 0])
def test_cut_over_in_the_middle_of_changes_loses_nothing(exact_below: int) -> None:
    before, late = embeddings(400), embeddings(300, seed=1)
    serving = state(before, settings(exact_below=exact_below))
    space = new_space(serving)
    assert serving.apply_space(space)
    assert serving.migrating
    # While the shadow is built: new ones, changed ones, one that goes.
    put(serving, late[:200], start=400)
    put(serving, late[200:])
    serving.apply_vector("i399", None)
    expected = np.concatenate([late[200:], before[100:399], np.zeros((1, DIMENSIONS), np.float32), late[:200]])
    np.testing.assert_array_equal(served(serving, 600), expected)  # the old space, to the last moment
    assert serving.versions.space == MODEL
    assert serving.advance_space(wait=True)
    assert not serving.migrating
    assert serving.versions.space.startswith(f"{MODEL}+w1-")
    np.testing.assert_allclose(served(serving, 600), serving.served.from_model(expected), atol=1e-4)
    assert len(serving.index) == 599
    rows, _ = serving.index.search(served(serving, 600)[[5, 450]], 1)
    assert rows[:, 0].tolist() == [serving.catalogue.row("i5"), serving.catalogue.row("i450")]


def test_what_arrives_after_the_cut_over_is_in_the_new_space() -> None:
    serving = state(embeddings(100))
    serving.apply_space(new_space(serving))
    serving.advance_space(wait=True)
    late = embeddings(5, seed=9)
    put(serving, late, start=100)
    np.testing.assert_allclose(served(serving, 105)[100:], serving.served.from_model(late), atol=1e-6)
    assert serving.counters["vectors"] == 105


def test_the_same_vector_again_is_no_change() -> None:
    vectors = embeddings(100)
    serving = state(vectors)
    serving.apply_space(new_space(serving))
    serving.advance_space(wait=True)
    version = serving.index.version
    put(serving, vectors)
    assert serving.index.version == version


def test_texts_enter_in_the_served_space() -> None:
    vectors = embeddings(100)
    serving = state(vectors)
    assert serving.to_space({"gardening": vectors[3]})["gardening"] is not None
    serving.apply_space(new_space(serving))
    serving.advance_space(wait=True)
    text = serving.to_space({"gardening": vectors[3], "music": vectors[4]})
    np.testing.assert_allclose(np.stack(list(text.values())), served(serving, 100)[3:5], atol=1e-5)
    assert serving.to_space({}) == {}


def test_another_space_while_one_is_made_ready_takes_its_place() -> None:
    serving = state(embeddings(500))
    first = new_space(serving)
    put(serving, embeddings(500, seed=4), start=500)
    second = new_space(serving)
    serving.apply_space(first)
    assert serving.apply_space(second)
    assert serving.advance_space(wait=True)
    assert serving.served.message == second
    np.testing.assert_allclose(
        served(serving, 1_000),
        serving.served.from_model(np.concatenate([embeddings(500), embeddings(500, seed=4)])),
        atol=1e-4,
    )
    assert not serving.apply_space(second)  # read again


def test_the_models_own_space_again() -> None:
    vectors = embeddings(100)
    serving = state(vectors)
    serving.apply_space(new_space(serving))
    serving.advance_space(wait=True)
    serving.apply_space(None)
    serving.advance_space(wait=True)
    assert serving.versions.space == MODEL
    np.testing.assert_allclose(served(serving, 100), vectors, atol=2e-5)


def test_spaces_that_are_not_ours_are_ignored_or_refused() -> None:
    serving, other = state(embeddings(100)), ServingState(settings(), space="other", dimensions=DIMENSIONS)
    assert not other.apply_space(new_space(serving))
    narrow = ServingState(settings(), space=MODEL, dimensions=3)
    with pytest.raises(ValueError, match="24 dimensions"):
        narrow.apply_space(new_space(serving))
    assert not narrow.migrating
    off = state(embeddings(100), settings(whiten=False))
    assert not off.apply_space(new_space(serving))
    assert not off.space_due()


def test_what_ends_the_thread_is_raised(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> None:
        raise MemoryError

    serving = state(embeddings(100))
    space = new_space(serving)
    monkeypatch.setattr(Migration, "_moved", broken)
    serving.apply_space(space)
    with pytest.raises(MemoryError):
        serving.advance_space(wait=True)


def test_a_fit_is_due_at_first_and_when_the_catalogue_has_grown_or_shrunk() -> None:
    serving = state(embeddings(9), settings(first_items=10, refit_growth=2.0))
    assert not serving.space_due()
    put(serving, embeddings(10), start=9)
    assert serving.space_due()
    serving.apply_space(new_space(serving))
    assert not serving.space_due()  # one is coming
    serving.advance_space(wait=True)
    assert not serving.space_due()
    put(serving, embeddings(18, seed=2), start=19)
    assert not serving.space_due()
    put(serving, embeddings(1, seed=3), start=37)
    assert serving.space_due()
    serving.apply_space(new_space(serving))
    serving.advance_space(wait=True)
    assert (serving.served.version, serving.served.items) == (2, 38)
    for number in range(19):
        serving.apply_vector(f"i{number}", None)
    assert serving.space_due()


def test_fits_agree_whatever_the_rows_and_the_space_they_start_from() -> None:
    vectors = embeddings(200)
    forward = state(vectors)
    backward = ServingState(settings(), space=MODEL, dimensions=DIMENSIONS)
    for number in reversed(range(200)):
        backward.apply_item(f"i{number}", Item(item_id=f"i{number}", title="x"))
        backward.apply_vector(f"i{number}", message(f"i{number}", vectors[number]))
    first = new_space(forward)
    assert first == new_space(backward)
    forward.apply_space(first)
    forward.advance_space(wait=True)
    again = new_space(forward)
    assert again.version == 2
    before = served(forward, 200)
    forward.apply_space(again)
    forward.advance_space(wait=True)
    np.testing.assert_allclose(served(forward, 200), before, atol=2e-3)


def test_no_fit_when_the_record_would_be_too_large() -> None:
    configured = Settings(connection=KafkaSettings(max_message_bytes=16_384))
    serving = ServingState(configured, space=MODEL, dimensions=4_096)
    assert serving.fit_space()() is None


def no_step(serving: ServingState) -> None:
    """Saved as it is."""


def step(serving: ServingState) -> None:
    serving.advance_space(wait=True)


@pytest.mark.parametrize("before_saving", [no_step, step], ids=["under way", "done"])
def test_snapshots_keep_the_space_and_one_that_is_coming(
    tmp_path: Path, before_saving: Callable[[ServingState], None]
) -> None:
    vectors = embeddings(150)
    serving = state(vectors)
    space = new_space(serving)
    serving.apply_space(space)
    before_saving(serving)
    with serving.saving():
        serving.save(tmp_path)
    loaded = ServingState.load(tmp_path, settings(), space=MODEL, dimensions=DIMENSIONS)
    assert loaded.migrating == serving.migrating
    assert loaded.versions.space == serving.versions.space
    np.testing.assert_array_equal(served(loaded, 150), served(serving, 150))
    loaded.advance_space(wait=True)
    assert loaded.served.message == space
    np.testing.assert_allclose(served(loaded, 150), loaded.served.from_model(vectors), atol=1e-4)


def test_a_half_whitened_snapshot_is_not_for_a_process_without(tmp_path: Path) -> None:
    serving = state(embeddings(100))
    serving.apply_space(new_space(serving))
    serving.advance_space(wait=True)
    serving.save(tmp_path)
    with pytest.raises(SnapshotError, match=r"spaces\.whiten"):
        ServingState.load(tmp_path, settings(whiten=False), space=MODEL, dimensions=DIMENSIONS)
