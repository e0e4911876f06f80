"""Typed v1 messages: one struct per topic, the only definition of what a value on it looks like.

Producers in any language need only these fields (or the JSON Schema generated from them). Unknown fields are
ignored, so a producer may add its own; a missing or wrong field is an error that names its path.

Internal messages carry arrays as base64 of little-endian values (``float32`` or ``float64``, said per field):
a list of JSON numbers costs five times the bytes and twenty times the decoding.
"""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any, Literal

from msgspec import Meta, Struct

__all__ = [
    "DeadLetter",
    "FactorBasis",
    "Interaction",
    "Item",
    "ItemFactors",
    "ItemSignals",
    "ItemVector",
    "ModelSpace",
    "RankerWeights",
    "Reason",
    "RebuiltRows",
    "Rule",
    "RuleWhere",
    "Slate",
    "SlateItem",
    "SpaceControl",
    "TrainingExample",
    "TrainingExamples",
    "Transition",
    "Transitions",
    "Trigger",
    "User",
    "VectorSpace",
    "Versions",
]

MAX_ID = 256
"""Longest id in characters. Ids are keys in Kafka, Redis and memory; longer ones are almost always a bug."""

Identifier = Annotated[
    str,
    Meta(
        min_length=1,
        max_length=MAX_ID,
        pattern=r"^[^\x00-\x1f\x7f]+(?![\s\S])",  # not $: in Python it also matches before a last newline
        description="An id: 1 to 256 characters, no control characters.",
    ),
]
Instant = Annotated[
    datetime,
    Meta(tz=True, description="RFC 3339 date and time with a zone, for example 2026-11-23T10:00:00Z."),
]
Label = Annotated[str, Meta(max_length=256)]
Labels = Annotated[list[Label], Meta(max_length=64)]
Language = Annotated[str, Meta(max_length=35, description="BCP 47 tag, for example en or zh-Hans.")]


class Item(Struct, frozen=True, kw_only=True):
    """One entry of the catalogue, on ``items.v1`` with key = ``item_id``; a null value deletes the item."""

    item_id: Identifier
    title: Annotated[str, Meta(min_length=1, max_length=2_000, description="What people see; any language.")]
    description: Annotated[str, Meta(max_length=100_000, description="Longer text, may hold HTML.")] | None = None
    categories: Annotated[Labels, Meta(description="From general to special, for example a shop's shelf path.")] = []
    tags: Annotated[Labels, Meta(description="Free key words, in no order.")] = []
    brand: Annotated[Label, Meta(description="Maker, publisher, channel or artist.")] | None = None
    price: Annotated[float, Meta(ge=0, description="In units of ``currency``; not negative.")] | None = None
    currency: Annotated[str, Meta(max_length=8, description="ISO 4217 code, for example GBP.")] | None = None
    language: Language | None = None
    image_url: Annotated[str, Meta(max_length=4_096, description="Where a picture is; not fetched.")] | None = None
    available: Annotated[bool, Meta(description="False: in the catalogue, but not recommended at the moment.")] = True
    published_at: Annotated[Instant, Meta(description="Not recommended before this instant (RFC 3339).")] | None = None
    expires_at: Annotated[Instant, Meta(description="Not recommended from this instant on (RFC 3339).")] | None = None
    owner_id: Annotated[Identifier, Meta(description="Seller or author, an id.")] | None = None
    attributes: Annotated[dict[str, Any], Meta(description="Anything else; kept, nested at most 32 levels.")] = {}


class Interaction(Struct, frozen=True, kw_only=True):
    """Something a user did, on ``interactions.v1`` with key = ``user_id``.

    ``type`` is one of the configured event types (settings, ``event_types``). ``items`` lists the impressions
    of an ``impression`` event. ``text`` carries a search query or a review.
    """

    event_id: Annotated[Identifier, Meta(description="Unique per user: the same id again is the same event.")]
    user_id: Identifier
    type: Annotated[str, Meta(min_length=1, max_length=64, description="A configured event type, e.g. click.")]
    occurred_at: Instant
    item_id: Annotated[Identifier, Meta(description="Needed by all types but impression, search, visit.")] | None = None
    items: Annotated[list[Identifier], Meta(max_length=500, description="Items seen, in the order shown.")] = []
    value: Annotated[float, Meta(description="What the type measures: stars, price, seconds.")] | None = None
    quantity: Annotated[float, Meta(description="How many, in a purchase or cart.")] | None = None
    text: Annotated[str, Meta(max_length=1_000_000, description="Search query or review.")] | None = None
    session_id: Annotated[str, Meta(max_length=MAX_ID, description="Visit, invoice or sitting.")] | None = None
    slate_id: Annotated[str, Meta(max_length=MAX_ID, description="Slate the user acted on, if any.")] | None = None
    position: Annotated[int, Meta(ge=0, description="Place in what was shown, from 0.")] | None = None
    context: Annotated[
        dict[str, Any],
        Meta(
            description="Anything else, nested at most 32 levels. Of an event without item_id, query, category (a name "
            "or a list) and item_id (where a visit began) say what the user is after."
        ),
    ] = {}


class User(Struct, frozen=True, kw_only=True):
    """What is known of a user beyond events, on ``users.v1`` with key = ``user_id``; null: forget the user."""

    user_id: Identifier
    text: Annotated[str, Meta(max_length=100_000, description="The profile in words; any language.")] | None = None
    interests: Annotated[Labels, Meta(description="Declared interests: free words or categories.")] = []
    language: Language | None = None
    liked_items: Annotated[
        list[Identifier], Meta(max_length=100, description="Items the user says to like, most liked first.")
    ] = []
    blocked_items: Annotated[
        list[Identifier], Meta(max_length=1_000, description="Items never to be shown to the user.")
    ] = []
    blocked_categories: Annotated[Labels, Meta(description="Nothing of these categories is shown to the user.")] = []
    blocked_brands: Annotated[Labels, Meta(description="Nothing of these brands is shown to the user.")] = []
    attributes: Annotated[dict[str, Any], Meta(description="Anything else, nested at most 32 levels; not used.")] = {}


class RuleWhere(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Which items a rule is about: those that fit every field given; a list fits when one of its values does.

    Ids are compared exactly, names without regard to case and outer spaces; the language ``zh`` fits ``zh-Hans``.
    Unknown fields are refused: a misspelt one would make the rule match everything.
    """

    item_ids: Annotated[list[Identifier], Meta(max_length=1_000, description="For pins in the order to show.")] = []
    categories: Annotated[Labels, Meta(description="Any place of an item's categories.")] = []
    tags: Annotated[Labels, Meta(description="Any of an item's tags.")] = []
    brands: Annotated[Labels, Meta(description="Makers, publishers, channels or artists.")] = []
    owner_ids: Annotated[list[Identifier], Meta(max_length=1_000, description="Sellers or authors.")] = []
    languages: Annotated[list[Language], Meta(max_length=64, description="BCP 47 tags.")] = []
    min_price: Annotated[float, Meta(ge=0, description="Lowest price; items without one do not fit.")] | None = None
    max_price: Annotated[float, Meta(ge=0, description="Highest price; items without one do not fit.")] | None = None


class Rule(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A business rule for slates, on ``rules.v1`` with key = ``rule_id``; a null value deletes the rule.

    ``pin`` puts items at a rank, ``boost`` adds to the score of items, ``exclude`` keeps items out of every slate,
    ``cap`` limits how many items the first ranks may hold. See docs/rules.md.
    """

    rule_id: Identifier
    kind: Annotated[Literal["pin", "boost", "exclude", "cap"], Meta(description="What the rule does.")]
    where: Annotated[RuleWhere, Meta(description="The items it is about; a cap alone may leave it out.")] = RuleWhere()
    rank: Annotated[int, Meta(ge=1, le=200, description="Pin: the first item's rank, the others follow.")] | None = None
    boost: Annotated[float, Meta(ge=-10, le=10, description="Boost: log-odds added to the score.")] | None = None
    at_most: Annotated[int, Meta(ge=0, le=200, description="Cap: how many items.")] | None = None
    per: (
        Annotated[
            Literal["category", "brand", "owner"],
            Meta(description="Cap: counted apart for each most general category, brand or owner; null: together."),
        ]
        | None
    ) = None
    first: Annotated[int, Meta(ge=1, le=200, description="Cap: the ranks it holds for, from 1.")] | None = None
    users: Annotated[
        list[Identifier], Meta(max_length=1_000, description="The users it is for; empty: everybody.")
    ] = []
    starts_at: Annotated[Instant, Meta(description="Not in force before this instant (RFC 3339).")] | None = None
    ends_at: Annotated[Instant, Meta(description="Not in force from this instant on (RFC 3339).")] | None = None
    priority: Annotated[int, Meta(ge=-1_000, le=1_000, description="Larger first, where pins want the same rank.")] = 0
    note: Annotated[str, Meta(max_length=1_000, description="For people: why the rule exists.")] = ""


class Reason(Struct, frozen=True, kw_only=True, gc=False):
    """Why an item is in a slate: what weighed most in its score, as a code, its parameters and a sentence."""

    code: Annotated[str, Meta(description="A stable code, for programs.")]
    params: Annotated[dict[str, Any], Meta(description="What the code refers to, for example an item.")] = {}
    text: Annotated[str, Meta(description="A sentence for people, in the configured language.")] = ""


class SlateItem(Struct, frozen=True, gc=False):
    """One place of a slate."""

    item_id: str
    rank: Annotated[int, Meta(ge=1, description="Place in the slate, from 1.")]
    score: Annotated[float, Meta(description="The ranker's score; comparable within one slate only.")]
    sources: Annotated[list[str], Meta(description="The candidate sources that proposed the item.")]
    reason: Reason


class Trigger(Struct, frozen=True, kw_only=True, gc=False):
    """The record that caused a slate. ``event_id`` and ``occurred_at`` are null when an item change caused it."""

    topic: str
    partition: int
    offset: int
    event_id: str | None = None
    occurred_at: Instant | None = None


class Versions(Struct, frozen=True, kw_only=True):
    """What made a slate: the vector space, the state of the index, and the ranker's weights."""

    space: str
    index: str
    ranker: str


class Slate(Struct, frozen=True, kw_only=True, gc=False):
    """A user's current recommendations, on ``recommendations.v1`` with key = ``user_id``; null: no slate any more."""

    slate_id: Annotated[str, Meta(description="Unique; interactions with the slate may carry it.")]
    user_id: Identifier
    generated_at: Instant
    items: Annotated[list[SlateItem], Meta(description="Best first.")]
    trigger: Trigger
    versions: Versions
    variant: Annotated[str, Meta(description="Which ranker's weights made it.")] = "default"


class DeadLetter(Struct, frozen=True, kw_only=True):
    """A record that could not be processed, on ``dead-letter.v1``, whole, with what to do about it."""

    reason: Annotated[str, Meta(description="A stable code, for example not_json or unknown_event_type.")]
    detail: Annotated[str, Meta(description="What was wrong and what to do, for a person.")]
    attempts: Annotated[int, Meta(ge=1, description="How often it was tried.")]
    stage: Annotated[str, Meta(description="The role that gave up: catalogue, interactions, items or ranker.")]
    topic: Annotated[str, Meta(description="Topic of the original record.")]
    partition: Annotated[int, Meta(description="Partition of the original record.")]
    offset: Annotated[int, Meta(description="Offset of the original record.")]
    failed_at: Instant
    timestamp_ms: Annotated[int, Meta(description="Timestamp of the original record, ms since 1970.")] | None = None
    key: Annotated[str, Meta(description="Base64 of the original key.")] | None = None
    value: Annotated[str, Meta(description="Base64 of the original value.")] | None = None
    headers: Annotated[list[tuple[str, str]], Meta(description="Original headers; values in base64.")] = []
    truncated: Annotated[
        bool, Meta(description="The value was too large to carry; the whole is still at topic/partition/offset.")
    ] = False
    value_bytes: Annotated[int, Meta(description="Size of the original value.")] = 0


class ItemVector(Struct, frozen=True, kw_only=True):
    """An item's embedding, on ``item-vectors.v1`` with key = ``item_id``; null: the item is gone."""

    item_id: Identifier
    space: str
    text_hash: str
    dimensions: int
    vector: Annotated[str, Meta(description="Base64 float32, unit length.")]
    text: Annotated[str, Meta(description="What the model saw.")] = ""


class VectorSpace(Struct, frozen=True, kw_only=True):
    """The half-whitened space served, on ``spaces.v1`` with key = ``space``; null: the model's own space again.

    A vector of the model becomes one of this space when ``mean`` is subtracted, its part along each of ``axes`` is
    multiplied by the axis' scale, and the result is brought to unit length.
    """

    space: Annotated[str, Meta(description="The model's space, as item-vectors.v1 names it.")]
    version: Annotated[int, Meta(ge=1, description="Grows with every fit.")]
    items: Annotated[int, Meta(ge=0, description="How many items the catalogue had that it was fitted to.")]
    dimensions: Annotated[int, Meta(ge=1)]
    mean: Annotated[str, Meta(description="Base64 float32 [dimensions].")]
    axes: Annotated[str, Meta(description="Base64 float16 [axes, dimensions], orthonormal.")]
    scales: Annotated[str, Meta(description="Base64 float32 [axes].")]


class ModelSpace(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A model's vector space that is kept: every item has a vector of it, or will."""

    space: Annotated[str, Meta(min_length=1, max_length=512, description="As item-vectors name it.")]
    dimensions: Annotated[int, Meta(ge=1, le=65_536)]
    number: Annotated[
        int, Meta(ge=0, description="Its vectors are on item-vectors.v1 (0) or item-vectors.v1.<number>; never reused.")
    ]
    encoder: Annotated[
        dict[str, str | int | float | bool | None],
        Meta(max_length=64, description="Settings of the encoder that decide its vectors, whatever processes have."),
    ] = {}


class SpaceControl(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Which vector spaces are kept and which one is served, on ``space-control.v1`` with key = ``spaces``: one record
    says all of it, so one record cuts over."""

    version: Annotated[int, Meta(ge=1, description="Grows by one with every change.")]
    serving: Annotated[str, Meta(description="The space that slates are made in.")]
    spaces: Annotated[list[ModelSpace], Meta(min_length=1, max_length=8)]
    previous: Annotated[str, Meta(description="Served before; what a rollback goes back to.")] = ""
    next_number: Annotated[int, Meta(ge=1, description="The number of the next space.")] = 1
    changed_at: Instant | None = None


class Transition(Struct, frozen=True, kw_only=True, omit_defaults=True, gc=False):
    """What one interaction says about items: ``item_id`` was taken after (or with) each of ``previous``; or that it was
    shown (``shown``), which says nothing else.

    ``offset`` is the interaction's offset in the source partition: the item stage applies every offset once per item.
    """

    offset: int
    at: Annotated[float, Meta(description="Event time, seconds since 1970.")]
    item_id: str
    count: Annotated[float, Meta(ge=0)]
    previous: list[str]
    symmetric: list[float]
    directed: list[float]
    shown: Annotated[float, Meta(ge=0, description="How often the item was shown; counted while it is new.")] = 0.0


class ItemSignals(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Statistics of one item, on ``item-signals.v1`` with key = ``item_id``: both the broadcast and the owner's
    durable state (``applied`` says through which source offsets it is complete)."""

    item_id: str
    at: Annotated[float, Meta(description="Event time the decayed values are stated at, seconds since 1970.")]
    counts: Annotated[
        list[float], Meta(description="Decayed counts, one per half-life in settings order; the last never decays.")
    ]
    neighbours: list[str]
    symmetric: Annotated[str, Meta(description="Base64 float64, one per neighbour, decayed to ``at``.")]
    directed: Annotated[str, Meta(description="Base64 float64, one per neighbour, decayed to ``at``.")]
    applied: Annotated[dict[str, int], Meta(description="Last applied interactions offset per source partition.")]
    shown: Annotated[
        float, Meta(ge=0, description="How often the item was shown while it was new, as far as impressions say.")
    ] = 0.0


class RebuiltRows(Struct, frozen=True, kw_only=True):
    """A part of all rows of one partition, made again from the events, for the partition's owner to go on with.

    They hold everything that was published on the partition before ``begin``.
    """

    generation: Annotated[int, Meta(description="Of the rebuild: greater than those before.")]
    begin: Annotated[int, Meta(ge=0, description="Offset in the partition the owner reads again from.")]
    part: Annotated[int, Meta(ge=0, description="Counted from 0; parts come in order.")]
    parts: Annotated[int, Meta(ge=1, description="How many there are.")]
    rows: list[ItemSignals]


class Transitions(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A batch of transitions for one partition of ``transitions.v1``, in the order of their source offsets; or, of a
    rebuild, rows to go on with."""

    source_topic: str
    source_partition: int
    rows: list[Transition]
    rebuilt: RebuiltRows | None = None


class TrainingExample(Struct, frozen=True, kw_only=True, omit_defaults=True, gc=False):
    """One choice to learn from: row 0 of ``features`` was taken, the others were not; no rows: nothing to learn."""

    offset: int
    at: float
    weight: float
    rows: int
    features: Annotated[str, Meta(description="Base64 float32 [rows, feature count], z-scored in the request.")]
    item_id: Annotated[str, Meta(description="What was taken.")] = ""
    previous: Annotated[list[str], Meta(description="Items taken before it, newest first, each once.")] = []
    context: Annotated[list[float], Meta(description="What was known of the request, see CONTEXT in the code.")] = []


class TrainingExamples(Struct, frozen=True, kw_only=True):
    """A batch of examples on ``training-examples.v1``, in the order of their source offsets."""

    source_topic: str
    source_partition: int
    feature_names: list[str]
    examples: list[TrainingExample]


class ItemFactors(Struct, frozen=True, kw_only=True):
    """Learned factors of one item, on ``item-factors.v1`` with key = ``item_id``: broadcast and durable state in one;
    null: the item is gone. ``applied`` says through which source offsets they were learned."""

    item_id: Identifier
    space: Annotated[str, Meta(description="Frame of the basis they started from; different ones do not mix.")]
    context: Annotated[str, Meta(description="Base64 float32, what the item says about a user.")]
    target: Annotated[str, Meta(description="Base64 float32, who takes the item.")]
    bias: float
    accumulators: Annotated[list[float], Meta(description="AdaGrad sums of context, target and bias.")]
    applied: Annotated[dict[str, int], Meta(description="Last applied interactions offset per source partition.")]


class FactorBasis(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Where factors of items start, on ``factor-basis.v1`` with key = ``space``: a projection of encoder vectors."""

    space: str
    dimensions: int
    factors: int
    mean: Annotated[str, Meta(description="Base64 float32 [dimensions].")]
    matrix: Annotated[str, Meta(description="Base64 float32 [dimensions, factors].")]
    frame: Annotated[
        str,
        Meta(
            description="The space whose basis this one was carried over from: factors that started there and here can "
            "be compared, and item-factors name it. Empty: this one."
        ),
    ] = ""


class RankerWeights(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """The ranker's state, on ``ranker-weights.v1`` with key = variant: broadcast and durable state in one."""

    variant: str
    version: int
    feature_names: list[str]
    weights: list[float]
    accumulators: list[float]
    examples: int
    applied: dict[str, int]
    context_names: list[str] = []
    network: Annotated[str, Meta(description="Base64 float64: skip weights, outer weights, inner weights.")] = ""
    network_accumulators: Annotated[str, Meta(description="Base64 float64, AdaGrad sums of the same.")] = ""
    network_examples: Annotated[int, Meta(description="Examples the network has learned from.")] = 0
    losses: Annotated[
        list[float], Meta(description="Mean of 1 - 1 / rank before learning: linear model, network.")
    ] = []
