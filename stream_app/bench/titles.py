"""Titles to embed: those of the shipped shop, as many as are wanted, each different."""

from __future__ import annotations

from collections.abc import Sequence

from schemas.messages import Item
from stream_app.datasets.online_retail import load_online_retail
from stream_app.textify import item_text

__all__ = ["made_up_items", "shipped_titles"]


def shipped_titles() -> list[str]:
    """The texts of the shipped Online Retail catalogue, as the encoder gets them: 3,862, about 7 tokens each."""
    return [item_text(item) for item in load_online_retail().items]


def made_up_items(titles: Sequence[str], count: int, *, price: float = 9.5) -> list[Item]:
    """``count`` items whose texts all differ: two titles and a number, some 16 tokens together (MiniLM's).

    The same arguments give the same items. ``price`` is not a part of the text.
    """
    found = []
    for number in range(count):
        one = titles[number % len(titles)]
        other = titles[(7 * number + number // len(titles)) % len(titles)]
        title = f"{one}, {other} {number}"
        found.append(Item(item_id=f"item-{number}", title=title, price=price, currency="GBP"))
    return found
