"""A record as it came from a topic: bytes and where they were."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

__all__ = ["InRecord"]


@dataclass(frozen=True, slots=True)
class InRecord:
    """``timestamp_s`` is the broker's append time (or the producer's clock where a topic says so), in seconds."""

    topic: str
    partition: int
    offset: int
    key: bytes | None
    value: bytes | None
    headers: Sequence[tuple[str, bytes]]
    timestamp_s: float

    @property
    def place(self) -> str:
        """Topic, partition and offset, for messages to people."""
        return f"{self.topic}[{self.partition}]@{self.offset}"

    @classmethod
    def from_faust(cls, event: Any) -> InRecord:
        """The record behind a Faust event of a raw topic."""
        message = event.message
        headers = message.headers or ()
        if isinstance(headers, dict):
            headers = tuple(headers.items())
        return cls(
            message.topic,
            message.partition,
            message.offset,
            message.key,
            message.value,
            headers,
            message.timestamp,
        )
