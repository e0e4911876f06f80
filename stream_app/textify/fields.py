"""What an item says of one thing: the value of a field, or of an attribute, as plain words, within limits.

``attributes`` are anything a producer likes. A text, a number, a list of these, and an object with a ``name`` (as
schema.org has people) say something; everything else (objects in objects, true and false, numbers of more than 15
digits) says nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice
from typing import Any

from schemas.messages import Item
from stream_app.textify.clean import clip, shortened
from stream_app.textify.masking import Masks
from stream_app.textify.parts import FIELDS
from stream_app.textify.plain import plain

__all__ = ["item_title", "label_names", "value_of"]

TITLE_CHARS = 300
BRAND_CHARS = 80
DESCRIPTION_CHARS = 400
LABEL_CHARS = 200
"""Of each name; see ``items.LABELS_CHARS``."""
_MARKUP_ALLOWANCE = 16
"""Raw characters looked at per character kept; shop descriptions are mostly markup. A megabyte costs as a page does."""
_MOST_NAMES = 64
"""Entries of an attribute's list that are looked at; as many as an item has categories at most."""
_LARGEST_NUMBER = 10**15

_LABEL_SEPARATORS = str.maketrans({"_": " ", ">": ",", "|": ","})


def value_of(
    item: Item, name: str, attributes: Mapping[str, Sequence[str]], *, masks: Masks | None = None, unshout: bool = True
) -> str | Iterable[str]:
    """What ``item`` says of ``name``: words (perhaps none), or names.

    Args:
        name: one of :data:`FIELDS` or of ``attributes``.
        attributes: by name, the places to look at (attributes or fields); the first that says something counts.
        masks: what is taken out, see :func:`stream_app.textify.plain.plain`.
        unshout: whether a title all in capitals becomes a sentence.

    Names are made when they are asked for; empty ones among those of a field are left in.
    """
    if name in FIELDS:
        return _field(item, name, masks, unshout)
    for place in attributes[name]:
        if place in FIELDS:
            value = _field(item, place, masks, unshout)
        else:
            value = _attribute(item.attributes.get(place), masks)
        if value := value if isinstance(value, str) else list(filter(None, value)):
            return value
    return ""


def _field(item: Item, name: str, masks: Masks | None, unshout: bool) -> str | Iterable[str]:
    if name == "title":
        return item_title(item.title, masks, unshout=unshout)
    if name == "brand":
        return _words(item.brand or "", BRAND_CHARS, masks)
    if name == "description":
        return _words(item.description or "", DESCRIPTION_CHARS, masks)
    return label_names(item.categories if name == "categories" else item.tags, masks)


def item_title(raw: str, masks: Masks | None = None, *, unshout: bool = True) -> str:
    """The title; where ``unshout`` says so all capitals of several words becomes a sentence.

    Models that tell case apart read capitals letter by letter; one word stays as it is, it may be an acronym.
    """
    title = _words(raw, TITLE_CHARS, masks)
    return title.capitalize() if unshout and " " in title and title.isupper() else title


def label_names(labels: Iterable[str], masks: Masks | None = None) -> Iterator[str]:
    """The names in ``labels``, paths ("Home > Kitchen") and slugs ("home_decor") opened up."""
    for label in labels:
        for name in (
            plain(shortened(label, LABEL_CHARS * _MARKUP_ALLOWANCE), masks).translate(_LABEL_SEPARATORS).split(",")
        ):
            yield " ".join(name.split())


def _attribute(value: Any, masks: Masks | None) -> str | Iterable[str]:
    if isinstance(value, list):
        return (_one(entry, masks) for entry in islice(value, _MOST_NAMES))
    return _one(value, masks)


def _one(value: Any, masks: Masks | None) -> str:
    """A single value of an attribute in words."""
    if isinstance(value, dict):
        value = value.get("name")
    if isinstance(value, bool):
        return ""
    if isinstance(value, int | float):
        return _number(value)
    if not isinstance(value, str):
        return ""
    return _words(value, BRAND_CHARS, masks)


def _words(raw: str, max_chars: int, masks: Masks | None) -> str:
    return clip(plain(shortened(raw, max_chars * _MARKUP_ALLOWANCE), masks), max_chars)


def _number(value: float) -> str:
    """As people write it: 1995, not 1995.0."""
    if not abs(value) < _LARGEST_NUMBER:  # nor what is no number
        return ""
    return str(int(value)) if value == int(value) else f"{value:.6g}"
