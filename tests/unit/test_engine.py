"""What we rely on inside Faust, guarded: a new version has to be looked at before it is used."""

from __future__ import annotations

import asyncio
import inspect
from collections import deque
from importlib.metadata import version
from types import SimpleNamespace
from typing import Any

import pytest
from aiokafka import AIOKafkaConsumer
from aiokafka.consumer.subscription_state import Assignment, TopicPartitionState
from faust.agents.agent import Agent as FaustAgent
from faust.app import App
from faust.transport.conductor import Conductor
from faust.transport.consumer import Consumer as AnyConsumer
from faust.transport.drivers import aiokafka as driver
from mode.services import Service
from mode.threads import ServiceThread
from mode.utils.queues import FlowControlEvent, ThrowableQueue

from stream_app.agents.catalogue import CatalogueAgent
from stream_app.agents.interactions import InteractionsAgent
from stream_app.agents.items import ItemsAgent
from stream_app.agents.ranker import RankerAgent
from stream_app.delivery.draining import DrainingConsumer, DrainingThread, DrainingTransport
from stream_app.delivery.engine import FAUST_VERSION, batches, faust_app, has_joined, raw_topic, what_ended
from stream_app.errors import SettingsError
from stream_app.settings import load_settings

MODE_VERSION = "0.7.1"
AIOKAFKA_VERSION = "0.14.0"


def test_faust_and_mode_are_the_versions_whose_inside_was_read():
    advice = "read delivery/ and agents/base.py against it, run tests/integration and tests/faults, then adapt"
    assert version("faust-streaming") == FAUST_VERSION, advice
    assert version("mode-streaming") == MODE_VERSION, advice
    assert version("aiokafka") == AIOKAFKA_VERSION, advice


@pytest.mark.parametrize(
    ("owner", "name"),
    [
        (driver, "AIOKafkaConsumerThread"),
        (driver, "Consumer"),
        (driver, "Transport"),
        (driver, "logger"),
        (driver.AIOKafkaConsumerThread, "_create_worker_consumer"),
        (driver.AIOKafkaConsumerThread, "_ensure_consumer"),
        (driver.AIOKafkaConsumerThread, "_fetch_records"),
        (driver.AIOKafkaConsumerThread, "getmany"),
        (driver.Consumer, "_new_consumer_thread"),
        (driver.Consumer, "assignment"),
        (driver.Consumer, "highwater"),
        (AnyConsumer, "stop_flow"),
        (AnyConsumer, "resume_flow"),
        (AnyConsumer, "perform_seek"),
        (AnyConsumer, "on_partitions_revoked"),
        (AnyConsumer, "commit"),
        (AnyConsumer, "_drain_messages"),
        (AnyConsumer, "_get_active_partitions"),
        (AnyConsumer, "_getmany"),
        (AnyConsumer, "_new_offset"),
        (AnyConsumer, "_filter_tps_with_pending_acks"),
        (ThrowableQueue, "get"),
        (ThrowableQueue, "full"),
        (ThrowableQueue, "clear"),
        (ThrowableQueue, "_wakeup_next"),
        (FlowControlEvent, "clear"),
        (TopicPartitionState, "consumed_to"),
        (ServiceThread, "_thread"),
        (FaustAgent, "_start_task"),
        (Service, "crashed"),
        (Service, "_crash"),
        (Service, "should_stop"),
    ],
)
def test_what_we_call_or_override_is_there(owner: Any, name: str):
    assert hasattr(owner, name), f"{owner.__name__}.{name} is gone"


def test_attributes_made_at_run_time_are_still_made():
    for name in ("_fetch_max_wait_ms", "_fetch_min_bytes"):
        assert name in inspect.getsource(AIOKafkaConsumer.__init__)
    source = inspect.getsource(AnyConsumer.__init__)
    for name in ("_read_offset", "_committed_offset", "can_resume_flow"):
        assert f"self.{name}" in source
    assert "_tp_index" in inspect.getsource(Conductor.__init__)
    queue = ThrowableQueue(flow_control=FlowControlEvent())
    assert isinstance(queue._queue, deque)
    assert isinstance(queue._getters, deque)
    assert "self._position" in inspect.getsource(TopicPartitionState)
    assert {"tps", "state_value"} <= set(dir(Assignment))
    assert "_actors" in inspect.getsource(FaustAgent)
    assert "self._assignment" in inspect.getsource(App)
    assert "self.rebalancing = False" in inspect.getsource(App.on_rebalance_end)
    assert driver.Transport.Consumer is driver.Consumer, "the transport chooses its consumer by this attribute"


@pytest.mark.parametrize(("gathers", "wait_ms", "least_bytes"), [(False, 17, 1), (True, 170, 262_144)])
def test_the_fetch_wait_of_the_settings_reaches_the_client(
    monkeypatch: pytest.MonkeyPatch, gathers: bool, wait_ms: int, least_bytes: int
):
    """Through the very method Faust calls; only the client itself is not started."""
    client = SimpleNamespace(_fetch_max_wait_ms=1_500, _fetch_min_bytes=1)
    monkeypatch.setattr(driver.AIOKafkaConsumerThread, "_create_worker_consumer", lambda self, transport: client)
    settings = load_settings(connection={"fetch_max_wait_ms": 17, "gather_ms": 170})
    app = faust_app(settings, "items", gathers=gathers)
    thread = object.__new__(DrainingThread)
    thread.app = app
    assert DrainingThread._create_worker_consumer(thread, app.transport) is client
    assert (client._fetch_max_wait_ms, client._fetch_min_bytes) == (wait_ms, least_bytes)


def test_only_roles_that_nobody_waits_for_let_records_gather():
    assert not InteractionsAgent.gathers
    assert not CatalogueAgent.gathers
    assert ItemsAgent.gathers
    assert RankerAgent.gathers


async def test_the_app_uses_our_transport_consumer_and_thread():
    app = faust_app(load_settings(), "items")
    assert isinstance(app.transport, DrainingTransport)
    assert app.transport.Consumer is DrainingConsumer
    assert "DrainingThread(" in inspect.getsource(DrainingConsumer._new_consumer_thread)


async def test_the_app_is_set_up_as_decided():
    settings = load_settings(
        kafka="a:1, b:2", topics={"prefix": "shop"}, delivery={"buffer": 100, "commit_interval_s": 0.5}
    )
    app = faust_app(settings, "items")
    conf = app.conf
    assert conf.id == "shop-items"
    assert [str(url) for url in conf.broker] == ["kafka://a:1", "kafka://b:2"]
    assert conf.consumer_auto_offset_reset == "earliest", "a new group must not skip what is there"
    assert conf.processing_guarantee.value == "at_least_once"
    assert conf.stream_buffer_maxsize == 100
    assert conf.broker_commit_interval == 0.5
    assert conf.table_standby_replicas == 0
    assert conf.topic_disable_leader
    assert not conf.topic_allow_declare, "topics are the registry's business"
    assert not conf.web_enabled
    assert conf.broker_heartbeat_interval < conf.broker_session_timeout / 3
    assert not conf.stream_wait_empty


def test_credentials_of_the_settings_reach_the_broker_and_no_representation(tmp_path):
    settings = load_settings(
        connection={
            "security_protocol": "SASL_PLAINTEXT",
            "sasl_mechanism": "SCRAM-SHA-512",
            "username": "u",
            "password": "hunter2-s3cret",
        }
    )
    credentials = faust_app(settings, "items").conf.broker_credentials
    assert credentials.username == "u"
    assert credentials.password == "hunter2-s3cret"  # noqa: S105 - the test's own
    assert credentials.mechanism.value == "SCRAM-SHA-512"
    assert "hunter2" not in repr(credentials)


def test_missing_credentials_are_named():
    settings = load_settings(connection={"security_protocol": "SASL_PLAINTEXT", "username": "u"})
    with pytest.raises(SettingsError, match=r"connection\.password is not set"):
        faust_app(settings, "items")


class Stream:
    """A Faust stream as far as :func:`batches` looks at it: a channel that iterates over itself and has a queue."""

    def __init__(self, size: int = 0) -> None:
        self.queue: ThrowableQueue = ThrowableQueue(maxsize=size, flow_control=FlowControlEvent())
        self.channel = self

    def __aiter__(self) -> Stream:
        return self

    async def __anext__(self) -> Any:
        raise AssertionError("a channel that is iterated acknowledges by itself")


async def taken(stream: Stream, limit: int, count: int) -> list[list[Any]]:
    found = []
    async for batch in batches(stream, limit):
        found.append(batch)
        if len(found) == count:
            break
    return found


async def test_a_batch_is_what_has_queued_up_and_at_most_the_limit():
    stream = Stream()
    for number in range(7):
        stream.queue.put_nowait(number)
    assert await taken(stream, 3, 3) == [[0, 1, 2], [3, 4, 5], [6]]


async def test_a_single_event_is_a_batch_at_once():
    stream = Stream()
    waiting = asyncio.create_task(taken(stream, 100, 1))
    await asyncio.sleep(0)
    stream.queue.put_nowait("only")
    assert await asyncio.wait_for(waiting, 1) == [["only"]]


async def test_batches_end_when_the_stream_is_stopped():
    stream = Stream()
    stream.queue.put_nowait(1)
    await stream.queue.throw(StopAsyncIteration())
    assert [batch async for batch in batches(stream, 10)] == [], "what was not given out is another owner's"


async def test_another_error_of_the_stream_is_not_swallowed():
    stream = Stream()
    await stream.queue.throw(RuntimeError("boom"))
    with pytest.raises(RuntimeError, match="boom"):
        await taken(stream, 10, 1)


def test_records_arrive_as_bytes_whatever_they_are():
    topic = raw_topic(faust_app(load_settings(), "items"), "t")
    assert topic.key_type is bytes
    assert topic.value_type is bytes
    assert topic.key_serializer == "raw"
    assert topic.value_serializer == "raw"
    assert topic.allow_empty, "null values are tombstones"


def a_running_app(*tasks: asyncio.Future[None], **more: Any) -> Any:
    actors = [SimpleNamespace(actor_task=task) for task in tasks]
    fields = {
        "crashed": False,
        "should_stop": False,
        "consumer": SimpleNamespace(_thread=SimpleNamespace(_thread=SimpleNamespace(is_alive=lambda: True))),
        "agents": {"tailrace.items": SimpleNamespace(_actors=actors)},
        **more,
    }
    return SimpleNamespace(**fields)


async def test_what_ended_is_said_in_words():
    runs: asyncio.Future[None] = asyncio.get_running_loop().create_future()
    ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()
    ended.set_result(None)
    assert what_ended(a_running_app(runs)) == ""
    assert what_ended(a_running_app(ended, runs)) == "", "the one before was replaced"
    assert what_ended(a_running_app()) == "", "not started yet"
    assert what_ended(a_running_app(ended)) == "Its agent tailrace.items ended"
    crash = a_running_app(runs, crashed=True, crash_reason=ValueError("no position"))
    assert what_ended(crash) == "Its consumer ended with ValueError: no position"
    assert what_ended(a_running_app(runs, should_stop=True)) == "Its consumer was stopped"
    dead = SimpleNamespace(_thread=SimpleNamespace(_thread=SimpleNamespace(is_alive=lambda: False)))
    assert what_ended(a_running_app(runs, consumer=dead)) == "The thread of its Kafka client ended"


def test_an_app_has_joined_when_it_was_told_its_partitions_be_it_none_and_they_do_not_move():
    assert not has_joined(SimpleNamespace(_assignment=None, rebalancing=False))
    assert not has_joined(SimpleNamespace(_assignment={1}, rebalancing=True))
    assert has_joined(SimpleNamespace(_assignment=set(), rebalancing=False))


async def test_a_crash_inside_faust_shows_on_the_app():
    app = faust_app(load_settings(), "items")
    await app.crash(ValueError("no position"))
    assert what_ended(app) == "Its consumer ended with ValueError: no position"
