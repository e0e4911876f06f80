"""Apache Kafka as a child process: one node, broker and controller at once (KRaft)."""

from __future__ import annotations

import asyncio
import base64
import uuid
from pathlib import Path

from stream_app.embedded.kafka.install import find_jars, find_java, java_advice
from stream_app.embedded.probes import kafka_answers
from stream_app.embedded.processes import LOOPBACK, ChildProcess, Command, Server, free_port
from stream_app.errors import EmbeddedStackError

__all__ = ["ApacheKafka"]

_FORMAT_TIMEOUT_S = 60.0


class ApacheKafka(Server):
    """Apache Kafka on loopback; its data is in ``directory`` and outlives restarts and kills.

    ``jars`` None looks where :func:`~stream_app.embedded.kafka.install.default_jars_directory` says. ``heap_mb``
    is the JVM's largest heap (MiB); the process takes about as much again at rest. ``proxied_at`` (``host:port``) is
    where clients of a second listener, :attr:`proxied_address`, are sent: a proxy in front of it sees all they say.
    """

    name = "Apache Kafka"
    start_timeout_s = 60.0
    stop_grace_s = 20.0
    probe_interval_s = 0.05

    def __init__(
        self, *, directory: Path, jars: Path | None = None, heap_mb: int = 512, proxied_at: str | None = None
    ) -> None:
        super().__init__(directory=directory)
        self.proxied_at = proxied_at
        self._proxied_port = 0
        self.jars = jars
        self.heap_mb = heap_mb
        self._controller_port = 0

    @property
    def _data(self) -> Path:
        return self.directory / "data"

    @property
    def _properties(self) -> Path:
        return self.directory / "server.properties"

    def _choose_ports(self) -> None:
        super()._choose_ports()
        self._controller_port = free_port()
        self._proxied_port = free_port()

    @property
    def proxied_address(self) -> str:
        """``host:port`` of the listener behind ``proxied_at``."""
        return f"{LOOPBACK}:{self._proxied_port}"

    def _java(self, *arguments: str) -> Command:
        jars = find_jars(self.jars).absolute()
        return Command(
            argv=[
                str(find_java()),
                "-XX:+UseSerialGC",  # one small heap: the collector with the fewest threads
                # The second compiler takes a third of a core for minutes, for a broker that lives for minutes.
                "-XX:TieredStopAtLevel=1",
                "-XX:-UsePerfData",  # no file in the temporary directory that a kill leaves behind
                "-XX:+ExitOnOutOfMemoryError",
                "-Djava.awt.headless=true",
                "-Dorg.slf4j.simpleLogger.defaultLogLevel=warn",
                *("-cp", f"{jars}/*"),
                *arguments,
            ],
            cwd=self.directory,
        )

    def _command(self) -> Command:
        return self._java(
            f"-Xms{min(256, self.heap_mb)}m", f"-Xmx{self.heap_mb}m", "kafka.Kafka", str(self._properties)
        )

    async def _answers(self) -> bool:
        return await kafka_answers(self.address)

    def _advice(self, process: ChildProcess) -> str:
        return java_advice(process.output())

    async def _prepare(self) -> None:
        self._properties.write_text(
            "".join(f"{name}={value}\n" for name, value in self._configuration().items()), encoding="utf-8"
        )
        if (self._data / "meta.properties").exists():
            return
        cluster = base64.urlsafe_b64encode(uuid.uuid4().bytes).rstrip(b"=").decode()
        process = ChildProcess(
            self._java(
                # A run of half a second: do not spend it on optimising.
                *("-XX:TieredStopAtLevel=1", "kafka.tools.StorageTool"),
                # --cluster-id=ID in one word: a random id may begin with a dash.
                *("format", f"--cluster-id={cluster}", "--config", str(self._properties)),
            ),
            name=f"{self.name}: formatting its storage",
        )
        try:
            status = await asyncio.to_thread(process.wait, _FORMAT_TIMEOUT_S)
        finally:
            process.kill()
        if status != 0:
            raise EmbeddedStackError(
                f"{self.name} could not format {self._data} (exit status {status}). "
                f"{self._advice(process)}Its output:\n{process.output()}"
            )

    def _configuration(self) -> dict[str, str]:
        proxied = self.proxied_at is not None
        return {
            "process.roles": "broker,controller",
            "node.id": "1",
            # Static voters: their addresses are not written into the data, so another start may use other ports.
            "controller.quorum.voters": f"1@{LOOPBACK}:{self._controller_port}",
            "listeners": f"PLAINTEXT://{self.address},CONTROLLER://{LOOPBACK}:{self._controller_port}"
            + (f",PROXIED://{self.proxied_address}" if proxied else ""),
            "advertised.listeners": f"PLAINTEXT://{self.address}"
            + (f",PROXIED://{self.proxied_at}" if proxied else ""),
            "controller.listener.names": "CONTROLLER",
            "inter.broker.listener.name": "PLAINTEXT",
            "listener.security.protocol.map": "PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT,PROXIED:PLAINTEXT",
            "log.dirs": str(self._data),
            # As careful clusters have it: a topic nobody declared is a mistake, and should fail.
            "auto.create.topics.enable": "false",
            "default.replication.factor": "1",
            "offsets.topic.replication.factor": "1",
            "offsets.topic.num.partitions": "4",
            "transaction.state.log.replication.factor": "1",
            "transaction.state.log.min.isr": "1",
            "transaction.state.log.num.partitions": "4",
            "share.coordinator.state.topic.replication.factor": "1",
            "share.coordinator.state.topic.min.isr": "1",
            "share.coordinator.state.topic.num.partitions": "4",
            "group.initial.rebalance.delay.ms": "0",
            # The broker that was killed is forgotten after this long, and only then may it come back.
            "broker.session.timeout.ms": "1500",
            "broker.heartbeat.interval.ms": "300",
            # One machine, shared with the clients.
            "num.network.threads": "1",
            "num.io.threads": "2",
            "log.cleaner.dedupe.buffer.size": str(16 * 1_024 * 1_024),
            "log.cleaner.backoff.ms": "1000",
            "log.segment.bytes": str(64 * 1_024 * 1_024),
        }
