"""The vector space that the encoder's settings span: the text model's, or that of text and image fused."""

from __future__ import annotations

from dataclasses import dataclass

from stream_app.settings import EncoderSettings
from workers.image_models import describe_image_model
from workers.models import describe_model

__all__ = ["EncoderSpace", "describe_encoder"]


@dataclass(frozen=True, slots=True)
class EncoderSpace:
    """A vector space: its name, and how many numbers its vectors have; ``text_dimensions`` of them are the text's."""

    space: str
    dimensions: int
    text_dimensions: int


def describe_encoder(settings: EncoderSettings) -> EncoderSpace:
    """The space of these settings. With images its name holds both models' and the weight: vectors of other ones never
    meet it.

    Raises:
        SettingsError: when a model is not here or cannot be used.
    """
    text = describe_model(settings)
    if not settings.image_model:
        return EncoderSpace(text.space, text.dimensions, text.dimensions)
    image = describe_image_model(settings.image_model)
    return EncoderSpace(
        f"{text.space}&{image.space}/{settings.image_weight:g}", text.dimensions + image.dimensions, text.dimensions
    )
