"""An item as a sentence: title first, then what else tells a reader what it is.

    Ceramic mug. Nordlys. Kitchen, Mugs. Handmade, blue. Holds 350 ml and keeps tea warm.

A sentence encoder reads only the first hundred or so tokens and weighs all of them alike (mean pooling), so the
order is the order of importance and every part has its own limit: a long description must not drown the title.
Price, availability, dates and ids are left out on purpose; they change without changing what the item is.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from schemas.messages import Item
from stream_app.textify.clean import clip
from stream_app.textify.fields import value_of
from stream_app.textify.masking import Masks
from stream_app.textify.parts import Part
from stream_app.textify.templates import Language
from stream_app.textify.tokens import Piece, Tokens, estimated_tokens, within

__all__ = ["Said", "item_parts", "listed", "render_item"]

LABELS_CHARS = 200

_WORD = re.compile(r"\w+")


def render_item(
    item: Item,
    language: Language,
    domain: str,
    *,
    masks: Masks | None = None,
    max_tokens: int = 0,
    count: Tokens = estimated_tokens,
) -> str:
    """What the encoder reads of ``item``: one line of the parts of a template that say something, within a budget.

    Equal items give equal text. Empty only when no part of the item holds a visible character. What sellers write of
    themselves, and to the model, is not in it (:func:`stream_app.textify.plain.plain`).

    Args:
        item: any.
        language: of the words around what the item says, and of its punctuation.
        domain: which of the language's templates.
        masks: what is taken out, see :func:`stream_app.textify.plain.plain`.
        max_tokens: the budget; 0: none but the limits of the parts, with which the shop's template gives at most about
            1,200 characters.
        count: how many tokens a text has.

    Raises:
        KeyError: when the language has no such domain.
    """
    parts = item_parts(item, language, domain, masks=masks)
    return within(parts, language.sentence, max_tokens, ends=language.ends, count=count)


def item_parts(item: Item, language: Language, domain: str, *, masks: Masks | None = None) -> list[Piece]:
    """The parts of :func:`render_item` that say something; one that is cut keeps more than its first words."""
    said = Said()
    parts = [
        Piece(_part(item, part, language, said, masks).rstrip(language.ends), len(part.words[0]))
        for part in language.templates[domain].parts
    ]
    return [part for part in parts if part.text]


def _part(item: Item, part: Part, language: Language, said: Said, masks: Masks | None) -> str:
    """A part in words; nothing when one of its placeholders has nothing to say, or nothing new."""
    before, values = said.words, []
    for name in part.names:
        value = value_of(item, name, language.attributes, masks=masks, unshout=language.unshout)
        if isinstance(value, str):
            values.append(said.new(value))
        else:
            values.append(listed(filter(None, map(said.new, value)), language.listing))
    if all(values):
        return part.filled(values)
    if len(values) > 1:
        said.words = before  # What the others would have said was not.
    return ""


class Said:
    """The words used so far, so that no part repeats what the reader already knows."""

    def __init__(self) -> None:
        self.words = ""

    def new(self, text: str) -> str:
        """``text``, or nothing when exactly these words were already said in this order."""
        words = _words(text)
        if words in self.words:
            return ""
        self.words += words
        return text


def _words(text: str) -> str:
    """The words of ``text`` between single spaces, with one at either end: containment respects word limits."""
    return f" {' '.join(_WORD.findall(text.casefold()))} "


def listed(names: Iterable[str], listing: str) -> str:
    """``names`` as one list of at most ``LABELS_CHARS`` characters, whole names only (the first is cut if need be)."""
    line = ""
    for name in names:
        longer = f"{line}{listing}{name}" if line else clip(name, LABELS_CHARS)
        if len(longer) > LABELS_CHARS:
            break
        line = longer
    return line
