"""The registry of topics: names, keys, cleanup policy, message types; the one place that knows them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from msgspec import Struct

from schemas import messages
from stream_app.settings import Settings

__all__ = ["TOPICS", "Topic", "Topics"]


@dataclass(frozen=True, kw_only=True)
class Topic:
    """One topic of the contract.

    ``partitions``: None takes ``topics.partitions``; a number is fixed by design. ``as_many_as`` names an older topic
    whose keys are the same: where that one is there already, this one is created with as many partitions.
    """

    name: str
    message: type[Struct]
    key: str
    public: bool
    compacted: bool
    summary: str
    partitions: int | None = None
    as_many_as: str | None = None
    config: dict[str, str] = field(default_factory=dict)
    direction: Literal["in", "out", "internal"] = "internal"


TOPICS: tuple[Topic, ...] = (
    Topic(
        name="items.v1",
        message=messages.Item,
        key="item_id",
        public=True,
        compacted=True,
        direction="in",
        summary="The catalogue; a null value deletes an item.",
    ),
    Topic(
        name="interactions.v1",
        message=messages.Interaction,
        key="user_id",
        public=True,
        compacted=False,
        direction="in",
        config={"message.timestamp.type": "LogAppendTime"},
        summary="What users did.",
    ),
    Topic(
        name="users.v1",
        message=messages.User,
        key="user_id",
        public=True,
        compacted=True,
        direction="in",
        as_many_as="interactions.v1",
        # That a user was forgotten is to be there as long as the events from before may be: 30 days.
        config={"message.timestamp.type": "LogAppendTime", "delete.retention.ms": "2592000000"},
        summary="Profiles of users; a null value forgets a user.",
    ),
    Topic(
        name="rules.v1",
        message=messages.Rule,
        key="rule_id",
        public=True,
        compacted=True,
        partitions=1,
        direction="in",
        summary="Business rules for slates (pin, boost, exclude, cap); a null value deletes a rule.",
    ),
    Topic(
        name="recommendations.v1",
        message=messages.Slate,
        key="user_id",
        public=True,
        compacted=True,
        direction="out",
        config={"message.timestamp.type": "LogAppendTime"},
        summary="The current slate of every user, never a difference; null: no slate any more.",
    ),
    Topic(
        name="dead-letter.v1",
        message=messages.DeadLetter,
        key="key of the original record",
        public=True,
        compacted=False,
        direction="out",
        summary="Records that could not be processed, whole, with the reason.",
    ),
    Topic(
        name="item-vectors.v1",
        message=messages.ItemVector,
        key="item_id",
        public=False,
        compacted=True,
        summary="Embeddings of items.",
    ),
    Topic(
        name="spaces.v1",
        message=messages.VectorSpace,
        key="space",
        public=False,
        compacted=True,
        partitions=1,
        summary="The half-whitened vector space that is served, fitted to the catalogue.",
    ),
    Topic(
        name="space-control.v1",
        message=messages.SpaceControl,
        key="spaces",
        public=False,
        compacted=True,
        partitions=1,
        summary="Which models' vector spaces are kept, and which one is served.",
    ),
    Topic(
        name="transitions.v1",
        message=messages.Transitions,
        key="partition by crc32(item_id)",
        public=False,
        compacted=False,
        summary="From the user-keyed to the item-keyed stage: which item followed which.",
    ),
    Topic(
        name="item-signals.v1",
        message=messages.ItemSignals,
        key="item_id (partition by crc32)",
        public=False,
        compacted=True,
        summary="Statistics and neighbours of items.",
    ),
    Topic(
        name="training-examples.v1",
        message=messages.TrainingExamples,
        key="variant",
        public=False,
        compacted=False,
        partitions=1,
        summary="Choices the ranker learns from.",
    ),
    Topic(
        name="ranker-weights.v1",
        message=messages.RankerWeights,
        key="variant",
        public=False,
        compacted=True,
        partitions=1,
        summary="The ranker's current weights.",
    ),
    Topic(
        name="factor-basis.v1",
        message=messages.FactorBasis,
        key="space",
        public=False,
        compacted=True,
        partitions=1,
        summary="Where the learned factors of items start: fitted to the catalogue once, extended while it is small.",
    ),
    Topic(
        name="item-factors.v1",
        message=messages.ItemFactors,
        key="item_id",
        public=False,
        compacted=True,
        summary="Learned factors of items.",
    ),
)


class Topics:
    """Full names under the configured prefix, as attributes (``topics.items``, ``topics.dead_letter``, ...)."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.by_full_name = {self._full(topic): topic for topic in TOPICS}
        named = {topic.name: self._full(topic) for topic in TOPICS}
        self.items = named["items.v1"]
        self.interactions = named["interactions.v1"]
        self.users = named["users.v1"]
        self.rules = named["rules.v1"]
        self.recommendations = named["recommendations.v1"]
        self.dead_letter = named["dead-letter.v1"]
        self.item_vectors = named["item-vectors.v1"]
        self.spaces = named["spaces.v1"]
        self.space_control = named["space-control.v1"]
        self.transitions = named["transitions.v1"]
        self.item_signals = named["item-signals.v1"]
        self.training_examples = named["training-examples.v1"]
        self.ranker_weights = named["ranker-weights.v1"]
        self.factor_basis = named["factor-basis.v1"]
        self.item_factors = named["item-factors.v1"]

    def _full(self, topic: Topic) -> str:
        return f"{self.settings.topics.prefix}.{topic.name}"

    def vectors_of(self, number: int) -> str:
        """Full name of the topic with the vectors of a model's space (``ModelSpace.number``)."""
        return f"{self.item_vectors}.{number}" if number else self.item_vectors

    def partitions(self, topic: Topic) -> int:
        """How many partitions Tailrace creates the topic with."""
        return topic.partitions or self.settings.topics.partitions

    def config(self, topic: Topic) -> dict[str, str]:
        """The broker-side settings Tailrace creates the topic with."""
        config = {"cleanup.policy": "compact" if topic.compacted else "delete", **topic.config}
        config["max.message.bytes"] = str(self.settings.connection.max_message_bytes)
        return config

    def group(self, role: str) -> str:
        """The consumer group of a role: one per role, so that roles scale apart."""
        return f"{self.settings.topics.prefix}-{role}"
