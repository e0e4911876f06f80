"""Vectors of texts for an evaluation: encoded once in this process, kept in a file for the next run."""

from __future__ import annotations

import getpass
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory, TemporaryFile
from zipfile import BadZipFile

import numpy as np
from numpy.typing import NDArray

from stream_app.errors import SettingsError
from stream_app.settings import EncoderSettings
from stream_app.textify import text_hash
from workers.models import describe_model, load_model

__all__ = ["default_cache", "text_vectors"]

_BATCH = 256


def default_cache() -> Path:
    """The folder in which a user's vectors are kept between runs; safe to delete."""
    return Path(tempfile.gettempdir()) / f"tailrace-evaluation-{getpass.getuser()}"


def text_vectors(
    texts: Iterable[str],
    settings: EncoderSettings,
    *,
    cache: Path,
    on_progress: Callable[[int, int], None] = lambda _done, _total: None,
) -> tuple[str, dict[str, NDArray[np.float32]]]:
    """The vector space, and the unit vector of every text, by text.

    Args:
        texts: any, repeated or not, with the prefix of their kind; an empty one has no vector.
        settings: model, device, precision.
        cache: folder of the file with vectors by text hash; made when missing, written anew when texts were added.
        on_progress: told how many of the missing texts are encoded, and of how many.

    Raises:
        SettingsError: when the model cannot be used, or the folder cannot be written to.
    """
    space = describe_model(settings).space
    hashes = {text: text_hash(text) for text in texts if text}
    file = cache / f"{text_hash(space)}.npz"
    known = _read(file)
    missing = {name: text for text, name in hashes.items() if name not in known}
    if missing:
        with _unwritable(cache):  # Encoding may take minutes: what cannot be written then is said now.
            cache.mkdir(parents=True, exist_ok=True)
            TemporaryFile(dir=cache).close()
        encoder = load_model(
            settings,
            device=settings.device,
            precision=settings.precision,
            threads=settings.threads,
            batch=settings.batch,
            compile=settings.compile,
        )
        wanted = list(missing.items())
        for start in range(0, len(wanted), _BATCH):
            part = wanted[start : start + _BATCH]
            vectors = encoder.encode([text for _, text in part])
            known.update((name, vector) for (name, _), vector in zip(part, vectors, strict=True))
            on_progress(start + len(part), len(wanted))
        with _unwritable(cache), TemporaryDirectory(dir=cache) as folder:
            # Another run may write the same file: each makes its own, and the last to be done stays.
            partial = Path(folder) / "vectors.npz"
            np.savez(partial, hashes=np.array(list(known)), vectors=np.stack(list(known.values())))
            partial.replace(file)
    return space, {text: known[name] for text, name in hashes.items()}


@contextmanager
def _unwritable(cache: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise SettingsError(f"vectors cannot be kept in {cache}: {error}; name another folder with --cache") from error


def _read(file: Path) -> dict[str, NDArray[np.float32]]:
    try:
        with np.load(file, allow_pickle=False) as arrays:
            return dict(zip(arrays["hashes"].tolist(), arrays["vectors"], strict=True))
    except (OSError, ValueError, KeyError, EOFError, BadZipFile):  # none, cut off, or of another release: encode again
        return {}
