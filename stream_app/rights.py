"""Who needs which rights on the broker (its access control list): the least with which each role does what it does.

Read, Write and Delete include Describe, so Describe is there only where none of them is. Nobody needs rights on the
cluster, transactional ids or idempotent writes. ``tests/integration/test_kafka_security.py`` runs every role under
exactly these, on a broker that grants nothing else, and each of them is used.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from stream_app.settings import Settings
from stream_app.topics import TOPICS, Topics

__all__ = ["WHO", "Operation", "Right", "grouped", "rights_of", "summary_of"]

Operation = Literal["Alter", "Create", "Delete", "Describe", "DescribeConfigs", "Read", "Write"]


@dataclass(frozen=True, kw_only=True, order=True, slots=True)
class Right:
    """One operation on one resource, or on all resources whose names begin with ``name`` (``prefixed``)."""

    resource: Literal["group", "topic"]
    name: str
    prefixed: bool
    operation: Operation

    def covers(self, resource: str, name: str) -> bool:
        """Whether it is a right on this resource (``topic`` or ``group``)."""
        return self.resource == resource and (name.startswith(self.name) if self.prefixed else name == self.name)

    def __str__(self) -> str:
        return f"{self.operation} on {self.resource} {self.name}{'*' if self.prefixed else ''}"


@dataclass(frozen=True, kw_only=True)
class _Needs:
    """Names without the configured prefix; with ``*`` at the end: all that begin so.

    ``group`` is Read on a consumer group: to join it and to commit. ``watches`` is Describe on groups and on a topic of
    each: to ask how far behind it is (the group's offsets, the topic's partitions and their ends).
    """

    summary: str
    group: str | None = None
    reads: tuple[str, ...] = ()
    writes: tuple[str, ...] = ()
    watches: tuple[tuple[str, str], ...] = ()


_VECTORS = "item-vectors.v1*"
"""The first vector space's topic, and ``item-vectors.v1.<number>`` of further ones."""
_NEEDS: dict[str, _Needs] = {
    "catalogue": _Needs(
        summary="embeds items",
        group="catalogue*",  # and one for each further vector space
        reads=("items.v1", "rules.v1", "space-control.v1"),
        writes=(_VECTORS, "space-control.v1", "dead-letter.v1"),
    ),
    "items": _Needs(
        summary="keeps the statistics of items",
        group="items",
        reads=("transitions.v1", "item-signals.v1", "space-control.v1"),
        writes=("item-signals.v1", "dead-letter.v1"),
    ),
    "ranker": _Needs(
        summary="learns the ranking and the factors of items",
        group="ranker",
        reads=(
            *("training-examples.v1", "ranker-weights.v1", "factor-basis.v1", "item-factors.v1", "items.v1"),
            *(_VECTORS, "space-control.v1"),
        ),
        writes=("ranker-weights.v1", "factor-basis.v1", "item-factors.v1", "dead-letter.v1"),
    ),
    "interactions": _Needs(
        summary="makes the slates",
        group="interactions",
        reads=(
            *("interactions.v1", "users.v1", "items.v1", "rules.v1", "recommendations.v1", "space-control.v1"),
            *("item-signals.v1", "ranker-weights.v1", "factor-basis.v1", "item-factors.v1", "spaces.v1", _VECTORS),
        ),
        writes=(
            *("recommendations.v1", "transitions.v1", "training-examples.v1", "spaces.v1", "factor-basis.v1"),
            "dead-letter.v1",
        ),
    ),
    "producer": _Needs(
        summary="your services that send items, events, profiles and rules",
        writes=tuple(topic.name for topic in TOPICS if topic.direction == "in"),
    ),
    "reader": _Needs(
        summary="your site, which reads the slates",
        group="reader*",
        reads=("recommendations.v1",),
    ),
    "keda": _Needs(
        summary="KEDA, which starts and ends processes as they fall behind",
        # The roles that can be shared out; the ranker's topic has one partition.
        watches=(("interactions", "interactions.v1"), ("items", "transitions.v1"), ("catalogue", "items.v1")),
    ),
    "operator": _Needs(
        summary="a person with the tailrace command: topics, spaces, dead letters, looking things up",
        reads=("*",),
        # Records are replayed to the topics that roles consume; spaces are changed by what is said in four topics.
        writes=(
            *("items.v1", "interactions.v1", "users.v1", "rules.v1", "transitions.v1", "training-examples.v1"),
            *("dead-letter.v1", "space-control.v1", "spaces.v1", "factor-basis.v1"),
        ),
    ),
}
WHO = tuple(_NEEDS)
"""Everybody who connects to the broker: the roles, and the others' tools."""


def rights_of(who: str, settings: Settings) -> tuple[Right, ...]:
    """What ``who`` (one of :data:`WHO`) needs, sorted; names as ``settings.topics.prefix`` makes them.

    Topics are there already: who creates them is the operator, so processes run with ``topics.create = false``.

    Raises:
        KeyError: for anybody else.
    """
    needs = _NEEDS[who]
    topics = Topics(settings)
    rights = set()
    if needs.group is not None:
        rights.add(_right("group", topics.group(needs.group), "Read"))
    prefix = f"{settings.topics.prefix}."
    rights |= {_right("topic", prefix + name, "Read") for name in needs.reads}
    rights |= {_right("topic", prefix + name, "Write") for name in needs.writes}
    for group, topic in needs.watches:
        rights |= {_right("group", topics.group(group), "Describe"), _right("topic", prefix + topic, "Describe")}
    if who == "operator":
        rights |= {_right("topic", f"{prefix}*", "Create"), _right("topic", f"{prefix}*", "DescribeConfigs")}
        # More partitions, of these two only (tailrace topics grow).
        rights |= {_right("topic", name, "Alter") for name in (topics.interactions, topics.users)}
        # Of further vector spaces only: the first one's topic is a part of the contract.
        rights.add(_right("topic", f"{topics.item_vectors}.*", "Delete"))
        rights.add(_right("group", topics.group("*"), "Describe"))
    return tuple(sorted(rights))


def summary_of(who: str) -> str:
    """What ``who`` does, in a few words."""
    return _NEEDS[who].summary


def grouped(rights: Iterable[Right]) -> dict[tuple[bool, tuple[Operation, ...]], list[tuple[str, str]]]:
    """The resources (kind and name) with the same operations, by whether they are prefixed and the operations."""
    operations: dict[tuple[bool, str, str], list[Operation]] = {}
    for right in sorted(rights):
        operations.setdefault((right.prefixed, right.resource, right.name), []).append(right.operation)
    found: dict[tuple[bool, tuple[Operation, ...]], list[tuple[str, str]]] = {}
    for (prefixed, resource, name), allowed in operations.items():
        found.setdefault((prefixed, tuple(allowed)), []).append((resource, name))
    return found


def _right(resource: Literal["group", "topic"], name: str, operation: Operation) -> Right:
    return Right(resource=resource, name=name.removesuffix("*"), prefixed=name.endswith("*"), operation=operation)
