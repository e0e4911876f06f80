"""Logs: lines that repeat are held back and counted, in bounded memory; every line is one JSON object; no secrets."""

from __future__ import annotations

import logging

import pytest
from redis.asyncio import Redis

from stream_app.logs import RepeatFilter, configure_logs, get_logger
from stream_app.settings import LogSettings, load_settings
from tests.conftest import Written


class Clock:
    """Stands in for the ``time`` module of ``stream_app.logs``."""

    def __init__(self) -> None:
        self.now = 1_000.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr("stream_app.logs.time", clock)
    return clock


def record(message: object, *args: object, name: str = "aiokafka") -> logging.LogRecord:
    return logging.LogRecord(name, logging.ERROR, "f", 1, message, args, None)  # type: ignore[arg-type]


def test_a_template_passes_once_per_interval_whatever_its_arguments(clock: Clock):
    repeats = RepeatFilter(interval_s=30)
    assert repeats.filter(record("cannot reach node %s", 1))
    assert not repeats.filter(record("cannot reach node %s", 2))
    clock.now += 29.9
    assert not repeats.filter(record("cannot reach node %s", 3))


def test_other_templates_and_other_loggers_pass(clock: Clock):
    repeats = RepeatFilter()
    assert repeats.filter(record("a"))
    assert repeats.filter(record("b"))
    assert repeats.filter(record("a", name="faust"))


def test_what_was_held_back_is_counted_in_the_next_line(clock: Clock):
    repeats = RepeatFilter(interval_s=30)
    repeats.filter(record("node %s of %d", "x", 3))
    for _ in range(4):
        repeats.filter(record("node %s of %d", "x", 3))
    clock.now += 30
    line = record("node %s of %d", "x", 3)
    assert repeats.filter(line)
    assert line.getMessage() == "node x of 3 (and 4 like it since)"
    clock.now += 30
    again = record("node %s of %d", "x", 3)
    assert repeats.filter(again)
    assert again.getMessage() == "node x of 3", "the count starts again"


def test_a_message_that_is_no_string_is_let_through_and_counted(clock: Clock):
    repeats = RepeatFilter(interval_s=1)
    assert repeats.filter(record(ValueError("boom")))
    assert not repeats.filter(record(ValueError("boom")))
    clock.now += 1
    line = record(ValueError("boom"))
    assert repeats.filter(line)
    assert line.getMessage() == "boom (and 1 like it since)"


def test_memory_is_bounded_by_forgetting_the_oldest_template(clock: Clock):
    repeats = RepeatFilter(limit=8)
    for number in range(100):
        assert repeats.filter(record(f"message {number}"))
    assert len(repeats._seen) == 8
    assert not repeats.filter(record("message 99"))
    assert repeats.filter(record("message 0"))


def test_every_line_is_one_json_object_with_event_fields_level_time_and_role(written: Written):
    configure_logs(LogSettings(format="json"), role="items")
    get_logger("stream_app.somewhere").warning("waiting", what="Redis", text="two\nlines")
    logging.getLogger("aiokafka.conn").error("cannot reach %s", "node")
    ours, theirs = written.lines
    assert (ours["event"], ours["what"], ours["text"], ours["level"]) == ("waiting", "Redis", "two\nlines", "warning")
    assert (ours["role"], ours["logger"]) == ("items", "stream_app.somewhere")
    assert str(ours["timestamp"]).endswith("Z")
    assert (theirs["event"], theirs["level"], theirs["logger"]) == ("cannot reach node", "error", "aiokafka.conn")


def test_an_exception_stays_on_its_line(written: Written):
    configure_logs(LogSettings(format="json"))
    try:
        raise ValueError("boom")
    except ValueError:
        get_logger("x").error("failed", exc_info=True)
        logging.getLogger("faust").exception("theirs")
    ours, theirs = written.lines
    assert "ValueError: boom" in str(ours["exception"])
    assert "ValueError: boom" in str(theirs["exception"])


def test_the_level_is_kept_and_libraries_say_warnings_only(written: Written):
    configure_logs(LogSettings(format="json", level="info"))
    get_logger("stream_app").debug("hidden")
    get_logger("stream_app").info("shown")
    logging.getLogger("aiokafka").info("hidden")
    logging.getLogger("faust.app").warning("shown")
    assert [line["event"] for line in written.lines] == ["shown", "shown"]


def test_an_outage_of_the_broker_does_not_flood_the_log(written: Written):
    configure_logs(LogSettings(format="json"))
    for number in range(10_000):
        logging.getLogger("aiokafka.conn").error("Unable connect to node with id %s", number)
    assert len(written.lines) == 1


def test_our_own_lines_are_never_held_back(written: Written):
    configure_logs(LogSettings(format="json"))
    for number in range(10):
        get_logger("stream_app").info("dead letter", offset=number)
    assert [line["offset"] for line in written.lines] == list(range(10))


def test_text_is_for_people(written: Written):
    configure_logs(LogSettings(format="text"))
    get_logger("stream_app").info("resumed", what="Redis")
    assert "resumed" in written.text
    assert "what" in written.text


async def test_a_redis_that_refuses_the_password_does_not_make_us_print_it(written: Written):
    configure_logs(LogSettings(format="json", level="debug"))
    settings = load_settings(redis="redis://:hunter2-s3cret@127.0.0.1:1/0")
    redis = Redis.from_url(settings.redis.get_secret_value())
    try:
        await redis.ping()
    except OSError as error:
        get_logger("stream_app").warning("waiting", error=f"{type(error).__name__}: {error}", settings=settings)
    except Exception as error:
        get_logger("stream_app").warning("waiting", error=repr(error), settings=settings, exc_info=True)
    finally:
        await redis.aclose()
    assert len(written.lines) == 1
    assert "hunter2" not in written.text
