"""Which partition owns an item. Ours, not the client's default, so that both item topics agree in every language."""

from __future__ import annotations

from zlib import crc32

__all__ = ["item_partition"]


def item_partition(item_id: str, partitions: int) -> int:
    """The partition of ``transitions.v1`` and ``item-signals.v1`` that owns ``item_id``: CRC-32 of its UTF-8 bytes."""
    return crc32(item_id.encode("utf-8", "surrogatepass")) % partitions
