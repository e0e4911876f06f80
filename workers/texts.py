"""Texts on their way to a model: what kind they are, and that they can be sent and read at all. Pure functions."""

from __future__ import annotations

from typing import Literal

__all__ = ["TextKind", "encodable"]

TextKind = Literal["document", "query"]
"""``document``: what is found (an item). ``query``: what finds it (a search, a review, an interest of a user)."""


def encodable(text: str, max_chars: int | None = None) -> str:
    """``text``, cut to ``max_chars`` characters; lone surrogates, which UTF-8 cannot carry, become ``?``."""
    return text[:max_chars].encode("utf-8", "replace").decode("utf-8")
