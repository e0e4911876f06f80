"""An adapter as a file: arrays in safetensors, and beside them what it was trained on and what that gave.

The format holds arrays and text only, so that a file from elsewhere can be opened without running anything. What is
read is checked as a whole before any of it is used: a file that was cut off, arrays that do not fit together, numbers
that are not finite, or an adapter of another encoder's space.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from math import isfinite
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final, Self

import msgspec
import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from stream_app.adapters.adapter import TASKS, Adapter
from stream_app.errors import SettingsError
from stream_app.spaces.whitening import Whitening

__all__ = ["FORMAT", "AdapterFile", "Training"]

FORMAT: Final = "tailrace/adapter/1"

_LARGEST: Final = 1 << 28
"""Bytes; the adapter of a model with 4,096 dimensions has a fifth of it."""
_HEAD: Final = "head."


class Training(msgspec.Struct, frozen=True, kw_only=True):
    """What an adapter was trained on.

    Attributes:
        data: name of the log, or ``topics``.
        events: interactions read.
        examples: by task, choices learned from.
        items: of the catalogue.
        first, last: times of the first and the last interaction, RFC 3339; None without any.
        windows: parts of the log, each ranked before it was learned from.
        seed: of what was drawn.
        options: how it was trained.
        started_from: fingerprint of the adapter that training began with; None: it began with half-whitening.
    """

    data: str
    events: int
    examples: dict[str, int]
    items: int
    first: str | None
    last: str | None
    windows: int
    seed: int
    options: dict[str, float | int]
    started_from: str | None = None

    @property
    def ended(self) -> datetime | None:
        """``last`` as a time; None without any."""
        return None if self.last is None else datetime.fromisoformat(self.last)


class _About(msgspec.Struct, frozen=True, kw_only=True):
    """The text in the file."""

    base_space: str
    dimensions: int
    hidden: int
    shares: dict[str, float]
    promoted: bool
    training: Training
    metrics: dict[str, Any] = {}


@dataclass(frozen=True, kw_only=True)
class AdapterFile:
    """An adapter with everything that is known of it.

    Attributes:
        adapter: the map.
        base_space: the encoder's space whose vectors it takes.
        training: what it was trained on.
        metrics: what was measured before each part was learned, as ``stream_app.adapters.prequential`` reports it.
        promoted: whether it was better than its base there.
    """

    adapter: Adapter
    base_space: str
    training: Training
    metrics: Mapping[str, Any] = field(default_factory=dict)
    promoted: bool = False

    @property
    def dimensions(self) -> int:
        """Length of a vector."""
        return self.adapter.dimensions

    @property
    def space(self) -> str:
        """Name of the space it spans."""
        return self.adapter.space(self.base_space)

    def save(self, path: Path) -> None:
        """Write the file, in one go: whoever reads it meanwhile sees the old one or the new one.

        Raises:
            SettingsError: when it cannot be written.
        """
        about = _About(
            base_space=self.base_space,
            dimensions=self.dimensions,
            hidden=self.adapter.hidden,
            shares=dict(self.adapter.shares),
            promoted=self.promoted,
            training=self.training,
            metrics=dict(self.metrics),
        )
        try:
            with TemporaryDirectory(dir=path.parent) as folder:
                partial = Path(folder) / "adapter.safetensors"
                save_file(
                    _arrays(self.adapter),
                    partial,
                    metadata={"format": FORMAT, "adapter": msgspec.json.encode(about).decode()},
                )
                partial.replace(path)
        except OSError as error:
            raise SettingsError(f"adapter {path} cannot be written: {error.strerror or error}") from error

    @classmethod
    def load(cls, path: Path, *, base_space: str | None = None) -> Self:
        """Read and check a file.

        Args:
            path: the file.
            base_space: the space of the encoder in use; None: any will do.

        Raises:
            SettingsError: when it is not a whole adapter, or one of another space; names the file, what is wrong and
                what to do.
        """
        arrays, about = _read(path)
        if base_space is not None and about.base_space != base_space:
            raise SettingsError(
                f"adapter {path}: it takes vectors of the space {about.base_space}, the encoder gives {base_space}; "
                "set encoder.model to the model it was trained on, or train one for this model: tailrace adapter train"
            )
        _check_times(path, about.training)
        return cls(
            adapter=_adapter(path, arrays, about),
            base_space=about.base_space,
            training=about.training,
            metrics=about.metrics,
            promoted=about.promoted,
        )


def _arrays(adapter: Adapter) -> dict[str, NDArray[Any]]:
    arrays: dict[str, NDArray[Any]] = {
        "mean": adapter.whitening.mean,
        "axes": adapter.whitening.axes,
        "scales": adapter.whitening.scales,
        "trunk": adapter.trunk,
        "bias": adapter.bias,
        **{f"{_HEAD}{task}": head for task, head in adapter.heads.items()},
    }
    return {name: np.ascontiguousarray(array) for name, array in arrays.items()}


def _read(path: Path) -> tuple[dict[str, NDArray[Any]], _About]:
    try:
        size = path.stat().st_size
        if size > _LARGEST:
            raise _bad(path, f"{size:,} bytes, more than any adapter has ({_LARGEST:,})")
        with safe_open(path, framework="numpy") as file:
            metadata = file.metadata() or {}
            if metadata.get("format") != FORMAT:
                said = metadata.get("format", "none")
                raise _bad(path, f"its format is {said!r}, this release reads {FORMAT!r}")
            about = msgspec.json.decode(metadata.get("adapter", ""), type=_About)
            return {name: _tensor(path, file, name) for name in file.keys()}, about  # noqa: SIM118 - not a mapping
    except OSError as error:
        raise SettingsError(f"adapter {path} cannot be read: {error.strerror or error}; is the path right?") from error
    except SafetensorError as error:
        raise _bad(path, f"not a whole safetensors file ({error})") from error
    except msgspec.MsgspecError as error:
        raise _bad(path, f"what it says of itself cannot be read ({error})") from error


def _tensor(path: Path, file: Any, name: str) -> NDArray[Any]:
    try:
        array: NDArray[Any] = file.get_tensor(name)
    except (AttributeError, KeyError, TypeError, ValueError) as error:  # a type that numpy lacks: bfloat16, float8
        said = file.get_slice(name).get_dtype()
        raise _bad(path, f"{name} is {said}, which numpy does not have; arrays are float32, axes float16") from error
    return array


def _check_times(path: Path, training: Training) -> None:
    for name in ("first", "last"):
        time: str | None = getattr(training, name)
        try:
            known = time is None or datetime.fromisoformat(time).tzinfo is not None
        except ValueError:
            known = False
        if not known:
            raise _bad(path, f"training.{name} is {time!r}, not a time of RFC 3339 (2026-02-01T00:00:00+00:00)")


def _adapter(path: Path, arrays: Mapping[str, NDArray[Any]], about: _About) -> Adapter:
    dimensions, hidden, tasks = about.dimensions, about.hidden, sorted(about.shares)
    if dimensions < 1 or hidden < 1 or not tasks or not set(tasks) <= set(TASKS):
        raise _bad(
            path, f"{dimensions} dimensions, width {hidden} and tasks {', '.join(tasks) or 'none'} are no adapter"
        )
    shares = about.shares.values()
    if not all(isfinite(share) and share >= 0 for share in shares) or abs(sum(shares) - 1.0) > 1e-6:
        raise _bad(path, f"shares of its tasks are {dict(about.shares)}; they are not negative and add up to 1")
    axes = arrays["axes"].shape[0] if "axes" in arrays and arrays["axes"].ndim == 2 else 0
    expected: dict[str, tuple[type[np.floating[Any]], tuple[int, ...]]] = {
        "mean": (np.float32, (dimensions,)),
        "axes": (np.float16, (axes, dimensions)),
        "scales": (np.float32, (axes,)),
        "trunk": (np.float32, (dimensions, hidden)),
        "bias": (np.float32, (hidden,)),
        **{f"{_HEAD}{task}": (np.float32, (hidden, dimensions)) for task in tasks},
    }
    if sorted(arrays) != sorted(expected):
        raise _bad(path, f"it holds {', '.join(sorted(arrays)) or 'no arrays'}; expected {', '.join(sorted(expected))}")
    for name, (dtype, shape) in expected.items():
        array = arrays[name]
        if array.dtype != dtype or array.shape != shape:
            raise _bad(path, f"{name} is {array.dtype} {list(array.shape)}, not {np.dtype(dtype)} {list(shape)}")
        if not np.isfinite(array).all():
            raise _bad(path, f"{name} holds numbers that are not finite")
    if np.any(arrays["scales"] <= 0) or float(arrays["mean"] @ arrays["mean"]) >= 1.0:
        raise _bad(path, "scales must be positive, and the mean shorter than 1")
    return Adapter(
        whitening=Whitening(mean=arrays["mean"], axes=arrays["axes"], scales=arrays["scales"]),
        trunk=arrays["trunk"],
        bias=arrays["bias"],
        heads={task: arrays[f"{_HEAD}{task}"] for task in tasks},
        shares=dict(about.shares),
    )


def _bad(path: Path, why: str) -> SettingsError:
    return SettingsError(f"adapter {path}: {why}; copy the file again, or train one: tailrace adapter train")
