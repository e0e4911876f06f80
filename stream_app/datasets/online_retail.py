"""UCI Online Retail (a UK gift shop, December 2010 to December 2011) in the contract.

* Item: one per distinct description; the stripped description is both id and title, in the shop's capitals.
  ``price`` is the median of the prices it was sold at (the lower one of two), ``currency`` GBP.
* Interaction: one ``purchase`` per invoice line, repeat purchases too, in the order of the source. ``event_id`` is
  ``<invoice>-<line>``, counted from 1 within the invoice over the lines kept; ``session_id`` is the invoice,
  ``value`` the unit price in pounds, ``occurred_at`` the invoice's time taken as UTC.

All purchases are events; an evaluation tests the first purchase of an item by a user only.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from statistics import median_low
from typing import Final

from schemas.messages import Interaction, Item
from stream_app.datasets.dataset import Dataset
from stream_app.datasets.online_retail_source import Invoice, read_packed, read_raw

__all__ = ["PACKED_FILE", "load_online_retail"]

PACKED_FILE: Final = Path(__file__).resolve().parent.parent / "data" / "online_retail.jsonl.zst"
"""The shipped copy; see ``stream_app/data/README.md`` for its licence."""


def load_online_retail(raw: Path | None = None) -> Dataset:
    """The data set, from the file shipped with Tailrace or from the original table ``raw`` (CSV, may be ``.zst``).

    Both give the same items and interactions.

    Raises:
        DatasetError: when the file cannot be read; names the line.
    """
    if raw is not None:
        return _dataset(lambda: read_raw(raw))
    return _dataset(lambda: read_packed(PACKED_FILE))


def _dataset(invoices: Callable[[], Iterable[Invoice]]) -> Dataset:
    prices: defaultdict[str, list[float]] = defaultdict(list)
    for invoice in invoices():
        for line in invoice.lines:
            prices[line.description].append(line.price)
    return Dataset(
        name="online-retail",
        items=[_item(name, sold_at) for name, sold_at in prices.items()],
        interactions=_Purchases(invoices),
        interaction_count=sum(map(len, prices.values())),
    )


def _item(description: str, sold_at: list[float]) -> Item:
    paid = [price for price in sold_at if price > 0]  # 34 lines are gifts at 0
    return Item(
        item_id=description,
        title=description,
        price=median_low(paid) if paid else None,
        currency="GBP" if paid else None,
        language="en",
    )


@dataclass(frozen=True)
class _Purchases:
    """Purchases read anew from the source each time they are iterated."""

    invoices: Callable[[], Iterable[Invoice]]

    def __iter__(self) -> Iterator[Interaction]:
        lines_so_far: Counter[str] = Counter()
        for invoice in self.invoices():
            first = lines_so_far[invoice.number] + 1
            lines_so_far[invoice.number] += len(invoice.lines)
            for number, line in enumerate(invoice.lines, start=first):
                yield Interaction(
                    event_id=f"{invoice.number}-{number}",
                    user_id=invoice.customer,
                    type="purchase",
                    occurred_at=invoice.at,
                    item_id=line.description,
                    value=line.price,
                    quantity=float(line.quantity),
                    session_id=invoice.number,
                )
