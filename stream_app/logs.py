"""Structured logs: one event name and fields per line, JSON for machines, text for a terminal.

Libraries that speak through ``logging`` (Faust, aiokafka, transformers) go through the same renderer, and a
line that repeats is let through once per interval with a count: a broker that is away makes them write tens of
thousands of lines a minute.
"""

from __future__ import annotations

import logging
import sys
import time
from collections import OrderedDict
from typing import Any

import structlog

from stream_app.settings import LogSettings

__all__ = ["RepeatFilter", "configure_logs", "get_logger"]

_CHATTY = ("aiokafka", "faust", "mode", "kafka", "transformers", "urllib3", "asyncio")


class RepeatFilter(logging.Filter):
    """Lets a message template of a logger through once per ``interval_s``; says how many were held back.

    Bounded: remembers at most ``limit`` templates.
    """

    def __init__(self, interval_s: float = 30.0, limit: int = 512) -> None:
        super().__init__()
        self._interval_s = interval_s
        self._limit = limit
        self._seen: OrderedDict[tuple[str, str], tuple[float, int]] = OrderedDict()

    def filter(self, record: logging.LogRecord) -> bool:
        key = (record.name, str(record.msg)[:200])
        now = time.monotonic()
        since, held = self._seen.get(key, (0.0, 0))
        if key in self._seen and now - since < self._interval_s:
            self._seen[key] = (since, held + 1)
            return False
        self._seen[key] = (now, 0)
        self._seen.move_to_end(key)
        while len(self._seen) > self._limit:
            self._seen.popitem(last=False)
        if held:
            record.msg = f"{record.msg} (and {held} like it since)"
        return True


def configure_logs(settings: LogSettings, *, role: str = "") -> None:
    """Set up logging of this process; called once, by whoever owns the process."""
    as_json = settings.format == "json" or (settings.format == "auto" and not sys.stderr.isatty())
    level = getattr(logging, settings.level.upper())
    shared: list[Any] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_logger_name,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    renderer: Any = (
        structlog.processors.JSONRenderer() if as_json else structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty())
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[
                structlog.stdlib.ProcessorFormatter.remove_processors_meta,
                structlog.processors.format_exc_info,
                renderer,
            ],
        )
    )
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level)
    repeats = RepeatFilter()
    for name in _CHATTY:
        logger = logging.getLogger(name)
        logger.setLevel(max(level, logging.WARNING))
        logger.handlers.clear()
        logger.propagate = True
    handler.addFilter(lambda record: repeats.filter(record) if record.name.startswith(_CHATTY) else True)
    structlog.configure(
        processors=[*shared, structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=structlog.stdlib.LoggerFactory(),
        cache_logger_on_first_use=True,
    )
    structlog.contextvars.clear_contextvars()
    if role:
        structlog.contextvars.bind_contextvars(role=role)


def get_logger(name: str) -> structlog.stdlib.BoundLogger:
    """A structured logger; configured by :func:`configure_logs` whenever that is called."""
    logger: structlog.stdlib.BoundLogger = structlog.stdlib.get_logger(name)
    return logger
