"""Snapshots of a replica on disk: the serving state and the offsets it is complete through.

A snapshot is a folder, written under a temporary name, synced and renamed: it is there whole or not at all. A
manifest carries the format version, what the state depends on (topic prefix, half-lives, index settings), the
offsets, and a checksum of every file and of itself. What does not fit is left alone and the topics are read instead.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import time
from pathlib import Path

import msgspec
import orjson

from stream_app.errors import SnapshotError
from stream_app.logs import get_logger
from stream_app.serving import ServingState
from stream_app.settings import Settings

__all__ = ["FORMAT", "MAX_AGE_S", "Snapshots"]

_log = get_logger(__name__)
FORMAT = 4
_KEEP = 2
_MANIFEST = "manifest.json"
Offsets = dict[tuple[str, int], int]


MAX_AGE_S = 20 * 3_600.0
"""Older snapshots are not used: brokers keep the record of a deletion for a day (``delete.retention.ms``), and what
was deleted before our copy ends and compacted away would come back to life."""


class _Manifest(msgspec.Struct, frozen=True):
    format: int
    fits: str
    complete_at: float
    offsets: list[tuple[str, int, int]]
    files: dict[str, str]


class Snapshots:
    """The snapshots in one folder; several processes may share it, each writes its own.

    Args:
        directory: made when it is not there.
        settings: what a snapshot must fit.
        cluster: the broker cluster's id; a snapshot of another cluster is of no use.
    """

    def __init__(self, directory: Path, settings: Settings, *, cluster: str = "") -> None:
        self._directory = directory / settings.topics.prefix
        self._settings = settings
        self._cluster = cluster

    def _fits(self) -> str:
        """What must be the same for a snapshot to be of use, besides what the serving state checks itself."""
        settings = self._settings
        return orjson.dumps(
            [
                self._cluster,
                settings.topics.prefix,
                settings.items.half_lives_days,
                settings.items.transition_half_life_days,
                settings.items.neighbours,
                settings.index.m,
                settings.index.ef_construction,
            ]
        ).decode()

    def write(self, serving: ServingState, offsets: Offsets, *, now: float) -> Path:
        """Write a snapshot and remove all but the newest two.

        Args:
            serving: not changed meanwhile.
            offsets: next offset to read, by topic and partition.
            now: wall clock, seconds since 1970.

        Raises:
            OSError: when the disk is full or not writable; what was there before stays.
        """
        self._directory.mkdir(parents=True, exist_ok=True)
        name = f"{time.time_ns():020d}-{os.getpid()}"
        building = self._directory / f".{name}.tmp"
        building.mkdir()
        try:
            serving.save(building)
            files = {path.name: _checksum(path) for path in sorted(building.iterdir())}
            manifest = _Manifest(
                FORMAT,
                self._fits(),
                now,
                [(topic, partition, offset) for (topic, partition), offset in sorted(offsets.items())],
                files,
            )
            target = building / _MANIFEST
            target.write_bytes(_signed(msgspec.json.encode(manifest)))
            for path in building.iterdir():
                _sync(path)
            building.rename(self._directory / name)
            _sync(self._directory)
        except BaseException:
            shutil.rmtree(building, ignore_errors=True)
            raise
        self._clean()
        return self._directory / name

    def load(self, *, space: str, dimensions: int, now: float) -> tuple[ServingState, Offsets] | None:
        """The newest usable snapshot of this vector space at wall clock ``now``; None when there is none.

        Raises:
            SnapshotError: when snapshots are there and none can be used; says why for the newest.
        """
        first_problem: SnapshotError | None = None
        for folder in self._folders():
            try:
                return self._load(folder, space, dimensions, now)
            except (OSError, ValueError, msgspec.MsgspecError, RuntimeError, KeyError, SnapshotError) as error:
                _log.warning("snapshot passed over", folder=str(folder), error=str(error))
                first_problem = first_problem or SnapshotError(f"{folder}: {error}")
        if first_problem is not None:
            raise first_problem
        return None

    def _load(self, folder: Path, space: str, dimensions: int, now: float) -> tuple[ServingState, Offsets]:
        manifest = msgspec.json.decode(_verified((folder / _MANIFEST).read_bytes()), type=_Manifest)
        if manifest.format != FORMAT:
            raise ValueError(f"format {manifest.format}, this code reads {FORMAT}")
        if manifest.fits != self._fits():
            raise ValueError(f"made with other settings ({manifest.fits})")
        if now - manifest.complete_at > MAX_AGE_S:
            raise ValueError(f"{(now - manifest.complete_at) / 3_600:.0f} hours old, deletions may be missing")
        if set(manifest.files) != {path.name for path in folder.iterdir()} - {_MANIFEST}:
            raise ValueError(f"its files are not those of {_MANIFEST}")
        for name, checksum in manifest.files.items():
            if _checksum(folder / name) != checksum:
                raise ValueError(f"{name} is damaged (checksum)")
        serving = ServingState.load(folder, self._settings, space=space, dimensions=dimensions)
        return serving, {(topic, partition): offset for topic, partition, offset in manifest.offsets}

    def _folders(self) -> list[Path]:
        if not self._directory.is_dir():
            return []
        return sorted(
            (path for path in self._directory.iterdir() if path.is_dir() and not path.name.startswith(".")),
            reverse=True,
        )

    def _clean(self) -> None:
        for folder in self._folders()[_KEEP:]:
            shutil.rmtree(folder, ignore_errors=True)
        for left_over in self._directory.glob(".*.tmp"):
            # Of a process that was killed while writing; a live one finishes within the hour.
            if time.time() - left_over.stat().st_mtime > 3_600:
                shutil.rmtree(left_over, ignore_errors=True)


def _signed(data: bytes) -> bytes:
    """A line of JSON and a line with its checksum: a single digit of an offset matters as much as a file."""
    return data + b"\n" + hashlib.blake2b(data).hexdigest().encode() + b"\n"


def _verified(signed: bytes) -> bytes:
    data, _, _ = signed.partition(b"\n")
    if _signed(data) != signed:
        raise ValueError(f"{_MANIFEST} is damaged (checksum)")
    return data


def _checksum(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "blake2b").hexdigest()


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
