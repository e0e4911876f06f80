"""One look at a process: what of its parts the judge is told."""

from __future__ import annotations

import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from aiokafka import TopicPartition
from prometheus_client import CollectorRegistry

from stream_app.agents.base import Agent
from stream_app.agents.catalogue import CatalogueAgent
from stream_app.agents.interactions import InteractionsAgent
from stream_app.agents.items import ItemsAgent
from stream_app.agents.ranker import RankerAgent
from stream_app.errors import Unavailable
from stream_app.health.looking import look
from stream_app.health.state import ReplicaSeen, RoleSeen
from stream_app.settings import load_settings
from stream_app.waits import Waits

OPERATIONS = Path(__file__).parents[2] / "docs" / "operations.md"
ITEMS, OTHER = TopicPartition("items", 0), TopicPartition("other", 0)
BROKER = "Kafka at h:1"


def an_agent(name: str) -> Any:
    def seen(ends: dict[TopicPartition, int], *, counts: bool = True) -> RoleSeen:
        return RoleSeen(name=name, joined=bool(ends), counts=counts)

    return SimpleNamespace(seen=seen)


def a_replica() -> Any:
    return SimpleNamespace(ready=SimpleNamespace(is_set=lambda: True), read_through=lambda: {ITEMS: 5})


def looked(waits: Waits | None = None, away: str = "", **more: Any) -> Any:
    fields = {
        "expected": ["items"],
        "agents": [an_agent("items")],
        "beside": [an_agent("catalogue-1")],
        "replica": None,
        "pool": None,
        "ends": SimpleNamespace(known={ITEMS: 7, OTHER: 3}, away=away),
        "waits": waits or Waits(CollectorRegistry()),
        "broker": BROKER,
        "complete": True,
        **more,
    }
    return look(**fields)


def test_every_agent_is_looked_at_and_those_of_spaces_beside_do_not_count():
    assert looked().roles == (
        RoleSeen(name="items", joined=True),
        RoleSeen(name="catalogue-1", joined=True, counts=False),
    )


def test_a_replica_is_compared_with_the_ends_of_what_it_serves_while_these_are_known():
    seen = looked(replica=a_replica(), expected=["interactions"])
    assert seen.needs_replica
    assert seen.replica == ReplicaSeen(caught_up=True, positions={ITEMS: 5}, ends={ITEMS: 7})
    assert looked(replica=a_replica(), away="TimeoutError").replica.ends is None
    assert not looked().needs_replica


def test_what_is_away_is_what_is_waited_for_and_a_broker_that_does_not_answer():
    waits = Waits(CollectorRegistry())
    assert looked(waits).away == {}
    with waits.waiting() as wait:
        wait.failed("Redis", OSError("refused"))
        assert looked(waits, away="TimeoutError").away == {"Redis": "OSError: refused", BROKER: "TimeoutError"}
        wait.failed(BROKER, OSError("no route"))
        assert looked(waits, away="TimeoutError").away[BROKER] == "OSError: no route"


def test_why_encoders_gave_up_is_told():
    assert looked(pool=SimpleNamespace(error=None)).encoders == ""
    assert looked(pool=SimpleNamespace(error=Unavailable("no GPU"))).encoders == "no GPU"


@pytest.mark.parametrize(
    ("agent", "seconds"), [(ItemsAgent, 122), (RankerAgent, 123), (InteractionsAgent, 206), (CatalogueAgent, 361)]
)
def test_how_long_records_may_wait_in_each_role_is_as_the_page_says(agent: type[Agent], seconds: int):
    """With the default settings, as docs/operations.md has it."""
    made = object.__new__(agent)
    made.settings = load_settings()
    assert made.settings.health.stalled_s + made.patience_s == seconds
    (said,) = re.findall(r"With the defaults it is (.* for the catalogue)\.", OPERATIONS.read_text())
    assert str(seconds) in re.findall(r"\d+", said)
