"""What the benchmark commands share: options, tables, and the file of figures."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import click

__all__ = ["json_option", "numbers", "print_lines", "seed_option", "write_lines"]

json_option = click.option(
    "--json", "json_file", type=click.Path(dir_okay=False, path_type=Path), help="Write the figures here, as a list."
)
seed_option = click.option(
    "--seed", default=0, show_default=True, type=click.IntRange(0, 2**32 - 1), help="Of the made-up shop."
)
_MOST_NUMBERS = 20


def numbers(option: str, given: str, *, least: float, most: float, whole: bool = False) -> list[float]:
    """The numbers of a comma separated list.

    Raises:
        click.UsageError: when one is not a number, or out of bounds; says what is allowed.
    """
    try:
        found = [float(int(part)) if whole else float(part) for part in given.split(",")]
    except ValueError:
        found = []
    if not found or len(found) > _MOST_NUMBERS or not all(math.isfinite(x) and least <= x <= most for x in found):
        kind = "whole numbers" if whole else "numbers"
        raise click.UsageError(
            f"{option} {given!r}: {kind} from {least:,g} to {most:,.0f}, comma separated, at most {_MOST_NUMBERS}"
        )
    return found


def print_lines(title: str, lines: Sequence[Mapping[str, Any]]) -> None:
    """A table of figures, one column per line and one row per figure: there are more figures than lines."""
    from rich.table import Table

    from stream_app.cli.console import output

    table = Table(title=title, show_header=False)
    names = list(dict.fromkeys(name for line in lines for name in line if name != "benchmark"))
    for justify in ("left", *("right" for _ in lines)):
        table.add_column(justify=justify)  # type: ignore[arg-type]
    for name in names:
        values = [line.get(name) for line in lines]
        parts = dict.fromkeys(part for value in values if isinstance(value, dict) for part in value)
        table.add_row(name, *("" if isinstance(value, dict) else _shown(value) for value in values))
        for part in parts:
            of_lines = [value.get(part) if isinstance(value, dict) else None for value in values]
            table.add_row(f"  {part}", *map(_shown, of_lines))
    output().print(table)


def _shown(value: Any) -> str:
    if value is None:
        return ""
    return f"{value:,}" if isinstance(value, int | float) else str(value)


def write_lines(json_file: Path | None, lines: Sequence[Mapping[str, Any]]) -> None:
    """Write the figures; ends the command with status 2 where that fails."""
    if json_file is None:
        return
    import orjson

    from stream_app.cli.console import errors
    from stream_app.cli.evaluate import written

    if not written(errors(), json_file, lambda: orjson.dumps(list(lines), option=orjson.OPT_INDENT_2) + b"\n"):
        raise SystemExit(2)
