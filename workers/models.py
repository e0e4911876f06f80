"""Which model, and which vector space it spans, found from the model's files alone.

Vectors of different models must never be compared, so every vector carries its ``space``: model name, pooling,
dimensions, post-processing and a fingerprint of everything that decides the values, where texts are cut included.
Device, precision and batch size are not part of it: they move a vector by rounding errors only. Nor is the prefix of
queries: it moves no item's vector, and what is cached of a query is found by its text, prefix included.

A model is a folder in the layout of sentence-transformers or plain transformers: ``config.json``, a tokenizer and
``*.safetensors``; nothing is ever downloaded and no code from the folder is run. See docs/encoders.md.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from functools import lru_cache
from hashlib import blake2b
from pathlib import Path
from typing import TYPE_CHECKING, Literal, Protocol

from stream_app.errors import SettingsError
from workers.checkpoint import check_table, tensor_shapes, weight_files
from workers.folders import MULTILINGUAL, find_folder, refusal
from workers.layout import DenseLayer, Pooling, read_layout
from workers.texts import TextKind

if TYPE_CHECKING:
    from workers.process import Encoder

__all__ = [
    "ModelChoice",
    "ModelInfo",
    "Pooling",
    "Precision",
    "describe_model",
    "load_model",
    "reduced_precisions",
]

Precision = Literal["auto", "float32", "bfloat16", "float16"]

_FINGERPRINTED = (
    *("config.json", "modules.json", "1_Pooling/config.json", "tokenizer.json", "vocab.txt"),
    *("vocab.json", "merges.txt", "tokenizer.model", "spiece.model", "sentencepiece.bpe.model"),
)
"""Besides the weights: the files that decide which vector a text gets. The order, too, is part of stored names."""

_USUAL_TOKENS = 128
"""``encoder.max_tokens`` where nothing else is set. Names of spaces tell other limits; this one they leave out."""


class ModelChoice(Protocol):
    """The settings that choose a model: those of the encoder, or what an encoder process was told of them."""

    @property
    def model(self) -> str: ...
    @property
    def pooling(self) -> Literal["auto", "mean", "cls", "last"]: ...
    @property
    def dimensions(self) -> int: ...
    @property
    def query_prefix(self) -> str | None: ...
    @property
    def document_prefix(self) -> str | None: ...
    @property
    def max_tokens(self) -> int: ...


@dataclass(frozen=True)
class _Default:
    """A model by name, everything else as its folder says."""

    model: str
    pooling: Literal["auto"] = "auto"
    dimensions: int = 0
    query_prefix: str | None = None
    document_prefix: str | None = None
    max_tokens: int = _USUAL_TOKENS


@dataclass(frozen=True, kw_only=True)
class ModelInfo:
    """What is known of a model without loading it.

    Attributes:
        name: as in the settings.
        space: names the vector space.
        dimensions: length of a vector.
        folder: where its files are.
        max_tokens: the most the model reads of one text (special tokens and prefix included), whatever the settings
            ask for.
        pooling: which tokens' vectors make the text's: their mean, the first's, or the last's.
        dense: layers after the pooling. The first ``dimensions`` numbers of what they give are the vector.
        lowercase: whether texts are made lower case before anything else.
        query_prefix, document_prefix: stand before every text of the kind.
    """

    name: str
    space: str
    dimensions: int
    folder: Path
    max_tokens: int
    pooling: Pooling
    dense: tuple[DenseLayer, ...] = ()
    lowercase: bool = False
    query_prefix: str = ""
    document_prefix: str = ""

    def refusal(self, why: str) -> SettingsError:
        """The error that says that this model cannot be used."""
        return refusal(self.name, why)

    def prefix(self, kind: TextKind) -> str:
        """What stands before a text of ``kind``; often nothing."""
        return self.query_prefix if kind == "query" else self.document_prefix


def describe_model(choice: str | ModelChoice) -> ModelInfo:
    """The facts about a model: of the encoder's settings, or by name with nothing else set.

    Does not import torch; about 0.1 s for 90 MB of weights, which are read once for the fingerprint.

    Raises:
        SettingsError: when there is no such model or Tailrace cannot run it; says why and what to do.
    """
    if isinstance(choice, str):
        choice = _Default(choice)
    if choice.model == MULTILINGUAL:
        from workers.multilingual import describe_multilingual

        info, label, files = describe_multilingual()
    else:
        info, label, files = _describe_transformer(choice)
    if choice.dimensions > info.dimensions:
        raise SettingsError(
            f"encoder.dimensions = {choice.dimensions}: vectors of {info.name} have {info.dimensions}; "
            "set fewer, or 0 for all"
        )
    dimensions = choice.dimensions or info.dimensions
    document_prefix = info.document_prefix if choice.document_prefix is None else choice.document_prefix
    # Nothing is added for a model that needs neither: names stored by earlier releases stay true.
    details = f"document prefix {document_prefix}" if document_prefix else ""
    details += " lower case" if info.lowercase else ""
    # A limit beyond the model's own cuts no text elsewhere than that does.
    limit = min(choice.max_tokens, info.max_tokens)
    details += f" cut to {limit}" if limit != min(_USUAL_TOKENS, info.max_tokens) else ""
    try:
        fingerprint = _fingerprint(
            tuple((path, path.stat().st_size, path.stat().st_mtime_ns) for path in files), details
        )
    except OSError as error:
        raise info.refusal(
            f"{error.filename or info.folder} cannot be read: {error.strerror or error}; let this user read it, or "
            "fetch the model again"
        ) from error
    return replace(
        info,
        space=f"{label}/{info.pooling}/{dimensions}/raw/{fingerprint}",
        dimensions=dimensions,
        query_prefix=info.query_prefix if choice.query_prefix is None else choice.query_prefix,
        document_prefix=document_prefix,
    )


def reduced_precisions(model: str) -> tuple[Precision, ...]:
    """What ``encoder.precision`` offers beside float32 for this model, on every device."""
    return () if model == MULTILINGUAL else ("bfloat16", "float16")


def load_model(
    choice: str | ModelChoice,
    *,
    device: str = "auto",
    precision: Precision = "auto",
    threads: int = 0,
    batch: int = 32,
    batch_tokens: int = 0,
    index: int = 0,
    compile: bool = False,
) -> Encoder:
    """The model, loaded and tried once; imports torch (seconds, hundreds of MB), so call it in an encoder process.

    ``threads`` 0 leaves torch's default (all cores); the multilingual model always takes one, and no torch. ``batch``
    is the most texts computed at once, ``batch_tokens`` the most tokens (0: what suits the device). ``index`` spreads
    several processes over several GPUs where ``device`` names none. ``max_tokens`` of the choice counts special
    tokens, not the prefix: that never takes room from the text. The texts the encoder gets begin with their prefix
    (:meth:`ModelInfo.prefix`) already. ``compile``: with torch.compile (:mod:`workers.compiling`), which takes up to
    minutes; the multilingual model is none of torch's and computes without, as image models do.

    Raises:
        SettingsError: when the model or the device cannot be used.
    """
    if isinstance(choice, str):
        choice = _Default(choice)
    info = describe_model(choice)
    if info.name == MULTILINGUAL:
        from workers.multilingual import MultilingualEncoder

        return MultilingualEncoder(info, device=device, precision=precision, max_tokens=choice.max_tokens)
    from workers.transformer import TransformerEncoder

    return TransformerEncoder(
        info,
        device=device,
        precision=precision,
        max_tokens=choice.max_tokens,
        threads=threads,
        batch=batch,
        batch_tokens=batch_tokens,
        index=index,
        compile=compile,
    )


def _describe_transformer(choice: ModelChoice) -> tuple[ModelInfo, str, list[Path]]:
    """What the folder says, the label of the space, and the files that decide the vectors."""
    folder = find_folder(choice.model)
    layout = read_layout(folder, choice.pooling)
    weights = weight_files(folder)
    dense = [layer.file for layer in layout.dense]
    # What reads the headers says of a file that is closed to us that there is none.
    if closed := next((file for file in (*weights, *dense) if not os.access(file, os.R_OK)), None):
        raise folder.refusal(f"{closed} cannot be read; let this user read it, or fetch the model again")
    try:
        check_table(folder, tensor_shapes(weights))
        tensor_shapes(dense)
    except OSError as error:
        raise folder.refusal(
            f"the weights in {folder.path} cannot be read: {error}; let this user read them, or fetch the model again"
        ) from error
    except ValueError as error:
        raise folder.refusal(str(error)) from error
    except MemoryError as error:
        raise folder.refusal(
            f"no room to map the weights in {folder.path}: {error}; allow this process more memory, or set a smaller "
            "encoder.model"
        ) from error
    files = [*weights, *(folder.path / part for part in _FINGERPRINTED if folder.has(part))]
    files += [file for layer in layout.dense for file in (layer.config, layer.file)]
    info = ModelInfo(
        name=choice.model,
        space="",
        dimensions=layout.dimensions,
        folder=folder.path,
        max_tokens=layout.max_tokens,
        pooling=layout.pooling,
        dense=layout.dense,
        lowercase=layout.lowercase,
        query_prefix=layout.query_prefix,
        document_prefix=layout.document_prefix,
    )
    return info, folder.label, files


@lru_cache(maxsize=8)
def _fingerprint(files: tuple[tuple[Path, int, int], ...], details: str) -> str:
    """Eight hexadecimal digits of BLAKE2b over the files' contents and ``details``.

    Size and time are in the key of the cache only.
    """
    digest = blake2b(digest_size=4)
    for path, size, _ in files:
        digest.update(f"{path.name}:{size}:".encode())
        with path.open("rb") as file:
            while chunk := file.read(1 << 20):
                digest.update(chunk)
    digest.update(details.encode("utf-8", "surrogatepass"))
    return digest.hexdigest()
