"""The command line without a broker: help, settings, errors, validation of files."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import click
import pytest
import zstandard

from stream_app.cli import main
from stream_app.cli.root import COMMANDS, LazyGroup, root
from stream_app.cli.settings_reference import effective_settings, reference_page
from stream_app.settings import load_settings

ITEM = b'{"item_id":"i-1","title":"Mug"}'


@pytest.fixture(autouse=True)
def _own_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Global options write to the environment; nothing of it may outlive a test."""
    for name in ("TAILRACE_KAFKA", "TAILRACE_REDIS", "TAILRACE_CONFIG"):
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_of_the_table_loads_and_explains_itself(name: str) -> None:
    assert isinstance(root, LazyGroup)
    command = root.get_command(click.Context(root), name)
    assert command is not None
    assert command.name == name
    assert command.help


def test_help_lists_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    shown = capsys.readouterr().out
    assert all(f"\n  {name} " in shown for name in COMMANDS)


def test_help_imports_nothing_heavy() -> None:
    heavy = ("torch", "faust", "aiokafka", "pydantic", "numpy", "rich")
    code = (
        "import sys\nfrom stream_app.cli import main\nmain(['--help'])\n"
        f"print('HEAVY', [name for name in {heavy!r} if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "HEAVY []" in done.stdout


@pytest.mark.parametrize("arguments", [["nonsense"], ["produce"], ["produce", "cats", "x.jsonl"], ["topics", "--no"]])
def test_wrong_usage_is_status_2(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments) == 2
    assert "Error: " in capsys.readouterr().err


def test_wrong_setting_is_one_message_without_a_traceback(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--kafka", "nowhere", "topics", "list"]) == 2
    shown = capsys.readouterr().err
    assert shown.startswith("tailrace: wrong settings:")
    assert "'nowhere' is not host:port" in shown
    assert "Traceback" not in shown


def test_absent_broker_is_one_message_that_names_it(capsys: pytest.CaptureFixture[str], unused_tcp_port: int) -> None:
    assert main(["--kafka", f"127.0.0.1:{unused_tcp_port}", "topics", "list"]) == 2
    assert f"no Kafka broker answers at 127.0.0.1:{unused_tcp_port}" in capsys.readouterr().err


class TestSettings:
    def test_options_files_and_defaults_are_shown_and_secrets_hidden(
        self, capsys: pytest.CaptureFixture[str], tmp_path: Path
    ) -> None:
        config = tmp_path / "mine.toml"
        config.write_text('[topics]\nprefix = "shop"\n[connection]\npassword = "hunter2"\n')
        arguments = ["--kafka", "b:1", "--redis", "redis://:hunter2@r/0", "--config", str(config), "settings"]
        assert main([*arguments, "--json"]) == 0
        shown = capsys.readouterr().out
        values = json.loads(shown)
        assert (values["kafka"], values["topics.prefix"]) == ("b:1", "shop")
        assert values["redis"] == values["connection.password"] == "(hidden)"
        assert main(arguments) == 0
        assert "hunter2" not in shown + capsys.readouterr().out

    def test_event_types_are_among_them(self) -> None:
        settings = load_settings(event_types={"bookmark": {"weight": 2.5}, "click": {"weight": 7}})
        rows = {row.name: (row.value, row.default) for row in effective_settings(settings)}
        assert rows["event_types.bookmark.weight"] == (2.5, None)
        assert rows["event_types.click.weight"] == (7.0, 1.0)

    def test_reference_page_is_up_to_date(self) -> None:
        page = Path(__file__).parents[2] / "docs" / "settings.md"
        assert page.read_text() == reference_page(), "run: tailrace settings reference --out docs/settings.md"

    def test_every_setting_is_explained(self) -> None:
        for line in reference_page().splitlines():
            if line.startswith("| `"):
                assert all(cell.strip() for cell in line.strip("| ").split(" | ")), line

    def test_sample_of_the_reference_page_is_accepted(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        sample = reference_page().split("```toml\n")[1].split("```")[0]
        path = tmp_path / "sample.toml"
        path.write_text(sample)
        monkeypatch.setenv("TAILRACE_CONFIG", str(path))
        settings = load_settings()
        assert settings.topics.prefix == "shop"
        assert settings.event_types["bookmark"].weight == 2.5


class TestProduceCheck:
    def check(self, kind: str, lines: bytes, tmp_path: Path, *options: str) -> int:
        path = tmp_path / "lines.jsonl"
        path.write_bytes(lines)
        return main(["produce", kind, str(path), "--check", *options])

    def test_refused_lines_are_named_by_number_and_make_the_status_1(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        lines = b"\n".join([ITEM, b"", b"not json", b'{"item_id":4,"title":"x"}', ITEM])
        assert self.check("items", lines, tmp_path) == 1
        shown = capsys.readouterr()
        assert "lines.jsonl:3: not_json: " in shown.err
        assert "lines.jsonl:4: invalid_field: item_id: expected a string, found the number 4" in shown.err
        assert "2 lines refused" in shown.err
        assert shown.out.startswith("2 items are valid")

    def test_skip_bad_makes_the_status_0(self, tmp_path: Path) -> None:
        assert self.check("items", ITEM + b"\nnot json\n", tmp_path, "--skip-bad") == 0

    def test_few_refused_lines_are_shown_and_all_counted(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert self.check("items", b"{}\n" * 3_000, tmp_path, "--show-bad", "2") == 1
        shown = capsys.readouterr().err
        assert shown.count("missing_field") == 2
        assert "3,000 lines refused" in shown

    def test_profiles_are_checked(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        lines = b'{"user_id":"ann","interests":["jazz"]}\n{"user_id":"bob","interests":"jazz"}\n'
        assert self.check("users", lines, tmp_path) == 1
        said = capsys.readouterr()
        assert "1 users are valid" in said.out
        assert "interests" in said.err

    def test_interactions_are_checked_against_the_settings(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        line = b'{"event_id":"e","user_id":"u","type":"%s","item_id":"i","occurred_at":"%s"}\n'
        lines = line % (b"click", b"2020-01-01T00:00:00Z") + line % (b"teleport", b"2020-01-01T00:00:00Z")
        assert self.check("interactions", lines + line % (b"click", b"1970-01-01T00:00:00Z"), tmp_path) == 1
        shown = capsys.readouterr().err
        assert ":2: unknown_event_type" in shown
        assert ":3: occurred_at_out_of_range" in shown

    def test_line_the_broker_would_not_take_is_refused(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        long = b'{"item_id":"i-1","title":"Mug","attributes":{"a":"' + b"x" * 2_000_000 + b'"}}'
        assert self.check("items", long, tmp_path) == 1
        assert "too_large: the line has 2,000," in capsys.readouterr().err

    def test_standard_input_and_compressed_files(self, tmp_path: Path) -> None:
        command = [sys.executable, "-m", "stream_app.cli", "produce", "items", "--check"]
        done = subprocess.run([*command, "-"], input=ITEM + b"\n" + ITEM, capture_output=True, check=False)
        assert (done.returncode, done.stdout[:17]) == (0, b"2 items are valid")
        path = tmp_path / "items.jsonl.zst"
        path.write_bytes(zstandard.compress(ITEM + b"\n"))
        assert main(["produce", "items", str(path), "--check"]) == 0

    @pytest.mark.parametrize("content", [b"not zstd", zstandard.compress(ITEM * 99)[:-5]])
    def test_broken_compression_is_one_message(
        self, content: bytes, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        path = tmp_path / "items.jsonl.zst"
        path.write_bytes(content)
        assert main(["produce", "items", str(path), "--check"]) == 2
        assert "items.jsonl.zst: cannot be read" in capsys.readouterr().err


def test_dataset_is_written_and_valid(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    raw = tmp_path / "raw.csv"
    raw.write_text(
        "InvoiceNo,Description,Quantity,InvoiceDate,UnitPrice,CustomerID\n"
        "1,MUG,2,2010-12-01 08:26:00,1.5,7\n1,CUP,1,2010-12-01 08:26:00,2.5,7\n"
    )
    assert main(["dataset", "online-retail", "--out", str(tmp_path / "out"), "--raw", str(raw), "--zst"]) == 0
    assert "items.jsonl.zst: 2 lines" in capsys.readouterr().out
    for kind in ("items", "interactions"):
        assert main(["produce", kind, str(tmp_path / "out" / f"{kind}.jsonl.zst"), "--check"]) == 0
