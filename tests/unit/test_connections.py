"""How we prove to a broker who we are: by files as they are at each connection. What is wrong is said at start."""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import re
import ssl
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import trustme
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, conn
from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.errors import KafkaConnectionError
from cryptography.hazmat.primitives import serialization

import stream_app
from stream_app.delivery.certificates import Certificates
from stream_app.delivery.connections import FreshConnection, kafka_options, stop_consumer
from stream_app.delivery.draining import DrainingThread
from stream_app.delivery.engine import faust_app
from stream_app.delivery.tokens import TokenFile
from stream_app.errors import SettingsError
from stream_app.logs import configure_logs
from stream_app.secret_files import SecretFile
from stream_app.settings import LogSettings, Settings, load_settings
from tests.conftest import Written

SECRET = "hunter2-s3cret"  # noqa: S105 - looked for where it must not be


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


@pytest.fixture
def files(tmp_path: Path, authority: trustme.CA) -> dict[str, Path]:
    """A file for each setting that names one, all of them good."""
    found = {name: tmp_path / name for name in ("ca_file", "certificate_file", "key_file")}
    write_certificate(found, authority)
    for name in ("password_file", "oauth_token_file", "oauth_client_secret_file"):
        found[name] = tmp_path / name
        found[name].write_text(SECRET + "\n")
    return found


def write_certificate(files: dict[str, Path], authority: trustme.CA) -> None:
    issued = authority.issue_cert("tailrace.example")
    authority.cert_pem.write_to_path(str(files["ca_file"]))
    files["key_file"].write_bytes(issued.private_key_pem.bytes())
    files["certificate_file"].write_bytes(b"".join(part.bytes() for part in issued.cert_chain_pems))


def settings_of(**connection: Any) -> Settings:
    return load_settings(kafka="127.0.0.1:1", connection=connection)


SCRAM = {"security_protocol": "SASL_PLAINTEXT", "sasl_mechanism": "SCRAM-SHA-512", "username": "u"}
OAUTH = {"security_protocol": "SASL_PLAINTEXT", "sasl_mechanism": "OAUTHBEARER"}
ENDPOINT = {**OAUTH, "oauth_token_url": "https://idp.example/token", "oauth_client_id": "tailrace"}


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (
            {**SCRAM, "username": None},
            "connection.username is not set; security_protocol SASL_PLAINTEXT with sasl_mech",
        ),
        (SCRAM, "connection.password is not set, nor is password_file"),
        ({**SCRAM, "password": SECRET, "password_file": "password_file"}, "connection.password_file are both set"),
        ({**SCRAM, "password_file": "nowhere"}, "nowhere: cannot be read: No such file"),
        ({**SCRAM, "password_file": "empty"}, "empty: the file is empty"),
        ({**SCRAM, "password_file": "latin"}, "latin: is not UTF-8 text"),
        ({**SCRAM, "password_file": "huge"}, "huge: has more than 1048576 bytes"),
        ({"password": SECRET}, "connection.password is set, and PLAINTEXT does not use it"),
        ({"ca_file": "ca_file"}, "connection.ca_file is set, and security_protocol PLAINTEXT, without TLS, does not"),
        ({**SCRAM, "password": SECRET, "oauth_scope": "s"}, "connection.oauth_scope is set, and sasl_mechanism SCRAM"),
        ({"security_protocol": "SSL", "certificate_file": "certificate_file"}, "connection.key_file is not set; conn"),
        (
            {"security_protocol": "SSL", "key_file": "key_file"},
            "connection.certificate_file is not set; connection.key",
        ),
        (
            {"security_protocol": "SSL", "key_password": SECRET},
            "key_password is set, and the connection, without key_f",
        ),
        ({"security_protocol": "SSL", "ca_file": "empty"}, "empty: cannot be read as PEM certificates"),
        (
            {"security_protocol": "SSL", "certificate_file": "ca_file", "key_file": "key_file"},
            "are no PEM certificate with its private key",
        ),
        (
            {"security_protocol": "SSL", "certificate_file": "certificate_file", "key_file": "locked"},
            "locked: is encrypted; set connection.key_password_file",
        ),
        (
            {
                "security_protocol": "SSL",
                "certificate_file": "certificate_file",
                "key_file": "locked",
                "key_password": "another",
            },
            "(or its password is another)",
        ),
        (
            OAUTH,
            "connection.oauth_token_file is not set, nor is oauth_token_url; security_protocol SASL_PLAINTEXT with",
        ),
        ({**OAUTH, "username": "u"}, "connection.username is set, and sasl_mechanism OAUTHBEARER does not use it"),
        ({**OAUTH, "oauth_token_file": "empty"}, "connection.oauth_token_file = "),
        (
            {**OAUTH, "oauth_token_file": "oauth_token_file", "oauth_client_id": "c"},
            "oauth_client_id is set, and oauth",
        ),
        ({**ENDPOINT, "oauth_client_id": None}, "connection.oauth_client_id is not set"),
        (ENDPOINT, "connection.oauth_client_secret is not set, nor is oauth_client_secret_file"),
        (
            {**ENDPOINT, "oauth_token_url": "http://idp.example/token", "oauth_client_secret": SECRET},
            "in the clear; use https",
        ),
        ({**ENDPOINT, "oauth_client_secret": SECRET, "oauth_ca_file": "empty"}, "connection.oauth_ca_file = "),
    ],
)
def test_what_does_not_go_together_or_cannot_be_read_is_said_with_the_setting(
    given: dict[str, Any], said: str, files: dict[str, Path], tmp_path: Path, authority: trustme.CA
):
    (tmp_path / "empty").write_text("\n")
    (tmp_path / "latin").write_bytes(SECRET.encode() + b"\xff")
    (tmp_path / "huge").write_bytes(b"x" * 1_048_577)
    encrypted(files["key_file"], tmp_path / "locked")
    given = {name: tmp_path / value if name.endswith("_file") else value for name, value in given.items()}
    with pytest.raises(SettingsError) as caught:
        kafka_options(settings_of(**given))
    assert said in str(caught.value)
    assert str(caught.value).startswith("connection.")
    assert SECRET not in "".join(str(one) for one in chain_of(caught.value))


def chain_of(error: BaseException | None) -> list[BaseException]:
    """The error and what it was raised from or during, as a traceback shows."""
    found = []
    while error is not None:
        found.append(error)
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
    return found


def encrypted(source: Path, target: Path) -> None:
    key = serialization.load_pem_private_key(source.read_bytes(), None)
    target.write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.BestAvailableEncryption(SECRET.encode()),
        )
    )


@pytest.mark.parametrize("mechanism", ["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512"])
def test_a_password_of_the_settings_is_given_as_it_is(mechanism: str):
    options = kafka_options(settings_of(**{**SCRAM, "sasl_mechanism": mechanism}, password=SECRET))
    assert options["sasl_mechanism"] == mechanism
    assert (options["sasl_plain_username"], options["sasl_plain_password"]) == ("u", SECRET)


def test_an_open_listener_needs_nothing():
    assert set(kafka_options(settings_of())) == {
        *("bootstrap_servers", "client_id", "request_timeout_ms", "metadata_max_age_ms", "security_protocol"),
    }


def test_an_encrypted_key_is_opened_with_the_password_of_a_file(files: dict[str, Path], tmp_path: Path):
    encrypted(files["key_file"], tmp_path / "locked")
    options = kafka_options(
        settings_of(
            security_protocol="SSL",
            certificate_file=files["certificate_file"],
            key_file=tmp_path / "locked",
            key_password_file=files["password_file"],
        )
    )
    assert isinstance(options["ssl_context"], Certificates)


def test_clients_of_the_same_settings_share_what_proves_who_they_are(files: dict[str, Path]):
    settings = settings_of(security_protocol="SSL", ca_file=files["ca_file"])
    assert kafka_options(settings)["ssl_context"] is kafka_options(settings)["ssl_context"]


async def test_a_broker_is_known_by_its_name_and_by_an_authority_that_is_trusted(files: dict[str, Path]):
    context = kafka_options(settings_of(security_protocol="SSL", ca_file=files["ca_file"]))["ssl_context"].current()
    assert context.check_hostname
    assert context.verify_mode == ssl.CERT_REQUIRED
    assert context.minimum_version >= ssl.TLSVersion.TLSv1_2
    assert len(context.get_ca_certs()) == 1, "only the authority of the file, not the system's too"


class TestWhatFilesHoldNow:
    def test_a_secret_is_read_each_time(self, tmp_path: Path):
        path = tmp_path / "secret"
        path.write_text("first\r\n")
        secret = SecretFile("connection.password_file", path)
        assert secret.current() == "first"
        path.write_text("second")
        assert secret.current() == "second"

    def test_a_secret_keeps_its_spaces(self, tmp_path: Path):
        (tmp_path / "secret").write_text("  two words \n")
        assert SecretFile("s", tmp_path / "secret").current() == "  two words "

    @pytest.mark.parametrize("gone", ["unlink", "empty"])
    def test_a_file_that_is_away_for_a_moment_leaves_the_last_secret(self, tmp_path: Path, written: Written, gone: str):
        configure_logs(LogSettings(level="debug", format="json"))
        path = tmp_path / "secret"
        path.write_text(SECRET)
        secret = SecretFile("connection.password_file", path)
        if gone == "unlink":
            path.unlink()
        else:
            path.write_text("")
        assert secret.current() == SECRET
        assert "connection.password_file" in written.text
        assert SECRET not in written.text + repr(secret) + str(vars(secret))

    async def test_a_token_has_no_line_ends(self, files: dict[str, Path]):
        files["oauth_token_file"].write_text(" a.b.c\n\n")
        provider = kafka_options(settings_of(**OAUTH, oauth_token_file=files["oauth_token_file"]))[
            "sasl_oauth_token_provider"
        ]
        assert isinstance(provider, TokenFile)
        assert await provider.token() == "a.b.c"
        files["oauth_token_file"].write_text("d.e.f")
        assert await provider.token() == "d.e.f"

    def test_certificates_are_loaded_again_when_they_changed_and_only_then(
        self, files: dict[str, Path], authority: trustme.CA
    ):
        certificates = Certificates(**{name: files[name] for name in ("ca_file", "certificate_file", "key_file")})
        first = certificates.current()
        assert certificates.current() is first
        other = trustme.CA()
        write_certificate(files, other)
        second = certificates.current()
        assert second is not first
        assert [one["serialNumber"] for one in second.get_ca_certs()] != [
            one["serialNumber"] for one in first.get_ca_certs()
        ]
        assert len(second.get_ca_certs()) == 1, "an authority that is not in the file any more is not trusted any more"

    def test_a_certificate_whose_key_is_not_there_yet_leaves_the_last_pair(
        self, files: dict[str, Path], authority: trustme.CA, written: Written
    ):
        configure_logs(LogSettings(format="json"))
        certificates = Certificates(**{name: files[name] for name in ("ca_file", "certificate_file", "key_file")})
        first, key = certificates.current(), files["key_file"].read_bytes()
        write_certificate(files, authority)
        new_key = files["key_file"].read_bytes()
        files["key_file"].write_bytes(key)
        assert certificates.current() is first
        assert "the last ones are used" in written.text
        files["key_file"].write_bytes(new_key)
        assert certificates.current() is not first


class TestEveryClientAsksAtEveryConnection:
    """aiokafka takes credentials once; ours are asked for at each connection, whoever connects."""

    @pytest.fixture
    def shown(self, monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, Any]]:
        """What connections had to show, instead of connecting: SSL context and password."""
        found: list[tuple[Any, Any]] = []

        async def connect(self: conn.AIOKafkaConnection) -> None:
            found.append((self._ssl_context, self._sasl_plain_password))
            raise KafkaConnectionError("no broker here")

        monkeypatch.setattr(FreshConnection.__mro__[1], "connect", connect)
        return found

    @pytest.fixture
    def settings(self, files: dict[str, Path]) -> Settings:
        return settings_of(
            security_protocol="SASL_SSL",
            sasl_mechanism="PLAIN",
            username="u",
            password_file=files["password_file"],
            ca_file=files["ca_file"],
        )

    @pytest.mark.parametrize("kind", [AIOKafkaProducer, AIOKafkaConsumer, AIOKafkaAdminClient, "faust"])
    async def test_with_what_the_files_hold_then(
        self, kind: Any, settings: Settings, files: dict[str, Path], shown: list[tuple[Any, Any]], authority: trustme.CA
    ):
        client = faust_consumer(settings) if kind == "faust" else kind(**kafka_options(settings))
        connections = client.client if kind is AIOKafkaProducer else client._client
        with pytest.raises(KafkaConnectionError):
            await connections.bootstrap()
        files["password_file"].write_text("rotated")
        write_certificate(files, trustme.CA())
        with pytest.raises(KafkaConnectionError):
            await connections.bootstrap()
        await (client.close() if kind is AIOKafkaAdminClient else client.stop())
        (context, password), (later_context, later_password) = shown
        assert (password, later_password) == (SECRET, "rotated")
        assert isinstance(context, ssl.SSLContext)
        assert isinstance(later_context, ssl.SSLContext)
        assert later_context is not context

    def test_in_the_version_of_aiokafka_whose_inside_was_read(self):
        assert conn.AIOKafkaConnection is FreshConnection
        assert "AIOKafkaConnection(" in inspect.getsource(conn.create_conn), "by this name, looked up when it is called"
        made = inspect.getsource(FreshConnection.__mro__[1].__init__)
        for name in ("_ssl_context", "_sasl_plain_password"):
            assert f"self.{name} = " in made
        connecting = inspect.getsource(FreshConnection.__mro__[1].connect)
        assert "self._ssl_context" in connecting, "read in connect(), after ours has replaced it"
        assert "_do_sasl_handshake" in connecting


def faust_consumer(settings: Settings) -> AIOKafkaConsumer:
    """The client that Faust makes, through the method it calls."""
    app = faust_app(settings, "items")
    thread = object.__new__(DrainingThread)
    thread.app = app
    thread.consumer = SimpleNamespace(in_transaction=False)
    return DrainingThread._create_worker_consumer(thread, app.transport)


class Client:
    """Waits for a task of its own as aiokafka's clients do, which takes every cancellation for that task's."""

    def __init__(self, *, lets_it_through: bool = False) -> None:
        self.lets_it_through = lets_it_through
        self.stopping = asyncio.Event()
        self.go_on = asyncio.Event()

    async def stop(self) -> None:
        self.stopping.set()
        if self.lets_it_through:
            raise asyncio.CancelledError
        with contextlib.suppress(asyncio.CancelledError):
            await self.go_on.wait()


async def test_who_is_cancelled_while_a_client_ends_is_cancelled():
    client = Client()

    async def reads_for_ever() -> None:
        while True:
            await stop_consumer(client)

    task = asyncio.create_task(reads_for_ever())
    await client.stopping.wait()
    task.cancel()
    await asyncio.wait([task], timeout=5)
    assert task.cancelled()


async def test_a_time_limit_holds_while_a_client_ends():
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.01):
            await stop_consumer(Client())


async def test_what_a_client_cancels_ends_nobody():
    await stop_consumer(Client(lets_it_through=True))


async def test_who_is_cancelled_while_a_client_fails_to_end_is_cancelled():
    class Failing(Client):
        async def stop(self) -> None:
            await super().stop()
            raise KafkaConnectionError

    client = Failing()
    task = asyncio.create_task(stop_consumer(client))
    await client.stopping.wait()
    task.cancel()
    await asyncio.wait([task], timeout=5)
    assert task.cancelled()


async def test_what_a_client_cancels_does_not_end_what_is_tidied_up_after_a_cancellation():
    tidied = []

    async def tidy() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            await stop_consumer(Client(lets_it_through=True))
            tidied.append(True)

    task = asyncio.create_task(tidy())
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert tidied


def test_every_client_of_kafka_is_closed_by_these_functions():
    ends = re.compile(r"await (?:\w+\.)*_?(?:consumer|producer|admin|client)\.(?:stop|close)\(\)")
    found = [
        f"{path}: {line.strip()}"
        for path in Path(stream_app.__file__).parent.rglob("*.py")
        if "from aiokafka" in (text := path.read_text("utf-8"))
        for line in text.splitlines()
        if ends.search(line)
    ]
    assert found == [], "close_client and stop_consumer do it"
