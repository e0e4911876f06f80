"""Which texts share a batch. Padding is wasted work, so texts of like length go together; pure functions."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

__all__ = ["estimated_tokens", "like_length", "split_by_length", "tokens_at_once"]

_BYTES_PER_TOKEN = 4
_SPECIAL_TOKENS = 2
_TOKENS_CPU = 512
"""32 titles of 16 tokens. Twice as many are 5 % faster and take twice as long (a core each, MiniLM: 36 and 68 ms)."""
_TOKENS_GPU = 16_384


def estimated_tokens(utf8_bytes: int, most: int) -> int:
    """About how many tokens a text of ``utf8_bytes`` has for a model that reads at most ``most`` of them.

    Only the encoder process tokenizes; a batch is chosen before. Four bytes a token fits English titles, and scripts
    of three bytes a character, whose tokens are a character or two.
    """
    return min(most, utf8_bytes // _BYTES_PER_TOKEN + _SPECIAL_TOKENS)


def tokens_at_once(device: str) -> int:
    """How many tokens, padding included, are best computed at once on a device of this type."""
    return _TOKENS_GPU if device.startswith("cuda") else _TOKENS_CPU


def split_by_length(lengths: Sequence[int], *, rows: int, tokens: int) -> Iterator[list[int]]:
    """Indices of ``lengths`` (tokens), shortest first, in batches of at most ``rows`` texts and ``tokens`` tokens.

    Padding counts: a batch has as many tokens as its texts times the longest; a single longer text is a batch. A batch
    ends early when a text is more than twice and 16 tokens longer than the batch's first: the padding would cost more
    than another call does.
    """
    batch: list[int] = []
    for index in sorted(range(len(lengths)), key=lengths.__getitem__):
        full = len(batch) >= rows or (len(batch) + 1) * lengths[index] > tokens
        if batch and (full or lengths[index] > 2 * lengths[batch[0]] + 16):
            yield batch
            batch = []
        batch.append(index)
    if batch:
        yield batch


def like_length(lengths: Sequence[int], count: int, tokens: int) -> list[int]:
    """The indices of texts of like length, the first text among them, in ascending order of index.

    At most ``count`` texts, and at most ``tokens`` tokens with padding (each text counts as long as the longest); the
    first text is taken whatever its length. It is the one that waits longest, so no text waits for ever for company of
    its length. From there the texts nearest in length are added one by one.
    """
    order = sorted(range(len(lengths)), key=lengths.__getitem__)
    low = high = order.index(0)
    for size in range(2, min(count, len(order)) + 1):
        longest = lengths[order[high]]
        takes_shorter = low > 0 and size * longest <= tokens
        takes_longer = high + 1 < len(order) and size * lengths[order[high + 1]] <= tokens
        if takes_shorter and takes_longer:
            takes_longer = lengths[order[high + 1]] - lengths[0] < lengths[0] - lengths[order[low - 1]]
        if takes_longer:
            high += 1
        elif takes_shorter:
            low -= 1
        else:
            break
    return sorted(order[low : high + 1])
