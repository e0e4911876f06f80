"""Starting in a container: the image's compiled functions come along, and its health check asks the process."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from stream_app.cli import main
from stream_app.cli.health import ask
from stream_app.container import bring_compiled


@pytest.fixture
def brought(tmp_path: Path) -> Path:
    folder = tmp_path / "image" / "compiled"
    (folder / "stream_app_1").mkdir(parents=True)
    (folder / "stream_app_1" / "score.nbi").write_bytes(b"machine code")
    (folder / "stream_app_1" / "score.nbi").chmod(0o444)
    return folder


def test_what_the_image_has_is_copied_and_may_be_written_to(brought: Path, tmp_path: Path) -> None:
    cache = tmp_path / "tmp" / "compiled"
    assert bring_compiled(brought, cache)
    copied = cache / "stream_app_1" / "score.nbi"
    assert copied.read_bytes() == b"machine code"
    copied.write_bytes(b"compiled anew")
    (cache / "stream_app_1" / "more.nbi").write_bytes(b"")
    assert [path.name for path in cache.parent.iterdir()] == ["compiled"], "nothing is left beside it"


def test_what_is_there_is_kept(brought: Path, tmp_path: Path) -> None:
    cache = tmp_path / "compiled"
    cache.mkdir()
    assert not bring_compiled(brought, cache)
    assert list(cache.iterdir()) == []


def test_an_image_without_compiled_functions_starts_all_the_same(tmp_path: Path) -> None:
    assert not bring_compiled(tmp_path / "none", tmp_path / "compiled")
    assert not (tmp_path / "compiled").exists()


def test_a_place_that_cannot_be_written_to_is_said_and_costs_only_time(
    brought: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("not a folder")
    assert not bring_compiled(brought, tmp_path / "file" / "compiled")
    assert "are compiled anew" in capsys.readouterr().err


@contextmanager
def answering(status: int, text: str) -> Iterator[tuple[int, list[str]]]:
    """A process that answers every question so; its port, and what it was asked."""
    asked: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            self.send_response(status)
            self.end_headers()
            self.wfile.write(text.encode())

        def log_message(self, format: str, *args: object) -> None:
            pass

    server = HTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield server.server_port, asked
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@pytest.fixture
def port(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    monkeypatch.setenv("TAILRACE_METRICS__HOST", "0.0.0.0")  # noqa: S104 - as in the image
    return monkeypatch


def test_a_process_that_says_yes_is_healthy(port: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    with answering(200, "{}") as (number, asked):
        port.setenv("TAILRACE_METRICS__PORT", str(number))
        assert main(["health"]) == 0
        assert main(["health", "ready"]) == 0
    assert asked == ["/live", "/ready"]
    assert capsys.readouterr().out.splitlines() == ["live: ok", "ready: ok"]


def test_a_process_that_says_no_is_not_and_its_reason_is_shown(
    port: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with answering(503, '{"loop": "has not turned for 40 s"}') as (number, _):
        port.setenv("TAILRACE_METRICS__PORT", str(number))
        assert main(["health", "live"]) == 1
    assert "has not turned for 40 s" in capsys.readouterr().err


def test_no_answer_is_a_no() -> None:
    with answering(200, "") as (number, _):
        pass
    well, said = ask("127.0.0.1", number, "live", timeout_s=1.0)
    assert not well
    assert f"http://127.0.0.1:{number}/live" in said


def test_without_a_fixed_port_it_is_said_what_to_do(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["health"]) == 2
    assert "TAILRACE_METRICS__PORT" in capsys.readouterr().err
