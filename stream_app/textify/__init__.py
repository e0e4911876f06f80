"""Items and events as natural language: what the sentence encoder reads.

Pure functions over text. The rendered text is the identity of an embedding: an item is embedded again exactly
when :func:`text_hash` of its :func:`item_text` changes, so nothing that varies without changing the meaning
(price, availability, dates) may enter it.
"""

from __future__ import annotations

from hashlib import blake2b

from stream_app.textify.events import event_text, said
from stream_app.textify.items import item_text
from stream_app.textify.profiles import profile_texts

__all__ = ["event_text", "item_text", "profile_texts", "said", "text_hash"]


def text_hash(text: str) -> str:
    """Content hash of ``text``: BLAKE2b of its UTF-8 form, 16 bytes as 32 hexadecimal digits.

    The same on every machine and in every version. Lone surrogates are hashed as they are, so any ``str`` works.
    """
    return blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).hexdigest()
