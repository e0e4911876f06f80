"""The vector space that the encoder's settings span: the text model's own, adapted, or fused with that of images."""

from __future__ import annotations

from dataclasses import dataclass

from stream_app.adapters.file import AdapterFile
from stream_app.errors import SettingsError
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
    """The space of these settings. Its name holds whatever decides a vector (both models and the weight, or model and
    adapter): vectors of other ones never meet it.

    Raises:
        SettingsError: when a model or an adapter is not here or cannot be used.
    """
    text = describe_model(settings)
    if settings.adapter is not None:
        if settings.image_model:
            raise SettingsError("encoder.adapter and encoder.image_model are both set: an adapter is for texts alone")
        adapter = AdapterFile.load(settings.adapter.expanduser(), base_space=text.space)
        return EncoderSpace(adapter.space, adapter.dimensions, text.dimensions)
    if not settings.image_model:
        return EncoderSpace(text.space, text.dimensions, text.dimensions)
    image = describe_image_model(settings.image_model)
    return EncoderSpace(
        f"{text.space}&{image.space}/{settings.image_weight:g}", text.dimensions + image.dimensions, text.dimensions
    )
