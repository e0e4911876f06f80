"""The reference page of all settings, made from the settings themselves, and a flat view of those in effect."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel, SecretStr
from pydantic.fields import FieldInfo

from stream_app.settings import DEFAULT_EVENT_TYPES, EventType, Settings

__all__ = ["SettingValue", "effective_settings", "reference_page"]

_HIDDEN = "(hidden)"
_EVENT_TYPES = "event_types"

_HEAD = """\
# Settings

<!-- Generated from stream_app/settings.py: tailrace settings reference --out docs/settings.md -->

Settings come from, in order of precedence:

1. the options of the command (`tailrace --kafka HOST:PORT --redis URL ...`);
2. environment variables: `TAILRACE_` and the name in capitals, two underscores for each dot:
   `TAILRACE_KAFKA`, `TAILRACE_RANKER__LEARNING_RATE`;
3. a TOML file: the one named by `TAILRACE_CONFIG` or `tailrace --config FILE`, else `tailrace.toml` in the working
   directory;
4. the defaults below.

A wrong setting ends the start with its name, its value and what is allowed. `tailrace settings` shows what is in
effect, with secrets hidden.

```toml
# tailrace.toml
kafka = "broker-1:9092,broker-2:9092"

[topics]
prefix = "shop"

[ranker]
learning_rate = 0.02

[event_types.bookmark]
weight = 2.5
```
"""


@dataclass(frozen=True, kw_only=True)
class SettingValue:
    """One setting: its dotted name, its value and its default, as plain data; secrets hidden."""

    name: str
    value: Any
    default: Any


def effective_settings(settings: Settings) -> list[SettingValue]:
    """Every setting with the value it has, in the order of the reference page."""
    defaults = dict(_leaves(Settings.model_construct(event_types=DEFAULT_EVENT_TYPES)))
    return [
        SettingValue(name=name, value=_shown(value), default=_shown(defaults.get(name)))
        for name, value in _leaves(settings)
    ]


def reference_page() -> str:
    """The Markdown of ``docs/settings.md``."""
    fields = Settings.model_fields
    parts = [
        _HEAD,
        "\n## General\n\n",
        _table("", {n: f for n, f in fields.items() if _group(f) is None and n != _EVENT_TYPES}),
    ]
    for name, field in fields.items():
        group = _group(field)
        if group is not None:
            summary = (group.__doc__ or "").strip().replace("``", "`")
            parts.append(f"\n## {name}\n\n{summary}\n\n" if summary else f"\n## {name}\n\n")
            parts.append(_table(f"{name}.", group.model_fields))
    parts.append(_event_types())
    return "".join(parts)


def _leaves(model: BaseModel, prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name in type(model).model_fields:
        value = getattr(model, name)
        if isinstance(value, BaseModel):
            yield from _leaves(value, f"{prefix}{name}.")
        elif name == _EVENT_TYPES:
            for type_name, event_type in value.items():
                yield from _leaves(event_type, f"{prefix}{name}.{type_name}.")
        else:
            yield f"{prefix}{name}", value


def _shown(value: Any) -> Any:
    if isinstance(value, SecretStr):
        return _HIDDEN
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, dict):
        return ", ".join(f"{name} = {part}" for name, part in value.items())
    return ", ".join(str(part) for part in value) if isinstance(value, tuple | list) else str(value)


def _group(field: FieldInfo) -> type[BaseModel] | None:
    annotation = field.annotation
    return annotation if isinstance(annotation, type) and issubclass(annotation, BaseModel) else None


def _table(prefix: str, fields: dict[str, FieldInfo]) -> str:
    lines = ["| setting | default | allowed | |", "|---|---|---|---|"]
    for name, field in fields.items():
        cells = (f"`{prefix}{name}`", _default(field), _allowed(field), field.description or "")
        lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(lines) + "\n"


def _default(field: FieldInfo) -> str:
    default = field.get_default(call_default_factory=False)
    if isinstance(default, SecretStr):
        return f"`{default.get_secret_value()}`"
    if default is None:
        return "unset"
    shown = _shown(default)
    return f"`{str(shown).lower() if isinstance(shown, bool) else shown}`" if shown != "" else "empty"


def _allowed(field: FieldInfo) -> str:
    """What values are accepted, in words."""
    words = [_type_words(field.annotation)]
    signs = {"ge": "≥", "gt": ">", "le": "≤", "lt": "<", "min_length": "length ≥", "max_length": "length ≤"}
    for constraint in field.metadata:
        words += [
            f"{sign} {getattr(constraint, name):,}"
            for name, sign in signs.items()
            if getattr(constraint, name, None) is not None
        ]
        if pattern := getattr(constraint, "pattern", None):
            words.append(f"like `{pattern}`")
    return ", ".join(words)


def _type_words(annotation: Any) -> str:
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Literal:
        return ", ".join(f"`{value}`" for value in arguments)
    if origin in (Union, UnionType):
        return " or ".join(_type_words(part) for part in arguments if part is not NoneType)
    if origin is dict:
        return f"table of {_type_words(arguments[1])}s"
    if origin is tuple:
        return f"list of {_type_words(arguments[0])}s"
    names = {int: "integer", float: "number", bool: "true or false", str: "text", SecretStr: "text (secret)"}
    return names.get(annotation, "path" if getattr(annotation, "__name__", "") == "Path" else str(annotation))


def _event_types() -> str:
    fields = EventType.model_fields
    explained = "\n".join(
        f"* `{name}` (default {_default(field)}): {field.description}" for name, field in fields.items()
    )
    rows = ["| type | " + " | ".join(fields) + " |", "|---" * (len(fields) + 1) + "|"]
    for name, event_type in DEFAULT_EVENT_TYPES.items():
        values = (getattr(event_type, field) for field in fields)
        cells = ("none" if value is None else str(_shown(value)).lower() for value in values)
        rows.append(f"| `{name}` | " + " | ".join(cells) + " |")
    return (
        f"\n## event_types\n\n{Settings.model_fields[_EVENT_TYPES].description} "
        "A type that is not in the table is refused (dead letter `unknown_event_type`).\n\n"
        f"{explained}\n\nBuilt in:\n\n" + "\n".join(rows) + "\n"
    )
