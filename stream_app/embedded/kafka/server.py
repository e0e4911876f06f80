"""Apache Kafka as a child process: one node, broker and controller at once (KRaft)."""

from __future__ import annotations

import asyncio
import base64
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from stream_app.embedded.kafka.install import find_jars, find_java, java_advice
from stream_app.embedded.probes import kafka_answers
from stream_app.embedded.processes import LOOPBACK, ChildProcess, Command, Server, free_port
from stream_app.errors import EmbeddedStackError

__all__ = ["ApacheKafka", "Protection"]

_FORMAT_TIMEOUT_S = 60.0


@dataclass(frozen=True, kw_only=True)
class Protection:
    """Further listeners and rules of a broker, to see how Tailrace does on one that is not open to everybody.

    Attributes:
        listeners: security protocol by name, for example ``{"SCRAM": "SASL_SSL"}``; names are capitals.
        properties: further lines of ``server.properties``, or other values for those that are there.
        users: SCRAM users that are there when the storage is formatted: password by name, without commas, brackets
            or equals signs.
        java_options: for the JVM.
    """

    listeners: Mapping[str, str]
    properties: Mapping[str, str] = field(default_factory=dict)
    users: Mapping[str, str] = field(default_factory=dict)
    java_options: Sequence[str] = ()


class ApacheKafka(Server):
    """Apache Kafka on loopback; its data is in ``directory`` and outlives restarts and kills.

    ``jars`` None looks where :func:`~stream_app.embedded.kafka.install.default_jars_directory` says. ``heap_mb``
    is the JVM's largest heap (MiB); the process takes about as much again at rest. ``protection`` None leaves the
    broker open to everybody on this machine; with one, :attr:`address` still is. ``proxied_at`` (``host:port``) is
    where clients of a further listener, :attr:`proxied_address`, are sent: a proxy in front of it sees all they say.
    """

    name = "Apache Kafka"
    start_timeout_s = 60.0
    stop_grace_s = 20.0
    probe_interval_s = 0.05

    def __init__(
        self,
        *,
        directory: Path,
        jars: Path | None = None,
        heap_mb: int = 512,
        protection: Protection | None = None,
        proxied_at: str | None = None,
    ) -> None:
        super().__init__(directory=directory)
        self.proxied_at = proxied_at
        self._proxied_port = 0
        self.jars = jars
        self.heap_mb = heap_mb
        self.protection = protection
        self.listeners: dict[str, str] = {}
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
        names = () if self.protection is None else self.protection.listeners
        self.listeners = {name: f"{LOOPBACK}:{free_port()}" for name in names}
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
            *(() if self.protection is None else self.protection.java_options),
            *(f"-Xms{min(256, self.heap_mb)}m", f"-Xmx{self.heap_mb}m", "kafka.Kafka", str(self._properties)),
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
        users = {} if self.protection is None else self.protection.users
        cluster = base64.urlsafe_b64encode(uuid.uuid4().bytes).rstrip(b"=").decode()
        process = ChildProcess(
            self._java(
                # A run of half a second: do not spend it on optimising.
                *("-XX:TieredStopAtLevel=1", "kafka.tools.StorageTool"),
                # --cluster-id=ID in one word: a random id may begin with a dash.
                *("format", f"--cluster-id={cluster}", "--config", str(self._properties)),
                *(f"--add-scram=SCRAM-SHA-512=[name={name},password={password}]" for name, password in users.items()),
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
        protection = self.protection or Protection(listeners={})
        further = [f"{name}://{address}" for name, address in self.listeners.items()]
        advertised = list(further)
        protocols = [f"{name}:{protocol}" for name, protocol in protection.listeners.items()]
        if self.proxied_at is not None:
            further.append(f"PROXIED://{self.proxied_address}")
            advertised.append(f"PROXIED://{self.proxied_at}")
            protocols.append("PROXIED:PLAINTEXT")
        return {
            "process.roles": "broker,controller",
            "node.id": "1",
            # Static voters: their addresses are not written into the data, so another start may use other ports.
            "controller.quorum.voters": f"1@{LOOPBACK}:{self._controller_port}",
            "listeners": ",".join(
                [f"PLAINTEXT://{self.address}", f"CONTROLLER://{LOOPBACK}:{self._controller_port}", *further]
            ),
            "advertised.listeners": ",".join([f"PLAINTEXT://{self.address}", *advertised]),
            "controller.listener.names": "CONTROLLER",
            "inter.broker.listener.name": "PLAINTEXT",
            "listener.security.protocol.map": ",".join(["PLAINTEXT:PLAINTEXT", "CONTROLLER:PLAINTEXT", *protocols]),
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
            **protection.properties,
        }
