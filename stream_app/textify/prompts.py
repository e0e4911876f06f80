"""Text that speaks to the model instead of about the item: taken out before it is embedded.

An encoder takes its own marks ("[SEP]", "<|im_end|>") for what they are wherever they stand, and a text that begins
like an instruction moves the vector of an embedder that was trained on instructions. Sellers try it; nobody looks for
it. Taken out are marks of models, words that give a part in a conversation ("system:"), and orders to forget what was
said, to the end of their sentence. The words are those of all languages together (``[prompts]`` in their files): who
tries it in an English text may do it in Chinese. They are lists and no expressions, so that no file can make it slow.

An order is not told from a text that quotes one: a book called "Ignore all previous instructions" loses its title.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Iterator
from typing import Final

import msgspec

from stream_app.textify.folding import folded, replaced

__all__ = ["PromptWords", "Prompts"]

_MARKS = re.compile(
    r"<\|[^<>\n]{1,40}\|>|\[/?INST\]|<</?SYS>>|\[(?:CLS|SEP|MASK|PAD|UNK|BOS|EOS|gMASK|sMASK|unused\d{1,3})\]"
    r"|</?(?:s|pad|unk|mask|cls|sep|bos|eos|eot|eop|start_of_turn|end_of_turn)>|<(?:extra_id|unused|reserved)_?\d{1,4}>",
    re.IGNORECASE,
)
_SENTENCE_END = ".!?。\n"
_REST = re.compile(rf"[^{_SENTENCE_END}]{{0,200}}[{_SENTENCE_END}]?")
_MOST_PARTS, _MOST_WORDS = 4, 8
"""Parts one after the other, and words of an order after its verb, that are looked for."""
_FIRST_UNSPACED: Final = "\u0e00"
"""Scripts from here on (Thai, Chinese, Korean with its endings) have words without a space at either side."""


class PromptWords(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The words of a language that speak to a model; see ``templates/en.toml``.

    Attributes:
        parts: who speaks, before a colon: at the beginning of a text or after a sentence.
        openings: the same, only at the beginning of a text.
        turns: the same, only after a line or a sentence; titles begin so ("Human: A Brief History").
        verbs: what orders to forget.
        negations: directly before a verb, they make an order of it no order.
        all, earlier: how much is to be forgotten, and from when.
        instructions: what is to be forgotten; an order with a word of ``all`` or ``earlier``.
        others: the same; an order only with a word of ``earlier``.
        between: what may stand among them.
    """

    parts: tuple[str, ...] = ()
    openings: tuple[str, ...] = ()
    turns: tuple[str, ...] = ()
    verbs: tuple[str, ...] = ()
    negations: tuple[str, ...] = ()
    all: tuple[str, ...] = ()
    earlier: tuple[str, ...] = ()
    instructions: tuple[str, ...] = ()
    others: tuple[str, ...] = ()
    between: tuple[str, ...] = ()


class Prompts:
    """What speaks to the model in any of some languages.

    Args:
        languages: the words of each.
    """

    def __init__(self, languages: Iterable[PromptWords]) -> None:
        given = tuple(map(_composed, languages))
        parts = [part for one in given for part in one.parts]
        openings = [opening for one in given for opening in one.openings]
        self._opening = _labels(r"\A\s?", [*parts, *openings])
        turns = [turn for one in given for turn in one.turns]
        self._part = _labels(rf"(?<=[{_SENTENCE_END};…|])\s?", [*parts, *turns])
        self._orders = [_Orders(one) for one in given if one.verbs]
        verbs = [verb.lower() for one in given for verb in one.verbs]
        self._verbs = re.compile(_any(verbs, bound=False) if verbs else r"(?!)")

    def without(self, text: str) -> str:
        """``text``, cleaned before (its lines apart or not), without what speaks to the model; one space between words.
        May be empty."""
        plain = folded(text)
        if "<" in plain or "[" in plain:
            text, plain = _without(text, plain, (mark.span() for mark in _MARKS.finditer(plain)))
        if self._verbs.search(plain.lower()):  # As in nearly no text.
            for orders in self._orders:
                text, plain = _without(text, plain, orders.spans(plain))
        if ":" in plain:
            for labels in (self._opening, self._part):
                if labels is not None:
                    text, plain = _without(text, plain, (label.span() for label in labels.finditer(plain)))
        return " ".join(text.split())


class _Orders:
    """Orders to forget what was said, in one language."""

    def __init__(self, words: PromptWords) -> None:
        self._instructions, self._others = _known(words.instructions), _known(words.others)
        self._earlier = _known(words.earlier)
        self._enough = self._earlier | _known(words.all)
        scope = _any((*words.instructions, *words.others, *words.earlier, *words.all, *words.between))
        negated = "".join(rf"(?<!{one})" for word in words.negations for one in _before(word))
        self._verb = re.compile(_any(words.verbs, bound=False), re.IGNORECASE)
        self._order = re.compile(
            rf"{negated}{_any(words.verbs)}(?P<scope>(?:[\s,:'\"“”*_-]{{0,3}}{scope}){{1,{_MOST_WORDS}}})",
            re.IGNORECASE,
        )
        self._scope = re.compile(scope, re.IGNORECASE)

    def spans(self, text: str) -> Iterator[tuple[int, int]]:
        done = 0
        for verb in self._verb.finditer(text):  # Much faster than the whole of it everywhere.
            if verb.start() < done or (order := self._order.match(text, verb.start())) is None:
                continue
            if self._forgets(order["scope"]):
                rest = _REST.match(text, order.end())
                done = order.end() if rest is None else rest.end()
                yield order.start(), done

    def _forgets(self, scope: str) -> bool:
        said = [" ".join(word.lower().split()) for word in self._scope.findall(scope)]
        return any(
            (one in self._instructions and other in self._enough) or (one in self._others and other in self._earlier)
            for place, one in enumerate(said)
            for other in said[:place] + said[place + 1 :]
        )


def _composed(words: PromptWords) -> PromptWords:
    """In Unicode form C, as the texts are that they are looked for in."""
    return msgspec.convert(
        {
            name: [unicodedata.normalize("NFC", word) for word in given]
            for name, given in msgspec.to_builtins(words).items()
        },
        PromptWords,
    )


def _without(text: str, plain: str, spans: Iterable[tuple[int, int]]) -> tuple[str, str]:
    left = replaced(text, spans, " ")
    return (text, plain) if left is text else (left, folded(left))


def _labels(before: str, names: Iterable[str]) -> re.Pattern[str] | None:
    """What gives a part: "system:", "### System:", "**[system]** :"."""
    if not (names := tuple(names)):
        return None
    label = rf"(?:#{{1,6}}\s?|[\[(*\"'<]{{1,3}})?{_any(names)}[\])*\"'>]{{0,3}}\s?:[*\s]{{0,3}}"
    return re.compile(rf"{before}(?:{label}){{1,{_MOST_PARTS}}}", re.IGNORECASE)


def _known(words: Iterable[str]) -> frozenset[str]:
    return frozenset(" ".join(folded(word).lower().split()) for word in words)


def _any(words: Iterable[str], *, bound: bool = True) -> str:
    """One of the words, the longest first, whole where its script has spaces."""
    longest = sorted({folded(word) for word in words}, key=lambda word: (-len(word), word))
    return f"(?:{'|'.join(_whole(word) if bound else _written(word) for word in longest)})"


def _written(word: str) -> str:
    return r"\s{1,2}".join(re.escape(one).replace("'", "['’]") for one in word.split())


def _whole(word: str) -> str:
    def bound(look: str, letter: str, latin: str, other: str) -> str:
        # The Latin alphabet is bounded by itself alone: Chinese puts its words beside Chinese ones.
        return "" if letter >= _FIRST_UNSPACED else f"({look}{latin if letter.isascii() else other})"

    # A digit before a word is none of its letters: "1ignore".
    return bound("?<!", word[0], "[A-Za-z]", r"[^\W\d]") + _written(word) + bound("?!", word[-1], "[A-Za-z0-9]", r"\w")


def _before(word: str) -> Iterator[str]:
    """``word`` as it stands before a verb: expressions of one length each."""
    space = "" if word[-1] >= _FIRST_UNSPACED else r"\s"
    yield re.escape(folded(word)).replace("'", "['’]") + space
