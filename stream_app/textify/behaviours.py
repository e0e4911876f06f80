"""What a user did, as a sentence: ``bought twice, 3 days ago: Ceramic mug``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from schemas.messages import Item
from stream_app.textify.ages import age
from stream_app.textify.clean import clip
from stream_app.textify.events import event_text
from stream_app.textify.fields import item_title, label_names
from stream_app.textify.masking import Masks
from stream_app.textify.parts import Part
from stream_app.textify.templates import Language

__all__ = ["Behaviour", "behaviour_text"]

WORDS_CHARS = 200
_TYPE_CHARS = 64
_MOST_DIGITS = 6


@dataclass(frozen=True, slots=True, kw_only=True)
class Behaviour:
    """Events of one type and with one item, or that say the same, taken together.

    Attributes:
        type: a configured event type.
        at: when it was done last, seconds since 1970.
        item: with which item; None where none is known, or the event names none.
        text: what was said: a search, a review; as it was written.
        count: how often it was done, 1 or more.
        value: what the last of the events measured (stars); None where that is not known.
        against: whether it counts against the item.
    """

    type: str
    at: float
    item: Item | None = None
    text: str = ""
    count: int = 1
    value: float | None = None
    against: bool = False


def behaviour_text(
    behaviour: Behaviour, language: Language, domain: str, *, now: float, masks: Masks | None = None
) -> str:
    """``behaviour`` in words; empty when it says neither an item nor a text, and so nothing.

    Args:
        behaviour: any.
        language: of the phrases.
        domain: whose own words for types of events are used (a song is listened to).
        now: seconds since 1970; what is later happened just now.
        masks: what is taken out, see :func:`stream_app.textify.plain.plain`.

    Raises:
        KeyError: when the language has no such domain.
    """
    phrases = language.behaviours
    title = item_title(behaviour.item.title, masks, unshout=language.unshout) if behaviour.item is not None else ""
    title = clip(title, WORDS_CHARS)
    text = event_text(behaviour.text, max_chars=WORDS_CHARS, masks=masks)
    if title and text:
        what = _filled(phrases.quoted, {"item": title, "text": text})
    elif not (what := title or text):
        return ""
    unit, amount = age(now - behaviour.at)
    return _filled(
        phrases.form,
        {
            "did": _did(behaviour, language, domain, masks),
            "times": phrases.times.of(behaviour.count),
            "ago": phrases.ago[unit].of(amount),
            "what": what,
        },
    )


def _did(behaviour: Behaviour, language: Language, domain: str, masks: Masks | None) -> str:
    """The verb: of the type's value, of the domain, of the language, or the type's own name."""
    phrases, kind = language.behaviours, behaviour.type
    values = {"type": clip(" ".join(filter(None, label_names([kind], masks))), _TYPE_CHARS)}
    if behaviour.value is not None and (part := phrases.valued.get(kind)) is not None:
        return _filled(part, values | {"value": f"{behaviour.value:.{_MOST_DIGITS}g}"})
    plain = language.templates[domain].did.get(kind) or phrases.did.get(kind)
    if behaviour.against:
        return _filled(phrases.against.get(kind) or plain or phrases.other_against, values)
    return _filled(plain or phrases.other_did, values)


def _filled(part: Part, values: Mapping[str, str]) -> str:
    return part.filled([values[name] for name in part.names])
