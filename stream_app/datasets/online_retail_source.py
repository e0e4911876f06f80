"""Reading the UCI Online Retail table, and packing what Tailrace needs of it into a small file.

The table (D. Chen, 2015, doi 10.24432/C5BW33, CC BY 4.0) has one row per invoice line of a UK gift shop, December
2010 to December 2011, 541,909 rows. Kept are the rows with a customer and a positive quantity (cancellations have a
negative one) that are not a service (:data:`SERVICES`): 396,386 rows.

The packed file is JSON lines, compressed with Zstandard: a header with the distinct descriptions, then one line per
run of rows with the same invoice, time and customer, referring to descriptions by number. It holds every column
that is used, in the order of the source, in a third of the source's size.
"""

from __future__ import annotations

import csv
import io
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import groupby
from pathlib import Path
from typing import IO, Final

import msgspec
import zstandard

from stream_app.errors import DatasetError

__all__ = [
    "PACKED_FORMAT",
    "SERVICES",
    "Header",
    "Invoice",
    "Line",
    "pack",
    "read_packed",
    "read_packed_header",
    "read_raw",
]

SERVICES: Final = frozenset({"POSTAGE", "DOTCOM POSTAGE", "CARRIAGE", "Manual", "Discount"})
"""Descriptions that are not goods."""

PACKED_FORMAT: Final = "tailrace/online-retail/1"

_COLUMNS: Final = ("InvoiceNo", "Description", "Quantity", "InvoiceDate", "UnitPrice", "CustomerID")
_LONGEST_LINE: Final = 1_048_576


@dataclass(frozen=True, slots=True)
class Line:
    """One line of an invoice; ``price`` is per unit, in pounds."""

    description: str
    quantity: int
    price: float


@dataclass(frozen=True, slots=True)
class Invoice:
    """Neighbouring rows with the same number, time and customer. A few numbers come twice, a minute apart."""

    number: str
    at: datetime
    customer: str
    lines: tuple[Line, ...]


class Header(msgspec.Struct, frozen=True, kw_only=True):
    """First line of the packed file."""

    format: str
    source: str
    licence: str
    rows: int
    descriptions: list[str]


class _PackedInvoice(msgspec.Struct, frozen=True, array_like=True):
    number: str
    at: str
    customer: str
    lines: list[tuple[int, int, float]]


def read_raw(path: Path) -> Iterator[Invoice]:
    """The kept rows of the table at ``path`` (``.csv`` or ``.csv.zst``), in the file's order, which is time order.

    Descriptions are stripped at both ends; inner double spaces stay, because they tell eight pairs of items apart.
    Times have no zone in the source and are taken as UTC.

    Raises:
        DatasetError: naming the file and the line.
    """
    rows = _raw_rows(path)
    for (number, at, customer), group in groupby(rows, key=lambda row: (row.number, row.at, row.customer)):
        yield Invoice(number, at, customer, tuple(row.line for row in group))


def read_packed_header(path: Path) -> Header:
    """The first line of a packed file.

    Raises:
        DatasetError: when the file is not there or not a packed file.
    """
    with _open_text(path) as file:
        return _header(file, path)


def read_packed(path: Path) -> Iterator[Invoice]:
    """The invoices of a packed file.

    Raises:
        DatasetError: when the file is not there or not a packed file.
    """
    decoder = msgspec.json.Decoder(_PackedInvoice)
    with _open_text(path) as file:
        header = _header(file, path)
        names, rows = header.descriptions, 0
        for number, text in enumerate(file, start=2):
            try:
                packed = decoder.decode(text)
                lines = tuple(Line(names[index], quantity, price) for index, quantity, price in packed.lines)
                at = datetime.fromisoformat(packed.at).replace(tzinfo=UTC)
            except (msgspec.MsgspecError, ValueError, IndexError) as error:
                raise DatasetError(f"{path}, line {number:,}: {error}") from error
            rows += len(lines)
            yield Invoice(packed.number, at, packed.customer, lines)
        if rows != header.rows:
            raise DatasetError(f"{path}: ends early: {rows:,} of {header.rows:,} rows; fetch the file again")


def pack(raw: Path, target: Path) -> int:
    """Write the packed form of the table ``raw`` to ``target``; the number of rows in it."""
    invoices = list(read_raw(raw))
    numbers: dict[str, int] = {}
    for invoice in invoices:
        for line in invoice.lines:
            numbers.setdefault(line.description, len(numbers))
    rows = sum(len(invoice.lines) for invoice in invoices)
    header = Header(
        format=PACKED_FORMAT,
        source="UCI Online Retail, D. Chen (2015), doi 10.24432/C5BW33",
        licence="CC BY 4.0, https://creativecommons.org/licenses/by/4.0/",
        rows=rows,
        descriptions=list(numbers),
    )
    encode = msgspec.json.encode
    text = b"\n".join(
        [encode(header)]
        + [
            encode(
                _PackedInvoice(
                    invoice.number,
                    invoice.at.strftime("%Y-%m-%dT%H:%M:%S"),
                    invoice.customer,
                    [(numbers[line.description], line.quantity, line.price) for line in invoice.lines],
                )
            )
            for invoice in invoices
        ]
    )
    target.write_bytes(zstandard.ZstdCompressor(level=22).compress(text + b"\n"))
    return rows


@dataclass(frozen=True, slots=True)
class _Row:
    number: str
    at: datetime
    customer: str
    line: Line


def _raw_rows(path: Path) -> Iterator[_Row]:
    with _open_text(path) as file:
        reader = csv.reader(file)
        header = next(reader, [])
        missing = [name for name in _COLUMNS if name not in header]
        if missing:
            raise DatasetError(
                f"{path}: this is not the Online Retail table: no column {', '.join(missing)} (found: {header[:12]})"
            )
        number, description, quantity, at, price, customer = (header.index(name) for name in _COLUMNS)
        for row in reader:
            try:
                name = row[description].strip()
                count = int(row[quantity])
                if not row[customer] or count <= 0 or not name or name in SERVICES:
                    continue
                yield _Row(
                    row[number],
                    datetime.fromisoformat(row[at]).replace(tzinfo=UTC),
                    row[customer].removesuffix(".0"),
                    Line(name, count, float(row[price])),
                )
            except (ValueError, IndexError) as error:
                raise DatasetError(f"{path}, line {reader.line_num:,}: {error}") from error


@contextmanager
def _open_text(path: Path) -> Iterator[IO[str]]:
    try:
        raw: IO[bytes] = path.open("rb")
    except OSError as error:
        raise DatasetError(f"{path}: {error.strerror or error}; is the path right?") from error
    with raw:
        stream = zstandard.ZstdDecompressor().stream_reader(raw) if path.suffix == ".zst" else raw
        try:
            with io.TextIOWrapper(stream, encoding="utf-8", newline="") as text:
                yield text
        except (zstandard.ZstdError, UnicodeDecodeError, csv.Error) as error:
            raise DatasetError(f"{path}: cannot be read: {error}") from error


def _header(file: IO[str], path: Path) -> Header:
    try:
        header = msgspec.json.decode(file.readline(_LONGEST_LINE), type=Header)
    except msgspec.MsgspecError as error:
        raise DatasetError(f"{path}: not a packed Online Retail file: {error}") from error
    if header.format != PACKED_FORMAT:
        raise DatasetError(f"{path}: format {header.format!r}, this release reads {PACKED_FORMAT!r}")
    return header


if __name__ == "__main__":
    source, destination = map(Path, sys.argv[1:])
    sys.stdout.write(f"{pack(source, destination):,} rows, {destination.stat().st_size:,} bytes\n")
