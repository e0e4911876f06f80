"""The registry: one full name per topic, the configured prefix everywhere, policies the design asks for."""

from __future__ import annotations

import msgspec
import pytest

from schemas import messages
from stream_app.settings import load_settings
from stream_app.topics import TOPICS, Topics


@pytest.fixture
def topics() -> Topics:
    return Topics(load_settings(topics={"prefix": "shop", "partitions": 7}, connection={"max_message_bytes": 20_000}))


def test_every_registered_topic_has_an_attribute_with_its_full_name(topics: Topics):
    by_attribute = {
        topics.items,
        topics.interactions,
        topics.users,
        topics.rules,
        topics.recommendations,
        topics.dead_letter,
        topics.item_vectors,
        topics.spaces,
        topics.space_control,
        topics.transitions,
        topics.item_signals,
        topics.training_examples,
        topics.ranker_weights,
        topics.factor_basis,
        topics.item_factors,
    }
    assert by_attribute == set(topics.by_full_name) == {f"shop.{topic.name}" for topic in TOPICS}


def test_names_are_versioned_and_carry_a_message_of_ours(topics: Topics):
    for topic in TOPICS:
        assert topic.name.endswith(".v1")
        assert issubclass(topic.message, msgspec.Struct)
        assert getattr(messages, topic.message.__name__) is topic.message


def test_partitions_are_the_settings_but_where_one_owner_is_by_design(topics: Topics):
    counts = {topic.name: topics.partitions(topic) for topic in TOPICS}
    assert counts.pop("training-examples.v1") == 1
    assert counts.pop("ranker-weights.v1") == 1
    assert counts.pop("factor-basis.v1") == 1
    assert counts.pop("rules.v1") == 1
    assert counts.pop("spaces.v1") == 1
    assert counts.pop("space-control.v1") == 1
    assert set(counts.values()) == {7}


def test_state_topics_are_compacted_and_streams_are_not(topics: Topics):
    compacted = {topic.name for topic in TOPICS if topics.config(topic)["cleanup.policy"] == "compact"}
    assert compacted == {
        "items.v1",
        "space-control.v1",
        "users.v1",
        "recommendations.v1",
        "item-vectors.v1",
        "item-signals.v1",
        "rules.v1",
        "spaces.v1",
        "ranker-weights.v1",
        "factor-basis.v1",
        "item-factors.v1",
    }
    assert all(topics.config(topic)["max.message.bytes"] == "20000" for topic in TOPICS)


def test_freshness_topics_carry_the_broker_s_append_time(topics: Topics):
    stamped = {topic.name for topic in TOPICS if topics.config(topic).get("message.timestamp.type") == "LogAppendTime"}
    assert stamped == {"interactions.v1", "users.v1", "recommendations.v1"}


def test_each_role_has_a_group_of_its_own_under_the_prefix(topics: Topics):
    groups = {topics.group(role) for role in ("catalogue", "interactions", "items", "ranker")}
    assert len(groups) == 4
    assert all(group.startswith("shop-") for group in groups)
