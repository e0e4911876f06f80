"""Topics as resources of Strimzi: what the registry says, under names that Kubernetes takes."""

from __future__ import annotations

import pytest
import yaml

from stream_app.cli import main
from stream_app.settings import load_settings
from stream_app.strimzi import chart_topics, strimzi_topics
from stream_app.topics import TOPICS, Topics


def test_every_topic_is_a_resource_with_the_partitions_and_configs_of_the_registry() -> None:
    settings = load_settings(topics={"prefix": "shop", "partitions": 7}, connection={"max_message_bytes": 20_000})
    topics = Topics(settings)
    made = list(yaml.safe_load_all(strimzi_topics(settings, cluster="events")))
    assert [one["spec"]["topicName"] for one in made] == list(topics.by_full_name)
    for one in made:
        topic = topics.by_full_name[one["spec"]["topicName"]]
        assert one["kind"] == "KafkaTopic"
        assert one["metadata"]["labels"] == {"strimzi.io/cluster": "events"}
        assert one["spec"]["partitions"] == topics.partitions(topic)
        assert one["spec"]["config"] == topics.config(topic)
        assert "replicas" not in one["spec"], "the broker's default"


def test_a_replication_factor_of_ours_is_asked_for() -> None:
    made = yaml.safe_load_all(strimzi_topics(load_settings(connection={"replication_factor": 3}), cluster="kafka"))
    assert {one["spec"]["replicas"] for one in made} == {3}


@pytest.mark.parametrize("prefix", ["Shop_EU", "shop.", "shop-", "a_"])
def test_names_are_such_as_kubernetes_takes_whatever_the_prefix(prefix: str) -> None:
    made = list(yaml.safe_load_all(strimzi_topics(load_settings(topics={"prefix": prefix}), cluster="kafka")))
    for one in made:
        name = one["metadata"]["name"]
        assert name == name.lower()
        assert name[0].isalnum()
        assert name[-1].isalnum()
        assert "_" not in name
        assert one["spec"]["topicName"].startswith(f"{prefix}.")
    assert len({one["metadata"]["name"] for one in made}) == len(TOPICS)


def test_the_chart_gets_partitions_only_where_they_are_fixed() -> None:
    listed = yaml.safe_load(chart_topics(load_settings(topics={"partitions": 9})))
    assert [one["name"] for one in listed] == [topic.name for topic in TOPICS]
    assert [one.get("partitions") for one in listed] == [topic.partitions for topic in TOPICS]


def test_the_command_prints_them_without_asking_a_broker(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TAILRACE_KAFKA", "nowhere.invalid:1")
    assert main(["topics", "manifests", "--cluster", "events"]) == 0
    made = list(yaml.safe_load_all(capsys.readouterr().out))
    assert {one["metadata"]["labels"]["strimzi.io/cluster"] for one in made} == {"events"}
