"""Apache Kafka as careful operators run it: TLS, users that prove who they are, nothing allowed that is not granted.

Three listeners beside the open one (which only the test's administration uses): ``SCRAM`` (SCRAM-SHA-512), ``OAUTH``
(OAUTHBEARER, signed tokens) and ``MTLS`` (client certificates), all over TLS. Certificates and keys are made here.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
import re
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import trustme
from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.protocol.admin import CreateAclsRequest_v1, DeleteAclsRequest_v1
from aiokafka.protocol.api import Request, RequestStruct, Response
from aiokafka.protocol.types import (
    CompactArray,
    CompactBytes,
    CompactString,
    Int8,
    Int16,
    Int32,
    Schema,
    TaggedFields,
)
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import padding, rsa

from stream_app.embedded.kafka import ApacheKafka, Protection
from stream_app.rights import Right

__all__ = ["Asked", "SecureKafka"]

AUDIENCE, ISSUER = "kafka", "https://idp.example"
_OPERATIONS = {"Read": 3, "Write": 4, "Create": 5, "Delete": 6, "Alter": 7, "Describe": 8, "DescribeConfigs": 10}
_RESOURCES = {"topic": 2, "group": 3}
_ALLOW, _LITERAL, _PREFIXED = 3, 3, 4
_SCRAM_SHA_512 = 2
_ITERATIONS = 4_096
_AUDIT = re.compile(
    r"Principal = User:(?P<user>\S+) is (?P<decision>Allowed|Denied) operation = (?P<operation>\w+) from host = \S+ "
    r"on resource = (?P<resource>\w+):LITERAL:(?P<name>\S+) for request = (?P<request>\w+)"
)


@dataclass(frozen=True, slots=True)
class Asked:
    """A decision of the broker's authorizer; operations and resources in capitals, as it writes them."""

    user: str
    operation: str
    resource: str
    name: str
    request: str


class SecureKafka:
    """The broker, its users, and what it decided.

    Not started by the constructor; ``broker`` is. ``users`` are SCRAM users, password by name.
    """

    def __init__(self, directory: Path, users: Mapping[str, str]) -> None:
        self.directory = directory
        self.passwords = dict(users)
        self.authority = trustme.CA()
        self._signing = rsa.generate_private_key(65_537, 2_048)
        self._ca_file, self._jwks, self._log = (directory / name for name in ("ca.pem", "jwks.json", "broker.log"))
        self.authority.cert_pem.write_to_path(str(self._ca_file))
        self._jwks.write_text(json.dumps({"keys": [self._public_key()]}))
        server = directory / "server.pem"
        server.write_bytes(_pkcs8(self.authority.issue_cert("127.0.0.1")))
        self.broker = ApacheKafka(directory=directory / "kafka", protection=self._protection(server))

    def _protection(self, server: Path) -> Protection:
        login = "org.apache.kafka.common.security.{}LoginModule required;"
        oauth = "listener.name.oauth.oauthbearer."
        jwks = self._jwks.as_uri()
        return Protection(
            listeners={"SCRAM": "SASL_SSL", "OAUTH": "SASL_SSL", "MTLS": "SSL"},
            users=self.passwords,
            properties={
                "authorizer.class.name": "org.apache.kafka.metadata.authorizer.StandardAuthorizer",
                "super.users": "User:ANONYMOUS",
                "ssl.keystore.type": "PEM",
                "ssl.keystore.location": str(server),
                "ssl.truststore.type": "PEM",
                "ssl.truststore.location": str(self._ca_file),
                "listener.name.mtls.ssl.client.auth": "required",
                "listener.name.mtls.ssl.principal.mapping.rules": "RULE:^.*CN=([^,]+).*$/$1/,DEFAULT",
                "listener.name.scram.sasl.enabled.mechanisms": "SCRAM-SHA-512",
                "listener.name.scram.scram-sha-512.sasl.jaas.config": login.format("scram.Scram"),
                "listener.name.oauth.sasl.enabled.mechanisms": "OAUTHBEARER",
                f"{oauth}sasl.jaas.config": login.format("oauthbearer.OAuthBearer"),
                f"{oauth}sasl.server.callback.handler.class": (
                    "org.apache.kafka.common.security.oauthbearer.OAuthBearerValidatorCallbackHandler"
                ),
                f"{oauth}sasl.oauthbearer.jwks.endpoint.url": jwks,
                f"{oauth}sasl.oauthbearer.expected.audience": AUDIENCE,
                f"{oauth}sasl.oauthbearer.expected.issuer": ISSUER,
            },
            java_options=(
                # Into a file: what the authorizer allowed is more than a process's last lines.
                f"-Dorg.slf4j.simpleLogger.logFile={self._log}",
                "-Dorg.slf4j.simpleLogger.log.kafka.authorizer.logger=debug",
                f"-Dorg.apache.kafka.sasl.oauthbearer.allowed.urls={jwks}",
            ),
        )

    async def start(self) -> None:
        """Start the broker; what is wrong is in the log, not in its output."""
        try:
            await self.broker.start()
        except Exception as error:
            error.add_note(self._log.read_text()[-4_000:] if self._log.exists() else "it wrote no log")
            raise

    def scram(self, user: str) -> dict[str, Any]:
        """Settings of a SCRAM user, whose password is in a file; the file is written anew by each call."""
        path = self.directory / f"{user}.password"
        _replace(path, self.passwords[user].encode())
        connection = {
            "security_protocol": "SASL_SSL",
            "sasl_mechanism": "SCRAM-SHA-512",
            "username": user,
            "password_file": path,
            "ca_file": self._ca_file,
        }
        return {"kafka": self.broker.listeners["SCRAM"], "connection": connection}

    def oauth(self, **connection: Any) -> dict[str, Any]:
        """Settings with a token; where it comes from is in ``connection``."""
        options = {"security_protocol": "SASL_SSL", "sasl_mechanism": "OAUTHBEARER", "ca_file": self._ca_file}
        return {"kafka": self.broker.listeners["OAUTH"], "connection": options | connection}

    def mtls(self, user: str, *, authority: trustme.CA | None = None) -> dict[str, Any]:
        """Settings with a certificate of this name; the files are written anew by each call."""
        issued = (authority or self.authority).issue_cert("tailrace.example", common_name=user)
        key, certificate = self.directory / f"{user}.key", self.directory / f"{user}.crt"
        _replace(key, issued.private_key_pem.bytes())
        _replace(certificate, b"".join(part.bytes() for part in issued.cert_chain_pems))
        connection = {
            "security_protocol": "SSL",
            "certificate_file": certificate,
            "key_file": key,
            "ca_file": self._ca_file,
        }
        return {"kafka": self.broker.listeners["MTLS"], "connection": connection}

    def renew_authority(self) -> None:
        """Another certificate authority, for the broker and for who trusts it; the broker's from its next start on."""
        self.authority = trustme.CA()
        _replace(self._ca_file, self.authority.cert_pem.bytes())
        _replace(self.directory / "server.pem", _pkcs8(self.authority.issue_cert("127.0.0.1")))

    def token(self, subject: str, *, lives_s: float = 300.0) -> str:
        """A signed token (RFC 7519) that says who one is."""
        now = time.time()
        claims = {"sub": subject, "aud": AUDIENCE, "iss": ISSUER, "iat": now, "exp": now + lives_s}
        parts = ({"alg": "RS256", "kid": "test"}, claims)
        signed = ".".join(_base64(json.dumps(part).encode()) for part in parts)
        return f"{signed}.{_base64(self._signing.sign(signed.encode(), padding.PKCS1v15(), hashes.SHA256()))}"

    def _public_key(self) -> dict[str, str]:
        numbers = self._signing.public_key().public_numbers()
        parts = {
            name: _base64(value.to_bytes((value.bit_length() + 7) // 8, "big"))
            for name, value in (("n", numbers.n), ("e", numbers.e))
        }
        return {"kty": "RSA", "kid": "test", "alg": "RS256", "use": "sig", **parts}

    async def grant(self, user: str, rights: Iterable[Right]) -> None:
        """Allow ``rights``. The broker goes by them a moment after this returns."""
        await self._change(CreateAclsRequest_v1, "creation_responses", user, rights)

    async def revoke(self, user: str, rights: Iterable[Right]) -> None:
        """Take ``rights`` back; as for :meth:`grant`."""
        await self._change(DeleteAclsRequest_v1, "filter_responses", user, rights)

    async def _change(self, struct: Any, outcomes: str, user: str, rights: Iterable[Right]) -> None:
        changes = [
            (
                *(_RESOURCES[right.resource], right.name, _PREFIXED if right.prefixed else _LITERAL),
                *(f"User:{user}", "*", _OPERATIONS[right.operation], _ALLOW),
            )
            for right in rights
        ]

        class Change(Request[struct]):
            """All of them at once, where aiokafka's requests have one."""

            API_KEY = struct.API_KEY

            def build(self, request_struct_class: Any) -> Any:
                return request_struct_class(changes)

        async with _Administration(self.broker.address) as client:
            answer = (await client._send_request(Change())).to_object()
        wrong = [outcome for outcome in answer[outcomes] if outcome["error_code"]]
        assert not wrong, wrong

    async def set_password(self, user: str, password: str) -> None:
        """Another password on the broker; :meth:`scram` writes the user's file."""
        self.passwords[user] = password
        salt = os.urandom(16)
        salted = hashlib.pbkdf2_hmac("sha512", password.encode(), salt, _ITERATIONS)
        async with _Administration(self.broker.address) as client:
            answer = await client._send_request(_AlterUserRequest(user, salt, salted))
            (outcome,) = answer.to_object()["results"]
            assert outcome["error_code"] == 0, outcome

    def decisions(self, decision: str) -> set[Asked]:
        """What the authorizer ``Allowed`` or ``Denied`` so far, as far as it logs it (not what it was only asked)."""
        return {
            Asked(found["user"], found["operation"], found["resource"], found["name"], found["request"])
            for found in map(_AUDIT.search, self._log.read_text(errors="replace").splitlines())
            if found is not None and found["decision"] == decision
        }


class _Administration(AIOKafkaAdminClient):
    def __init__(self, address: str) -> None:
        super().__init__(bootstrap_servers=address)

    async def __aenter__(self) -> _Administration:
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()


class _AlterUserResponse(Response):
    API_KEY = 51
    API_VERSION = 0
    SCHEMA = Schema(
        ("throttle_time_ms", Int32),
        (
            "results",
            CompactArray(
                *(("user", CompactString()), ("error_code", Int16), ("error_message", CompactString())),
                ("tags", TaggedFields),
            ),
        ),
        ("tags", TaggedFields),
    )


class _AlterUserRequest_v0(RequestStruct):  # noqa: N801 - as aiokafka names them
    FLEXIBLE_VERSION = True
    API_KEY = 51
    API_VERSION = 0
    RESPONSE_TYPE = _AlterUserResponse
    SCHEMA = Schema(
        ("deletions", CompactArray(("name", CompactString()), ("mechanism", Int8), ("tags", TaggedFields))),
        (
            "upsertions",
            CompactArray(
                *(("name", CompactString()), ("mechanism", Int8), ("iterations", Int32)),
                *(("salt", CompactBytes), ("salted_password", CompactBytes), ("tags", TaggedFields)),
            ),
        ),
        ("tags", TaggedFields),
    )


class _AlterUserRequest(Request[_AlterUserRequest_v0]):
    """AlterUserScramCredentials, which aiokafka does not know."""

    API_KEY = 51

    def __init__(self, user: str, salt: bytes, salted: bytes) -> None:
        self._upsertion = (user, _SCRAM_SHA_512, _ITERATIONS, salt, salted, {})

    def build(self, request_struct_class: type[_AlterUserRequest_v0]) -> _AlterUserRequest_v0:
        return request_struct_class([], [self._upsertion], {})


def _pkcs8(issued: trustme.LeafCert) -> bytes:
    """Certificate chain and key in one file, the key in the only form Java reads."""
    key = serialization.load_pem_private_key(issued.private_key_pem.bytes(), None)
    pem = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    return b"".join([pem, *(part.bytes() for part in issued.cert_chain_pems)])


def _replace(path: Path, content: bytes) -> None:
    """At once, as those who renew secrets do: nobody sees half of it."""
    fresh = path.with_suffix(".new")
    fresh.write_bytes(content)
    fresh.replace(path)


def _base64(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()
