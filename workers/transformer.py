"""Text to vectors with transformers and torch: the only module that imports them.

Mean (or first-token) pooling over the attention mask and scaling to unit length, as in Sentence-BERT (Reimers and
Gurevych 2019, doi 10.18653/v1/D19-1410).
"""

from __future__ import annotations

import os
import threading
from collections.abc import Sequence
from pathlib import Path

# No model is ever looked up on the network, and a tokenizer that forks threads per call costs more than it gains.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TRANSFORMERS_OFFLINE"] = "1"
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
# Threads that wait must sleep, not spin: with the processor shared, spinning threads keep the one they wait for from
# running (2 cores under load: 42 texts/s and 11 CPU seconds spinning, 305 texts/s and 2.2 CPU seconds sleeping).
# Read when torch is first imported.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import AutoModel, AutoTokenizer
from transformers.utils import logging as transformers_logging

from stream_app.errors import SettingsError
from workers.batching import split_by_length, tokens_at_once
from workers.models import ModelInfo, Precision

__all__ = ["TransformerEncoder", "cpu_has_bfloat16"]

_BFLOAT16_FLAGS = frozenset(("amx_bf16", "avx512_bf16", "bf16"))
_TORCH_TYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


class TransformerEncoder:
    """A loaded model. Several threads may encode at a time.

    Attributes:
        space: the vector space, from the model's files.
        dimensions: length of a vector.
        device: where it runs, for example ``cpu`` or ``cuda:0``.
        precision: what it computes in: ``float32``, ``bfloat16`` or ``float16``. Pooling is always float32.
        batch_tokens: the most tokens, padding included, that are computed at once; may be set.
        tokens_read: tokens of all texts so far.
        tokens_computed: the same with padding.
    """

    def __init__(
        self,
        info: ModelInfo,
        *,
        device: str,
        precision: Precision,
        max_tokens: int,
        threads: int,
        batch: int,
        index: int,
    ) -> None:
        if threads:
            torch.set_num_threads(threads)
        transformers_logging.set_verbosity_error()
        transformers_logging.disable_progress_bar()
        self._device = _pick_device(device, index)
        self.space = info.space
        self.dimensions = info.dimensions
        self.device = str(self._device)
        self.precision = _pick_precision(precision, self._device)
        self._pooling = info.pooling
        self._max_tokens = min(max_tokens, info.max_tokens)
        self._batch = batch
        self.batch_tokens = tokens_at_once(self._device.type)
        self.tokens_read = 0
        self.tokens_computed = 0
        # The tokenizer refuses two calls at a time; it takes a hundredth of what the model does.
        self._tokenizing = threading.Lock()
        try:
            self._tokenizer = AutoTokenizer.from_pretrained(
                info.folder, local_files_only=True, trust_remote_code=False, use_fast=True
            )
            self._model = AutoModel.from_pretrained(
                info.folder,
                local_files_only=True,
                trust_remote_code=False,
                use_safetensors=True,
                attn_implementation="sdpa",
                dtype=_TORCH_TYPES[self.precision],
            )
        except (OSError, ValueError, KeyError) as error:
            raise SettingsError(f"the model in {info.folder} cannot be loaded: {error}") from error
        self._model.eval().to(self._device)
        # A model that cannot encode at all is found here, not on the first item of the catalogue.
        if not np.isfinite(self.encode(["warm up", "warm up " * self._max_tokens])).all():
            raise SettingsError(
                f"the model in {info.folder} gives no finite vectors in {self.precision} on {self.device}; "
                "set encoder.precision = 'float32'"
            )

    def encode(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """The vectors of ``texts``: float32 [n, dimensions], unit length, in the order given.

        Texts are cut to the model's token limit. An empty text has a vector too (that of no words).

        Raises:
            MemoryError: when the device ran out of memory; fewer texts at once may fit.
        """
        vectors = np.empty((len(texts), self.dimensions), dtype=np.float32)
        if not texts:
            return vectors
        with self._tokenizing:
            tokens = self._tokenizer(list(texts), truncation=True, max_length=self._max_tokens)
        lengths = [len(ids) for ids in tokens["input_ids"]]
        parts = list(split_by_length(lengths, rows=self._batch, tokens=self.batch_tokens))
        with self._tokenizing:
            self.tokens_read += sum(lengths)
            self.tokens_computed += sum(len(rows) * lengths[rows[-1]] for rows in parts)
        try:
            for rows in parts:
                part = {name: [column[row] for row in rows] for name, column in tokens.items()}
                vectors[rows] = self._forward(part)
        except RuntimeError as error:
            if not _out_of_memory(error):
                raise
            if self._device.type == "cuda":
                torch.cuda.empty_cache()
            raise MemoryError(str(error)) from error
        return vectors

    @torch.inference_mode()
    def _forward(self, tokens: dict[str, list[list[int]]]) -> NDArray[np.float32]:
        inputs = self._tokenizer.pad(tokens, return_tensors="pt").to(self._device)
        hidden = self._model(**inputs).last_hidden_state.float()
        if self._pooling == "cls":
            pooled = hidden[:, 0]
        else:
            mask = inputs["attention_mask"].unsqueeze(-1).to(hidden.dtype)
            pooled = (hidden * mask).sum(dim=1) / mask.sum(dim=1).clamp(min=1.0)
        unit: NDArray[np.float32] = torch.nn.functional.normalize(pooled, dim=1).cpu().numpy()
        return unit


def cpu_has_bfloat16(cpuinfo: Path = Path("/proc/cpuinfo")) -> bool:
    """Whether the processor multiplies bfloat16 in hardware (AMX, AVX512-BF16, Arm BF16).

    Emulated bfloat16 is slower than float32. Where the file is not there (not Linux) the answer is no.
    """
    try:
        content = cpuinfo.read_text("ascii", errors="replace")
    except OSError:
        return False
    flags = (line.partition(":")[2].split() for line in content.splitlines() if line.startswith(("flags", "Features")))
    return not _BFLOAT16_FLAGS.isdisjoint(next(flags, []))


def _pick_device(name: str, index: int) -> torch.device:
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if name == "cpu" or (name == "auto" and count == 0):
        return torch.device("cpu")
    chosen = torch.device(name if ":" in name else f"cuda:{index % max(count, 1)}")
    if chosen.index is not None and chosen.index >= count:
        raise SettingsError(f"encoder.device = {name!r}: torch sees {count} CUDA devices here; use cpu or auto")
    return chosen


def _pick_precision(wanted: Precision, device: torch.device) -> str:
    if wanted != "auto":
        return wanted
    if device.type == "cuda":
        return "bfloat16" if torch.cuda.is_bf16_supported() else "float16"
    return "bfloat16" if cpu_has_bfloat16() else "float32"


def _out_of_memory(error: RuntimeError) -> bool:
    # The allocator of the CPU raises a plain RuntimeError.
    return isinstance(error, torch.OutOfMemoryError) or "not enough memory" in str(error)
