"""The board is shown at every moment of a run, on a terminal or as plain lines, whatever the names of things are."""

from __future__ import annotations

import io
import math
from datetime import UTC, datetime

import pytest
from rich.console import Console

from schemas.messages import Interaction, Reason, Slate, SlateItem, Trigger, Versions
from stream_app.demo.display import Board, LiveDisplay, PlainDisplay, open_display
from stream_app.demo.scoreboard import Scoreboard

START = datetime(2026, 1, 1, tzinfo=UTC)
ODD = ["[/bold] LAMP [red]", "[", "WHITE [SET OF 3] 🕯", "薄荷茶 [link=x]"]


def story(scoreboard: Scoreboard, *items: str, offset: int = 0, user: str = "17850") -> None:
    event = Interaction(event_id=f"e{offset}", user_id=user, type="purchase", item_id=items[0], occurred_at=START)
    slate = Slate(
        slate_id="s",
        user_id=user,
        generated_at=START,
        items=[
            SlateItem(item_id=item, rank=rank, score=1.0, sources=["slow"], reason=Reason(code="c", text=f"as {item}"))
            for rank, item in enumerate(items, 1)
        ],
        trigger=Trigger(topic="t", partition=0, offset=offset, event_id=event.event_id, occurred_at=START),
        versions=Versions(space="s", index="i", ranker="r"),
    )
    scoreboard.sent(event, partition=0, offset=offset, at=1.0)
    scoreboard.received(slate, at=1.0123, since_start=1.0)


def live(width: int = 100) -> tuple[LiveDisplay, io.StringIO]:
    out = io.StringIO()
    return LiveDisplay(Console(file=out, force_terminal=True, width=width, height=40, color_system=None)), out


def test_plain_lines_with_nothing_yet_have_no_nan(capsys: pytest.CaptureFixture[str]):
    PlainDisplay().show(Board(Scoreboard()))
    line = capsys.readouterr().out
    assert "nan" not in line
    assert "catalogue 0/0 sent" in line


def test_plain_lines_carry_the_figures_and_the_story(capsys: pytest.CaptureFixture[str]):
    board = Board(Scoreboard(), items=10, items_sent=4, items_embedded=3, rate_in=99.6, lag=7, elapsed_s=12.34)
    story(board.scoreboard, *ODD)
    PlainDisplay().show(board)
    out = capsys.readouterr().out
    assert "catalogue 4/10 sent, 3 embedded" in out
    assert "in 100/s" in out
    assert "p50 12 ms p99 12 ms" in out
    assert "lag 7" in out
    assert "shopper 17850 bought [/bold] LAMP [red]; 12 ms later: " in out
    assert "WHITE [SET OF 3] 🕯 (as WHITE [SET OF 3] 🕯)" in out


def test_plain_lines_come_every_few_seconds_and_a_story_once(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    now = 100.0
    monkeypatch.setattr("stream_app.demo.display.time.monotonic", lambda: now)
    display, board = PlainDisplay(), Board(Scoreboard())
    story(board.scoreboard, "a")
    for _ in range(40):
        display.show(board)
        now += 0.25
    out = capsys.readouterr().out
    assert out.count("catalogue") == 2
    assert out.count("shopper") == 1


def test_the_first_plain_line_does_not_wait_on_a_machine_that_has_just_started(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("stream_app.demo.display.time.monotonic", lambda: 0.5)
    PlainDisplay().show(Board(Scoreboard()))
    assert "catalogue" in capsys.readouterr().out


@pytest.mark.parametrize("width", [20, 100])
def test_the_board_with_nothing_yet(width: int):
    display, out = live(width)
    with display:
        display.show(Board(Scoreboard(), history=[0.0]))
    assert "nan" not in out.getvalue()


def test_the_board_shows_names_as_they_are():
    display, out = live()
    board = Board(Scoreboard(), items=3, seconds=60, elapsed_s=99, stage="live", history=[3.0, 9.0, 4.0])
    story(board.scoreboard, *ODD, user="[/x] user")
    with display:
        display.say("worker said [/oops] [1]")
        display.show(board)
    text = out.getvalue()
    for name in (*ODD, "[/x] user", "worker said [/oops] [1]"):
        assert name in text


def test_a_plot_of_equal_or_missing_values_is_drawn():
    for history in ([5.0] * 20, [math.nan, 1.0, 2.0], [0.0, 0.0]):
        display, out = live()
        with display:
            display.show(Board(Scoreboard(), history=history))
        assert "event to slate" in out.getvalue()


def test_without_a_terminal_lines_are_plain(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("sys.stdout", io.StringIO())
    assert isinstance(open_display(), PlainDisplay)


def test_a_dumb_terminal_gets_plain_lines(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("TERM", "dumb")
    monkeypatch.setenv("FORCE_COLOR", "1")
    assert isinstance(open_display(), PlainDisplay)
