"""Images and texts to vectors of one space, with CLIP or SigLIP from a folder; transformers and torch.

A picture goes through the folder's own image processor (resized, cropped, scaled as the model was trained), by Pillow
and not torchvision, whichever is installed: their resizing differs, and with it the vectors. Texts go through the same
model's text tower. Both are scaled to unit length.

What is in the folder is not trusted: no code of its own is run, no pickle is opened, and weights that are missing or of
another shape are an error instead of random numbers.
"""

from __future__ import annotations

import workers.environment  # noqa: F401 - before torch and transformers

# isort: split
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from transformers import AutoTokenizer, CLIPImageProcessorPil, CLIPModel, SiglipImageProcessorPil, SiglipModel
from transformers.utils import logging as transformers_logging

from stream_app.errors import SettingsError
from workers.devices import TORCH_TYPES, devices_like, out_of_memory, pick_device, pick_precision
from workers.image_models import ImageModelInfo
from workers.models import Precision
from workers.picture_requests import Unusable, read_picture, refusal, requested_text
from workers.pictures import decode_picture

__all__ = ["ImageEncoder"]

_MODELS = {"clip": CLIPModel, "siglip": SiglipModel}
_PROCESSORS = {"clip": CLIPImageProcessorPil, "siglip": SiglipImageProcessorPil}


class ImageEncoder:
    """A loaded CLIP or SigLIP model. Its methods may be called from several threads.

    Args:
        info: of the model.
        folder: of the pictures that requests name; None: they name none.
        max_bytes, max_pixels: of one picture, at most.
        device, precision, threads, batch, index: as for a text encoder (:func:`workers.models.load_model`).

    Attributes:
        space, dimensions: of the vectors, from the model's files.
        device: where it runs, for example ``cpu`` or ``cuda:0``.
        precision: what it computes in: ``float32``, ``bfloat16`` or ``float16``. Scaling is always float32.

    Raises:
        SettingsError: when the folder's files do not go together or cannot be used here.
    """

    def __init__(
        self,
        info: ImageModelInfo,
        *,
        folder: Path | None,
        max_bytes: int,
        max_pixels: int,
        device: str = "auto",
        precision: Precision = "auto",
        threads: int = 0,
        batch: int = 32,
        index: int = 0,
    ) -> None:
        if threads:
            torch.set_num_threads(threads)
        transformers_logging.set_verbosity_error()
        transformers_logging.disable_progress_bar()
        self._info = info
        self._pictures = folder
        self._max_bytes = max_bytes
        self._max_pixels = max_pixels
        self._batch = batch
        self._device = pick_device(device, index)
        self.space = info.space
        self.dimensions = info.dimensions
        self.device = str(self._device)
        self.precision = pick_precision(precision, self._device)
        self.tokens_read = 0
        self.tokens_computed = 0
        self.at_once: int | None = None
        self.devices = devices_like(self._device)
        self._dtype = TORCH_TYPES[self.precision]
        self._tokenizing = threading.Lock()  # a fast tokenizer's padding and cutting are state of its own
        self._tokenizer = _load(info, "tokenizer", lambda: AutoTokenizer.from_pretrained(info.folder, **_SAFE))
        processor = _PROCESSORS[info.kind]
        self._processor = _load(info, "image processor", lambda: processor.from_pretrained(info.folder, **_SAFE))
        self._model = _load_weights(info, self._dtype, self._device)
        self._try()

    def encode(self, requests: Sequence[str]) -> NDArray[np.float32]:
        """The answers to ``requests`` (:mod:`workers.picture_requests`): float32 [n, dimensions], in their order; unit
        vectors, and refusals where there is no picture to be had.

        Raises:
            MemoryError: when the device ran out of memory; fewer at once may fit.
        """
        rows = np.empty((len(requests), self.dimensions), np.float32)
        texts = {row: text for row, one in enumerate(requests) if (text := requested_text(one)) is not None}
        rows[list(texts)] = self.encode_texts(list(texts.values()))
        asked = [row for row in range(len(requests)) if row not in texts]
        for start in range(0, len(asked), self._batch):
            pixels: dict[int, torch.Tensor] = {}
            for row in asked[start : start + self._batch]:
                # One whole picture at a time is in memory; what is kept of it is the model's small square.
                try:
                    content = read_picture(requests[row], self._pictures, max_bytes=self._max_bytes)
                    pixels[row] = self._pixels(decode_picture(content, max_pixels=self._max_pixels))
                except Unusable as error:
                    rows[row] = refusal(error.reason, self.dimensions)
            if pixels:
                rows[list(pixels)] = self._image_vectors(list(pixels.values()))
        return rows

    def encode_images(self, images: Sequence[bytes]) -> NDArray[np.float32]:
        """The vectors of JPEG, PNG, WebP or GIF files: float32 [n, dimensions], unit length, in the order given.

        Raises:
            Unusable: when one of them is no picture, or a larger one than allowed.
            MemoryError: when the device ran out of memory.
        """
        vectors = np.empty((len(images), self.dimensions), np.float32)
        for start in range(0, len(images), self._batch):
            part = images[start : start + self._batch]
            pixels = [self._pixels(decode_picture(one, max_pixels=self._max_pixels)) for one in part]
            vectors[start : start + len(part)] = self._image_vectors(pixels)
        return vectors

    def encode_texts(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """The text tower's vectors of ``texts``: float32 [n, dimensions], unit length, in the order given.

        Texts are cut to the model's token limit. An empty text has a vector too.

        Raises:
            MemoryError: when the device ran out of memory.
        """
        vectors = np.empty((len(texts), self.dimensions), np.float32)
        for start in range(0, len(texts), self._batch):
            part = list(texts[start : start + self._batch])
            vectors[start : start + len(part)] = self._unit(self._model.get_text_features, **self._tokens(part))
        return vectors

    def _tokens(self, texts: list[str]) -> dict[str, torch.Tensor]:
        siglip = self._info.kind == "siglip"
        if siglip:
            # It was trained on small letters, and on texts padded to the full length, without a mask.
            texts = [text.lower() for text in texts]
        with self._tokenizing:
            tokens = self._tokenizer(
                texts,
                truncation=True,
                max_length=self._info.max_tokens,
                padding="max_length" if siglip else True,
                return_tensors="pt",
            )
            self.tokens_read += tokens["input_ids"].numel()
            self.tokens_computed += tokens["input_ids"].numel()
        names = ("input_ids",) if siglip else ("input_ids", "attention_mask")
        return {name: tokens[name] for name in names}

    def _pixels(self, image: Image.Image) -> torch.Tensor:
        """Of a picture, what the model sees: [3, side, side]."""
        return torch.as_tensor(self._processor(images=image, return_tensors="pt")["pixel_values"][0])

    def _image_vectors(self, pixels: list[torch.Tensor]) -> NDArray[np.float32]:
        return self._unit(self._model.get_image_features, pixel_values=torch.stack(pixels).to(self._dtype))

    @torch.inference_mode()
    def _unit(self, features: Callable[..., Any], **inputs: torch.Tensor) -> NDArray[np.float32]:
        try:
            found = features(**{name: one.to(self._device) for name, one in inputs.items()})
            # Before transformers 5 the tensor itself was returned.
            tensor = found if isinstance(found, torch.Tensor) else found.pooler_output
            unit: NDArray[np.float32] = torch.nn.functional.normalize(tensor.float(), dim=1).cpu().numpy()
        except RuntimeError as error:
            if not out_of_memory(error):
                raise
            if self._device.type == "cuda":
                torch.cuda.empty_cache()
            raise MemoryError(str(error)) from error
        return unit

    def _try(self) -> None:
        """A model that cannot encode at all is found here, not on the first item of the catalogue."""
        info = self._info
        rows = self._model.text_model.get_input_embeddings().weight.shape[0]
        highest = max(self._tokenizer.get_vocab().values(), default=0)
        if highest >= rows:
            raise _refused(
                info,
                f"the tokenizer has tokens up to {highest}, the model embeddings for {rows}; they are not of one model",
            )
        try:
            pixels = self._pixels(Image.new("RGB", (2 * info.side, info.side), "gray"))
            if pixels.shape != (3, info.side, info.side):
                raise _refused(
                    info,
                    f"preprocessor_config.json makes {tuple(pixels.shape)} of a picture, and config.json says that the "
                    f"model sees (3, {info.side}, {info.side})",
                )
            vectors = np.concatenate(
                [self._image_vectors([pixels]), self.encode_texts(["warm up", "warm up " * info.max_tokens])]
            )
        except (IndexError, KeyError, RuntimeError, TypeError, ValueError) as error:
            raise _refused(info, f"it loads but does not encode: {error!r}") from error
        if vectors.shape[1] != info.dimensions:
            raise _refused(info, f"its vectors have {vectors.shape[1]} numbers, and config.json says {info.dimensions}")
        if not np.isfinite(vectors).all():
            raise _refused(
                info,
                f"no finite vectors in {self.precision} on {self.device}; set encoder.precision = 'float32'",
            )


_SAFE = {"local_files_only": True, "trust_remote_code": False}


def _refused(info: ImageModelInfo, why: str) -> SettingsError:
    return SettingsError(f"encoder.image_model = {str(info.folder)!r}: {why}")


def _load(info: ImageModelInfo, what: str, load: Callable[[], Any]) -> Any:
    try:
        return load()
    except Exception as error:  # a folder may be wrong in ways that transformers does not foresee
        raise _refused(
            info,
            f"its {what} cannot be loaded ({error}); save the whole processor of the model there, or fetch it again",
        ) from error


def _load_weights(info: ImageModelInfo, dtype: torch.dtype, device: torch.device) -> Any:
    try:
        model, report = _MODELS[info.kind].from_pretrained(
            info.folder,
            use_safetensors=True,
            attn_implementation="sdpa",
            dtype=dtype,
            output_loading_info=True,
            **_SAFE,
        )
        model.eval().to(device)
    except Exception as error:  # as above; a lack of memory, too, is for people to act on
        raise _refused(
            info, f"the model cannot be loaded on {device}: {error}; fetch it again or free memory"
        ) from error
    # transformers would fill these with random numbers.
    wrong = sorted(str(one) for one in (*report["missing_keys"], *report["mismatched_keys"]))
    if wrong:
        raise _refused(info, f"the weights are not those of its config.json (missing or of another shape: {wrong[:3]})")
    return model
