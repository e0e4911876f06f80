"""A broker and a Redis server as child processes, for the demo and the tests.

Nothing in the pipeline imports this package or depends on the embedded broker's quirks: it only hands out
addresses. The servers listen on loopback and end with the process that started them, even when that is killed.
"""

from stream_app.embedded.broker import EmbeddedBroker
from stream_app.embedded.kafka import ApacheKafka, install_kafka, kafka_missing
from stream_app.embedded.processes import ChildProcess, Command, Server, free_port
from stream_app.embedded.redis import EmbeddedRedis
from stream_app.embedded.stack import BrokerKind, EmbeddedStack

__all__ = [
    "ApacheKafka",
    "BrokerKind",
    "ChildProcess",
    "Command",
    "EmbeddedBroker",
    "EmbeddedRedis",
    "EmbeddedStack",
    "Server",
    "free_port",
    "install_kafka",
    "kafka_missing",
]
