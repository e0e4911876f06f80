"""Vectors of a catalogue for an evaluation: encoded once in this process, kept in a file for the next run."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from schemas.messages import Item
from stream_app.settings import EncoderSettings
from stream_app.textify import text_hash
from stream_app.textify.items import item_text
from workers.models import describe_model, load_model

__all__ = ["default_cache", "item_vectors"]

_BATCH = 256


def default_cache() -> Path:
    """The folder in which vectors are kept between runs; safe to delete."""
    return Path(tempfile.gettempdir()) / "tailrace-evaluation"


def item_vectors(
    items: Sequence[Item],
    settings: EncoderSettings,
    *,
    cache: Path,
    on_progress: Callable[[int], None] = lambda _: None,
) -> tuple[str, dict[str, NDArray[np.float32]]]:
    """The vector space, and a unit vector for every item by id.

    Args:
        items: the catalogue.
        settings: model, device, precision.
        cache: folder of the file with vectors by text hash; made when missing, written anew when texts were added.
        on_progress: told how many of the missing texts are encoded.

    Raises:
        SettingsError: when the model cannot be used.
    """
    space = describe_model(settings.model).space
    texts = {item.item_id: item_text(item) for item in items}
    hashes = {item_id: text_hash(text) for item_id, text in texts.items()}
    file = cache / f"{text_hash(space)}.npz"
    known = _read(file)
    missing = {hashes[item_id]: text for item_id, text in texts.items() if hashes[item_id] not in known}
    if missing:
        encoder = load_model(
            settings.model,
            device=settings.device,
            precision=settings.precision,
            max_tokens=settings.max_tokens,
            threads=settings.threads,
            batch=settings.batch,
        )
        wanted = list(missing.items())
        for start in range(0, len(wanted), _BATCH):
            part = wanted[start : start + _BATCH]
            vectors = encoder.encode([text for _, text in part])
            known.update((name, vector) for (name, _), vector in zip(part, vectors, strict=True))
            on_progress(start + len(part))
        cache.mkdir(parents=True, exist_ok=True)
        partial = file.with_name(f".{file.stem}.partial.npz")
        np.savez(partial, hashes=np.array(list(known)), vectors=np.stack(list(known.values())))
        partial.replace(file)
    return space, {item_id: known[name] for item_id, name in hashes.items()}


def _read(file: Path) -> dict[str, NDArray[np.float32]]:
    if not file.is_file():
        return {}
    try:
        with np.load(file, allow_pickle=False) as arrays:
            return dict(zip(arrays["hashes"].tolist(), arrays["vectors"], strict=True))
    except (OSError, ValueError, KeyError):  # cut off or from another release: encode again
        return {}
