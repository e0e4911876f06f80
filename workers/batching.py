"""Which texts share a batch. Padding is wasted work, so texts of like length go together; pure functions."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

__all__ = ["like_length", "split_by_length"]


def split_by_length(lengths: Sequence[int], *, rows: int) -> Iterator[list[int]]:
    """Indices of ``lengths`` (tokens), shortest first, in batches of at most ``rows``.

    A batch ends early when a text is more than twice and 16 tokens longer than the batch's first: the padding would
    cost more than another call does.
    """
    batch: list[int] = []
    for index in sorted(range(len(lengths)), key=lengths.__getitem__):
        if batch and (len(batch) >= rows or lengths[index] > 2 * lengths[batch[0]] + 16):
            yield batch
            batch = []
        batch.append(index)
    if batch:
        yield batch


def like_length(lengths: Sequence[int], count: int) -> list[int]:
    """The indices of ``count`` texts of like length, the first text among them, in ascending order of index.

    The first is the one that waits longest: it is always taken, so no text waits for ever for company of its length.
    """
    if len(lengths) <= count:
        return list(range(len(lengths)))
    order = sorted(range(len(lengths)), key=lengths.__getitem__)
    start = min(max(order.index(0) - count // 2, 0), len(order) - count)
    return sorted(order[start : start + count])
