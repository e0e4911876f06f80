"""Names and passwords for Redis: from the URL, the environment and files, rotated, and never shown."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from redis.exceptions import AuthenticationError
from structlog.testing import capture_logs

from stream_app.cli import main
from stream_app.errors import SettingsError
from stream_app.metrics import Metrics
from stream_app.settings import Settings, load_settings
from stream_app.stores.redis_client import connect_redis
from stream_app.stores.users import UserStore
from stream_app.users.state import UserState
from tests.redis_servers import SERVICE, RedisNode, SentinelServer
from tests.waiting import eventually

SECRET, NEXT = "s3cr3t/of:ours@", "the-one-after"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisNode]:
    server = RedisNode(directory=tmp_path_factory.mktemp("redis"))
    asyncio.run(server.start())
    yield server
    asyncio.run(server.stop())


async def allow(server: RedisNode, password: str) -> None:
    """Let the user ``app`` in with this password alone, and end its connections."""
    async with server.client() as admin:
        await admin.execute_command("ACL", "SETUSER", "app", "reset", "on", f">{password}", "~*", "&*", "+@all")
        await admin.execute_command("CLIENT", "KILL", "USER", "app")


def settings_of(url: str, **connection: Any) -> Settings:
    return load_settings(
        redis=url,
        redis_connection={"timeout_s": 2.0, **connection},
        topics={"prefix": "t"},
        delivery={"retry_max_s": 0.05},
    )


@asynccontextmanager
async def users_of(settings: Settings) -> AsyncIterator[tuple[UserStore, Metrics]]:
    redis, metrics = connect_redis(settings), Metrics()
    try:
        yield UserStore(redis, settings, metrics), metrics
    finally:
        await redis.aclose()


def write(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


def state(offset: int) -> UserState:
    return UserState("u", applied={0: offset}, events=offset + 1)


async def test_a_rotated_password_is_taken_up_and_waited_for(server: RedisNode, tmp_path: Path) -> None:
    await allow(server, SECRET)
    password_file = write(tmp_path / "pass", f"{SECRET}\n")
    files = {"username_file": write(tmp_path / "name", "app\n"), "password_file": password_file}
    with capture_logs() as logs:
        async with users_of(settings_of(f"redis://{server.address}/0", **files)) as (users, metrics):

            def tries() -> float:
                what = {"what": "user states to Redis"}
                return metrics.registry.get_sample_value("tailrace_retries_total", what) or 0.0

            await users.check()
            assert await users.save({"u": state(0)}, partitions={"u": 0}) == []
            await allow(server, NEXT)
            saving = asyncio.create_task(users.save({"u": state(1)}, partitions={"u": 0}))
            await eventually(lambda: tries() > 2)
            assert not saving.done(), "the password is the old one"
            password_file.unlink()  # in the middle of being replaced
            so_far = tries()
            await eventually(lambda: tries() > so_far + 1)
            write(password_file, NEXT)
            assert await asyncio.wait_for(saving, 20) == []
    assert {line["event"] for line in logs} >= {"waiting", "resumed"}
    assert SECRET not in str(logs)
    assert NEXT not in str(logs)


@pytest.mark.parametrize("where", ["URL", "user in the URL, password in a file"])
async def test_parts_may_be_in_the_url(server: RedisNode, tmp_path: Path, where: str) -> None:
    await allow(server, SECRET)
    if where == "URL":
        settings = settings_of(f"redis://app:s3cr3t%2Fof%3Aours%40@{server.address}/0")
    else:
        password_file = write(tmp_path / "pass", SECRET)
        settings = settings_of(f"redis://app@{server.address}/0", password_file=password_file)
    async with users_of(settings) as (users, _):
        await users.check()
        assert (await users.load([where]))[where].events == 0


async def test_sentinels_have_a_password_of_their_own(tmp_path: Path) -> None:
    primary = RedisNode(directory=tmp_path / "primary")
    sentinel = SentinelServer(directory=tmp_path / "sentinel", primary=primary)
    try:
        await primary.start()
        await sentinel.start()
        await allow(primary, SECRET)
        async with RedisNode.client(sentinel) as admin:  # type: ignore[arg-type]  # it has a port as well
            rights = ("+sentinel|get-master-addr-by-name", "+ping")
            await admin.execute_command("ACL", "SETUSER", "asking", "on", f">{NEXT}", *rights)
            await admin.execute_command("ACL", "SETUSER", "default", "off")
        of_sentinels = write(tmp_path / "sentinel-pass", NEXT)
        url = f"redis+sentinel://app:s3cr3t%2Fof%3Aours%40@{sentinel.address}/{SERVICE}"
        settings = settings_of(url, sentinel_username="asking", sentinel_password_file=of_sentinels)
        async with users_of(settings) as (users, _):
            await users.check()
        with capture_logs() as logs:
            async with users_of(settings_of(url)) as (users, _):
                checking = asyncio.create_task(users.check())
                await eventually(lambda: any("Authentication required" in str(line) for line in logs))
                checking.cancel()
                await asyncio.gather(checking, return_exceptions=True)
    finally:
        await asyncio.gather(primary.kill(), sentinel.kill())


@pytest.mark.parametrize(
    ("content", "why"), [(None, "cannot be read: No such file"), (b" \n", "is empty"), (b"\xff\xfe", "it is not UTF-8")]
)
def test_a_file_that_holds_no_password_is_named_at_the_start(tmp_path: Path, content: bytes | None, why: str) -> None:
    path = tmp_path / "pass"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(SettingsError, match=rf"redis_connection\.password_file = {path}: .*{why}"):
        connect_redis(settings_of("redis://h/0", password_file=path))
    with pytest.raises(SettingsError, match=rf"redis_connection\.sentinel_password_file = {path}: .*{why}"):
        connect_redis(settings_of("redis+sentinel://h/s", sentinel_password_file=path))


@pytest.mark.parametrize(
    ("url", "connection", "said"),
    [
        ("redis://:x@h/0", {"password_file": "f"}, "keep one"),
        ("redis://u:x@h/0", {"username_file": "f"}, "keep one"),
        ("redis://h/0", {"username_file": "f"}, "no password is"),
        ("redis://h/0", {"ca_file": "f"}, "asks for no TLS"),
        ("redis://h/0", {"certificate_file": "f"}, "asks for no TLS"),
        ("rediss://h/0", {"key_file": "f"}, "certificate_file is not"),
        ("redis://h/0", {"sentinel_password_file": "f"}, "names no sentinels"),
        ("redis+sentinel://h/s", {"sentinel_username": "u"}, "sentinel_password_file is not"),
        ("redis://h/0", {"replicas": 1, "replicas_timeout_ms": 5_000}, "shorter than timeout_s"),
    ],
)
def test_settings_that_do_not_go_together_are_refused(url: str, connection: dict[str, Any], said: str) -> None:
    with pytest.raises(SettingsError, match=said):
        load_settings(redis=url, redis_connection=connection)


def test_nothing_shows_a_secret(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write(tmp_path / "pass", NEXT)
    for url in ("redis://u:{}@h:1/0", "redis+sentinel://u:{}@h,i/s/0", "rediss+cluster://u:{}@h:1,i:2"):
        monkeypatch.setenv("TAILRACE_REDIS", url.format("s3cr3t"))
        settings = load_settings()
        for shown in (repr(settings), settings.model_dump_json(), repr(connect_redis(settings))):
            assert "s3cr3t" not in shown
        for command in (["settings"], ["settings", "--json"]):
            assert main(command) == 0
            printed = capsys.readouterr()
            assert "redis" in printed.out
            assert "s3cr3t" not in printed.out + printed.err
        monkeypatch.setenv("TAILRACE_REDIS", url.format("s3cr3t@x"))  # not percent-encoded: another host, or none
        monkeypatch.setenv("TAILRACE_REDIS_CONNECTION__PASSWORD_FILE", str(path))
        with pytest.raises(SettingsError) as said:
            load_settings()
        assert "s3cr3t" not in str(said.value)
        monkeypatch.delenv("TAILRACE_REDIS_CONNECTION__PASSWORD_FILE")
    redis = connect_redis(settings_of("redis+cluster://u@h:1", password_file=path))
    assert NEXT not in repr(redis) + repr(vars(redis)) + str(redis.get_connection_kwargs())


async def test_what_is_said_of_a_failed_login_holds_no_secret(server: RedisNode, tmp_path: Path) -> None:
    await allow(server, SECRET)
    wrong = write(tmp_path / "pass", NEXT)
    for user, files in (("app", {"password_file": wrong}), (f"app:{NEXT}", {})):
        redis = connect_redis(settings_of(f"redis://{user}@{server.address}/0", **files))
        try:
            with pytest.raises(AuthenticationError) as said:
                await redis.ping()
            assert NEXT not in f"{said.value!r}{said.value.__cause__!r}{said.value.__context__!r}"
        finally:
            await redis.aclose()
