"""A part of a template: words with placeholders in them, ``By {author}``."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from string import Formatter
from typing import Final, NamedTuple

__all__ = ["FIELDS", "Part"]

FIELDS: Final = ("title", "brand", "categories", "tags", "description")
"""Fields of an item that are placeholders by themselves."""


class Part(NamedTuple):
    """Literal words and the placeholders between them; one more of the words than of the names."""

    words: tuple[str, ...]
    names: tuple[str, ...]

    @classmethod
    def parse(cls, text: str, known: Collection[str]) -> Part:
        """The part written as ``text``; braces that are meant are doubled, as in Python.

        Args:
            text: a template of one part.
            known: the placeholders there are.

        Raises:
            ValueError: when it is not a template, or names a placeholder that is not known; says which.
        """
        words, names, before = [], [], ""
        try:
            pieces = list(Formatter().parse(text))
        except ValueError as error:
            raise ValueError(f"{text!r} is no template: {error}; braces that are meant are doubled") from error
        for literal, name, form, conversion in pieces:
            before += literal
            if name is None:
                continue
            if form or conversion:
                raise ValueError(f"{text!r}: a placeholder is a name and nothing else, as in {{{name}}}")
            if name not in known:
                raise ValueError(f"{text!r}: unknown placeholder {{{name}}}; there are {', '.join(sorted(known))}")
            words.append(before)
            names.append(name)
            before = ""
        return cls((*words, before), tuple(names))

    def filled(self, values: Sequence[str]) -> str:
        """The words with one value for each of the names between them."""
        filled = self.words[0]
        for value, literal in zip(values, self.words[1:], strict=True):
            filled += value + literal
        return filled
