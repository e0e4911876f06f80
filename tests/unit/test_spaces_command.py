"""``tailrace spaces`` without a broker: what is given to it, what it prints, and what it refuses before it asks one."""

from __future__ import annotations

import io
import json
import shlex
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from stream_app.cli import main
from stream_app.cli.spaces import _advance, _bar, _told_encoder, build_command, setting_change
from stream_app.encoders import deciding_settings
from stream_app.errors import SettingsError
from stream_app.settings import EncoderSettings
from stream_app.space_operations import Progress, Standstill
from stream_app.space_settings import changed_encoder, settable_names, usable_encoder
from stream_app.spaces.control import EncoderValue
from tests.checkpoints import add_dense, make_bert, write_json
from tests.image_checkpoints import make_clip


def given_to(command: str) -> dict[str, EncoderValue]:
    """What ``spaces build`` gets of a command that a shell is given."""
    words = shlex.split(command)
    assert words[:3] == ["tailrace", "spaces", "build"]
    assert set(words[3::2]) <= {"--set"}
    return dict(setting_change(word) for word in words[4::2])


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("64", 64), ("0.3", 0.3), ("true", True), ("null", None), ("/models/e5", "/models/e5"), ('"null"', "null"),
        ("query: ", "query: "), ("[1]", "[1]"), ("", ""), ("a=b", "a=b"), ("[" * 100_000, "[" * 100_000),
    ],
)  # fmt: skip
def test_a_value_is_of_the_kind_it_looks_like(text: str, value: EncoderValue) -> None:
    name, found = setting_change(f"name={text}")
    assert (name, type(found), found) == ("name", type(value), value)


VALUES = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False)
    | st.text()
    | st.sampled_from(["null", "1", "true", '"x"', "it's", "two words", "$HOME"])
)


@given(encoder=st.dictionaries(st.sampled_from(settable_names()), VALUES))
def test_the_command_that_is_printed_gives_the_settings_it_was_made_of(encoder: dict[str, EncoderValue]) -> None:
    prefixed = EncoderSettings(query_prefix="query: ", document_prefix="passage: ", adapter=Path("a"))
    assert given_to(build_command(encoder, prefixed)) == encoder


def test_what_is_not_set_is_not_printed() -> None:
    encoder = deciding_settings(EncoderSettings(model="/my models/e5", document_prefix="a b"))
    command = build_command(encoder, EncoderSettings(query_prefix="query: "))
    assert "adapter" not in command
    assert "--set query_prefix=null" in command, "elsewhere it would be inherited"
    assert changed_encoder(EncoderSettings(query_prefix="query: "), given_to(command)) == changed_encoder(
        EncoderSettings(), encoder
    )


def test_the_list_tells_the_model_and_what_is_not_as_usual() -> None:
    assert _told_encoder(deciding_settings(EncoderSettings())) == "model = minilm"
    encoder = deciding_settings(EncoderSettings(model="/models/e5", max_tokens=64))
    assert _told_encoder(encoder) == "model = /models/e5, max_tokens = 64"
    assert _told_encoder({}) == "as the settings say"


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"batch": 3}, r"encoder\.batch decides no vector.*TAILRACE_ENCODER__BATCH.*model, pooling, .* image_weight"),
        ({"precision": "float32"}, r"encoder\.precision decides no vector"),
        ({"colour": "red"}, r"encoder\.colour: there is no such setting; a space may have its own model, pooling"),
        ({"max_tokens": "many"}, r"encoder\.max_tokens = 'many': .*integer.*; a space may have"),
        ({"model": None}, r"encoder\.model = None: .*string"),
        ({"image_weight": 1}, r"encoder\.image_weight = 1: .*less than 1"),
    ],
)
def test_what_no_space_can_have_is_refused_and_what_can_be_is_named(
    changes: dict[str, EncoderValue], said: str
) -> None:
    with pytest.raises(SettingsError, match=said) as refused:
        changed_encoder(EncoderSettings(), changes)
    assert "release" not in str(refused.value)
    assert "Extra inputs" not in str(refused.value)


def test_null_puts_back_what_is_inherited() -> None:
    settings = EncoderSettings(query_prefix="query: ", adapter=Path("/models/adapter"))
    changed = changed_encoder(settings, {"adapter": None, "dimensions": 64})
    assert (changed.adapter, changed.query_prefix, changed.dimensions) == (None, "query: ", 64)


def cut_off(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-100])


def test_a_model_that_is_not_whole_is_refused(tmp_path: Path) -> None:
    model, images = make_bert(tmp_path / "text"), make_clip(tmp_path / "clip")
    add_dense(model, outputs=16)
    settings = EncoderSettings(model=str(model), image_model=str(images))
    assert usable_encoder(settings).text_dimensions == 16
    for file, setting in (
        (images / "model.safetensors", "image_model"),
        (model / "2_Dense" / "model.safetensors", "model"),
        (model / "model.safetensors", "model"),
    ):
        cut_off(file)
        with pytest.raises(SettingsError, match=rf"encoder\.{setting} = .*{file.name} is cut off or damaged"):
            usable_encoder(settings)


def test_weights_of_other_shapes_are_refused(tmp_path: Path) -> None:
    model = make_bert(tmp_path / "text")
    config = json.loads((model / "config.json").read_text())
    write_json(model / "config.json", config | {"intermediate_size": 128})
    with pytest.raises(SettingsError, match=r"have another shape than its config\.json says"):
        usable_encoder(EncoderSettings(model=str(model)))


class TestBuild:
    """Wrong things are refused at once; a broker is not asked."""

    @pytest.fixture(autouse=True)
    def _nowhere(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        monkeypatch.chdir(tmp_path)
        monkeypatch.setenv("TAILRACE_KAFKA", "127.0.0.1:1")

    @pytest.mark.parametrize(
        ("arguments", "said"),
        [
            (["--set", "batch=3"], "encoder.batch decides no vector"),
            (["--set", "foo=1"], "encoder.foo: there is no such setting"),
            (["--set", "model=null"], "encoder.model = None"),
            (["--model", "/models/gone"], "/models/gone"),
            (["--set", "adapter=/adapters/gone"], "/adapters/gone"),
            (["--set", "dimensions"], "not NAME=VALUE"),
            ([], "--model, --adapter, or --set"),
        ],
    )
    def test_wrong_settings(self, arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
        assert main(["spaces", "build", *arguments]) == 2
        shown = capsys.readouterr().err
        assert said in shown
        assert "Kafka" not in shown

    def test_a_file_that_is_cut_off(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        cut_off(make_bert(tmp_path / "bert") / "model.safetensors")
        assert main(["spaces", "build", "--model", str(tmp_path / "bert")]) == 2
        assert "is cut off or damaged" in capsys.readouterr().err

    def test_without_a_broker_it_is_said_what_to_look_at(
        self, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("stream_app.space_operations.PATIENCE_S", 0.1)
        assert main(["spaces", "list"]) == 2
        shown = capsys.readouterr().err
        assert "no Kafka broker answers at 127.0.0.1:1" in shown
        assert "--kafka" in shown
        assert "TAILRACE_KAFKA" in shown


def progress(done: int, *, items: int = 10, waiting: int = 0) -> Progress:
    return Progress(items, done, True, waiting)


def test_a_build_that_does_not_move_is_noticed_once_in_each_while() -> None:
    still = Standstill(30.0)
    assert not still.noticed(progress(3), 100.0)
    assert not still.noticed(progress(3), 129.9)
    assert still.noticed(progress(3), 130.0)
    assert not still.noticed(progress(3), 131.0)
    assert still.noticed(progress(3), 160.0)
    assert not still.noticed(progress(4), 189.0), "it moves"
    assert not still.noticed(progress(4, items=12), 218.0), "that the catalogue grows moves nothing"
    assert still.noticed(progress(4, items=13), 219.0)
    assert not still.noticed(progress(4, waiting=5), 220.0)
    assert not still.noticed(progress(4, waiting=4), 250.0), "changes that are on their way become fewer"


def test_the_bar_shows_how_many_how_fast_and_how_long_still() -> None:
    now, shown = 0.0, io.StringIO()
    console = Console(file=shown, force_terminal=True, width=120, color_system=None)
    bar, task = _bar(console, get_time=lambda: now)
    with bar:
        for second in range(11):
            now = float(second)
            _advance(bar, task, progress(50 * second, items=1_000))
    last = shown.getvalue().rpartition("items")[2]
    assert "500/1000" in last
    assert "50/s" in last
    assert "0:00:10 left 0:00:10" in last


def test_an_empty_catalogue_has_no_end_to_show() -> None:
    bar, task = _bar(Console(file=io.StringIO(), force_terminal=True))
    _advance(bar, task, progress(0, items=0))
    assert bar.tasks[0].total is None
