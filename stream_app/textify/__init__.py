"""Items, what users did, and users as natural language: what the sentence encoder reads.

Pure functions over text, and one object that binds them to the settings (:class:`Textifier`). The rendered text is the
identity of an embedding: an item is embedded again exactly when :func:`text_hash` of its :meth:`Textifier.item`
changes, so nothing that varies without changing the meaning (price, availability, dates) may enter it.
"""

from __future__ import annotations

from hashlib import blake2b

from stream_app.textify.behaviours import Behaviour
from stream_app.textify.events import event_text, said
from stream_app.textify.profiles import profile_texts
from stream_app.textify.textifier import Textifier, default_textifier, item_text

__all__ = [
    "Behaviour",
    "Textifier",
    "default_textifier",
    "event_text",
    "item_text",
    "profile_texts",
    "said",
    "text_hash",
]


def text_hash(text: str) -> str:
    """Content hash of ``text``: BLAKE2b of its UTF-8 form, 16 bytes as 32 hexadecimal digits.

    The same on every machine and in every version. Lone surrogates are hashed as they are, so any ``str`` works.
    """
    return blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).hexdigest()
