"""Everything that is told a model, from one object: which templates, which masks, how much.

Production, evaluation and the commands make theirs of the same settings, so they render the same.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache
from typing import TYPE_CHECKING, Self

from schemas.messages import Interaction, Item, User
from stream_app.textify.behaviours import Behaviour, behaviour_text
from stream_app.textify.events import said
from stream_app.textify.items import item_parts, render_item
from stream_app.textify.masking import MASKS, Masks, pattern_mask
from stream_app.textify.plain import prompt_mask
from stream_app.textify.portraits import portrait
from stream_app.textify.profiles import profile_texts
from stream_app.textify.templates import Language, load_languages, lookup, plain_domain
from stream_app.textify.tokens import Piece, Tokens, estimated_tokens

if TYPE_CHECKING:
    from stream_app.settings import TextifySettings

__all__ = ["Textifier", "checked_domain", "checked_language", "default_textifier", "item_text"]

DOMAIN_ATTRIBUTE = "domain"
"""The attribute by which an item says its domain."""


class Textifier:
    """Items, behaviours and users as text. Holds no state: equal arguments give equal text.

    Which template an item has is decided so: its domain is the one that ``attributes.domain`` names, in capitals or
    not, its language the most special one there are templates for (``zh-Hant`` has those of ``zh``). What it does not
    say, and what there are no templates for, is as the settings have it. A domain of one's own that the item's language
    has no template for is in the language of the settings.

    Args:
        languages: by tag, see :func:`stream_app.textify.templates.load_languages`; None: those that are shipped.
        domain: of items that name none.
        language: of items and users that name none.
        masks: what is masked. What speaks to the model is taken out before, in the words of every language.
        max_tokens: the most of an item's text; 0: only the parts have limits.
        count: how many tokens a text has.

    Raises:
        ValueError: when there is no such language, or it has no such domain.
    """

    def __init__(
        self,
        languages: Mapping[str, Language] | None = None,
        *,
        domain: str = "shop",
        language: str = "en",
        masks: Masks = MASKS,
        max_tokens: int = 0,
        count: Tokens = estimated_tokens,
    ) -> None:
        self.languages = load_languages() if languages is None else languages
        self.language = checked_language(language, self.languages)
        self.domain = checked_domain(domain, self.language)
        self.masks = tuple(masks)
        self._taken_out = (prompt_mask(self.languages), *self.masks)
        self.max_tokens = max_tokens
        self._count = count

    @classmethod
    def of(cls, settings: TextifySettings, *, count: Tokens = estimated_tokens) -> Self:
        """As the settings say; their own masks come after those that are always there.

        Raises:
            ValueError: when a template file has changed since the settings were checked, and is not right any more.
        """
        return cls(
            load_languages(settings.templates),
            domain=settings.domain,
            language=settings.language,
            masks=(*MASKS, *(pattern_mask(name, pattern) for name, pattern in settings.masks.items())),
            max_tokens=settings.max_tokens,
            count=count,
        )

    def item(self, item: Item) -> str:
        """What the encoder reads of an item, see :func:`stream_app.textify.items.render_item`."""
        language, domain = self.template_of(item)
        return render_item(item, language, domain, masks=self._taken_out, max_tokens=self.max_tokens, count=self._count)

    def item_parts(self, item: Item) -> list[Piece]:
        """The parts of an item's text, before the budget."""
        language, domain = self.template_of(item)
        return item_parts(item, language, domain, masks=self._taken_out)

    def template_of(self, item: Item) -> tuple[Language, str]:
        """The language and the domain whose template an item has."""
        named = item.attributes.get(DOMAIN_ATTRIBUTE)
        return self._template(item.language, plain_domain(named) if isinstance(named, str) else self.domain)

    def said(self, event: Interaction, *, max_chars: int) -> str:
        """What an event says in words, see :func:`stream_app.textify.events.said`."""
        return said(event, max_chars=max_chars, masks=self._taken_out)

    def profile(self, user: User, *, max_chars: int) -> tuple[str, ...]:
        """What of a profile is embedded, see :func:`stream_app.textify.profiles.profile_texts`."""
        return profile_texts(user, max_chars=max_chars, masks=self._taken_out)

    def behaviour(self, behaviour: Behaviour, *, now: float, language: str | None = None) -> str:
        """What a user did in the words of its item's domain, see
        :func:`stream_app.textify.behaviours.behaviour_text`.

        Args:
            behaviour: any.
            now: seconds since 1970.
            language: the user's; None, or one there are no templates for: that of the settings.
        """
        domain = self.domain if behaviour.item is None else self.template_of(behaviour.item)[1]
        return behaviour_text(behaviour, *self._template(language, domain), now=now, masks=self._taken_out)

    def portrait(
        self,
        user: User | None,
        behaviours: Sequence[Behaviour],
        items: Mapping[str, Item],
        *,
        now: float,
        max_tokens: int = 0,
    ) -> str:
        """A whole user in words, see :func:`stream_app.textify.portraits.portrait`.

        Args:
            user: the profile; its language is that of the text.
            behaviours: in the order they matter.
            items: by id, those the profile says the user likes.
            now: seconds since 1970.
            max_tokens: the budget; 0: none.
        """
        tag = None if user is None else user.language
        return portrait(
            user,
            [self.behaviour(one, now=now, language=tag) for one in behaviours],
            items,
            self._language(tag),
            masks=self._taken_out,
            max_tokens=max_tokens,
            count=self._count,
        )

    def _template(self, tag: str | None, domain: str) -> tuple[Language, str]:
        """The language of ``tag`` and the domain, as far as there are templates for them: the domain goes first."""
        wanted = self._language(tag)
        if domain not in wanted.templates and domain not in self.language.templates:
            domain = self.domain
        return (wanted if domain in wanted.templates else self.language), domain

    def _language(self, tag: str | None) -> Language:
        return (lookup(tag, self.languages) if tag else None) or self.language


def checked_language(tag: str, languages: Mapping[str, Language]) -> Language:
    """The language for a tag.

    Raises:
        ValueError: when there are no templates for it.
    """
    found = lookup(tag, languages)
    if found is None:
        raise ValueError(
            f"there are no templates for {tag!r}; there are {', '.join(languages)}, and a folder adds more"
        )
    return found


def checked_domain(domain: str, language: Language) -> str:
    """``domain``.

    Raises:
        ValueError: when the language has none of this name.
    """
    if domain not in language.templates:
        known = ", ".join(language.templates)
        raise ValueError(
            f"{language.tag} has no domain {domain!r}; it has {known}, and a folder of templates adds more"
        )
    return domain


@cache
def default_textifier() -> Textifier:
    """As with no settings at all."""
    return Textifier()


def item_text(item: Item) -> str:
    """What the encoder reads of ``item`` with no settings at all."""
    return default_textifier().item(item)
