"""Text to vectors with transformers and torch.

Any text encoder or decoder that transformers itself knows (``AutoModel``), with the attention torch computes fused
(SDPA) where the architecture has it. What is in the model's folder is not trusted: no code of its own is run, no pickle
is opened, and weights that are missing or of another shape are an error instead of random numbers.
"""

from __future__ import annotations

import workers.environment  # noqa: F401 - before torch and transformers

# isort: split
import threading
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import AutoModel
from transformers.utils import logging as transformers_logging

from stream_app.errors import SettingsError
from workers.batching import split_by_length, tokens_at_once
from workers.checkpoint import refuse_shapes
from workers.compiling import TRIED_SHAPES, CompiledModel, what_is_missing, what_turns_it_off
from workers.devices import TORCH_TYPES, devices_like, out_of_memory, pick_device, pick_precision
from workers.head import load_dense, text_vectors
from workers.models import ModelInfo, Precision
from workers.program_folder import marked
from workers.shapes import check_shapes
from workers.texts import encodable
from workers.tokenizer import load_tokenizer

__all__ = ["TransformerEncoder"]

_MIN_TEXT_TOKENS = 8
"""A prefix that leaves less of the model's limit leaves nothing to encode."""
_TRIED_TOKENS = 512
"""The text tried at the start is no longer: enough to find out, and soon done."""
_COMPILED_TOKENS = 2
"""A compiled program's batches have at least so many tokens."""
_MANY = 3
"""Texts of the longest batch of several that is tried."""
_LEAST_COSINE = 0.99
"""A compiled program rounds elsewhere, and no more than that; in reduced precision that moves a vector by more."""

_Row = dict[str, list[int]]
"""One text's tokens: input ids, attention mask and what else the model wants, [tokens] each."""


class TransformerEncoder:
    """A loaded model. Several threads may encode at a time.

    Attributes:
        space: the vector space, from the model's files.
        dimensions: length of a vector.
        device: where it runs, for example ``cpu`` or ``cuda:0``.
        devices: how many devices of this kind there are.
        precision: what it computes in: ``float32``, ``bfloat16`` or ``float16``. Pooling is always float32.
        batch_tokens: the most tokens, padding included, that are computed at once.
        compiled: whether the transformer runs as a compiled program.
        at_once: None: any number of batches at a time.
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
        batch_tokens: int,
        index: int,
        compile: bool = False,
    ) -> None:
        if threads:
            torch.set_num_threads(threads)
        transformers_logging.set_verbosity_error()
        transformers_logging.disable_progress_bar()
        self._info = info
        self._device = pick_device(device, index)
        self.space = info.space
        self.dimensions = info.dimensions
        self.device = str(self._device)
        self.devices = devices_like(self._device)
        self.precision = pick_precision(precision, self._device)
        self._batch = batch
        self.batch_tokens = batch_tokens or tokens_at_once(self._device.type)
        self.at_once: int | None = None
        self.tokens_read = 0
        self.tokens_computed = 0
        # The tokenizer refuses two calls at a time; it takes a hundredth of what the model does.
        self._tokenizing = threading.Lock()
        self._tokenizer = _padding_right(load_tokenizer(info))
        self._limits = {prefix: self._limit(prefix, max_tokens) for prefix in (info.query_prefix, info.document_prefix)}
        with self._room():
            self._model = _load_transformer(info, TORCH_TYPES[self.precision])
            _check_embeddings(info, self._model, self._tokenizer)
            self._model.eval().to(self._device)
            self._dense = [load_dense(layer, self._device) for layer in info.dense]
            self._transform: Callable[..., Any] = self._model
            self.compiled = False
            self._try()
            if compile:
                self._compile()

    def encode(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """The vectors of ``texts``: float32 [n, dimensions], unit length, in the order given.

        Texts are cut to the token limit. An empty text has a vector too (that of no words).

        Raises:
            MemoryError: when the device ran out of memory; fewer texts at once may fit.
        """
        vectors = np.empty((len(texts), self.dimensions), dtype=np.float32)
        prepared = [encodable(text) for text in texts]
        with self._tokenizing:
            tokens = self._tokens(prepared)
        lengths = [len(row["input_ids"]) for row in tokens]
        parts = list(split_by_length(lengths, rows=self._batch, tokens=self.batch_tokens))
        with self._tokenizing:
            self.tokens_read += sum(lengths)
            self.tokens_computed += sum(len(rows) * lengths[rows[-1]] for rows in parts)
        try:
            for rows in parts:
                vectors[rows] = self._forward([tokens[row] for row in rows])
        except RuntimeError as error:
            if not out_of_memory(error):
                raise
            if self._device.type == "cuda":
                torch.cuda.empty_cache()
            raise MemoryError(str(error)) from error
        return vectors

    def _tokens(self, texts: Sequence[str]) -> list[_Row]:
        """The tokens of each text, cut to the limit that its prefix has."""
        of_limit: defaultdict[int, list[int]] = defaultdict(list)
        for row, text in enumerate(texts):
            of_limit[self._limit_of(text)].append(row)
        tokens: list[_Row] = [{}] * len(texts)
        for limit, rows in of_limit.items():
            part = [texts[row].lower() if self._info.lowercase else texts[row] for row in rows]
            columns = self._tokenizer(part, truncation=True, max_length=limit)
            for place, row in enumerate(rows):
                tokens[row] = {name: column[place] for name, column in columns.items()}
                if not tokens[row]["input_ids"]:
                    # No words and a tokenizer that adds nothing: one token, for there is no vector of none at all.
                    tokens[row] = {name: [int(name == "attention_mask")] for name in columns}
                    tokens[row]["input_ids"] = [self._tokenizer.pad_token_id]
        return tokens

    @torch.inference_mode()
    def _forward(self, rows: Sequence[_Row]) -> NDArray[np.float32]:
        columns = {name: [row[name] for row in rows] for name in rows[0]}
        # A size of 1 would be a kind of shape of its own to the compiler. One row is worth it, one token is not.
        width = max(_COMPILED_TOKENS, *(len(row["input_ids"]) for row in rows)) if self.compiled else None
        padding = "longest" if width is None else "max_length"
        inputs = self._tokenizer.pad(columns, padding=padding, max_length=width, return_tensors="pt").to(self._device)
        vectors: NDArray[np.float32] = (
            text_vectors(
                self._transform(**inputs).last_hidden_state,
                inputs["attention_mask"],
                pooling=self._info.pooling,
                dense=self._dense,
                dimensions=self.dimensions,
            )
            .cpu()
            .numpy()
        )
        return vectors

    def _limit(self, prefix: str, max_tokens: int) -> int:
        """Tokens of a text with ``prefix``: what is asked for and the prefix on top, as far as the model reads."""
        taken = len(self._tokenizer(prefix, add_special_tokens=False)["input_ids"]) if prefix else 0
        if taken + _MIN_TEXT_TOKENS > self._info.max_tokens:
            raise self._info.refusal(
                f"the prefix {prefix[:40]!r} has {taken} tokens, and {self._info.name} reads {self._info.max_tokens} "
                "with the text; set a shorter encoder.query_prefix and encoder.document_prefix"
            )
        return min(max_tokens + taken, self._info.max_tokens)

    def _limit_of(self, text: str) -> int:
        query = self._info.query_prefix
        return self._limits[query if query and text.startswith(query) else self._info.document_prefix]

    def _try(self) -> None:
        """A model that cannot encode at all is found here, not on the first item of the catalogue."""
        info = self._info
        longest = "warm up " * min(max(self._limits.values()), _TRIED_TOKENS)
        try:
            vectors = self.encode(["warm up", longest])
        except (IndexError, RuntimeError, TypeError, ValueError) as error:
            raise info.refusal(
                f"the model in {info.folder} loads but does not encode: {error!r}; take another model"
            ) from error
        if not np.isfinite(vectors).all():
            raise info.refusal(
                f"the model in {info.folder} gives no finite vectors in {self.precision} on {self.device}; "
                "set encoder.precision = 'float32'"
            )

    def _compile(self) -> None:
        """Compile, and try all kinds of shape that batches may have, against what is computed without.

        Whatever cannot be compiled is found here, before the process says that it is ready, and so is (nearly) every
        second of compiling.
        """
        info = self._info
        # As long as a batch may be: of many texts that is less, and one of more tokens is never computed.
        limit = max(self._limits.values())
        longest = (1, limit), (_MANY, min(limit, max(_COMPILED_TOKENS, self.batch_tokens // _MANY)))
        shapes = [(rows, min(tokens, limit)) for rows, tokens in (*TRIED_SHAPES, *longest)]
        batches = [[self._made_up(tokens)] * rows for rows, tokens in dict.fromkeys(shapes)]
        expected = [self._forward(batch) for batch in batches]
        self._transform = model = CompiledModel(self._model)
        self.compiled = True
        try:
            with marked(model.folder):
                found = [self._forward(batch) for batch in batches]
        except SettingsError:
            raise
        except Exception as error:  # tracing, writing, compiling and loading a program can each fail in its own way
            if out_of_memory(error):
                raise
            raise info.refusal(
                f"encoder.compile = true, and the model in {info.folder} cannot be compiled: "
                f"{what_is_missing(error, self._device, model.folder)}"
            ) from error
        if not model.programs:
            raise info.refusal(
                f"encoder.compile = true, and nothing was compiled: {what_turns_it_off()} turns torch.compile off; "
                "unset that, or set encoder.compile = false"
            )
        nearest = min(float((one * other).sum(axis=1).min()) for one, other in zip(expected, found, strict=True))
        if not nearest >= _LEAST_COSINE:
            raise info.refusal(
                f"encoder.compile = true, and compiled the model in {info.folder} gives other vectors (cosine "
                f"{nearest:.4f}); set encoder.compile = false"
            )

    def _made_up(self, tokens: int) -> _Row:
        """A text of so many tokens, as the tokenizer gives them."""
        row = self._tokens(["warm up " * tokens])[0]
        return {name: column[:tokens] for name, column in row.items()}

    @contextmanager
    def _room(self) -> Iterator[None]:
        """Turns a lack of memory while loading into an error that says what to do."""
        try:
            yield
        except Exception as error:
            if not out_of_memory(error):
                raise
            raise self._info.refusal(
                f"no room on {self.device} for the model in {self._info.folder} in {self.precision}: {error}; free the "
                "device or set another encoder.device, fewer encoder.processes, a smaller encoder.model, "
                "or encoder.precision = 'bfloat16'"
            ) from error


def _padding_right(tokenizer: Any) -> Any:
    """The tokenizer, padding on the right, where causal attention never sees it and positions begin at 0."""
    tokenizer.padding_side = "right"
    if tokenizer.pad_token_id is None:
        # Padding is masked, so which token it is does not matter.
        tokenizer.pad_token = tokenizer.eos_token or tokenizer.convert_ids_to_tokens(0)
    return tokenizer


def _load_transformer(info: ModelInfo, dtype: torch.dtype) -> Any:
    check_shapes(info)  # before memory is taken for a model of the wrong size
    try:
        model, report = AutoModel.from_pretrained(
            info.folder,
            local_files_only=True,
            trust_remote_code=False,
            use_safetensors=True,
            dtype=dtype,
            ignore_mismatched_sizes=True,  # else transformers raises, and says in its log only what is wrong
            output_loading_info=True,
        )
    except Exception as error:  # a folder may be wrong in ways that transformers does not foresee
        if out_of_memory(error):
            raise
        raise info.refusal(f"the model in {info.folder} cannot be loaded: {error}; fetch the model again") from error
    # transformers would fill what is missing or does not fit with random numbers.
    mismatched = [(name, tuple(has), tuple(wants)) for name, has, wants in sorted(report["mismatched_keys"])]
    refuse_shapes(info.name, info.folder, mismatched)
    # A pooler is not used here, and often not saved.
    missing = sorted(name for name in report["missing_keys"] if not name.startswith("pooler."))
    if missing:
        raise info.refusal(
            f"the weights in {info.folder} are not those of its config.json ({len(missing)} weights missing: "
            f"{missing[:3]}); fetch the model again"
        )
    if getattr(model.config, "use_cache", False):
        model.config.use_cache = False  # keys and values are kept for generating text, which nobody does here
    return model


def _check_embeddings(info: ModelInfo, model: Any, tokenizer: Any) -> None:
    """A token beyond the table of embeddings would end the process in the middle of a batch (on a GPU for good)."""
    rows = model.get_input_embeddings().weight.shape[0]
    highest = max(tokenizer.get_vocab().values(), default=0)
    if highest >= rows:
        raise info.refusal(
            f"the tokenizer in {info.folder} has tokens up to {highest}, and the model embeddings for {rows}; "
            "they do not belong together: fetch the model again"
        )
