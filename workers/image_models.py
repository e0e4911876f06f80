"""Which model makes vectors of images, and which vector space it spans, found from the model's files alone.

A model is a folder as transformers saves CLIP (Radford et al. 2021, arXiv 2103.00020) or SigLIP (Zhai et al. 2023,
arXiv 2303.15343; SigLIP 2 of fixed resolution calls itself ``siglip`` too): ``config.json``,
``preprocessor_config.json``, a tokenizer and ``*.safetensors``. Texts and images have vectors of one space. Nothing is
ever downloaded and no code from the folder is run.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from functools import lru_cache
from hashlib import blake2b
from pathlib import Path
from typing import Any, Literal

from stream_app.errors import SettingsError

__all__ = ["ImageModelInfo", "Kind", "describe_image_model"]

Kind = Literal["clip", "siglip"]

_TOKENIZERS = ("tokenizer.json", "spiece.model", "vocab.json")
_FINGERPRINTED = ("config.json", "preprocessor_config.json", "tokenizer_config.json", "merges.txt", *_TOKENIZERS)
"""Besides the weights: the files that decide which vector a picture or a text gets."""
_READ_AS = "upright, on white, large ones made smaller"
"""How :mod:`workers.pictures` reads pictures; part of the name of the space, for it decides vectors too."""
_DEFAULTS: dict[Kind, tuple[int, int, int]] = {"clip": (512, 77, 224), "siglip": (768, 64, 224)}
"""Of what transformers leaves out of a ``config.json`` when it is the default: dimensions, tokens, pixels."""


@dataclass(frozen=True, kw_only=True)
class ImageModelInfo:
    """What is known of a model without loading it.

    Attributes:
        space: names the vector space.
        dimensions: length of a vector, of an image and of a text.
        folder: where its files are.
        kind: ``clip`` or ``siglip``.
        max_tokens: the most it reads of a text.
        side: width and height of the squares it sees (pixels).
    """

    space: str
    dimensions: int
    folder: Path
    kind: Kind
    max_tokens: int
    side: int


def describe_image_model(name: str) -> ImageModelInfo:
    """The facts about the model in folder ``name``. Does not import torch; reads the weights once, for the fingerprint.

    Raises:
        SettingsError: when there is no such folder, or it holds no such model; says what is missing and what to do.
    """
    folder = Path(name).expanduser()
    if not folder.is_dir():
        raise _wrong(name, "not a folder; nothing is downloaded: fetch a CLIP or SigLIP model and name its folder")
    folder = folder.resolve()
    config = _read(folder / "config.json", name)
    kind = config.get("model_type")
    if kind not in _DEFAULTS:
        raise _wrong(
            name, f"config.json says model_type {kind!r}; 'clip' and 'siglip' are supported (texts: encoder.model)"
        )
    _read(folder / "preprocessor_config.json", name)
    if not any((folder / file).is_file() for file in _TOKENIZERS):
        raise _wrong(name, f"no tokenizer in {folder} ({', '.join(_TOKENIZERS)}); save the whole processor there")
    weights = sorted(folder.glob("*.safetensors"))
    if not weights:
        raise _wrong(name, f"no *.safetensors in {folder}; convert the weights (transformers: model.save_pretrained)")
    dimensions, max_tokens, side = _DEFAULTS[kind]
    text, vision = _part(config, "text_config", name), _part(config, "vision_config", name)
    if kind == "clip":
        dimensions = _number(config, "projection_dim", dimensions, name)
    else:
        dimensions = _number(vision, "hidden_size", dimensions, name)
    files = [*weights, *(folder / part for part in _FINGERPRINTED if (folder / part).is_file())]
    try:
        stats = [(path, path.stat()) for path in files]
        fingerprint = _fingerprint(tuple((path, stat.st_size, stat.st_mtime_ns) for path, stat in stats))
    except OSError as error:  # a link whose file is gone, a file of somebody else
        raise _wrong(
            name,
            f"{error.filename or folder} cannot be read ({error.strerror}); fetch the model again, or let us read it",
        ) from error
    label = re.sub(r"[^a-z0-9._-]+", "-", folder.name.lower())
    return ImageModelInfo(
        space=f"{label}/{kind}/{dimensions}/{fingerprint}",
        dimensions=dimensions,
        folder=folder,
        kind=kind,
        max_tokens=_number(text, "max_position_embeddings", max_tokens, name),
        side=_number(vision, "image_size", side, name),
    )


def _wrong(name: str, why: str) -> SettingsError:
    return SettingsError(f"encoder.image_model = {name!r}: {why}")


def _read(path: Path, name: str) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text("utf-8"))
    except FileNotFoundError:
        raise _wrong(name, f"{path} is missing; not a CLIP or SigLIP folder with its processor") from None
    except (OSError, ValueError, RecursionError) as error:
        raise _wrong(name, f"{path} cannot be read: {error}") from error
    if not isinstance(content, dict):
        raise _wrong(name, f"{path} is not a JSON object")
    return content


def _part(config: dict[str, Any], key: str, name: str) -> dict[str, Any]:
    part = config.get(key, {})
    if not isinstance(part, dict):
        raise _wrong(name, f"{key} of config.json is not a JSON object")
    return part


def _number(config: dict[str, Any], key: str, default: int, name: str) -> int:
    number = config.get(key, default)
    if not isinstance(number, int) or isinstance(number, bool) or not 0 < number <= 65_536:
        raise _wrong(name, f"{key} of config.json is {number!r}, not a number of 1 to 65536")
    return number


@lru_cache(maxsize=8)
def _fingerprint(files: tuple[tuple[Path, int, int], ...]) -> str:
    """Eight hexadecimal digits of BLAKE2b over the files' contents. Size and time are in the key of the cache only."""
    digest = blake2b(_READ_AS.encode(), digest_size=4)
    for path, size, _ in files:
        digest.update(f"{path.name}:{size}:".encode())
        with path.open("rb") as file:
            while chunk := file.read(1 << 20):
                digest.update(chunk)
    return digest.hexdigest()
