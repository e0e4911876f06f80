"""TLS to Redis: whose certificates are taken, ours for mutual TLS, and files that are replaced while we run."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import trustme
from cryptography.hazmat.primitives import serialization
from redis.exceptions import ConnectionError as RedisConnectionError

from stream_app.embedded.redis import EmbeddedRedis
from stream_app.errors import SettingsError
from stream_app.settings import load_settings
from stream_app.stores.redis_client import RedisClient, connect_redis
from tests.redis_servers import SERVICE, RedisNode, SentinelServer
from tests.tls_proxy import TlsProxy, tls_proxy
from tests.waiting import eventually


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmbeddedRedis]:
    server = EmbeddedRedis(directory=tmp_path_factory.mktemp("redis"))
    asyncio.run(server.start())
    yield server
    asyncio.run(server.stop())


@pytest.fixture
def authority() -> trustme.CA:
    return trustme.CA()


def of_server(authority: trustme.CA, *names: str, clients: trustme.CA | None = None) -> ssl.SSLContext:
    """The server's side; with ``clients`` only those with a certificate of that authority may come in."""
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority.issue_cert(*(names or ("127.0.0.1",))).configure_cert(context)
    if clients is not None:
        context.verify_mode = ssl.CERT_REQUIRED
        clients.configure_trust(context)
    return context


def write(directory: Path, *, ca: trustme.CA | None = None, ours: trustme.LeafCert | None = None) -> None:
    if ca is not None:
        ca.cert_pem.write_to_path(str(directory / "ca.pem"))
    if ours is not None:
        ours.private_key_pem.write_to_path(str(directory / "key.pem"))
        (directory / "cert.pem").write_bytes(b"".join(blob.bytes() for blob in ours.cert_chain_pems))


@asynccontextmanager
async def client(url: str, **connection: Any) -> AsyncIterator[RedisClient]:
    redis = connect_redis(load_settings(redis=url, redis_connection={"timeout_s": 3.0, **connection}))
    try:
        yield redis
    finally:
        await redis.aclose()


@asynccontextmanager
async def proxy_of(server: EmbeddedRedis, context: ssl.SSLContext) -> AsyncIterator[tuple[TlsProxy, str]]:
    async with tls_proxy(context, target=server.port) as proxy:
        yield proxy, f"rediss://127.0.0.1:{proxy.port}/0"


async def test_a_server_of_our_authority_is_spoken_to(
    server: EmbeddedRedis, authority: trustme.CA, tmp_path: Path
) -> None:
    write(tmp_path, ca=authority)
    async with (
        proxy_of(server, of_server(authority)) as (_, url),
        client(url, ca_file=tmp_path / "ca.pem") as redis,
    ):
        assert await redis.ping()


async def test_a_server_of_another_authority_is_not(
    server: EmbeddedRedis, authority: trustme.CA, tmp_path: Path
) -> None:
    write(tmp_path, ca=trustme.CA())
    async with proxy_of(server, of_server(authority)) as (_, url):
        for files in ({"ca_file": tmp_path / "ca.pem"}, {}):
            async with client(url, **files) as redis:
                with pytest.raises(RedisConnectionError, match="certificate verify failed"):
                    await redis.ping()


async def test_the_certificate_must_be_of_the_host_unless_that_is_not_asked_for(
    server: EmbeddedRedis, authority: trustme.CA, tmp_path: Path
) -> None:
    write(tmp_path, ca=authority)
    async with proxy_of(server, of_server(authority, "redis.example")) as (_, url):
        async with client(url, ca_file=tmp_path / "ca.pem") as redis:
            with pytest.raises(RedisConnectionError, match=r"certificate is not valid for '127\.0\.0\.1'"):
                await redis.ping()
        async with client(url, ca_file=tmp_path / "ca.pem", verify_hostname=False) as redis:
            assert await redis.ping()
    async with (
        proxy_of(server, of_server(trustme.CA(), "redis.example")) as (_, url),
        client(url, ca_file=tmp_path / "ca.pem", verify_hostname=False) as redis,
    ):
        with pytest.raises(RedisConnectionError, match="certificate verify failed"):
            await redis.ping()


async def test_mutual_tls_with_files_that_are_replaced_while_we_run(
    server: EmbeddedRedis, authority: trustme.CA, tmp_path: Path
) -> None:
    files = {"ca_file": "ca.pem", "certificate_file": "cert.pem", "key_file": "key.pem"}
    connection = {name: tmp_path / file for name, file in files.items()}
    write(tmp_path, ca=authority, ours=authority.issue_cert("ours"))
    async with proxy_of(server, of_server(authority, clients=authority)) as (proxy, url):
        async with client(url, ca_file=tmp_path / "ca.pem") as without:
            with pytest.raises(RedisConnectionError):
                await without.ping()
        async with client(url, **connection) as redis:
            assert await redis.ping()
            new = trustme.CA()
            proxy.context = of_server(new, clients=new)
            await proxy.cut()
            with pytest.raises(RedisConnectionError):
                await redis.ping()
            # Half of them is not used: the pair that fits is.
            (tmp_path / "cert.pem").write_bytes(new.issue_cert("ours").cert_chain_pems[0].bytes())
            with pytest.raises(RedisConnectionError):
                await redis.ping()
            write(tmp_path, ca=new, ours=new.issue_cert("ours"))
            assert await redis.ping()


async def test_sentinels_and_the_primary_behind_tls(authority: trustme.CA, tmp_path: Path) -> None:
    write(tmp_path, ca=authority)
    context = of_server(authority)
    primary = RedisNode(directory=tmp_path / "primary")
    async with (
        tls_proxy(context, plain_too=True) as to_primary,  # the sentinel speaks no TLS
        tls_proxy(context) as to_sentinel,
    ):
        sentinel = SentinelServer(directory=tmp_path / "sentinel", primary=primary, watched_port=to_primary.port)
        try:
            await primary.start()
            to_primary.target = primary.port
            await sentinel.start()
            to_sentinel.target = sentinel.port
            url = f"rediss+sentinel://127.0.0.1:{to_sentinel.port}/{SERVICE}/3"
            async with client(url, ca_file=tmp_path / "ca.pem") as redis:
                assert await redis.set("k", "v")
            async with primary.client() as plain:
                await plain.select(3)
                assert await plain.get("k") == b"v"
        finally:
            await asyncio.gather(primary.kill(), sentinel.kill())


async def test_a_cluster_behind_tls(authority: trustme.CA, tmp_path: Path) -> None:
    write(tmp_path, ca=authority)
    async with tls_proxy(of_server(authority)) as proxy:
        options: dict[str, str | int] = {"cluster-enabled": "yes", "cluster-announce-port": proxy.port}
        node = RedisNode(directory=tmp_path / "node", options=options)
        try:
            await node.start()
            proxy.target = node.port
            async with node.client() as plain:
                await plain.execute_command("CLUSTER ADDSLOTSRANGE", 0, 16_383)

                async def ready() -> bool:
                    return dict(await plain.execute_command("CLUSTER INFO"))["cluster_state"] == "ok"

                await eventually(ready, what="one node is a cluster")
            async with client(f"rediss+cluster://127.0.0.1:{proxy.port}", ca_file=tmp_path / "ca.pem") as redis:
                assert await redis.set("k", "v")
                assert await redis.get("k") == b"v"
        finally:
            await node.kill()


@pytest.mark.parametrize("what", ["missing", "no certificate", "key of another", "encrypted key"])
def test_files_that_cannot_be_used_are_named_at_the_start(authority: trustme.CA, tmp_path: Path, what: str) -> None:
    write(tmp_path, ca=authority, ours=authority.issue_cert("ours"))
    connection = {"certificate_file": tmp_path / "cert.pem", "key_file": tmp_path / "key.pem"}
    if what == "missing":
        connection["key_file"] = tmp_path / "gone.pem"
    elif what == "no certificate":
        (tmp_path / "cert.pem").write_text("none")
    elif what == "key of another":
        authority.issue_cert("other").private_key_pem.write_to_path(str(tmp_path / "key.pem"))
    else:
        key = serialization.load_pem_private_key((tmp_path / "key.pem").read_bytes(), None)
        locked = serialization.BestAvailableEncryption(b"secret")
        pem, form = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8
        (tmp_path / "key.pem").write_bytes(key.private_bytes(pem, form, locked))
    settings = load_settings(redis="rediss://h/0", redis_connection=connection)
    named = r"redis_connection\.certificate_file = .*cert\.pem, key_file = .*pem: cannot"
    with pytest.raises(SettingsError, match=named) as said:
        connect_redis(settings)
    assert ("the key is encrypted" in str(said.value)) == (what == "encrypted key")


def test_an_authority_that_cannot_be_read_is_named_at_the_start(tmp_path: Path) -> None:
    settings = load_settings(redis="rediss://h/0", redis_connection={"ca_file": tmp_path / "gone.pem"})
    with pytest.raises(SettingsError, match=r"redis_connection\.ca_file = .*gone\.pem: cannot be read"):
        connect_redis(settings)
