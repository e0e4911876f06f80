"""What the demo shows: a live board on a terminal, plain lines everywhere else."""

from __future__ import annotations

import math
import sys
import time
from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from types import TracebackType
from typing import Self

from rich.align import Align
from rich.console import Console, Group
from rich.live import Live
from rich.panel import Panel
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from stream_app.demo.scoreboard import Scoreboard, Shown

__all__ = ["Board", "Display", "LiveDisplay", "PlainDisplay", "open_display"]

_PLAIN_EVERY_S = 5.0
_SPARK = "▁▂▃▄▅▆▇█"


@dataclass(slots=True)
class Board:
    """What is shown at one moment; ``history`` holds the latest p50s for the little plot."""

    scoreboard: Scoreboard
    stage: str = "starting"
    items: int = 0
    items_sent: int = 0
    items_embedded: int = 0
    rate_in: float = 0.0
    rate_out: float = 0.0
    lag: int = 0
    dead_letters: int = 0
    elapsed_s: float = 0.0
    seconds: float | None = None
    history: list[float] = field(default_factory=list)


class Display(ABC):
    """Where the demo shows itself; use with ``with``."""

    @abstractmethod
    def say(self, line: str) -> None:
        """One line that stays."""

    @abstractmethod
    def show(self, board: Board) -> None:
        """The state of things now; called a few times a second."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        return None


def open_display() -> Display:
    """A live display on a terminal, plain lines otherwise."""
    console = Console()
    return LiveDisplay(console) if console.is_terminal and not console.is_dumb_terminal else PlainDisplay()


class PlainDisplay(Display):
    """A line every few seconds."""

    def __init__(self) -> None:
        self._shown_at: float | None = None
        self._story: Shown | None = None

    def say(self, line: str) -> None:
        sys.stdout.write(line + "\n")
        sys.stdout.flush()

    def show(self, board: Board) -> None:
        now = time.monotonic()
        if self._shown_at is not None and now - self._shown_at < _PLAIN_EVERY_S:
            return
        self._shown_at = now
        score = board.scoreboard
        p50, p99 = score.freshness()
        hits = score.hit_rate
        self.say(
            f"{board.elapsed_s:6.1f} s  {board.stage}: catalogue {board.items_sent}/{board.items} sent, "
            f"{board.items_embedded} embedded; in {board.rate_in:.0f}/s, slates {board.rate_out:.0f}/s, "
            f"freshness p50 {_whole(p50)} ms p99 {_whole(p99)} ms, lag {board.lag}, "
            f"hit rate@10 {hits.slates:.3f} (popularity {hits.popularity:.3f}, {hits.tests} tests)"
        )
        shown = score.last_shown
        if shown is not None and shown is not self._story:
            self._story = shown
            best = "; ".join(f"{item.item_id} ({item.reason.text})" for item in shown.slate.items[:3])
            self.say(
                f"          shopper {shown.event.user_id} bought {shown.event.item_id}; "
                f"{shown.after_ms:.0f} ms later: {best}"
            )


class LiveDisplay(Display):
    """A board that is drawn over."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._live = Live(console=console, refresh_per_second=5, transient=False)

    def __enter__(self) -> Self:
        self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._live.stop()

    def say(self, line: str) -> None:
        self._console.print(line, highlight=False, markup=False)

    def show(self, board: Board) -> None:
        self._live.update(Group(self._catalogue(board), self._figures(board), self._story(board)))

    def _catalogue(self, board: Board) -> Panel:
        table = Table.grid(padding=(0, 1), expand=True)
        table.add_column(width=22)
        table.add_column(ratio=1)
        table.add_column(justify="right", width=13)
        for name, done in (("catalogue sent", board.items_sent), ("catalogue embedded", board.items_embedded)):
            bar = ProgressBar(total=max(board.items, 1), completed=done, complete_style="cyan", finished_style="green")
            table.add_row(name, bar, f"{done}/{board.items}")
        if board.seconds:
            bar = ProgressBar(total=board.seconds, completed=min(board.elapsed_s, board.seconds))
            table.add_row("time", bar, f"{board.elapsed_s:.0f}/{board.seconds:.0f} s")
        return Panel(table, title=Text(f"Tailrace demo · {board.stage}"), border_style="cyan")

    def _figures(self, board: Board) -> Panel:
        score = board.scoreboard
        p50, p99 = score.freshness()
        hits = score.hit_rate
        table = Table.grid(padding=(0, 3), expand=True)
        for _ in range(5):
            table.add_column(justify="center", ratio=1)
        table.add_row(
            _figure(f"{board.rate_in:,.0f}/s", f"events in ({score.events_in:,})"),
            _figure(f"{board.rate_out:,.0f}/s", f"slates out ({score.slates_out:,})"),
            _figure(f"{_whole(p50)} / {_whole(p99)} ms", f"event to slate p50 / p99 {_spark(board.history)}"),
            _figure(f"{board.lag:,}", "lag (events)"),
            _figure(f"{board.dead_letters:,}", "dead letters"),
        )
        rates = Table.grid(padding=(0, 1), expand=True)
        rates.add_column(width=42)
        rates.add_column(ratio=1)
        rates.add_column(width=8, justify="right")
        scale = max(hits.slates, hits.popularity, 0.02)
        for name, value, style in (
            ("bought from the slate shown before", hits.slates, "green"),
            ("in the popularity top 10 instead", hits.popularity, "yellow"),
        ):
            rates.add_row(name, ProgressBar(total=scale, completed=value, complete_style=style), f"{value:.3f}")
        return Panel(Group(table, Text(), rates), title=f"live · hit rate@10 over {hits.tests:,} tests")

    def _story(self, board: Board) -> Panel:
        shown = board.scoreboard.last_shown
        if shown is None:
            return Panel(Align.center(Text("waiting for the first slate", style="dim")), title="one shopper")
        table = Table.grid(padding=(0, 2))
        table.add_column(justify="right", style="dim")
        table.add_column(no_wrap=True)
        table.add_column(style="italic", no_wrap=True, overflow="ellipsis")
        for item in shown.slate.items[:8]:
            # As Text: names of things may hold brackets, which a plain string would be read as markup for.
            table.add_row(str(item.rank), Text(item.item_id), Text(item.reason.text))
        title = Text(f"shopper {shown.event.user_id} · {shown.event.type} · {shown.event.item_id}")
        return Panel(table, title=title, subtitle=f"slate {shown.after_ms:.0f} ms later, and why")


def _figure(value: str, caption: str) -> Text:
    return Text.assemble((value + "\n", "bold"), (caption, "dim"), justify="center")


def _whole(value: float) -> str:
    """Without decimals; a dash where there is nothing yet (NaN)."""
    return "-" if math.isnan(value) else f"{value:.0f}"


def _spark(values: list[float]) -> str:
    tail = [value for value in values[-12:] if not math.isnan(value)]
    if len(tail) < 2:
        return ""
    low, high = min(tail), max(tail)
    return "".join(_SPARK[int((value - low) / (high - low + 1e-9) * (len(_SPARK) - 1))] for value in tail)
