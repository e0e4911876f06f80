"""The topics of the registry as resources of Strimzi, the operator that runs Kafka on Kubernetes.

Nothing is asked of a broker: the registry and the settings say it all. The output is YAML that ``kubectl apply`` takes,
or the list the Helm chart makes the same resources from (``deploy/helm/tailrace/files/topics.yaml``), where prefix and
partitions are the chart's values.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator

from stream_app.settings import Settings
from stream_app.topics import TOPICS, Topics

__all__ = ["API_VERSION", "chart_topics", "strimzi_topics"]

API_VERSION = "kafka.strimzi.io/v1"
"""Served by Strimzi 0.49 and newer; older ones know ``v1beta2``, whose topics have the same fields."""

_HEAD = "# Generated from stream_app/topics.py: tailrace topics manifests --format {0}\n"
_NO_NAME = re.compile(r"[^a-z0-9.-]+")


def strimzi_topics(settings: Settings, *, cluster: str) -> str:
    """A ``KafkaTopic`` for every topic, as YAML documents in the registry's order.

    Args:
        settings: prefix, partitions, message size and replication factor are taken from them; a replication factor of
            -1 leaves the number to the broker, as creating the topics ourselves does.
        cluster: name of the ``Kafka`` resource whose operator is to make them.
    """
    return _HEAD.format("strimzi") + "".join(_topic_documents(settings, cluster))


def chart_topics(settings: Settings) -> str:
    """The topics without prefix and cluster, as a YAML list: what the chart fills in is left out.

    ``partitions`` stands only where the number is fixed by design.
    """
    topics = Topics(settings)
    lines = [_HEAD.format("helm")]
    for topic in TOPICS:
        lines.append(f"- name: {topic.name}\n")
        if topic.partitions is not None:
            lines.append(f"  partitions: {topic.partitions}\n")
        lines.append("  config:\n")
        lines += [f"    {name}: {_quoted(value)}\n" for name, value in sorted(topics.config(topic).items())]
    return "".join(lines)


def _topic_documents(settings: Settings, cluster: str) -> Iterator[str]:
    topics = Topics(settings)
    for full_name, topic in topics.by_full_name.items():
        lines = [
            "---",
            f"apiVersion: {API_VERSION}",
            "kind: KafkaTopic",
            "metadata:",
            f"  name: {_quoted(_resource_name(full_name))}",
            "  labels:",
            f"    strimzi.io/cluster: {_quoted(cluster)}",
            "spec:",
            f"  topicName: {_quoted(full_name)}",
            f"  partitions: {topics.partitions(topic)}",
        ]
        if settings.connection.replication_factor > 0:
            lines.append(f"  replicas: {settings.connection.replication_factor}")
        lines.append("  config:")
        lines += [f"    {name}: {_quoted(value)}" for name, value in sorted(topics.config(topic).items())]
        yield "\n".join(lines) + "\n"


def _resource_name(topic: str) -> str:
    """The topic's name as far as Kubernetes allows it: lower case letters, digits, dots and hyphens, an alphanumeric
    character at either end."""
    return _NO_NAME.sub("-", topic.lower()).strip(".-")


def _quoted(text: str) -> str:
    # A JSON string is a YAML string, whatever is in it.
    return json.dumps(text)
