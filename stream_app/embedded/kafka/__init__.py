"""Apache Kafka itself as a child process, run from jars by the JVM that is there.

``tailrace kafka install`` fetches the jars with Maven; see :mod:`stream_app.embedded.kafka.install`.
"""

from stream_app.embedded.kafka.install import KAFKA_VERSION, default_jars_directory, install_kafka, kafka_missing
from stream_app.embedded.kafka.server import ApacheKafka, Protection

__all__ = ["KAFKA_VERSION", "ApacheKafka", "Protection", "default_jars_directory", "install_kafka", "kafka_missing"]
