"""From a failed validation to an error a producer can act on: which field, what was found, what to send instead.

Only runs when a record is refused. What is shown of the record is always cut: a 10 MB title must not become a
10 MB log line or dead letter.
"""

from __future__ import annotations

import re
from typing import Any

from stream_app.errors import InvalidMessage

__all__ = ["found", "invalid_structure", "shorten", "too_deep"]

_SHOWN = 60
"""Characters of a wrong value that are shown."""

_AT = re.compile(r"^(?P<what>.*?)(?: - at `\$(?P<path>.*)`)?$", re.DOTALL)
_MISSING = re.compile(r"required field `(?P<field>[^`]*)`")
_UNKNOWN = re.compile(r"unknown field `(?P<field>[^`]*)`")
_STEP = re.compile(r"\.(?P<name>[^.\[\]]+)|\[(?P<index>\d+)\]|(?P<any>\[\.\.\.\])")
_LENGTH = re.compile(r"Expected `(?P<kind>str|array|object)` of length (?P<bound>>=|<=) (?P<limit>\d+)")
_BOUND = re.compile(r"Expected `(?:int|float)[^`]*` (?P<bound>>=|<=|>|<) (?P<limit>\S+)")
_TYPE = re.compile(r"Expected `(?P<types>[^`]*)`")

_JSON_NAMES = {
    "str": "a string",
    "int": "an integer",
    "float": "a number",
    "bool": "true or false",
    "array": "an array",
    "object": "an object",
    "null": "null",
    "datetime": "a date and time",
}
_BOUNDS = {">=": "at least", "<=": "at most", ">": "more than", "<": "less than"}
_UNITS = {"str": "characters", "array": "elements", "object": "fields"}
_INSTANT = "an RFC 3339 date and time with a zone, for example 2026-11-23T10:00:00Z"


def shorten(text: str, limit: int = _SHOWN) -> str:
    """``text`` quoted, control characters escaped, cut to ``limit`` characters; says how long it was when cut."""
    cut = ascii(text[:limit]) if not text[:limit].isprintable() else repr(text[:limit])
    return cut if len(text) <= limit else f"{cut}... ({len(text):,} characters)"


def found(value: object) -> str:
    """What ``value`` (parsed JSON) is, in a few words."""
    if value is None:
        return "null"
    if value is True or value is False:
        return "true" if value else "false"
    if isinstance(value, str):
        return f"the string {shorten(value)}" if value else "an empty string"
    if isinstance(value, int | float):
        return f"the number {value!r}"
    if isinstance(value, list):
        return f"an array of {len(value):,}"
    if isinstance(value, dict):
        return f"an object with {len(value):,} fields"
    return type(value).__name__


def invalid_structure(name: str, message: str, document: object) -> InvalidMessage:
    """The error for a ``document`` (parsed JSON) that is not a ``name``, from msgspec's ``message`` about it."""
    match = _AT.match(message)
    what, path = (match["what"], match["path"] or "") if match else (message, "")
    missing = _MISSING.search(what)
    if missing:
        field = f"{path}.{missing['field']}".lstrip(".")
        return InvalidMessage("missing_field", f"{field}: required in {name} and not there; add the field")
    unknown = _UNKNOWN.search(what)
    if unknown:
        field = f"{path}.{shorten(unknown['field'])}".lstrip(".")
        return InvalidMessage(
            "invalid_field", f"{field}: {name} have no such field; correct or remove it, see schemas/v1/{name}.json"
        )
    known, value = _resolve(document, path)
    field = path.lstrip(".") or "the value"
    seen = f", found {found(value)}" if known else ""
    return InvalidMessage("invalid_field", f"{field}: expected {_expected(what)}{seen}; see schemas/v1/{name}.json")


def too_deep(field: str, limit: int) -> InvalidMessage:
    """The error for JSON nested further than ``limit`` levels."""
    return InvalidMessage("too_deep", f"{field}: nested more than {limit} levels deep; flatten it")


def _expected(what: str) -> str:
    """What was expected, in JSON's words instead of Python's."""
    if "datetime" in what:
        return _INSTANT
    if "matching regex" in what:
        return "a string without control characters"
    if length := _LENGTH.search(what):
        kind = length["kind"]
        return f"{_JSON_NAMES[kind]} of {_BOUNDS[length['bound']]} {length['limit']} {_UNITS[kind]}"
    if bound := _BOUND.search(what):
        return f"a number of {_BOUNDS[bound['bound']]} {bound['limit']}"
    if types := _TYPE.search(what):
        return " or ".join(_JSON_NAMES.get(name.strip(), name.strip()) for name in types["types"].split("|"))
    return what


def _resolve(document: object, path: str) -> tuple[bool, Any]:
    """(True, the value at msgspec's ``path``), or (False, None) when the path does not name one value."""
    value: Any = document
    for step in _STEP.finditer(path):
        try:
            if step["any"]:
                return False, None
            value = value[step["name"]] if step["name"] else value[int(step["index"])]
        except (KeyError, IndexError, TypeError):
            return False, None
    return True, value
