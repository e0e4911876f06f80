"""Faust as Tailrace uses it: one app (and consumer group) per role, raw bytes, manual acknowledgement.

Measured reasons, faust-streaming 0.15.3 (``tests/unit/test_engine.py`` fails when the version changes):

* ``async for``, ``take()`` and ``take_events()`` acknowledge in ``finally``: an exception would acknowledge and
  lose the batch. Agents here read their channel themselves and acknowledge when the effects are durable.
* ``take(n, within)`` flushes on a timer: it adds 0..within to every event. :func:`batches` takes what has queued
  up and never waits for more.
* Records are handed over one by one, at 120 us and more each: :mod:`stream_app.delivery.draining` does it by the fetch.
* The driver hard-codes ``fetch_max_wait_ms=1500``. Apache Kafka answers a fetch as soon as there is data; a
  broker that waits it out would add a second, so the transport takes it from the settings.
* Sessions of 6 s instead of 60 s, with twenty heartbeats: a dead process is replaced within seconds.
"""

from __future__ import annotations

import tempfile
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import faust

from stream_app.delivery.connections import kafka_options
from stream_app.delivery.draining import DrainingTransport
from stream_app.delivery.gate import Gate
from stream_app.settings import Settings
from stream_app.topics import Topics

__all__ = ["FAUST_VERSION", "batches", "faust_app", "has_joined", "raw_topic", "what_ended", "without_payload"]

_HEARTBEATS = 20
"""In a session. Members learn from the answer to one that partitions are to move, so the time between two is a part of
every hand-over."""
_GATHERED_BYTES = 262_144
"""What has gathered is handed out when it is so much, however little time has passed."""
FAUST_VERSION = "0.15.3"
"""The version whose internals :mod:`~stream_app.delivery.draining` and :func:`batches` rely on."""


def _credentials(settings: Settings) -> Any:
    """What every other client is given (:func:`~stream_app.delivery.connections.kafka_options`), as Faust wants it."""
    options = kafka_options(settings)
    context = options.get("ssl_context")
    if "sasl_oauth_token_provider" in options:
        return faust.OAuthCredentials(oauth_cb=options["sasl_oauth_token_provider"], ssl_context=context)
    if "sasl_mechanism" in options:
        return faust.SASLCredentials(
            username=options["sasl_plain_username"],
            password=options["sasl_plain_password"],
            mechanism=options["sasl_mechanism"],
            ssl_context=context,
        )
    return None if context is None else faust.SSLCredentials(context)


def faust_app(settings: Settings, role: str, *, gathers: bool = False, gate: Gate | None = None) -> Any:
    """The Faust app of a role; not started. Agents are added by the role's module.

    Args:
        settings: of this process.
        role: its consumer group.
        gathers: whether the broker may let records gather before it hands them out (``connection.gather_ms``).
        gate: in front of what it consumes; None: always open.
    """
    delivery, connection = settings.delivery, settings.connection
    servers = ";".join(f"kafka://{server.strip()}" for server in settings.kafka.split(","))
    app = faust.App(
        Topics(settings).group(role),
        broker=servers,
        broker_credentials=_credentials(settings),
        # Faust wants a data folder even where there are no tables; nothing is written to it.
        datadir=Path(tempfile.gettempdir()) / "tailrace-faust",
        autodiscover=False,
        web_enabled=False,
        store="memory://",
        topic_allow_declare=False,
        topic_disable_leader=True,
        table_standby_replicas=0,
        consumer_auto_offset_reset="earliest",
        consumer_metadata_max_age_ms=int(connection.metadata_max_age_s * 1_000),
        consumer_max_fetch_size=max(connection.max_message_bytes * 2, 4 * 1_048_576),
        broker_session_timeout=connection.session_timeout_s,
        broker_rebalance_timeout=connection.session_timeout_s,
        broker_heartbeat_interval=connection.session_timeout_s / _HEARTBEATS,
        broker_request_timeout=connection.request_timeout_s,
        broker_commit_interval=delivery.commit_interval_s,
        broker_max_poll_records=2_000,
        # A batch waits for as long as Redis or the broker is away; that is back-pressure, not a dead consumer.
        broker_max_poll_interval=86_400.0,
        stream_processing_timeout=86_400.0,
        broker_commit_livelock_soft_timeout=86_400.0,
        stream_buffer_maxsize=delivery.buffer,
        stream_wait_empty=False,
        logging_config=None,
        loghandlers=[],
    )
    app.tailrace_before_moving = _nothing
    app.tailrace_fetch_max_wait_ms = connection.gather_ms if gathers else connection.fetch_max_wait_ms
    app.tailrace_on_failure = lambda _: None
    app.tailrace_fetch_min_bytes = _GATHERED_BYTES if gathers else 1
    app.tailrace_gate = gate or Gate()
    app.transport = DrainingTransport(app.conf.broker_consumer, app)
    _tell_of_crash(app)
    return app


def _tell_of_crash(app: Any) -> None:
    """A part that crashes, as where a commit is refused, marks the app as crashed, and nobody else is told: the process
    would stand. It may be called from the thread of the Kafka client."""
    crash = app._crash

    def crashed(reason: BaseException) -> None:
        first = not app.crashed
        crash(reason)
        if first:
            app.tailrace_on_failure(reason)

    app._crash = crashed


async def _nothing() -> None: ...


def raw_topic(app: Any, *names: str) -> Any:
    """A topic whose keys and values arrive as the bytes they are: decoding (and its failures) is ours.

    Several names are one stream.
    """
    return app.topic(
        *names,
        key_type=bytes,
        value_type=bytes,
        key_serializer="raw",
        value_serializer="raw",
        allow_empty=True,
    )


def has_joined(app: Any) -> bool:
    """Whether the app is a member of its group, and no partitions are being moved; it may have been given none."""
    return app._assignment is not None and not app.rebalancing


def what_ended(app: Any) -> str:
    """What of an app that was started has ended though nobody stopped it, in words; "" for nothing.

    Faust starts a crashed agent again within seconds, and nothing else.
    """
    if app.crashed:
        return f"Its consumer ended with {type(app.crash_reason).__name__}: {app.crash_reason}"
    if app.should_stop:
        return "Its consumer was stopped"
    thread = app.consumer._thread._thread
    if thread is not None and not thread.is_alive():
        return "The thread of its Kafka client ended"
    for name, agent in app.agents.items():
        tasks = [actor.actor_task for actor in agent._actors if actor.actor_task is not None]
        if tasks and all(task.done() for task in tasks):
            return f"Its agent {name} ended"
    return ""


async def batches(stream: Any, limit: int) -> AsyncIterator[list[Any]]:
    """Natural batches of a Faust stream: the events that have queued up by now, at least one, at most ``limit``.

    Nothing is acknowledged: the caller does ``event.ack()`` in order when the effects are durable. Ends when
    the stream is stopped.
    """
    queue = aiter(stream.channel).queue
    waiting = queue._queue
    while True:
        try:
            batch = [await queue.get()]
        except StopAsyncIteration:
            return
        batch += [waiting.popleft() for _ in range(min(limit - 1, len(waiting)))]
        yield batch


def without_payload(event: Any) -> Any:
    """The event without its key and value, to be held until it can be acknowledged: that needs only its place."""
    event.key = event.value = None
    event.headers = ()
    return event
