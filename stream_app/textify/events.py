"""The free text of an event (a search, a review) as the encoder reads it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from schemas.messages import Interaction
from stream_app.textify.clean import clip, shortened
from stream_app.textify.fields import label_names
from stream_app.textify.masking import Masks
from stream_app.textify.plain import plain

__all__ = ["event_text", "said"]

_MARKUP_ALLOWANCE = 8
"""Raw characters looked at per character kept, so that a megabyte of text costs as little as a page."""
_MOST_NAMES = 64
"""Categories of a context that are looked at; as many as an item has at most."""


def event_text(text: str, *, max_chars: int, masks: Masks | None = None) -> str:
    """``text`` made plain (:func:`stream_app.textify.plain.plain`) and cut to at most ``max_chars`` characters, the
    beginning kept; may be empty."""
    return clip(plain(shortened(text, max_chars * _MARKUP_ALLOWANCE), masks), max_chars)


def said(event: Interaction, *, max_chars: int, masks: Masks | None = None) -> str:
    """What an event says in words, cleaned and cut like :func:`event_text`: its text or, when it names no item, the
    ``query`` or else the ``category`` (a string or a list) of its context. Empty when it says nothing."""
    if event.text:
        return event_text(event.text, max_chars=max_chars, masks=masks)
    if event.item_id is not None or event.items or not event.context:
        return ""
    return event_text(_context(event.context, max_chars, masks), max_chars=max_chars, masks=masks)


def _context(context: Mapping[str, Any], max_chars: int, masks: Masks | None) -> str:
    """Context is anything a producer likes; what is not of the expected kind says nothing."""
    query, category = context.get("query"), context.get("category")
    if isinstance(query, str) and query.strip():
        return query
    names = [category] if isinstance(category, str) else category if isinstance(category, list) else []
    words = (shortened(name, max_chars * _MARKUP_ALLOWANCE) for name in names[:_MOST_NAMES] if isinstance(name, str))
    return ", ".join(filter(None, label_names(words, masks)))
