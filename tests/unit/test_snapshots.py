"""Snapshots are there whole or not at all, fit or are left alone, and hold no code."""

from __future__ import annotations

import hashlib
import os
import shutil
import zipfile
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from schemas.arrays import pack_float32, pack_float64
from schemas.messages import Item, ItemSignals, ItemVector
from stream_app.errors import SnapshotError
from stream_app.replicas.snapshots import MAX_AGE_S, Snapshots
from stream_app.serving import ServingState
from stream_app.settings import Settings, load_settings

NOW = 1_800_000_000.0
DIMENSIONS = 8
OFFSETS = {("t.items.v1", 0): 3, ("t.items.v1", 1): 0, ("t.item-vectors.v1", 0): 2**40}


@pytest.fixture
def settings() -> Settings:
    return load_settings(topics={"prefix": "t"})


def vector(seed: int) -> np.ndarray[Any, np.dtype[np.float32]]:
    values = np.random.default_rng(seed).normal(size=DIMENSIONS).astype(np.float32)
    return values / np.linalg.norm(values)


def make_serving(settings: Settings, count: int = 5) -> ServingState:
    serving = ServingState(settings, space="s", dimensions=DIMENSIONS)
    for number in range(count):
        item_id = f"i{number} ü"
        serving.apply_item(item_id, Item(item_id=item_id, title=f"title {number}"))
        serving.apply_vector(
            item_id,
            ItemVector(
                item_id=item_id, space="s", text_hash="", dimensions=DIMENSIONS, vector=pack_float32(vector(number))
            ),
        )
    serving.apply_signals(
        "i0 ü",
        ItemSignals(
            item_id="i0 ü",
            at=NOW,
            counts=[1.0] * (len(settings.items.half_lives_days) + 1),
            neighbours=["i1 ü"],
            symmetric=pack_float64(np.ones(1)),
            directed=pack_float64(np.ones(1)),
            applied={"0": 7},
        ),
    )
    return serving


def content(serving: ServingState) -> list[Any]:
    """What a serving state answers with."""
    catalogue = serving.catalogue
    ids = [f"i{number} ü" for number in range(5)]
    rows = np.array([catalogue.row(item_id) for item_id in ids], np.int32)
    known = rows[rows >= 0]
    return [
        [catalogue.facts(int(row)) for row in known],
        serving.index.vectors(known).tolist(),
        serving.signals.popularity(NOW, known).tolist(),
        serving.ranker.weights.tolist(),
        serving.versions.ranker,
        len(serving.index),
    ]


def folders(directory: Path) -> list[Path]:
    return sorted(path for path in (directory / "t").iterdir() if not path.name.startswith("."))


def load(snapshots: Snapshots, **overrides: Any) -> tuple[ServingState, dict[tuple[str, int], int]] | None:
    return snapshots.load(**{"space": "s", "dimensions": DIMENSIONS, "now": NOW, **overrides})


def test_what_is_written_is_loaded(tmp_path: Path, settings: Settings):
    serving = make_serving(settings)
    snapshots = Snapshots(tmp_path, settings)
    folder = snapshots.write(serving, OFFSETS, now=NOW)
    assert folders(tmp_path) == [folder]
    loaded = load(snapshots)
    assert loaded is not None
    assert content(loaded[0]) == content(serving)
    assert loaded[1] == OFFSETS


def test_no_snapshots_are_no_error(tmp_path: Path, settings: Settings):
    assert load(Snapshots(tmp_path / "not there", settings)) is None
    (tmp_path / "t").mkdir()
    assert load(Snapshots(tmp_path, settings)) is None


def test_the_newest_is_used_and_two_are_kept(tmp_path: Path, settings: Settings):
    snapshots = Snapshots(tmp_path, settings)
    written = [snapshots.write(make_serving(settings), {("t", 0): n}, now=NOW) for n in range(4)]
    assert folders(tmp_path) == written[-2:]
    loaded = load(snapshots)
    assert loaded is not None
    assert loaded[1] == {("t", 0): 3}


def test_a_snapshot_that_was_not_finished_is_not_there(tmp_path: Path, settings: Settings):
    """A process killed while writing leaves a folder under its temporary name."""
    snapshots = Snapshots(tmp_path, settings)
    whole = snapshots.write(make_serving(settings), {("t", 0): 1}, now=NOW)
    left_over = whole.with_name(f".{int(whole.name.split('-')[0]) + 1:020d}-1.tmp")
    shutil.copytree(whole, left_over)
    loaded = load(snapshots)
    assert loaded is not None
    assert loaded[1] == {("t", 0): 1}
    snapshots.write(make_serving(settings), {("t", 0): 2}, now=NOW)
    assert left_over.exists(), "it may be another process's that is still writing"
    os.utime(left_over, (1, 1))
    snapshots.write(make_serving(settings), {("t", 0): 3}, now=NOW)
    assert not left_over.exists(), "nobody writes for hours"
    assert len(folders(tmp_path)) == 2


class FullDisk(ServingState):
    """Fails in the middle of being saved."""

    def save(self, directory: Path) -> None:
        (directory / "catalogue.npz").write_bytes(b"half")
        raise OSError(28, "No space left on device")


def test_a_full_disk_leaves_what_was_there_and_nothing_else(tmp_path: Path, settings: Settings):
    snapshots = Snapshots(tmp_path, settings)
    whole = snapshots.write(make_serving(settings), OFFSETS, now=NOW)
    with pytest.raises(OSError, match="No space left"):
        snapshots.write(FullDisk(settings, space="s", dimensions=DIMENSIONS), OFFSETS, now=NOW)
    assert list((tmp_path / "t").iterdir()) == [whole]


def files(folder: Path) -> list[Path]:
    return sorted(folder.iterdir())


def test_every_file_is_guarded_and_a_damaged_snapshot_gives_way_to_the_one_before(tmp_path: Path, settings: Settings):
    snapshots = Snapshots(tmp_path, settings)
    older = snapshots.write(make_serving(settings), {("t", 0): 1}, now=NOW)
    newer = snapshots.write(make_serving(settings), {("t", 0): 2}, now=NOW)
    for file in files(newer):
        data = file.read_bytes()
        for damage in (data[: len(data) // 2], b"", data[:-1] + bytes([data[-1] ^ 1]), None):
            if damage is None:
                file.unlink()
            else:
                file.write_bytes(damage)
            loaded = load(snapshots)
            assert loaded is not None
            assert loaded[1] == {("t", 0): 1}, f"{file.name} is damaged, {older.name} is not"
        file.write_bytes(data)
    loaded = load(snapshots)
    assert loaded is not None
    assert loaded[1] == {("t", 0): 2}


def test_a_single_wrong_digit_in_an_offset_is_noticed(tmp_path: Path, settings: Settings):
    snapshots = Snapshots(tmp_path, settings)
    file = snapshots.write(make_serving(settings), {("t", 0): 1234}, now=NOW) / "manifest.json"
    data = file.read_bytes()
    assert data.count(b"1234") == 1
    file.write_bytes(data.replace(b"1234", b"1235"))
    with pytest.raises(SnapshotError, match="damaged"):
        load(snapshots)


def edit_manifest(folder: Path, **changes: Any) -> None:
    """As another release might have written it: with a checksum that is right."""
    file = folder / "manifest.json"
    line, _, _ = file.read_bytes().partition(b"\n")
    changed = msgspec.json.encode({**msgspec.json.decode(line), **changes})
    file.write_bytes(changed + b"\n" + hashlib.blake2b(changed).hexdigest().encode() + b"\n")


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"format": 99}, "format 99"),
        ({"fits": "other"}, "other settings"),
        ({"complete_at": NOW - MAX_AGE_S - 1}, "hours old"),
        ({"offsets": "none"}, "offsets"),
        ({"files": {"../../elsewhere": "0"}}, "not those of manifest.json"),
        ({"files": {}}, "not those of manifest.json"),
    ],
)
def test_a_manifest_that_does_not_fit_is_refused_by_name(tmp_path: Path, settings: Settings, changes, why):
    snapshots = Snapshots(tmp_path, settings)
    folder = snapshots.write(make_serving(settings), OFFSETS, now=NOW)
    edit_manifest(folder, **changes)
    with pytest.raises(SnapshotError) as caught:
        load(snapshots)
    assert folder.name in str(caught.value)
    assert why in str(caught.value)


@pytest.mark.parametrize(
    "overrides",
    [
        {"items": {"half_lives_days": (2.0, 3.0)}},
        {"items": {"transition_half_life_days": 1.0}},
        {"items": {"neighbours": 7}},
        {"index": {"m": 8}},
        {"index": {"ef_construction": 33}},
    ],
)
def test_a_snapshot_made_with_other_settings_is_refused(tmp_path: Path, settings: Settings, overrides):
    Snapshots(tmp_path, settings).write(make_serving(settings), OFFSETS, now=NOW)
    other = load_settings(topics={"prefix": "t"}, **overrides)
    with pytest.raises(SnapshotError, match="other settings"):
        load(Snapshots(tmp_path, other))


def test_settings_that_change_nothing_about_it_do_not_matter(tmp_path: Path, settings: Settings):
    Snapshots(tmp_path, settings).write(make_serving(settings), OFFSETS, now=NOW)
    other = load_settings(topics={"prefix": "t"}, slate={"size": 3}, index={"ef_search": 50})
    assert load(Snapshots(tmp_path, other)) is not None


def test_a_snapshot_of_another_cluster_is_refused(tmp_path: Path, settings: Settings):
    Snapshots(tmp_path, settings, cluster="one").write(make_serving(settings), OFFSETS, now=NOW)
    with pytest.raises(SnapshotError, match="other settings"):
        load(Snapshots(tmp_path, settings, cluster="other"))
    assert load(Snapshots(tmp_path, settings, cluster="one")) is not None


@pytest.mark.parametrize("wanted", [{"space": "other"}, {"dimensions": DIMENSIONS + 1}])
def test_a_snapshot_of_another_vector_space_is_refused(tmp_path: Path, settings: Settings, wanted):
    snapshots = Snapshots(tmp_path, settings)
    snapshots.write(make_serving(settings), OFFSETS, now=NOW)
    with pytest.raises(SnapshotError, match="space"):
        load(snapshots, **wanted)


def test_prefixes_have_folders_of_their_own(tmp_path: Path, settings: Settings):
    Snapshots(tmp_path, settings).write(make_serving(settings), OFFSETS, now=NOW)
    assert load(Snapshots(tmp_path, load_settings(topics={"prefix": "u"}))) is None


def test_a_snapshot_is_refused_when_deletions_may_have_been_compacted_away(tmp_path: Path, settings: Settings):
    snapshots = Snapshots(tmp_path, settings)
    snapshots.write(make_serving(settings), OFFSETS, now=NOW)
    assert load(snapshots, now=NOW + MAX_AGE_S - 1) is not None
    with pytest.raises(SnapshotError, match="deletions"):
        load(snapshots, now=NOW + MAX_AGE_S + 1)


def test_nothing_in_a_snapshot_is_pickled(tmp_path: Path, settings: Settings):
    folder = Snapshots(tmp_path, settings).write(make_serving(settings), OFFSETS, now=NOW)
    for file in files(folder):
        if zipfile.is_zipfile(file):
            with np.load(file, allow_pickle=False) as arrays:
                assert all(arrays[name].dtype != object for name in arrays)
        assert not file.read_bytes().startswith(b"\x80\x04"), file
        assert file.suffix not in (".pkl", ".pickle", ".pt")
