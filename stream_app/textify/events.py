"""The free text of an event (a search, a review) as the encoder reads it."""

from __future__ import annotations

from stream_app.textify.clean import clean, clip

__all__ = ["event_text"]

_MARKUP_ALLOWANCE = 8
"""Raw characters looked at per character kept, so that a megabyte of text costs as little as a page."""


def event_text(text: str, *, max_chars: int) -> str:
    """``text`` cleaned and cut to at most ``max_chars`` characters, beginning kept; may be empty."""
    return clip(clean(text[: max_chars * _MARKUP_ALLOWANCE]), max_chars)
