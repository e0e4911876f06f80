"""``tailrace textify items``: what is shown of a file, without a broker."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from stream_app.cli import main
from stream_app.settings import EncoderSettings
from stream_app.textify import text_hash
from tests.checkpoints import make_bert, make_qwen3, write_json
from workers.tokens import ModelTokens


@pytest.fixture(autouse=True)
def _own_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)


def write(*items: Any) -> str:
    lines = [one if isinstance(one, str) else json.dumps({"item_id": "i", "title": "Mug"} | one) for one in items]
    Path("items.jsonl").write_text("\n".join(lines), "utf-8")
    return "items.jsonl"


def test_text_template_cuts_and_masks_are_shown(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TAILRACE_TEXTIFY__MAX_TOKENS", "14")
    monkeypatch.setenv("TAILRACE_TEXTIFY__MASKS", '{"case": "K-[0-9]+"}')
    monkeypatch.setenv("TAILRACE_ENCODER__MAX_TOKENS", "10")
    file = write(
        {"item_id": "mug", "brand": "K-17", "description": "ann@example.org, bob@example.org, warm and [case] blue"},
        {"item_id": "song", "language": "zh", "attributes": {"domain": "music", "artist": "Ann"}},
        {"item_id": "none", "title": "<br>"},
    )
    assert main(["textify", "items", "--estimate", file]) == 0
    shown = capsys.readouterr().out.splitlines()
    assert shown[:7] == [
        "mug  (shop, en, about 15 tokens)",
        "  Mug. [case].",
        "  not read, beyond encoder.max_tokens:  [email], [email]",
        "  cut, beyond textify.max_tokens: , warm and [case] blue",
        "  masked: case 1, email 2",
        "song  (music, zh, about 8 tokens)",
        "  Mug。演唱：Ann",
    ]
    assert shown[8] == "  (nothing: it has no visible text)"
    assert shown[-1].startswith("3 items, ")
    assert shown[-1].endswith(
        "1 cut by the budget, 1 longer than the encoder reads, 1 masked, 1 without text, 0 lines refused"
    )


def test_json_has_everything(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["textify", "items", "--estimate", "--json", write({"description": "mail ann@example.org"})]) == 0
    assert json.loads(capsys.readouterr().out) == {
        "item_id": "i",
        "domain": "shop",
        "language": "en",
        "text": "Mug. mail [email]",
        "text_hash": text_hash("Mug. mail [email]"),
        "tokens": 8,
        "estimated": True,
        "cut": "",
        "not_read": "",
        "masked": {"email": 1},
    }


def test_refused_lines_are_named_and_make_the_status_1(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["textify", "items", "--estimate", write({}, "not json", {"item_id": 3})]) == 1
    shown = capsys.readouterr()
    assert "items.jsonl:2: not_json: " in shown.err
    assert "items.jsonl:3: invalid_field: item_id: " in shown.err
    assert shown.out.splitlines()[-1].endswith("2 lines refused")


def test_only_the_first_lines_of_a_long_file(capsys: pytest.CaptureFixture[str]) -> None:
    file = write(*({"title": f"Mug {number}"} for number in range(20_000)))
    assert main(["textify", "items", "--estimate", "--json", "--limit", "3", file]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 3


def test_wrong_templates_are_one_message(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    Path("mine").mkdir()
    Path("mine/en.toml").write_text('[domains.shop]\nparts = ["{titel}"]\n')
    monkeypatch.setenv("TAILRACE_TEXTIFY__TEMPLATES", "mine")
    assert main(["textify", "items", write({})]) == 2
    shown = capsys.readouterr().err
    assert "textify.templates = 'mine': Value error, en.toml: domains.shop.parts[0]: '{titel}': unknown" in shown
    assert "Traceback" not in shown


@pytest.mark.model
class TestModelTokens:
    def test_tokens_and_what_is_read_are_the_models(self) -> None:
        tokens = ModelTokens(EncoderSettings(max_tokens=8))
        assert tokens.read("blue mug") == (4, 8)
        assert tokens.read("blue mug of clay and glass and wood") == (10, len("blue mug of clay and glass"))
        assert tokens.read("") == (2, 0)

    def test_the_model_may_read_less_than_it_is_asked_to(self) -> None:
        assert ModelTokens(EncoderSettings(max_tokens=8_192)).max_tokens < 8_192

    def test_pooling_is_that_of_the_settings(
        self, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        """The folder says a pooling that no encoder here has, so without the setting there is no such model."""
        monkeypatch.setenv("TAILRACE_ENCODER__MODEL", str(make_bert(tmp_path / "plain", pooling="max_tokens")))
        assert main(["textify", "items", write({"item_id": "1", "title": "Mug"})]) == 2
        monkeypatch.setenv("TAILRACE_ENCODER__POOLING", "cls")
        assert main(["textify", "items", write({"item_id": "1", "title": "Mug"})]) == 0
        assert "5 tokens" in capsys.readouterr().out

    def test_the_prefix_counts_and_takes_no_room_from_the_text(self, tmp_path: Path) -> None:
        """The model has a token per letter, and one for the end."""
        model = str(make_qwen3(tmp_path / "m"))
        tokens = ModelTokens(EncoderSettings(model=model, max_tokens=16, document_prefix="passage: "))
        assert tokens.read("abc") == (9 + 3 + 1, 3)
        assert tokens.read("abcdefghijklmnopqrst") == (9 + 20 + 1, 15)
        longest = ModelTokens(EncoderSettings(model=model, max_tokens=8_192, document_prefix="passage: "))
        assert longest.read("x" * 200) == (9 + 200 + 1, 128 - 9 - 1)

    def test_texts_are_small_where_the_model_has_them_so(self, tmp_path: Path) -> None:
        model = make_qwen3(tmp_path / "m")
        write_json(model / "sentence_bert_config.json", {"do_lower_case": True})
        tokens = ModelTokens(EncoderSettings(model=str(model), max_tokens=16))
        assert tokens.read("\u0130" * 3) == (3 * 3 + 1, 3), "in small letters each is two characters of three bytes"
        assert tokens.read("\u0130" * 20) == (3 * 20 + 1, 5)
