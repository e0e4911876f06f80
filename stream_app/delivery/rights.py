"""Whether the broker lets this process do what its roles do: asked once at the start, and said exactly.

A broker tells which operations a client may do on a topic or group it describes (KIP-430, Apache Kafka 2.3). Without
asking, a missing right shows much later, as a topic that "does not exist" or an event that cannot be published.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Final

from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.errors import (
    GroupAuthorizationFailedError,
    IncompatibleBrokerVersion,
    KafkaError,
    TopicAuthorizationFailedError,
)
from aiokafka.protocol.admin import DescribeGroupsRequest_v2, DescribeGroupsResponse_v3
from aiokafka.protocol.api import Request, RequestStruct, Response
from aiokafka.protocol.types import Array, Boolean, Int16, Int32, Schema, String

from stream_app.delivery.connections import close_client, kafka_options, no_broker
from stream_app.errors import NotAuthorized
from stream_app.rights import Operation, Right, rights_of
from stream_app.settings import Settings

__all__ = ["allowed_operations", "check_rights", "missing_rights"]

_CODES: Final[Mapping[Operation, int]] = {
    "Read": 3,
    "Write": 4,
    "Create": 5,
    "Delete": 6,
    "Describe": 8,
    "DescribeConfigs": 10,
    "Alter": 7,
}
"""Of the protocol's AclOperation; a set of them is a number with these bits."""
_NOT_TOLD: Final = -(2**31)
"""As brokers write it."""


class _MetadataResponse(Response):  # type: ignore[misc] # aiokafka is not typed
    API_KEY = 3
    API_VERSION = 8
    SCHEMA = Schema(
        ("throttle_time_ms", Int32),
        ("brokers", Array(("node_id", Int32), ("host", String()), ("port", Int32), ("rack", String()))),
        ("cluster_id", String()),
        ("controller_id", Int32),
        (
            "topics",
            Array(
                ("error_code", Int16),
                ("topic", String()),
                ("is_internal", Boolean),
                (
                    "partitions",
                    Array(
                        *(("error_code", Int16), ("partition", Int32), ("leader", Int32), ("leader_epoch", Int32)),
                        *(("replicas", Array(Int32)), ("isr", Array(Int32)), ("offline", Array(Int32))),
                    ),
                ),
                ("authorized_operations", Int32),
            ),
        ),
        ("cluster_authorized_operations", Int32),
    )


class _MetadataRequest_v8(RequestStruct):  # type: ignore[misc] # noqa: N801 - as aiokafka names them
    API_KEY = 3
    API_VERSION = 8
    RESPONSE_TYPE = _MetadataResponse
    SCHEMA = Schema(
        ("topics", Array(String())),
        ("allow_auto_topic_creation", Boolean),
        ("include_cluster_authorized_operations", Boolean),
        ("include_topic_authorized_operations", Boolean),
    )


class _TopicsRequest(Request[_MetadataRequest_v8]):  # type: ignore[misc]
    """Topics by name, which (unlike older versions of the request) creates none of them."""

    API_KEY = 3

    def __init__(self, topics: Sequence[str]) -> None:
        self._topics = list(topics)

    def build(self, request_struct_class: type[_MetadataRequest_v8]) -> _MetadataRequest_v8:
        return request_struct_class(self._topics, False, False, True)


class _DescribeGroupsRequest_v3(RequestStruct):  # type: ignore[misc] # noqa: N801
    API_KEY = 15
    API_VERSION = 3
    RESPONSE_TYPE = DescribeGroupsResponse_v3  # aiokafka reads the answer as if it were version 2
    SCHEMA = Schema(("groups", Array(String())), ("include_authorized_operations", Boolean))


class _GroupRequest(Request[_DescribeGroupsRequest_v3]):  # type: ignore[misc]
    API_KEY = DescribeGroupsRequest_v2.API_KEY

    def __init__(self, group: str) -> None:
        self._group = group

    def build(self, request_struct_class: type[_DescribeGroupsRequest_v3]) -> _DescribeGroupsRequest_v3:
        return request_struct_class([self._group], True)


async def check_rights(settings: Settings, roles: Iterable[str]) -> None:
    """Return when this process may do what ``roles`` do, as far as the broker tells.

    Raises:
        NotAuthorized: naming each operation and topic or group that is not allowed, and for which role.
        Unavailable: when no broker answers; worth trying again.
    """
    missing = {role: await missing_rights(settings, rights_of(role, settings)) for role in roles}
    lines = [f"{right} (for the {role} role)" for role, rights in missing.items() for right in rights]
    if lines:
        connection = settings.connection
        who = "this client" if connection.username is None else f"user {connection.username}"
        raise NotAuthorized(
            f"Kafka at {settings.kafka} does not allow {who}: {'; '.join(lines)}. What is needed is printed by: "
            f"tailrace topics acls {' '.join(f'--role {role}' for role, rights in missing.items() if rights)}"
        )


async def missing_rights(settings: Settings, rights: Sequence[Right]) -> list[Right]:
    """Those of ``rights`` that this client has not, in their order.

    Of a right on all names with a prefix, the resource of that very name is asked about. A topic that is not there is
    not missing a right: it is waited for elsewhere. None are missing where the broker does not tell.

    Raises:
        Unavailable: when no broker answers.
    """
    client = AIOKafkaAdminClient(**kafka_options(settings))
    try:
        await client.start()
        names = {
            kind: sorted({right.name for right in rights if right.resource == kind}) for kind in ("topic", "group")
        }
        allowed = {("topic", name): bits for name, bits in (await _topics(client, names["topic"])).items()}
        for name in names["group"]:
            allowed["group", name] = await _group(client, name)
    except (IncompatibleBrokerVersion, NotImplementedError):  # aiokafka: no version of the request that both know
        return []
    except (KafkaError, OSError) as error:
        raise no_broker(settings, error) from error
    finally:
        await close_client(client.close())
    return [
        right
        for right in rights
        if (bits := allowed[right.resource, right.name]) != _NOT_TOLD and not bits >> _CODES[right.operation] & 1
    ]


async def _topics(client: AIOKafkaAdminClient, names: Sequence[str]) -> dict[str, int]:
    """Operations allowed on each topic."""
    if not names:
        return {}
    response = await client._send_request(_TopicsRequest(names))
    found = {
        topic["topic"]: allowed_operations(topic["error_code"], topic["authorized_operations"])
        for topic in response.to_object()["topics"]
    }
    return {name: found.get(name, _NOT_TOLD) for name in names}


async def _group(client: AIOKafkaAdminClient, name: str) -> int:
    """Operations allowed on the group, which need not be there."""
    try:
        coordinator = await client.find_coordinator(name)
    except GroupAuthorizationFailedError:
        return 0
    response = await client._send_request(_GroupRequest(name), coordinator)
    (group,) = response.to_object()["groups"]
    return allowed_operations(group["error_code"], group["authorized_operations"])


def allowed_operations(error_code: int, operations: int) -> int:
    """The operations (bits as in the protocol's AclOperation) that an answer says are allowed; 0: none.

    An answer that is no refusal and leaves out Describe, without which there would be none, is of a broker that does
    not tell: they write the least number there is, or 0. So is any other error, as of a topic that is not there.
    """
    if error_code in (TopicAuthorizationFailedError.errno, GroupAuthorizationFailedError.errno):
        return 0
    told = error_code == 0 and bool(operations >> _CODES["Describe"] & 1)
    return operations if told else _NOT_TOLD
