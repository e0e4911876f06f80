"""A whole user in words: the profile, and what was done, strongest first, within a budget.

    Has a small garden. Interested in gardening, jazz. Bought twice, 3 days ago: Ceramic mug. Searched, ...

For people who want to see what is known of a user, and for models that read text: the profile's vector is not made of
it (``profiles.py``; interests are embedded one by one).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

from schemas.messages import Item, User
from stream_app.textify.clean import clip
from stream_app.textify.events import event_text
from stream_app.textify.fields import item_title, label_names
from stream_app.textify.items import listed
from stream_app.textify.masking import Masks
from stream_app.textify.templates import Language
from stream_app.textify.tokens import Piece, Tokens, estimated_tokens, within

__all__ = ["portrait"]

TEXT_CHARS = 2_000
TITLE_CHARS = 100
"""Of each of several titles in a list."""
_BEHAVIOURS = "behaviours"


def portrait(
    user: User | None,
    behaviours: Sequence[str],
    items: Mapping[str, Item],
    language: Language,
    *,
    masks: Masks | None = None,
    max_tokens: int = 0,
    count: Tokens = estimated_tokens,
) -> str:
    """What is known of a user: one line, the parts of the language's ``profile``. Empty when nothing is.

    Args:
        user: the profile of ``users.v1``; None: there is none.
        behaviours: what the user did in words (:func:`stream_app.textify.behaviours.behaviour_text`), in the order they
            matter; each is a part by itself, empty ones say nothing.
        items: by id, to name those the profile says the user likes; of others nothing is said.
        language: of the words around.
        masks: what is taken out, see :func:`stream_app.textify.plain.plain`.
        max_tokens: the budget; 0: none.
        count: how many tokens a text has.
    """
    told = _profile(user, items, language, masks)
    parts = (part for part in _parts(told, behaviours, language) if part.text)
    return within(parts, language.sentence, max_tokens, ends=language.ends, count=count)


def _parts(told: Callable[[str], str], behaviours: Sequence[str], language: Language) -> Iterator[Piece]:
    for part in language.profile:
        if part.names == (_BEHAVIOURS,):
            for behaviour in behaviours:
                text = behaviour.rstrip(language.ends)
                yield Piece(text, len(text))  # What was done, but not with what, says nothing.
        elif all(values := [told(name) for name in part.names]):
            yield Piece(part.filled(values).rstrip(language.ends), len(part.words[0]))


def _profile(
    user: User | None, items: Mapping[str, Item], language: Language, masks: Masks | None
) -> Callable[[str], str]:
    """From a placeholder to what the profile says of it."""

    def names(labels: Iterable[str]) -> str:
        return listed(dict.fromkeys(filter(None, label_names(labels, masks))), language.listing)

    def told(name: str) -> str:
        if user is None:
            return ""
        if name == "text":
            return event_text(user.text or "", max_chars=TEXT_CHARS, masks=masks)
        if name == "interests":
            return names(user.interests)
        if name == "blocked":
            return names((*user.blocked_categories, *user.blocked_brands))
        liked = (items[item_id] for item_id in user.liked_items if item_id in items)
        titles = (clip(item_title(item.title, masks, unshout=language.unshout), TITLE_CHARS) for item in liked)
        return listed(dict.fromkeys(filter(None, titles)), language.listing)

    return told
