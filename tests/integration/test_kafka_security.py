"""On Apache Kafka as careful operators run it: every role works under exactly its rights, and through rotations.

One broker and one process per role serve all tests here. How they prove who they are differs: the catalogue and the
interactions role have a password (SCRAM-SHA-512), the items role a certificate (mutual TLS), the ranker role tokens
(OAUTHBEARER) of a token endpoint.
"""

from __future__ import annotations

import asyncio
import re
import uuid
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from aiokafka import AIOKafkaConsumer

from schemas.decode import decode_dead_letter, decode_slate, encode
from schemas.messages import Interaction, Item, Rule, Slate, User
from stream_app.app import ROLES, Role, Tailrace
from stream_app.delivery.admin import create_topics, describe_topics, group_lag, grow_topics
from stream_app.delivery.connections import kafka_options
from stream_app.delivery.publisher import OutRecord, Publisher
from stream_app.delivery.reading import read_to_end
from stream_app.delivery.rights import missing_rights
from stream_app.embedded.worker import WorkerProcess
from stream_app.errors import NotAuthorized, TailraceError, Unavailable
from stream_app.logs import configure_logs
from stream_app.metrics import Metrics
from stream_app.rights import WHO, Right, rights_of
from stream_app.settings import LogSettings, Settings, load_settings
from stream_app.space_operations import build_space, retire_space
from stream_app.topics import Topics
from tests.checkpoints import make_bert
from tests.conftest import Written, require
from tests.secure_kafka import SecureKafka
from tests.stacks import Stack
from tests.token_endpoint import TokenEndpoint, token_endpoint
from tests.waiting import eventually

pytestmark = [pytest.mark.kafka, pytest.mark.stack, pytest.mark.timeout(600)]

PROBE = "probe"
"""A user whose rights tests give and take, while the processes keep theirs."""
ITEMS = 12


class Shop:
    """Tailrace on the protected broker: a process per role, and clients of the people around it."""

    def __init__(self, kafka: SecureKafka, endpoint: TokenEndpoint, redis: str, directory: Path) -> None:
        self.kafka = kafka
        self.endpoint = endpoint
        self.directory = directory
        self.prefix = f"test-{uuid.uuid4().hex[:12]}"
        self.models = [make_bert(directory / name) for name in ("first", "second")]
        self._common: dict[str, Any] = {
            "redis": redis,
            "topics": {"prefix": self.prefix, "partitions": 2, "create": False},
            "encoder": {"model": str(self.models[0]), "threads": 1},
            "spaces": {"first_items": ITEMS // 2, "check_interval_s": 0.1},
            "items": {"flush_interval_s": 0.1},
            "ranker": {"publish_interval_s": 0.1},
            "factors": {"flush_interval_s": 0.1},
            "delivery": {"commit_interval_s": 0.2, "retry_max_s": 0.3},
            "replica": {"directory": "off"},
            "metrics": {"port": -1},
        }
        self.operator, self.producer, self.reader = map(self.settings, ("operator", "producer", "reader"))
        self.topics = Topics(self.operator)
        tokens = kafka.oauth(
            oauth_token_url=endpoint.url,
            oauth_client_id="ranker",
            oauth_client_secret_file=self.secret_file,
        )
        self.workers = {
            role: WorkerProcess([role], overrides={**self._common, **how}, directory=directory / role)
            for role, how in {
                "catalogue": kafka.scram("catalogue"),
                "items": kafka.mtls("items"),
                "ranker": tokens,
                "interactions": kafka.scram("interactions"),
            }.items()
        }
        for worker in self.workers.values():
            worker.start_timeout_s = 400.0  # four at once, each with everything to import
        self._events = 0

    @property
    def secret_file(self) -> Path:
        """The ranker's client secret."""
        return self.directory / "client-secret"

    def settings(self, user: str, **groups: Any) -> Settings:
        """Of a process or command of this (SCRAM) user."""
        return load_settings(**{**self._common, **self.kafka.scram(user), **groups})

    def rights(self, who: str) -> tuple[Right, ...]:
        return rights_of(who, self.operator)

    def unused(self, who: str) -> list[str]:
        """Rights that nobody has made use of so far; of those to describe, only what is asked as such counts."""
        asked = [one for one in self.kafka.decisions("Allowed") if one.user == who]
        return [
            str(right)
            for right in self.rights(who)
            if not any(
                one.operation == re.sub(r"(?<=.)(?=[A-Z])", "_", right.operation).upper()
                and right.covers(one.resource.lower(), one.name)
                for one in asked
            )
        ]

    def event(self, user: str, item: str | None = None, kind: str = "click", **more: Any) -> OutRecord:
        self._events += 1
        event = Interaction(
            event_id=f"event-{self._events}",
            user_id=user,
            type=kind,
            item_id=item,
            occurred_at=datetime.now(UTC),
            **more,
        )
        return OutRecord(self.topics.interactions, user.encode(), encode(event))

    async def start(self) -> None:
        for who in WHO:
            await self.kafka.grant(who, self.rights(who))
        await create_topics(self.operator)
        await asyncio.gather(*(worker.start() for worker in self.workers.values()))
        async with publishing(self.producer) as publisher:
            for number in range(ITEMS):
                item = Item(item_id=f"i{number}", title=f"item number {number}")
                await publisher.publish([OutRecord(self.topics.items, item.item_id.encode(), encode(item))])

    async def stop(self) -> None:
        await asyncio.gather(*(worker.kill() for worker in self.workers.values()))

    @contextmanager
    def telling(self) -> Iterator[None]:
        """What fails within says what was not used, what was denied, and what the processes logged."""
        try:
            yield
        except AssertionError as error:
            for who in WHO:
                error.add_note(f"{who} did not use: {', '.join(self.unused(who)) or 'none'}")
            error.add_note("denied: " + str([one for one in self.kafka.decisions("Denied") if one.user in WHO]))
            error.add_note(self.logs())
            raise

    def logs(self) -> str:
        return "\n".join(f"--- {worker.name}\n{worker.output()}" for worker in self.workers.values())


@asynccontextmanager
async def publishing(settings: Settings) -> AsyncIterator[Publisher]:
    publisher = Publisher(settings, Metrics())
    await publisher.start()
    try:
        yield publisher
    finally:
        await publisher.stop()


class Slates:
    """What the site sees: the newest slate of each user, read by a consumer group of its own."""

    def __init__(self, shop: Shop) -> None:
        self.newest: dict[str, Slate] = {}
        self._consumer = AIOKafkaConsumer(
            shop.topics.recommendations,
            **kafka_options(shop.reader),
            group_id=shop.topics.group("reader-site"),
            auto_offset_reset="earliest",
            fetch_max_wait_ms=20,
        )

    async def __aenter__(self) -> Slates:
        await self._consumer.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._consumer.stop()

    async def of(self, user: str) -> Slate:
        """The next slate of the user that has items."""
        async with asyncio.timeout(60):
            async for record in self._consumer:
                user_id, slate = decode_slate(record.key, record.value, record.headers)
                if user_id == user and slate is not None and slate.items:
                    return slate
        raise AssertionError("a consumer never ends")


@pytest.fixture(scope="module")
def shop(stack: Stack, pytestconfig: pytest.Config, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shop]:
    require("kafka", pytestconfig)
    directory = tmp_path_factory.mktemp("secured")
    with pytest.MonkeyPatch.context() as patch, token_endpoint() as endpoint:
        patch.setenv("no_proxy", "127.0.0.1")
        kafka = SecureKafka(directory, {who: f"first-{uuid.uuid4().hex}" for who in (*WHO, PROBE)})
        endpoint.clients["ranker"] = uuid.uuid4().hex
        (directory / "client-secret").write_text(endpoint.clients["ranker"])
        endpoint.made = lambda _: kafka.token("ranker")
        endpoint.lives_s = 5.0  # the next connection after four seconds needs another one
        asyncio.run(kafka.start())
        try:
            running = Shop(kafka, endpoint, stack.redis, directory)
            try:
                asyncio.run(running.start())
                yield running
            finally:
                asyncio.run(running.stop())
        finally:
            asyncio.run(kafka.broker.kill())


async def test_every_role_works_under_exactly_its_rights_and_uses_each(shop: Shop):
    topics, operator = shop.topics, shop.operator
    async with publishing(shop.producer) as produce, publishing(operator) as operate, Slates(shop) as slates:
        rule = Rule(rule_id="r", kind="boost", boost=0.1)
        await produce.publish([OutRecord(topics.rules, b"r", encode(rule))])
        await produce.publish([OutRecord(topics.users, b"ann", encode(User(user_id="ann", interests=["item"])))])
        await produce.publish([shop.event("ann", "i1")])
        assert (await slates.of("ann")).items
        # What cannot be processed, for each role: only these may write letters.
        bad = [OutRecord(topic, b"k", b"{") for topic in (topics.items, topics.interactions)]
        await produce.publish(bad)
        worse = [OutRecord(topic, b"k", b"{", partition=0) for topic in (topics.transitions, topics.training_examples)]
        await operate.publish(worse)

        # A further model is built beside the served one, and retired, by people without any further right.
        space = await build_space(operator, {"model": str(shop.models[1]), "max_tokens": 32})

        async def all_used() -> bool:
            # Choices to learn from come from what people take of what they were shown.
            for user in ("ann", "bob"):
                await produce.publish([shop.event(user, f"i{shop._events % ITEMS}")])
            return not any(shop.unused(role) for role in ROLES)

        with shop.telling():
            await eventually(all_used, timeout_s=120, interval_s=0.5, what="use of every right of every role")
        await retire_space(operator, space.space)

        # What the operator's other commands do.
        assert all(not state.differences for state in await describe_topics(operator))
        await group_lag(operator, topics.group("items"), topics.transitions)
        # What KEDA's scaler asks, in the same requests: offsets of a group, partitions of a topic, their ends.
        watched = {"interactions": topics.interactions, "items": topics.transitions, "catalogue": topics.items}
        for role, topic in watched.items():
            await group_lag(shop.settings("keda"), topics.group(role), topic)
        assert set(await grow_topics(operator, 2 * operator.topics.partitions)) == {topics.interactions, topics.users}
        await operate.publish(
            OutRecord(topic, b"nobody", None)
            for topic in (topics.items, topics.interactions, topics.users, topics.rules, topics.dead_letter)
        )
        letters = [
            decode_dead_letter(record.value)
            async for record in read_to_end(operator, topics.dead_letter, patience_s=20)
            if record.value is not None
        ]
    assert {letter.stage for letter in letters} >= set(ROLES)
    assert {who: shop.unused(who) for who in WHO} == {who: [] for who in WHO}
    assert [one for one in shop.kafka.decisions("Denied") if one.user in WHO] == []


@pytest.mark.parametrize("who", [who for who in WHO if who != "operator"])
async def test_each_right_that_is_missing_is_named(shop: Shop, who: str):
    settings, rights = shop.settings(PROBE), shop.rights(who)

    async def missing(*these: Right) -> None:
        async def so() -> bool:
            return await missing_rights(settings, rights) == list(these)

        # The broker acknowledges a change a moment before it goes by it.
        await eventually(so, what=f"missing: {', '.join(map(str, these)) or 'nothing'}")

    await missing(*rights)
    await shop.kafka.grant(PROBE, rights)
    await missing()
    for right in rights:
        await shop.kafka.revoke(PROBE, [right])
        await missing(right)
        await shop.kafka.grant(PROBE, [right])
    await shop.kafka.revoke(PROBE, rights)
    await missing(*rights)


@pytest.mark.parametrize(
    ("role", "operation", "name"),
    [
        ("catalogue", "Write", "item-vectors.v1"),
        ("items", "Read", "item-signals.v1"),
        ("ranker", "Read", None),
        ("interactions", "Write", "recommendations.v1"),
    ],
)
async def test_a_role_without_one_of_its_rights_ends_and_says_which(
    shop: Shop, role: Role, operation: str, name: str | None
):
    resource, full = ("group", shop.topics.group(role)) if name is None else ("topic", f"{shop.prefix}.{name}")
    rights = shop.rights(role)
    (left_out,) = (one for one in rights if one.operation == operation and one.covers(resource, full))
    await shop.kafka.grant(PROBE, set(rights) - {left_out})
    try:
        said = rf"does not allow user probe: {operation} on {resource} {re.escape(full)}\*? \(for the {role} role\)"
        await eventually(lambda: _refused(shop, role, said), what=said)
    finally:
        await shop.kafka.revoke(PROBE, rights)


async def _refused(shop: Shop, role: Role, said: str) -> bool:
    """Whether the role, started as the probe, ends with this error, and not with another before that holds."""
    with pytest.raises(NotAuthorized) as caught:
        async with asyncio.timeout(20):
            await Tailrace(shop.settings(PROBE), [role]).run(asyncio.Event())
    assert f"tailrace topics acls --role {role}" in str(caught.value)
    return re.search(said + r"\. What", str(caught.value)) is not None


class TestARightThatIsTakenWhileARoleRuns:
    """The process ends and says which one: nobody is to wonder why nothing happens. Nothing is lost by it."""

    @pytest.mark.parametrize(
        ("operation", "name", "said"),
        [
            ("Read", "transitions.v1", r"does not allow us Read on .*transitions\.v1"),
            ("Read", None, r"GroupAuthorizationFailedError.*-items"),
            ("Write", "dead-letter.v1", r"does not allow us Write on topic .*\.dead-letter\.v1"),
        ],
    )
    async def test_reading_and_writing(self, shop: Shop, operation: str, name: str | None, said: str):
        rights = shop.rights("items")
        resource, full = ("group", shop.topics.group("items")) if name is None else ("topic", f"{shop.prefix}.{name}")
        (taken,) = (one for one in rights if one.operation == operation and one.covers(resource, full))
        await shop.kafka.grant(PROBE, rights)
        settings = shop.settings(PROBE)

        async def granted() -> bool:
            return not await missing_rights(settings, rights)

        await eventually(granted)
        tailrace = Tailrace(settings, ["items"])
        running = asyncio.create_task(tailrace.run(asyncio.Event()))
        try:
            # The items role's own process gives its partitions to this one and back.
            agent = await eventually(lambda: tailrace.ready.is_set() and tailrace.agents[0], timeout_s=60)
            await eventually(agent.assignment, timeout_s=30, what="a partition")
            await shop.kafka.revoke(PROBE, [taken])
            async with publishing(shop.operator) as operate:

                async def ended() -> bool:
                    for partition in range(2):
                        await operate.publish([OutRecord(shop.topics.transitions, b"k", b"{", partition=partition)])
                    return running.done()

                await eventually(ended, timeout_s=30, interval_s=0.2, what="the end of the role")
            with pytest.raises(TailraceError, match=said):
                await running
        finally:
            running.cancel()
            await asyncio.gather(running, return_exceptions=True)
            await shop.kafka.revoke(PROBE, rights)


@pytest.mark.parametrize("how", ["password", "token", "certificate", "wrong password"])
async def test_nothing_secret_is_logged_at_any_level(shop: Shop, written: Written, tmp_path: Path, how: str):
    configure_logs(LogSettings(level="debug", format="json"))
    kafka, token = shop.kafka, shop.kafka.token("producer")
    (tmp_path / "token").write_text(token)
    given = {"certificate": kafka.mtls("producer"), "token": kafka.oauth(oauth_token_file=tmp_path / "token")}
    overrides = given.get(how) or kafka.scram("producer")
    if how == "wrong password":
        (tmp_path / "password").write_text("wr0ng-s3cret")
        overrides["connection"]["password_file"] = tmp_path / "password"
    settings = shop.settings("producer", **overrides)

    async def publish() -> None:
        async with publishing(settings) as publisher:
            await publisher.publish([OutRecord(shop.topics.items, b"nobody", None)])

    publishing_it = asyncio.create_task(publish())
    # The wrong password is tried for as long as it takes.
    await eventually(lambda: publishing_it.done() or "Authentication failed" in written.text)
    assert publishing_it.done() == (how != "wrong password")
    publishing_it.cancel()
    await asyncio.gather(publishing_it, return_exceptions=True)
    shown = written.text + repr(settings) + str(kafka_options(settings))
    # Of what is long, aiokafka would write the beginning.
    secrets = ("wr0ng", kafka.passwords["producer"], token[:40], "BEGIN")
    assert not [one for one in secrets if one in shown]


async def test_passwords_certificates_and_tokens_are_replaced_while_events_come(shop: Shop):
    """On the broker and in the files; then every connection is cut. The processes go on, and say nothing of it."""
    before = {role: worker.pid for role, worker in shop.workers.items()}
    old = [shop.kafka.passwords["interactions"], shop.endpoint.clients["ranker"]]
    for user in (*WHO, PROBE):
        await shop.kafka.set_password(user, f"second-{uuid.uuid4().hex}")
        if user != "interactions":  # whose file is late
            shop.kafka.scram(user)
    shop.kafka.renew_authority()
    shop.kafka.mtls("items")
    shop.endpoint.clients["ranker"] = uuid.uuid4().hex
    shop.secret_file.write_text(shop.endpoint.clients["ranker"])
    asked = len(shop.endpoint.asked)
    await shop.kafka.broker.restart()
    worker = shop.workers["interactions"]
    await eventually(lambda: "Authentication failed" in worker.output(), timeout_s=60, what="the old password refused")
    shop.kafka.scram("interactions")

    examples = await metric(shop, "ranker", "tailrace_ranker_examples")
    async with publishing(shop.producer) as produce, Slates(shop) as slates:
        await produce.publish(
            [OutRecord(shop.topics.items, b"fresh", encode(Item(item_id="fresh", title="fresh item")))]
        )
        await produce.publish([shop.event("eve", "fresh", "view")])
        assert (await slates.of("eve")).items, "interactions role"
        transitions = await metric(shop, "items", "tailrace_events_in_total")

        async def everybody_works() -> bool:
            await produce.publish([shop.event("eve", f"i{shop._events % ITEMS}")])
            return (
                await metric(shop, "ranker", "tailrace_ranker_examples") > examples
                and await metric(shop, "items", "tailrace_events_in_total") > transitions
                and await metric(shop, "interactions", "tailrace_index_items") > ITEMS
            )

        await eventually(everybody_works, timeout_s=60, interval_s=0.3, what="work of every role")
    assert {role: worker.pid for role, worker in shop.workers.items()} == before
    assert len(shop.endpoint.asked) > asked, "the new secret was used"
    outdated = {**shop.kafka.scram("interactions")["connection"], "password": old[0], "password_file": None}
    with pytest.raises(Unavailable, match=r"no Kafka broker answers .*SaslAuthenticationFailed.*Authentication failed"):
        await describe_topics(load_settings(kafka=shop.kafka.broker.listeners["SCRAM"], connection=outdated))
    secrets = [*old, *shop.kafka.passwords.values(), *shop.endpoint.clients.values(), "BEGIN", "eyJ"]
    logs = shop.logs()
    assert not [secret for secret in secrets if secret in logs]


async def metric(shop: Shop, role: str, name: str) -> float:
    return await shop.workers[role].metric(name) or 0.0
