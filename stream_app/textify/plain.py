"""What every text goes through before anything else is made of it."""

from __future__ import annotations

from stream_app.textify.clean import clean
from stream_app.textify.masking import Masks, mask
from stream_app.textify.prompts import without_prompts

__all__ = ["plain"]


def plain(text: str, masks: Masks | None = None) -> str:
    """``text`` without markup and characters nobody sees (:mod:`stream_app.textify.clean`), without what speaks to the
    model (:mod:`stream_app.textify.prompts`) and without personal data (:mod:`stream_app.textify.masking`)."""
    return mask(without_prompts(clean(text)), masks)
