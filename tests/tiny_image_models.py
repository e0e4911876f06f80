"""Small CLIP and SigLIP folders and small pictures, made by the tests: random weights, a tokenizer of a few words."""

from __future__ import annotations

import json
import string
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

__all__ = ["SIDE", "picture", "tiny_clip", "tiny_siglip"]

SIDE = 32
"""Pixels that the models see, each way."""
_TOKENS = 16


def tiny_clip(folder: Path, *, seed: int = 0, dimensions: int = 24) -> Path:
    """A CLIP of one layer each in ``folder``, which is made. Imports torch."""
    import torch
    from transformers import CLIPConfig, CLIPModel

    vocabulary = _tokenizer(folder)
    torch.manual_seed(seed)
    config = CLIPConfig(
        text_config={**_tower(), **_reading(len(vocabulary)), "bos_token_id": 1, "eos_token_id": 3, "pad_token_id": 0},
        vision_config={**_tower(), **_seeing()},
        projection_dim=dimensions,
    )
    CLIPModel(config).save_pretrained(folder)
    _processor(folder, "CLIPImageProcessor", {"shortest_edge": SIDE}, crop=True)
    return folder


def tiny_siglip(folder: Path, *, seed: int = 0) -> Path:
    """A SigLIP of one layer each in ``folder``, which is made; vectors of 32 numbers. Imports torch."""
    import torch
    from transformers import SiglipConfig, SiglipModel

    vocabulary = _tokenizer(folder)
    torch.manual_seed(seed)
    config = SiglipConfig(
        text_config={**_tower(), **_reading(len(vocabulary)), "projection_size": 32},
        vision_config={**_tower(), **_seeing()},
    )
    SiglipModel(config).save_pretrained(folder)
    _processor(folder, "SiglipImageProcessor", {"height": SIDE, "width": SIDE}, crop=False)
    return folder


def picture(
    *,
    seed: int = 0,
    size: tuple[int, int] = (48, 40),
    color: str | None = None,
    mode: str = "RGB",
    kind: str = "PNG",
    **options: Any,
) -> bytes:
    """A file with a picture: of one color, or four squares of random colors."""
    if color is not None:
        image = Image.new("RGB", size, color)
    else:
        squares = np.random.default_rng(seed).integers(0, 256, size=(2, 2, 3), dtype=np.uint8)
        image = Image.fromarray(squares, "RGB").resize(size, Image.Resampling.NEAREST)
    out = BytesIO()
    image.convert(mode).save(out, kind, **options)
    return out.getvalue()


def _tower() -> dict[str, int]:
    return {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}


def _reading(vocabulary: int) -> dict[str, int]:
    return {"vocab_size": vocabulary, "max_position_embeddings": _TOKENS}


def _seeing() -> dict[str, int]:
    return {"image_size": SIDE, "patch_size": 8}


def _tokenizer(folder: Path) -> dict[str, int]:
    """One that knows letters and a begin and an end, in the fast format."""
    from tokenizers import Regex, Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import Split
    from tokenizers.processors import TemplateProcessing
    from transformers import PreTrainedTokenizerFast

    special = {"pad_token": "<pad>", "bos_token": "<begin>", "unk_token": "<unknown>", "eos_token": "<end>"}
    words = [*special.values(), *string.ascii_letters, " "]
    vocabulary = {word: number for number, word in enumerate(words)}
    tokenizer = Tokenizer(WordLevel(vocabulary, special["unk_token"]))
    tokenizer.pre_tokenizer = Split(Regex("."), "isolated")
    tokenizer.post_processor = TemplateProcessing(
        single="<begin> $A <end>", special_tokens=[("<begin>", 1), ("<end>", 3)]
    )
    folder.mkdir(parents=True)
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special).save_pretrained(folder)
    return vocabulary


def _processor(folder: Path, kind: str, size: dict[str, int], *, crop: bool) -> None:
    config = {
        "image_processor_type": kind,
        "do_resize": True,
        "size": size,
        "resample": 3,
        "do_center_crop": crop,
        "crop_size": {"height": SIDE, "width": SIDE},
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": [0.5, 0.5, 0.5],
        "image_std": [0.5, 0.5, 0.5],
        "do_convert_rgb": True,
    }
    (folder / "preprocessor_config.json").write_text(json.dumps(config), "utf-8")
