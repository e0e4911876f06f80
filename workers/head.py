"""What follows the transformer: the vectors of a text's tokens become the text's one vector. Pure functions of tensors.

Pooling over the attention mask and scaling to unit length are those of Sentence-BERT (Reimers and Gurevych 2019,
doi 10.18653/v1/D19-1410); taking the last token is for decoders, whose other tokens have not seen the whole text;
keeping the first numbers only is Matryoshka truncation (Kusupati et al. 2022, arXiv 2205.13147).
"""

from __future__ import annotations

import workers.environment  # noqa: F401 - before torch and transformers

# isort: split
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from safetensors.torch import load_file
from torch import Tensor

from stream_app.errors import SettingsError
from workers.layout import Activation, DenseLayer, Pooling

__all__ = ["Dense", "load_dense", "pool", "text_vectors"]


@dataclass(frozen=True)
class Dense:
    """A linear layer and what follows it. ``weight`` float32 [out, in]; ``bias`` float32 [out] or None."""

    weight: Tensor
    bias: Tensor | None
    activation: Activation

    def __call__(self, vectors: Tensor) -> Tensor:
        """Float32 [n, in] to float32 [n, out]."""
        linear = torch.nn.functional.linear(vectors, self.weight, self.bias)
        return linear.tanh() if self.activation == "tanh" else linear


def load_dense(layer: DenseLayer, device: torch.device) -> Dense:
    """The layer with its weights, in float32 on ``device``: it is small, so nothing is saved by less.

    Raises:
        SettingsError: when the file holds other weights than the folder's configuration says.
    """
    weights = load_file(layer.file)
    expected = {"linear.weight": (layer.out_features, layer.in_features)}
    if layer.bias:
        expected["linear.bias"] = (layer.out_features,)  # type: ignore[assignment]
    found = {name: tuple(weight.shape) for name, weight in weights.items()}
    if found != expected:
        raise SettingsError(f"{layer.file} holds {found}, and {layer.config} says {expected}; fetch the model again")
    parts = {name: weight.float().to(device) for name, weight in weights.items()}
    return Dense(parts["linear.weight"], parts.get("linear.bias"), layer.activation)


def pool(hidden: Tensor, mask: Tensor, pooling: Pooling) -> Tensor:
    """One vector per text.

    Args:
        hidden: float [n, tokens, d], of each token.
        mask: integers [n, tokens], 1 for tokens of the text and 0 for padding, which may be on either side.
        pooling: mean of the text's tokens, its first (cls), or its last.

    Returns:
        Float [n, d]; for a text without tokens something finite.
    """
    if pooling == "mean":
        weights = mask.unsqueeze(-1).to(hidden.dtype)
        return (hidden * weights).sum(dim=1) / weights.sum(dim=1).clamp(min=1.0)
    # argmax gives the first of several largest: the first token of the text, or the last, counted from the end.
    place = mask.argmax(dim=1) if pooling == "cls" else mask.shape[1] - 1 - mask.flip(1).argmax(dim=1)
    return hidden[torch.arange(hidden.shape[0], device=hidden.device), place]


def text_vectors(hidden: Tensor, mask: Tensor, *, pooling: Pooling, dense: Sequence[Dense], dimensions: int) -> Tensor:
    """Pooled, through the layers, cut to ``dimensions``, and scaled to unit length: float32 [n, dimensions].

    ``hidden`` and ``mask`` as for :func:`pool`; computed in float32 whatever the transformer computed in.
    """
    vectors = pool(hidden.float(), mask, pooling)
    for layer in dense:
        vectors = layer(vectors)
    return torch.nn.functional.normalize(vectors[:, :dimensions], dim=1)
