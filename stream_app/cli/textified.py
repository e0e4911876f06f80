"""What ``tailrace textify`` shows, found: items of a file, and a user from Redis and the topics."""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Callable, Collection
from contextlib import aclosing
from dataclasses import dataclass, field

from schemas.decode import MAX_VALUE_BYTES, decode_item, decode_user, parse_item
from schemas.messages import Item, User
from stream_app.cli.console import PATIENCE_S
from stream_app.cli.jsonl import LineReader
from stream_app.delivery.reading import latest, read_to_end
from stream_app.errors import InvalidMessage, Unavailable
from stream_app.metrics import Metrics
from stream_app.settings import EncoderSettings, Settings
from stream_app.stores.redis_client import connect_redis
from stream_app.stores.users import UserStore
from stream_app.textify import Textifier, text_hash
from stream_app.textify.tokens import Piece, estimated_tokens, within
from stream_app.topics import Topics
from stream_app.users.behaviours import behaviours_of
from stream_app.users.state import UserState
from workers.folders import MULTILINGUAL

__all__ = ["Summary", "TextifiedItem", "TextifiedUser", "read_with", "textified_items", "textified_user"]

_MASKED = re.compile(r"\[([\w-]{1,32})\]")
_ADDED_TOKENS = 2
"""One at each end, in most encoders."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TextifiedItem:
    """An item as it would be embedded.

    Attributes:
        text: what goes to the encoder, the end that is not read included.
        text_hash: the identity of its vector.
        tokens: how many the encoder makes of the text, those it adds included.
        estimated: whether that is an estimate.
        cut: what the budget (``textify.max_tokens``) left out.
        not_read: the end of the text, beyond ``encoder.max_tokens``.
        masked: how often each mask took something out.
    """

    item_id: str
    domain: str
    language: str
    text: str
    text_hash: str
    tokens: int
    estimated: bool
    cut: str
    not_read: str
    masked: dict[str, int]


@dataclass(slots=True)
class Summary:
    """Many of them: how many, and how often what."""

    items: int = 0
    tokens: int = 0
    most: int = 0
    cut: int = 0
    not_read: int = 0
    masked: int = 0
    empty: int = 0
    refused: int = 0

    def add(self, item: TextifiedItem) -> None:
        """One more."""
        self.items += 1
        self.tokens += item.tokens
        self.most = max(self.most, item.tokens)
        self.cut += bool(item.cut)
        self.not_read += bool(item.not_read)
        self.masked += bool(item.masked)
        self.empty += not item.text

    def __str__(self) -> str:
        average = self.tokens / self.items if self.items else 0.0
        return (
            f"{self.items:,} items, {average:.1f} tokens on average, at most {self.most:,}; "
            f"{self.cut:,} cut by the budget, "
            f"{self.not_read:,} longer than the encoder reads, {self.masked:,} masked, {self.empty:,} without text, "
            f"{self.refused:,} lines refused"
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class TextifiedUser:
    """A user in words.

    Attributes:
        text: profile and behaviours, within the budget; empty when nothing is known.
        tokens: about how many it has.
        embedded: what of the profile is embedded, one vector each.
        behaviours: what was done, strongest first, whatever the budget.
        forgotten: whether everything was to be forgotten, and nothing came since.
    """

    user_id: str
    text: str
    tokens: int
    embedded: list[str] = field(default_factory=list)
    behaviours: list[str] = field(default_factory=list)
    forgotten: bool = False


@dataclass(frozen=True, slots=True)
class Reading:
    """How a text is read: from it to its tokens, and how many of its characters are read."""

    of: Callable[[str], tuple[int, int]]
    estimated: bool


def read_with(settings: EncoderSettings, *, estimate: bool) -> Reading:
    """As the encoder of the settings reads, or an estimate of it.

    Raises:
        SettingsError: when the encoder's tokenizer cannot be used.
    """
    if estimate or settings.model == MULTILINGUAL:  # its package does not count tokens
        return Reading(lambda text: _estimated(text, settings.max_tokens), estimated=True)
    # Here, because it takes seconds.
    from workers.tokens import ModelTokens

    return Reading(ModelTokens(settings).read, estimated=False)


def _estimated(text: str, max_tokens: int) -> tuple[int, int]:
    kept = within([Piece(text)], "", max_tokens - _ADDED_TOKENS, count=estimated_tokens)
    return estimated_tokens(text) + _ADDED_TOKENS, len(kept)


async def textified_items(
    settings: Settings,
    file: str,
    reading: Reading,
    shown: Callable[[TextifiedItem], None],
    refused: Callable[[int, str], None],
    *,
    limit: int | None = None,
) -> None:
    """Tell ``shown`` each item of ``file``, and ``refused`` the number of each line that is none and why.

    Raises:
        DatasetError: when the file cannot be read.
    """
    textifier = Textifier.of(settings.textify)
    unmasked = Textifier(textifier.languages, domain=textifier.domain, language=textifier.language.tag, masks=())
    reader = LineReader(file)
    try:
        left = limit
        async with aclosing(reader.chunks()) as chunks:
            async for chunk in chunks:
                for number, line in chunk[:left]:
                    try:
                        if line is None:
                            raise InvalidMessage("too_large", f"the line has more than {MAX_VALUE_BYTES:,} bytes")
                        item = parse_item(line)
                    except InvalidMessage as error:
                        refused(number, f"{error.reason}: {error.detail}")
                    else:
                        shown(_textified(item, textifier, unmasked, reading))
                if left is not None and (left := left - len(chunk)) <= 0:
                    return
    finally:
        reader.close()


def _textified(item: Item, textifier: Textifier, unmasked: Textifier, reading: Reading) -> TextifiedItem:
    language, domain = textifier.template_of(item)
    whole = language.sentence.join(part.text for part in textifier.item_parts(item))
    text = textifier.item(item)
    tokens, read = reading.of(text)
    return TextifiedItem(
        item_id=item.item_id,
        domain=domain,
        language=language.tag,
        text=text,
        text_hash=text_hash(text),
        tokens=tokens,
        estimated=reading.estimated,
        cut=whole[len(text) :].removeprefix(language.sentence).lstrip(),
        not_read=text[read:],
        masked=_masked(whole, language.sentence.join(part.text for part in unmasked.item_parts(item))),
    )


def _masked(text: str, unmasked: str) -> dict[str, int]:
    """What stands in brackets only since it was masked, and how often."""
    counts: dict[str, int] = {}
    if text != unmasked:
        for name in _MASKED.findall(text):
            counts[name] = counts.get(name, 0) + 1
        for name in _MASKED.findall(unmasked):
            counts[name] = counts.get(name, 0) - 1
    return {name: count for name, count in counts.items() if count > 0}


async def textified_user(settings: Settings, user_id: str, *, max_tokens: int = 0) -> TextifiedUser:
    """The user in words, from Redis (what was done) and the topics (the profile; items by name).

    Args:
        settings: where everything is, and how it is told.
        user_id: whose.
        max_tokens: the budget of the text; 0: none.

    Raises:
        Unavailable, TopicError: when Redis or the broker does not answer, or a topic is not there.
        ValueError: when what Redis holds is no state.
    """
    textifier = Textifier.of(settings.textify)
    state, profile = await asyncio.gather(_state(settings, user_id), _profile(settings, user_id))
    if state.forgotten:
        return TextifiedUser(user_id=user_id, text="", tokens=0, forgotten=True)
    wanted = {entry.item_id for entry in state.history if entry.item_id}
    wanted.update(() if profile is None else profile.liked_items)
    items = await _items(settings, wanted) if wanted else {}
    behaviours = behaviours_of(state.history, items, decay=settings.users.slow_decay)
    now, language = time.time(), None if profile is None else profile.language
    text = textifier.portrait(profile, behaviours, items, now=now, max_tokens=max_tokens)
    embedded = () if profile is None else textifier.profile(profile, max_chars=settings.users.text_chars)
    return TextifiedUser(
        user_id=user_id,
        text=text,
        tokens=estimated_tokens(text),
        embedded=list(embedded),
        behaviours=[textifier.behaviour(one, now=now, language=language) for one in behaviours],
    )


async def _state(settings: Settings, user_id: str) -> UserState:
    redis = connect_redis(settings)
    try:
        async with asyncio.timeout(PATIENCE_S):
            return (await UserStore(redis, settings, Metrics()).load([user_id]))[user_id]
    except TimeoutError as error:
        raise Unavailable(f"Redis did not answer within {PATIENCE_S:g} s (setting redis)") from error
    finally:
        await redis.aclose()


async def _profile(settings: Settings, user_id: str) -> User | None:
    # Any producer, any partitioner.
    record = await latest(settings, Topics(settings).users, user_id.encode(), patience_s=PATIENCE_S)
    return None if record is None else decode_user(record.key, record.value, record.headers)[1]


async def _items(settings: Settings, wanted: Collection[str]) -> dict[str, Item]:
    """The last entry of each of these items that is in the catalogue."""
    found: dict[str, Item] = {}
    keys = {item_id.encode(): item_id for item_id in wanted}
    async for record in read_to_end(settings, Topics(settings).items, patience_s=PATIENCE_S):
        if (item_id := keys.get(record.key or b"")) is None:
            continue
        try:
            _, item = decode_item(record.key, record.value, record.headers)
        except InvalidMessage:  # dead-lettered; what was there before stays
            continue
        if item is None:
            found.pop(item_id, None)
        else:
            found[item_id] = item
    return found
