"""The words around what is known of items and users: one TOML file per language, read and checked at start.

Shipped are ``templates/en.toml`` and ``templates/zh.toml``. A folder adds languages (``da.toml``) and changes those
that are there: its tables are laid over the shipped ones key by key, lists and words take the place of what was there.
A file that is not right ends the start with its name, the key, and what is allowed.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final

import msgspec

from stream_app.textify.clean import clip
from stream_app.textify.parts import FIELDS, Part
from stream_app.textify.prompts import PromptWords

__all__ = ["AGES", "DOMAINS", "Behaviours", "Language", "Template", "load_languages", "lookup", "plain_domain"]

DOMAINS: Final = ("shop", "news", "video", "music", "games", "courses", "books")
"""What every language has a template for. A file may have more."""
AGES: Final = ("now", "minutes", "hours", "days", "weeks", "months", "years")
PROFILE_NAMES: Final = ("text", "interests", "liked", "behaviours", "blocked")

_SHIPPED = Path(__file__).with_name("templates")
_LANGUAGE = re.compile(r"[a-z]{2,8}(?:-[a-z0-9]{1,8})*")
_MOST_BYTES = 1 << 20
_MOST_FILES = 100
_LONGEST_WORD = 64
_NUMBER = re.compile(r"[1-9]\d{0,5}|0")


@dataclass(frozen=True, slots=True)
class Template:
    """A domain in a language: the parts of an item, most important first, and its own words for types of events."""

    parts: tuple[Part, ...]
    did: Mapping[str, Part]


@dataclass(frozen=True, slots=True)
class Counted:
    """A phrase by number: of its own for some, and of all others."""

    exact: Mapping[int, Part]
    other: Part

    def of(self, count: int) -> str:
        """The phrase for ``count``."""
        part = self.exact.get(count, self.other)
        return part.filled((str(count),) * len(part.names))


@dataclass(frozen=True, slots=True)
class Behaviours:
    """Phrases of a language for what users did; see ``templates/en.toml``. ``other_did`` and ``other_against`` are for
    types without a phrase of their own."""

    form: Part
    quoted: Part
    did: Mapping[str, Part]
    other_did: Part
    valued: Mapping[str, Part]
    against: Mapping[str, Part]
    other_against: Part
    times: Counted
    ago: Mapping[str, Counted]


@dataclass(frozen=True, slots=True)
class Language:
    """All templates of a language.

    Attributes:
        tag: its BCP 47 tag in lower case, the name of its file.
        sentence, listing: what stands between two parts, and between two names of a list.
        ends: characters taken off the end of a part.
        unshout: whether a title all in capitals becomes a sentence.
        attributes: for each placeholder that is no field, where its value is looked for.
        templates: by domain.
        behaviours: phrases for what users did.
        profile: parts of a user's profile, most important first.
        prompts: words that speak to a model, taken out of texts of every language.
    """

    tag: str
    sentence: str
    listing: str
    ends: str
    unshout: bool
    attributes: Mapping[str, tuple[str, ...]]
    templates: Mapping[str, Template]
    behaviours: Behaviours
    profile: tuple[Part, ...]
    prompts: PromptWords


def load_languages(folder: Path | None = None) -> Mapping[str, Language]:
    """The shipped languages, and with ``folder`` those of its files; by tag.

    Raises:
        ValueError: when the folder or a file of it cannot be used; names the file and the key.
    """
    if folder is None:
        return _shipped_languages()
    tables = dict(_tables(_SHIPPED))
    for tag, (name, table) in _tables(folder).items():
        tables[tag] = name, _laid_over(tables[tag][1] if tag in tables else {}, table)
    return MappingProxyType({tag: _language(tag, name, table) for tag, (name, table) in tables.items()})


def plain_domain(named: str) -> str:
    """The domain that an item means by ``named``, in capitals or not."""
    return named.strip().casefold()


def lookup(tag: str, languages: Mapping[str, Language]) -> Language | None:
    """The language for a tag: the most special one there is (``zh-Hant-TW``, ``zh-hant``, ``zh``; RFC 4647, section
    3.4), None when there is none."""
    parts = tag.strip().lower().replace("_", "-").split("-")
    for length in range(len(parts), 0, -1):
        if (found := languages.get("-".join(parts[:length]))) is not None:
            return found
    return None


@cache
def _shipped_languages() -> Mapping[str, Language]:
    return MappingProxyType({tag: _language(tag, *given) for tag, given in _tables(_SHIPPED).items()})


def _tables(folder: Path) -> dict[str, tuple[str, dict[str, Any]]]:
    """The files of a folder by language: name and content."""
    if not folder.is_dir():
        raise ValueError(f"{folder} is not a folder; it holds templates, one file per language, as da.toml")
    files = sorted(folder.glob("*.toml"))
    if not files:
        raise ValueError(f"{folder} holds no templates: files named after a language, as da.toml")
    if len(files) > _MOST_FILES:
        raise ValueError(
            f"{folder} holds {len(files)} .toml files, more than the {_MOST_FILES} languages that are read"
        )
    tables: dict[str, tuple[str, dict[str, Any]]] = {}
    for file in files:
        tag = _tag(file)
        if tag in tables:
            raise ValueError(f"{tables[tag][0]} and {file.name} are both of the language {tag}; make one file of them")
        tables[tag] = file.name, _content(file)
    return tables


def _tag(file: Path) -> str:
    tag = file.stem.lower()
    if not _LANGUAGE.fullmatch(tag):
        raise ValueError(f"{file.name}: a file is named after a language (BCP 47), as da.toml or zh-hant.toml")
    return tag


def _content(file: Path) -> dict[str, Any]:
    try:
        if (size := file.stat().st_size) > _MOST_BYTES:
            raise ValueError(f"{file.name}: {size:,} bytes, more than the {_MOST_BYTES:,} that are read")
        return tomllib.loads(file.read_text("utf-8"))
    except OSError as error:
        raise ValueError(f"{file.name}: cannot be read: {error}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ValueError(f"{file.name}: is not TOML in UTF-8: {error}") from error


def _laid_over(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(below)
    for key, value in above.items():
        held = merged.get(key)
        both = isinstance(held, dict) and isinstance(value, dict)
        merged[key] = _laid_over(held, value) if both else value  # type: ignore[arg-type]
    return merged


class _Domain(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    parts: list[str]
    did: dict[str, str] = {}


class _Behaviours(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    form: str
    quoted: str
    did: dict[str, str]
    valued: dict[str, str] = {}
    against: dict[str, str]
    times: dict[str, str]
    ago: dict[str, dict[str, str]]


class _Profile(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    parts: list[str]


class _File(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    sentence: str
    listing: str
    ends: str = ""
    unshout: bool = False
    attributes: dict[str, list[str]] = {}
    domains: dict[str, _Domain]
    behaviours: _Behaviours
    profile: _Profile
    prompts: PromptWords = PromptWords()


def _language(tag: str, file: str, table: Mapping[str, Any]) -> Language:
    try:
        given = msgspec.convert(table, _File)
    except msgspec.ValidationError as error:
        raise ValueError(f"{file}: {str(error).replace('`$.', '`')}") from error
    read = _Reader(file)
    attributes = read.attributes(given.attributes)
    names = (*FIELDS, *attributes)
    if missing := [domain for domain in DOMAINS if domain not in given.domains]:
        raise ValueError(f"{file}: domains.{missing[0]} is missing; every language has {', '.join(DOMAINS)}")
    for domain in given.domains:
        if domain != (plain := plain_domain(domain)):
            raise read.wrong(
                f"domains.{domain}",
                f"no item would have it: what items name is made small and stripped of spaces; write domains.{plain}",
            )
    return Language(
        tag=tag,
        sentence=given.sentence,
        listing=given.listing,
        ends=given.ends,
        unshout=given.unshout,
        attributes=attributes,
        templates={
            domain: Template(
                parts=read.parts(f"domains.{domain}.parts", one.parts, names),
                did=read.phrases(f"domains.{domain}.did", one.did, ("type",)),
            )
            for domain, one in given.domains.items()
        },
        behaviours=read.behaviours(given.behaviours),
        profile=read.profile(given.profile.parts),
        prompts=read.prompts(given.prompts),
    )


@dataclass(frozen=True, slots=True)
class _Reader:
    """Strings of a file as parts, with errors that name the file and the key."""

    file: str

    def attributes(self, given: Mapping[str, Sequence[str]]) -> dict[str, tuple[str, ...]]:
        for name, places in given.items():
            if not name.isidentifier():
                raise self.wrong(f"attributes.{name}", "a placeholder is a word: letters, digits and _")
            if name in FIELDS:
                raise self.wrong(f"attributes.{name}", "that is a field of every item; take another name")
            if not places:
                raise self.wrong(f"attributes.{name}", "names no attribute to look for")
        return {name: tuple(places) for name, places in given.items()}

    def parts(self, key: str, given: Sequence[str], known: Collection[str]) -> tuple[Part, ...]:
        if not given:
            raise self.wrong(key, "is empty: nothing would be said")
        parts = tuple(self.part(f"{key}[{place}]", text, known) for place, text in enumerate(given))
        for place, part in enumerate(parts):
            if not part.names:
                raise self.wrong(
                    f"{key}[{place}]", f"{given[place]!r} has no placeholder: it would be said of everything"
                )
        return parts

    def part(self, key: str, text: str, known: Collection[str]) -> Part:
        try:
            return Part.parse(text, known)
        except ValueError as error:
            raise self.wrong(key, str(error)) from error

    def phrases(self, key: str, given: Mapping[str, str], known: Collection[str]) -> dict[str, Part]:
        return {name: self.part(f"{key}.{name}", text, known) for name, text in given.items()}

    def counted(self, key: str, given: Mapping[str, str]) -> Counted:
        phrases = self.phrases(key, given, ("count",))
        other = self.other(key, phrases)
        if odd := [name for name in phrases if not _NUMBER.fullmatch(name)]:
            raise self.wrong(f"{key}.{odd[0]}", "phrases are by number (1, 2, ...) and `other`")
        return Counted({int(name): part for name, part in phrases.items()}, other)

    def other(self, key: str, phrases: dict[str, Part]) -> Part:
        if "other" not in phrases:
            raise self.wrong(f"{key}.other", "is missing: the phrase for what has none of its own")
        return phrases.pop("other")

    def behaviours(self, given: _Behaviours) -> Behaviours:
        form = self.part("behaviours.form", given.form, ("did", "times", "ago", "what"))
        if lacking := [name for name in ("did", "what") if name not in form.names]:
            raise self.wrong("behaviours.form", f"{given.form!r} lacks {{{lacking[0]}}}")
        did = self.phrases("behaviours.did", given.did, ("type",))
        against = self.phrases("behaviours.against", given.against, ("type",))
        if lacking := [age for age in AGES if age not in given.ago]:
            raise self.wrong(f"behaviours.ago.{lacking[0]}", f"is missing; there are {', '.join(AGES)}")
        if odd := [age for age in given.ago if age not in AGES]:
            raise self.wrong(f"behaviours.ago.{odd[0]}", f"is no age; there are {', '.join(AGES)}")
        return Behaviours(
            form=form,
            quoted=self.part("behaviours.quoted", given.quoted, ("item", "text")),
            other_did=self.other("behaviours.did", did),
            did=did,
            valued=self.phrases("behaviours.valued", given.valued, ("type", "value")),
            other_against=self.other("behaviours.against", against),
            against=against,
            times=self.counted("behaviours.times", given.times),
            ago={age: self.counted(f"behaviours.ago.{age}", phrases) for age, phrases in given.ago.items()},
        )

    def profile(self, given: Sequence[str]) -> tuple[Part, ...]:
        parts = self.parts("profile.parts", given, PROFILE_NAMES)
        for place, part in enumerate(parts):
            if "behaviours" in part.names and (len(part.names) > 1 or any(part.words)):
                raise self.wrong(f"profile.parts[{place}]", "{behaviours} stands alone: each of them is a part")
        return parts

    def prompts(self, given: PromptWords) -> PromptWords:
        for name in given.__struct_fields__:
            for place, word in enumerate(getattr(given, name)):
                if not any(map(str.isalpha, word)) or word != word.strip() or len(word) > _LONGEST_WORD:
                    raise self.wrong(
                        f"prompts.{name}[{place}]",
                        f"{clip(word, _LONGEST_WORD)!r} is no word: letters, perhaps spaces between them, at most "
                        f"{_LONGEST_WORD} characters",
                    )
        return given

    def wrong(self, key: str, what: str) -> ValueError:
        return ValueError(f"{self.file}: {key}: {what}")
