"""What every test can use: a stack (broker and Redis), settings of its own on it, and Hypothesis' profiles.

``--stack`` chooses the broker; the same tests run on each (see ``tests/stacks.py``). Tests marked ``kafka`` need
what only Apache Kafka does right and are left out on the embedded broker. Where the chosen stack cannot be had,
the tests that need it are skipped and the summary says why; with ``CI`` set they fail instead.
"""

from __future__ import annotations

import json
import logging
import os
import uuid
from collections.abc import Iterator
from typing import cast

import hypothesis
import pytest
import structlog

from stream_app.embedded import EmbeddedStack
from stream_app.settings import Settings, load_settings
from tests.stacks import STACK_KINDS, Stack, StackKind, open_stack, why_missing

_KEPT = {"TAILRACE_KAFKA", "TAILRACE_REDIS", "TAILRACE_KAFKA_JARS"}
_left_out = pytest.StashKey[int]()
_missing = pytest.StashKey[str]()
_opened = pytest.StashKey[str]()

hypothesis.settings.register_profile(
    "ci", derandomize=True, database=None, max_examples=60, deadline=None, print_blob=True
)
hypothesis.settings.register_profile("dev", max_examples=30, deadline=None)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--stack",
        choices=STACK_KINDS,
        default="embedded",
        help="Broker and Redis the tests run on; external takes TAILRACE_KAFKA and TAILRACE_REDIS.",
    )


def pytest_configure(config: pytest.Config) -> None:
    # Deadlines are off everywhere: two cores shared with a broker make single examples slow now and then.
    hypothesis.settings.load_profile("ci" if in_ci() else "dev")
    # The developer's own settings must not reach into the tests; what is kept here is read explicitly.
    for name in [name for name in os.environ if name.startswith("TAILRACE_") and name not in _KEPT]:
        del os.environ[name]


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    embedded = stack_kind(config) == "embedded"
    kept: list[pytest.Item] = []
    left_out: list[pytest.Item] = []
    for item in items:
        if {"stack", "own_stack"} & set(getattr(item, "fixturenames", ())):
            item.add_marker(pytest.mark.stack)
        (left_out if embedded and item.get_closest_marker("kafka") else kept).append(item)
    if left_out:
        items[:] = kept
        config.hook.pytest_deselected(items=left_out)
        config.stash[_left_out] = len(left_out)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    lines = []
    if _opened in config.stash:
        lines.append(f"ran on {config.stash[_opened]}")
    if _missing in config.stash:
        lines.append(f"--stack={stack_kind(config)}: SKIPPED what needs it: {config.stash[_missing]}")
    if _left_out in config.stash:
        lines.append(f"{config.stash[_left_out]} tests need Apache Kafka itself: pytest --stack=kafka runs them")
    if lines:
        terminalreporter.section("stack")
        for line in lines:
            terminalreporter.line(line)


def in_ci() -> bool:
    """Whether a missing part is a failure."""
    return os.environ.get("CI", "").lower() not in {"", "0", "false"}


def stack_kind(config: pytest.Config) -> StackKind:
    """The stack chosen on the command line."""
    return cast("StackKind", config.getoption("--stack"))


def require(kind: StackKind, config: pytest.Config) -> None:
    """Skip what needs this stack where it cannot be had; with ``CI`` set, fail."""
    reason = why_missing(kind)
    if reason is None:
        return
    if in_ci():
        pytest.fail(f"--stack={kind} cannot be had, and CI skips nothing: {reason}", pytrace=False)
    config.stash[_missing] = reason
    pytest.skip(reason)


@pytest.fixture(scope="session")
def stack(pytestconfig: pytest.Config) -> Iterator[Stack]:
    """A broker and Redis for the whole session. Do not kill them: use ``own_stack`` for that.

    Started without an event loop and bound to none, so tests may use whichever loop they like.
    """
    kind = stack_kind(pytestconfig)
    require(kind, pytestconfig)
    with open_stack(kind) as opened:
        pytestconfig.stash[_opened] = f"{kind}: broker {opened.kafka}"
        yield opened


@pytest.fixture
def own_stack(pytestconfig: pytest.Config) -> Iterator[EmbeddedStack]:
    """A broker and Redis of the chosen kind for one test, to be killed, suspended and started again."""
    kind = stack_kind(pytestconfig)
    if kind not in ("embedded", "kafka"):
        pytest.skip(f"--stack={kind}: its servers are not ours to kill")
    require(kind, pytestconfig)
    with EmbeddedStack(kind) as servers:
        yield servers


@pytest.fixture
def topic_prefix() -> str:
    """A prefix nobody used before: topics, consumer groups and Redis keys of a test are its own."""
    return f"test-{uuid.uuid4().hex[:12]}"


@pytest.fixture
def settings(stack: Stack, topic_prefix: str) -> Settings:
    """Settings that lead to the session's stack, with topics and keys of the test's own and no metrics port."""
    return load_settings(
        **stack.overrides, topics={"prefix": topic_prefix}, metrics={"port": -1}, replica={"directory": "off"}
    )


class Written:
    """What the process has logged so far."""

    def __init__(self, capsys: pytest.CaptureFixture[str]) -> None:
        self._capsys = capsys
        self._text = ""

    @property
    def text(self) -> str:
        self._text += self._capsys.readouterr().err
        return self._text

    @property
    def lines(self) -> list[dict[str, object]]:
        return [json.loads(line) for line in self.text.splitlines()]


@pytest.fixture
def written(capsys: pytest.CaptureFixture[str]) -> Written:
    """What the test's code logs; it configures the logs itself."""
    return Written(capsys)


@pytest.fixture(autouse=True)
def loggers(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Loggers are put back after each test: those of the command line configure them."""
    # A logger that keeps its configuration would keep it for all tests that come after.
    configure = structlog.configure
    monkeypatch.setattr(
        structlog, "configure", lambda **given: configure(**{**given, "cache_logger_on_first_use": False})
    )
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    yield
    root.handlers[:] = handlers
    root.setLevel(level)
    structlog.reset_defaults()
    structlog.contextvars.clear_contextvars()
