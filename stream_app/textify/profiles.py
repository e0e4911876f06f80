"""A user's profile as texts for the encoder: the profile in words, and each declared interest by itself."""

from __future__ import annotations

from schemas.messages import User
from stream_app.textify.events import event_text
from stream_app.textify.fields import label_names
from stream_app.textify.masking import Masks

__all__ = ["profile_texts"]


def profile_texts(user: User, *, max_chars: int, masks: Masks | None = None) -> tuple[str, ...]:
    """What says what the user likes: distinct, none empty, each at most ``max_chars`` characters.

    Interests are embedded one by one: the mean of their vectors lies nearer to the items of each than the vector of
    one sentence that names them all. Paths ("Home > Kitchen") and slugs are opened up as in items.
    """
    texts = [event_text(user.text, max_chars=max_chars, masks=masks)] if user.text else []
    texts += [
        event_text(", ".join(filter(None, label_names([label], masks))), max_chars=max_chars, masks=masks)
        for label in user.interests
    ]
    return tuple(dict.fromkeys(filter(None, texts)))
