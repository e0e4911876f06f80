"""Creating the topics of the registry, and telling how those on the broker differ from it.

Existing topics are never changed unless asked for (:func:`grow_topics`): partitions cannot be taken back, and an
operator may have had reasons.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Collection, Iterable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient, NewPartitions, NewTopic
from aiokafka.admin.config_resource import ConfigResource, ConfigResourceType
from aiokafka.errors import KafkaError, TopicAlreadyExistsError, UnknownTopicOrPartitionError, for_code

from stream_app.delivery.connections import close_client, kafka_options, no_broker, stop_consumer
from stream_app.errors import TopicError, Unavailable
from stream_app.settings import Settings
from stream_app.topics import Topic, Topics

__all__ = [
    "Difference",
    "TopicState",
    "committed_offsets",
    "copartition_difference",
    "create_topics",
    "create_vectors_topic",
    "delete_topic",
    "describe_topics",
    "group_lag",
    "group_members",
    "grow_topics",
    "vectors_topics",
]

_VISIBLE_WITHIN_S = 15.0
_ASK_EVERY_S = 0.1
_CREATE_COMMAND = "tailrace topics create"


@dataclass(frozen=True, kw_only=True)
class Difference:
    """One way a topic is not as the registry has it. ``wrong``: Tailrace loses data or stops on it; ``differs``:
    it works, and somebody should know."""

    severity: Literal["wrong", "differs"]
    text: str


@dataclass(frozen=True, kw_only=True)
class TopicState:
    """A topic of the registry as the broker has it.

    Attributes:
        name: full name, with prefix.
        partitions: how many there are; None when the topic is not there.
        config: what the broker says of it, empty where it does not tell.
        created: whether this call created it.
    """

    topic: Topic
    name: str
    partitions: int | None
    wanted_partitions: int
    wanted_config: Mapping[str, str]
    config: Mapping[str, str] = field(default_factory=dict)
    created: bool = False

    @property
    def differences(self) -> tuple[Difference, ...]:
        """What is not as it should be, with what to do; worst first."""
        if self.partitions is None:
            return (Difference(severity="wrong", text=f"is not there; create it with: {_CREATE_COMMAND}"),)
        return tuple(sorted(self._differences(), key=lambda one: one.severity, reverse=True))

    def _differences(self) -> Iterable[Difference]:
        if policy := self._policy_difference():
            yield policy
        if self.partitions != self.wanted_partitions:
            yield Difference(
                severity="wrong" if self.topic.partitions else "differs",
                text=f"has {self.partitions} partitions, the registry says {self.wanted_partitions}; "
                "the number that is there counts, the setting only acts on creation",
            )
        for name in ("message.timestamp.type", "max.message.bytes"):
            wanted, said = self.wanted_config.get(name), self.config.get(name)
            if wanted is None or said is None or wanted == said:
                continue
            if name == "max.message.bytes" and int(said) > int(wanted):
                continue
            yield Difference(
                severity="differs", text=f"{name} is {said}, the registry says {wanted}; alter it with kafka-configs"
            )

    def _policy_difference(self) -> Difference | None:
        said = self.config.get("cleanup.policy")
        if said is None:
            return None
        policies = {policy.strip() for policy in said.split(",")}
        if self.topic.compacted and "compact" not in policies:
            harm = "rows that did not change for the retention time would be lost"
        elif not self.topic.compacted and "compact" in policies:
            harm = "compaction would drop all but the last record of a key"
        elif self.topic.compacted and "delete" in policies:
            return Difference(
                severity="differs", text=f"cleanup.policy is {said}: rows older than the retention time are dropped"
            )
        else:
            return None
        wanted = self.wanted_config["cleanup.policy"]
        return Difference(
            severity="wrong", text=f"cleanup.policy is {said}, must be {wanted}: {harm}; alter it with kafka-configs"
        )


def copartition_difference(states: Iterable[TopicState]) -> Difference | None:
    """Topics that need as many partitions as each other and have not.

    Statistics of an item are broadcast on the partition its transitions came from; a user's profile and events are
    of one owner.
    """
    there = {state.topic.name: state.partitions for state in states if state.partitions is not None}
    for pair in (("item-signals.v1", "transitions.v1"), ("interactions.v1", "users.v1")):
        counts = {name: there[name] for name in pair if name in there}
        if len(set(counts.values())) > 1:
            said = " and ".join(f"{name} has {count}" for name, count in counts.items())
            return Difference(
                severity="wrong",
                text=f"{said} partitions and they must have as many; recreate the smaller one while stopped",
            )
    return None


async def create_topics(settings: Settings) -> list[TopicState]:
    """Create the topics of the registry that are not there, and wait until the broker shows them.

    Safe to call from several processes at once.

    Raises:
        Unavailable: when no broker answers; worth trying again.
        TopicError: when the broker refuses a topic; says why.
    """
    async with _client(settings) as client:
        states = await _describe(client, settings)
        created: set[str] = set()
        # Those that others take their number of partitions from come first, and are waited for: one that somebody made
        # a moment ago may not be shown yet, and creating it then only tells that it is there.
        for following in (False, True):
            there = {state.topic.name: state.partitions for state in states}
            missing = [
                replace(state, wanted_partitions=there.get(state.topic.as_many_as or "") or state.wanted_partitions)
                for state in states
                if state.partitions is None and (state.topic.as_many_as is not None) == following
            ]
            if missing:
                created |= await _create(client, settings, missing)
                states = await _until_visible(client, settings, {state.name for state in missing})
        return [replace(state, created=state.name in created) for state in states]


async def describe_topics(settings: Settings) -> list[TopicState]:
    """The topics of the registry as the broker has them, in the registry's order.

    Raises:
        Unavailable: when no broker answers.
    """
    async with _client(settings) as client:
        return await _describe(client, settings)


async def grow_topics(settings: Settings, partitions: int) -> dict[str, int]:
    """Give ``interactions.v1`` and ``users.v1`` more partitions, both at once: a user's events and profile have one
    owner. Safe while everything runs (docs/operations.md says what happens to users that move).

    Only these two: whose statistics an item has follows from the number of partitions of ``transitions.v1``, and the
    other topics gain nothing from more.

    Args:
        partitions: how many they are to have: a multiple of what they have. Partitioners take a hash modulo the number
            of partitions, so users then move to new partitions only, and what is new waits for what is old. Between
            two old ones nobody would wait, and an event could be applied before the one before it.

    Returns:
        how many they had, by full name; those that had as many already are left out.

    Raises:
        Unavailable: when no broker answers; worth trying again.
        TopicError: when one is not there, has more already, ``partitions`` is no multiple, or the broker
            refuses; says why.
    """
    topics = Topics(settings)
    async with _client(settings) as client:
        there = {state.name: state.partitions for state in await _describe(client, settings)}
        before = {name: there.get(name) for name in (topics.interactions, topics.users)}
        for name, count in before.items():
            if count is None:
                raise TopicError(f"topic {name} is not there; create it with: {_CREATE_COMMAND}")
            if count > partitions:
                raise TopicError(
                    f"topic {name} has {count} partitions, and they cannot be taken back: ask for {count} or more"
                )
            if partitions % count:
                raise TopicError(
                    f"topic {name} has {count} partitions: ask for a multiple, such as {2 * count}; with {partitions} "
                    "users would move between those that are there, and the order of their events could be lost"
                )
        grown = {name: count for name, count in before.items() if count is not None and count < partitions}
        if grown:
            response = await client.create_partitions({name: NewPartitions(partitions) for name in grown})
            for name, code, message, *_ in response.topic_errors:
                if code:
                    raise TopicError(f"Kafka at {settings.kafka} gives {name} no more partitions: {message or code}")
        return grown


async def create_vectors_topic(settings: Settings, number: int) -> bool:
    """Create the topic of a further vector space as the first one's is, and wait until the broker shows it.

    Returns:
        whether this call made it: of two that ask for one number, one did.

    Raises:
        Unavailable: when no broker answers; worth trying again.
        TopicError: when the first one's is not there, or the broker refuses; says why.
    """
    topics = Topics(settings)
    name = topics.vectors_of(number)
    async with _client(settings) as client:
        states = {state.name: state for state in await _describe(client, settings)}
        first = states[topics.item_vectors]
        if first.partitions is None:
            raise TopicError(f"topic {first.name} is not on Kafka at {settings.kafka}; {_CREATE_COMMAND}")
        created = await _create(client, settings, [replace(first, name=name, wanted_partitions=first.partitions)])
        loop = asyncio.get_running_loop()
        deadline = loop.time() + _VISIBLE_WITHIN_S
        while name not in await _names(client):
            if loop.time() > deadline:
                raise Unavailable(f"Kafka at {settings.kafka} created {name} and does not show it yet")
            await asyncio.sleep(_ASK_EVERY_S)
        return name in created


async def vectors_topics(settings: Settings) -> list[int]:
    """Numbers of the further vector spaces (from 1 on) whose topic is there, ascending.

    Raises:
        Unavailable: when no broker answers; worth trying again.
    """
    topics = Topics(settings)
    async with _client(settings) as client:
        names = await _names(client)
    ends = (name.removeprefix(f"{topics.item_vectors}.") for name in names)
    numbers = {int(end) for end in ends if end.isdecimal()} - {0}
    return sorted(number for number in numbers if topics.vectors_of(number) in names)


async def group_lag(settings: Settings, group: str, topic: str) -> int:
    """Records of a topic that a consumer group has not committed yet.

    Raises:
        Unavailable: when no broker answers.
    """
    # A consumer that joins nothing may ask for a group's offsets, on every broker.
    consumer = AIOKafkaConsumer(**kafka_options(settings), group_id=group, enable_auto_commit=False)
    try:
        await consumer.start()
        # All topics, never by name: that would create the topic on a broker that creates them on demand.
        metadata = await consumer._client.fetch_all_metadata()
        places = [TopicPartition(topic, number) for number in metadata.partitions_for_topic(topic) or ()]
        firsts = await consumer.beginning_offsets(places)
        ends = await consumer.end_offsets(places)
        # What was deleted before it was committed is not there to be read.
        read = {place: max(first, await consumer.committed(place) or 0) for place, first in firsts.items()}
        return sum(max(0, end - read[place]) for place, end in ends.items())
    except (KafkaError, OSError) as error:
        raise no_broker(settings, error) from error
    finally:
        await stop_consumer(consumer)


async def committed_offsets(settings: Settings, group: str, topics: Collection[str]) -> dict[TopicPartition, int]:
    """The next offset of each partition that a consumer group has to process, 0 where it committed none.

    Raises:
        Unavailable: when no broker answers.
    """
    # A consumer that joins nothing may ask for a group's offsets, on every broker.
    consumer = AIOKafkaConsumer(**kafka_options(settings), group_id=group, enable_auto_commit=False)
    try:
        await consumer.start()
        # All topics, never by name: that would create the topic on a broker that creates them on demand.
        metadata = await consumer._client.fetch_all_metadata()
        places = [
            TopicPartition(topic, number)
            for topic in topics
            for number in sorted(metadata.partitions_for_topic(topic) or ())
        ]
        return {place: await consumer.committed(place) or 0 for place in places}
    except (KafkaError, OSError) as error:
        raise no_broker(settings, error) from error
    finally:
        await stop_consumer(consumer)


async def delete_topic(settings: Settings, name: str) -> None:
    """Delete a topic for good. Nothing when it is not there.

    Raises:
        Unavailable: when no broker answers; worth trying again.
        TopicError: when the broker refuses; says why.
    """
    async with _client(settings) as client:
        if name not in await _names(client):
            return
        response = await client.delete_topics([name])
        for topic, code in response.topic_error_codes:
            error = for_code(code)
            if code not in (0, UnknownTopicOrPartitionError.errno):
                raise TopicError(
                    f"Kafka at {settings.kafka} refused to delete {topic}: {error.description} ({error.__name__})"
                )


async def group_members(settings: Settings, group: str) -> int:
    """How many consumers a group has; 0 as well where the broker does not tell.

    Raises:
        Unavailable: when no broker answers.
    """
    async with _client(settings) as client:
        responses = await client.describe_consumer_groups([group])
        groups = [entry for response in responses for entry in response.to_object()["groups"]]
        return sum(len(entry["members"]) for entry in groups if entry["error_code"] == 0)


async def _names(client: AIOKafkaAdminClient) -> set[str]:
    # All topics, never by name: asking for a name creates the topic on a broker that creates them on demand.
    return {entry["topic"] for entry in await client.describe_topics()}


@asynccontextmanager
async def _client(settings: Settings) -> AsyncIterator[AIOKafkaAdminClient]:
    client = AIOKafkaAdminClient(**kafka_options(settings))
    try:
        await client.start()
        yield client
    except (KafkaError, OSError) as error:
        raise no_broker(settings, error) from error
    finally:
        await close_client(client.close())


async def _describe(client: AIOKafkaAdminClient, settings: Settings) -> list[TopicState]:
    topics = Topics(settings)
    # All topics, never by name: asking for a name creates the topic on a broker that creates them on demand.
    there = {entry["topic"]: len(entry["partitions"]) for entry in await client.describe_topics()}
    configs = await _configs(client, [name for name in topics.by_full_name if name in there])
    return [
        TopicState(
            topic=topic,
            name=name,
            partitions=there.get(name),
            wanted_partitions=topics.partitions(topic),
            wanted_config=topics.config(topic),
            config=configs.get(name, {}),
        )
        for name, topic in topics.by_full_name.items()
    ]


async def _configs(client: AIOKafkaAdminClient, names: list[str]) -> dict[str, dict[str, str]]:
    """Topic configurations by name; leaves out what the broker does not tell us."""
    if not names:
        return {}
    # No key filter: one broker in use closes the connection on it.
    responses = await client.describe_configs([ConfigResource(ConfigResourceType.TOPIC, name) for name in names])
    found: dict[str, dict[str, str]] = {}
    for response in responses:
        for resource in response.to_object()["resources"]:
            if resource["error_code"] == 0:
                entries: list[dict[str, Any]] = resource["config_entries"]
                found[resource["resource_name"]] = {
                    entry["config_names"]: entry["config_value"]
                    for entry in entries
                    if entry["config_value"] is not None
                }
    return found


async def _create(client: AIOKafkaAdminClient, settings: Settings, states: list[TopicState]) -> set[str]:
    """The names that did not exist and were created."""
    new = []
    for state in states:
        topic = NewTopic(state.name, state.wanted_partitions, 1, topic_configs=dict(state.wanted_config))
        # Set afterwards: the constructor refuses -1 (the broker's default), which brokers know since 2.4.
        topic.replication_factor = settings.connection.replication_factor
        new.append(topic)
    response = await client.create_topics(new)
    created: set[str] = set()
    for entry in response.to_object()["topic_errors"]:
        if entry["error_code"] == 0:
            created.add(entry["topic"])
            continue
        error = for_code(entry["error_code"])
        if error is not TopicAlreadyExistsError:
            said = entry.get("error_message") or error.description
            raise TopicError(
                f"Kafka at {settings.kafka} refused to create {entry['topic']}: {said} ({error.__name__}); create the "
                "topics as deploy/ lists them and set topics.create = false, or grant the right to create them"
            )
    return created


async def _until_visible(client: AIOKafkaAdminClient, settings: Settings, names: set[str]) -> list[TopicState]:
    """All topics, once those of ``names`` are shown: a broker acknowledges a topic before every broker knows it."""
    loop = asyncio.get_running_loop()
    deadline = loop.time() + _VISIBLE_WITHIN_S
    while True:
        states = await _describe(client, settings)
        unseen = [state.name for state in states if state.name in names and not state.partitions]
        if not unseen:
            return states
        if loop.time() > deadline:
            raise Unavailable(f"Kafka at {settings.kafka} created {', '.join(unseen)} and does not show them yet")
        await asyncio.sleep(_ASK_EVERY_S)
