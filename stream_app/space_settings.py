"""What may be different in a further vector space, checked before a broker is asked for anything."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import ValidationError

from stream_app.encoder_space import EncoderSpace, describe_encoder
from stream_app.encoders import deciding_settings
from stream_app.errors import SettingsError
from stream_app.settings import EncoderSettings
from stream_app.spaces.control import EncoderValue
from workers.checkpoint import tensor_shapes
from workers.image_models import describe_image_model

__all__ = ["changed_encoder", "settable_names", "usable_encoder"]


def settable_names() -> tuple[str, ...]:
    """Names of the encoder's settings that a space may have of its own: those that decide its vectors."""
    return tuple(deciding_settings(EncoderSettings()))


def changed_encoder(settings: EncoderSettings, changes: Mapping[str, EncoderValue]) -> EncoderSettings:
    """The encoder's settings with some changed, as a further space is to have them.

    Args:
        changes: values by name, without ``encoder.``; None: not set, where a setting may be that.

    Raises:
        SettingsError: when a name is no setting, or one of a process and not of a space, or a value is not allowed;
            says which names there are.
    """
    names = settable_names()
    may = f"a space may have its own {', '.join(names[:-1])} and {names[-1]}"
    for name in changes:
        if name in names:
            continue
        if name in EncoderSettings.model_fields:
            raise SettingsError(
                f"encoder.{name} decides no vector, so no space is kept by it: set it for the processes "
                f"(TAILRACE_ENCODER__{name.upper()}); {may}"
            )
        raise SettingsError(f"encoder.{name}: there is no such setting; {may}")
    fields: dict[str, Any] = settings.model_dump() | dict(changes)
    try:
        return EncoderSettings.model_validate(fields)
    except ValidationError as error:
        wrong = "; ".join(_told(one["loc"], changes, one["msg"]) for one in error.errors())
        raise SettingsError(f"no space can be built so: {wrong}; {may}") from None


def _told(place: Sequence[int | str], changes: Mapping[str, EncoderValue], why: str) -> str:
    name = str(place[0]) if place else "the settings of the encoder"
    return f"encoder.{name} = {changes[name]!r}: {why}" if name in changes else f"{name}: {why}"


def usable_encoder(settings: EncoderSettings) -> EncoderSpace:
    """The space of these settings, whose models are whole here and have weights of the shapes that they need. Of
    weights only headers are read beyond what :func:`describe_encoder` reads. Imports torch (seconds).

    Raises:
        SettingsError: when a model or an adapter is not here, cannot be used, or weights are cut off, damaged, or of
            other shapes.
    """
    from workers.shapes import check_weights

    space = describe_encoder(settings)
    check_weights(settings)
    if settings.image_model:
        files = sorted(describe_image_model(settings.image_model).folder.glob("*.safetensors"))
        try:
            tensor_shapes(files)
        except (OSError, ValueError) as error:
            raise SettingsError(f"encoder.image_model = {settings.image_model!r}: {error}") from error
    return space
