"""What may be different in a further vector space, checked before a broker is asked for anything."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from stream_app.encoder_space import EncoderSpace, describe_encoder
from stream_app.encoders import deciding_settings
from stream_app.errors import SettingsError
from stream_app.settings import EncoderSettings
from stream_app.spaces.control import EncoderValue
from workers.checkpoint import check_whole
from workers.image_models import describe_image_model
from workers.models import describe_model

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
    """The space of these settings, whose models are whole here. Of weights only headers are read beyond what
    :func:`describe_encoder` reads; that a model computes, its process finds out.

    Raises:
        SettingsError: when a model or an adapter is not here, cannot be used, or a file of its weights is cut off or
            damaged.
    """
    space, text = describe_encoder(settings), describe_model(settings)
    files = [*sorted(text.folder.glob("*.safetensors")), *(layer.file for layer in text.dense)]
    _whole("model", settings.model, files)
    if settings.image_model:
        folder = describe_image_model(settings.image_model).folder
        _whole("image_model", settings.image_model, sorted(folder.glob("*.safetensors")))
    return space


def _whole(setting: str, value: str, files: Sequence[Path]) -> None:
    try:
        check_whole(files)
    except ValueError as error:
        raise SettingsError(f"encoder.{setting} = {value!r}: {error}") from error
