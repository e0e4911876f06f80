"""The text of an item as it was before there were templates: what the default must give to the byte, because a text's
hash is the identity of its vector. Frozen: nothing here follows the product.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator

from schemas.messages import Item
from stream_app.textify.clean import clip, shortened
from stream_app.textify.plain import plain

__all__ = ["item_text_before"]

TITLE_CHARS = 300
BRAND_CHARS = 80
LABELS_CHARS = 200
DESCRIPTION_CHARS = 400
_MARKUP_ALLOWANCE = 16
"""Raw characters of a description looked at per character kept; shop descriptions are mostly markup."""

_WORD = re.compile(r"\w+")
_LABEL_SEPARATORS = str.maketrans({"_": " ", ">": ",", "|": ","})


def item_text_before(item: Item) -> str:
    """What the encoder reads of ``item``: one line, at most about 1,200 characters.

    Equal items give equal text. Empty only when no part of the item holds a visible character. What sellers write of
    themselves, and to the model, is not in it (:func:`stream_app.textify.plain.plain`).
    """
    title = _title(item.title)
    said = _Said(title)
    parts = [title, said.new(clip(plain(item.brand or ""), BRAND_CHARS))]
    parts += [_join(filter(None, map(said.new, label_names(labels)))) for labels in (item.categories, item.tags)]
    description = shortened(item.description or "", DESCRIPTION_CHARS * _MARKUP_ALLOWANCE)
    parts.append(said.new(clip(plain(description), DESCRIPTION_CHARS)))
    return ". ".join(filter(None, (part.rstrip(" .,;:") for part in parts)))


class _Said:
    """The words used so far, so that no part repeats what the reader already knows."""

    def __init__(self, text: str) -> None:
        self._words = _words(text)

    def new(self, text: str) -> str:
        """``text``, or nothing when exactly these words were already said in this order."""
        words = _words(text)
        if words in self._words:
            return ""
        self._words += words
        return text


def _words(text: str) -> str:
    """The words of ``text`` between single spaces, with one at either end: containment respects word limits."""
    return f" {' '.join(_WORD.findall(text.casefold()))} "


def _title(raw: str) -> str:
    """The title, shouting undone: all capitals of several words becomes a sentence.

    Models that tell case apart read capitals letter by letter; one word stays as it is, it may be an acronym.
    """
    title = clip(plain(raw), TITLE_CHARS)
    return title.capitalize() if " " in title and title.isupper() else title


def label_names(labels: Iterable[str]) -> Iterator[str]:
    """The names in ``labels``, paths ("Home > Kitchen") and slugs ("home_decor") opened up."""
    for label in labels:
        for name in plain(label).translate(_LABEL_SEPARATORS).split(","):
            yield " ".join(name.split())


def _join(names: Iterable[str]) -> str:
    """``names`` as one list of at most ``LABELS_CHARS`` characters, whole names only (the first is cut if need be)."""
    line = ""
    for name in names:
        longer = f"{line}, {name}" if line else clip(name, LABELS_CHARS)
        if len(longer) > LABELS_CHARS:
            break
        line = longer
    return line
