"""Settings: where they come from, what is refused and how it says so, and that secrets stay secret."""

from __future__ import annotations

import traceback
from pathlib import Path

import pytest
from pydantic import ValidationError

from stream_app.cli.settings_reference import effective_settings
from stream_app.errors import SettingsError
from stream_app.settings import DEFAULT_EVENT_TYPES, Settings, load_settings

SECRET = "hunter2-s3cret"  # noqa: S105 - looked for where it must not be


@pytest.fixture(autouse=True)
def empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """No ``tailrace.toml`` of anybody's in the working directory."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def complaint(**overrides: object) -> str:
    """What a person reads about wrong settings; with the traceback, for secrets must not be there either."""
    with pytest.raises(SettingsError) as caught:
        load_settings(**overrides)
    full = "".join(traceback.format_exception(caught.value))
    assert SECRET not in full
    return str(caught.value)


def test_defaults_are_valid_and_point_at_this_machine():
    settings = load_settings()
    assert settings.kafka == "127.0.0.1:9092"
    assert settings.event_types == DEFAULT_EVENT_TYPES


def test_settings_cannot_be_changed():
    settings = load_settings()
    with pytest.raises(ValidationError):
        settings.kafka = "elsewhere:1"  # type: ignore[misc]
    with pytest.raises(ValidationError):
        settings.users.history = 3  # type: ignore[misc]


@pytest.mark.parametrize(
    ("overrides", "name", "shown", "allowed"),
    [
        ({"users": {"history": 0}}, "users.history", "0", "greater than or equal to 1"),
        ({"users": {"slow_decay": 1.0}}, "users.slow_decay", "1.0", "less than 1"),
        ({"users": {"slow_decay": float("nan")}}, "users.slow_decay", "nan", "less than 1"),
        ({"topics": {"prefix": "a b"}}, "topics.prefix", "'a b'", "pattern"),
        ({"topics": {"partitions": "many"}}, "topics.partitions", "'many'", "integer"),
        ({"log": {"level": "loud"}}, "log.level", "'loud'", "'debug', 'info', 'warning' or 'error'"),
        ({"encoder": {"device": "tpu"}}, "encoder.device", "'tpu'", "pattern"),
        ({"delivery": {"batch": 10**9}}, "delivery.batch", "1000000000", "less than or equal to 10000"),
        ({"delivery": {"retry_max_s": float("inf")}}, "delivery.retry_max_s", "inf", "less than or equal to 600"),
        ({"connection": {"request_timeout_s": 0.1}}, "connection.request_timeout_s", "0.1", "more than twice"),
        ({"items": {"half_lives_days": ()}}, "items.half_lives_days", "()", "at least 1 item"),
        ({"items": {"half_lives_days": (1.0, 0.0)}}, "items.half_lives_days", "(1.0, 0.0)", "greater than 0"),
        ({"items": {"half_lives_days": (-7.0,)}}, "items.half_lives_days", "(-7.0,)", "greater than 0"),
        ({"items": {"half_lives_days": (float("inf"),)}}, "items.half_lives_days", "(inf,)", "at most"),
        ({"items": {"half_lives_days": (7.0, 7.0)}}, "items.half_lives_days", "(7.0, 7.0)", "twice"),
        ({"kafka": "broker"}, "kafka", "'broker'", "host:port"),
        ({"kafka": "broker:0"}, "kafka", "'broker:0'", "host:port"),
        ({"kafka": "a:9092,b"}, "kafka", "'a:9092,b'", "host:port"),
        ({"events": {"oldest": "2000-01-01"}}, "events.oldest", "'2000-01-01'", "with a zone"),
        ({"event_types": {"nap": {"weight": -1}}}, "event_types.nap.weight", "-1", "greater than or equal to 0"),
        ({"event_types": {"nap": {"polarity": 2}}}, "event_types.nap.polarity", "2", "-1, 0 or 1"),
    ],
)
def test_a_wrong_value_is_refused_with_its_name_the_value_and_what_is_allowed(overrides, name, shown, allowed):
    message = complaint(**overrides)
    assert f"{name} = {shown}: " in message
    assert allowed in message
    assert "TAILRACE_" + name.replace(".", "__").upper() in message


def test_every_wrong_setting_is_named_at_once():
    message = complaint(users={"history": 0}, topics={"partitions": 0})
    assert "users.history" in message
    assert "topics.partitions" in message


def test_an_unknown_setting_is_refused_by_name():
    assert "ranker.lerning_rate: there is no such setting" in complaint(ranker={"lerning_rate": 1})
    assert "bogus: there is no such setting" in complaint(bogus=1)


def test_an_unknown_environment_variable_of_ours_is_refused(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("TAILRACE_REDDIS", f"redis://:{SECRET}@h")
    message = complaint()
    assert "reddis: there is no such setting (environment TAILRACE_REDDIS)" in message


def test_an_unknown_nested_environment_variable_is_refused(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("TAILRACE_RANKER__LERNING_RATE", "1")
    message = complaint()
    assert "ranker.lerning_rate: there is no such setting" in message
    assert "TAILRACE_RANKER__LERNING_RATE" in message


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("TAILRACE_KAFKA_JARS", "/somewhere"),
        # What Kubernetes says about services called tailrace and tailrace-redis.
        ("TAILRACE_SERVICE_HOST", "10.0.0.1"),
        ("TAILRACE_SERVICE_PORT_METRICS", "9100"),
        ("TAILRACE_REDIS_PORT", "tcp://10.0.0.2:6379"),
        ("TAILRACE_REDIS_PORT_6379_TCP_ADDR", "10.0.0.2"),
    ],
)
def test_variables_that_are_not_meant_as_settings_do_not_disturb(name, value, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv(name, value)
    load_settings()


def test_a_group_written_with_one_underscore_is_refused(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("TAILRACE_METRICS_PORT", "9100")
    assert "TAILRACE_METRICS_PORT" in complaint()


def test_the_environment_reaches_into_groups(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("TAILRACE_KAFKA", "broker:9093")
    monkeypatch.setenv("TAILRACE_RANKER__LEARNING_RATE", "0.5")
    monkeypatch.setenv("TAILRACE_ITEMS__HALF_LIVES_DAYS", "[2, 4]")
    monkeypatch.setenv("TAILRACE_REPLICA", '{"directory": "/data", "unknown_items": 5}')
    settings = load_settings()
    assert settings.kafka == "broker:9093"
    assert settings.ranker.learning_rate == 0.5
    assert settings.ranker.negatives == load_settings(ranker={}).ranker.negatives, "the rest keeps its defaults"
    assert settings.items.half_lives_days == (2.0, 4.0)
    assert settings.replica.folder == Path("/data")


def test_an_environment_variable_that_is_not_json_is_named(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("TAILRACE_USERS", "{history: 3}")
    message = complaint()
    assert "TAILRACE_USERS" in message
    assert "JSON" in message
    assert "file" not in message


def test_arguments_go_before_environment_before_file(empty_folder: Path, monkeypatch: pytest.MonkeyPatch):
    (empty_folder / "tailrace.toml").write_text(
        'kafka = "file:1"\nredis = "redis://file/0"\n[users]\nhistory = 7\nconsumed = 8\nhidden = 9\n'
    )
    monkeypatch.setenv("TAILRACE_KAFKA", "environment:2")
    monkeypatch.setenv("TAILRACE_USERS__CONSUMED", "80")
    settings = load_settings(users={"hidden": 90})
    assert settings.kafka == "environment:2"
    assert settings.redis.get_secret_value() == "redis://file/0"
    assert (settings.users.history, settings.users.consumed, settings.users.hidden) == (7, 80, 90)


def test_the_file_named_by_the_environment_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    file = tmp_path / "mine.toml"
    file.write_text("[topics]\nprefix = 'mine'\n")
    monkeypatch.setenv("TAILRACE_CONFIG", str(file))
    assert load_settings().topics.prefix == "mine"


def test_a_missing_or_unreadable_file_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("TAILRACE_CONFIG", str(tmp_path / "gone.toml"))
    assert "gone.toml" in complaint()
    broken = tmp_path / "broken.toml"
    monkeypatch.setenv("TAILRACE_CONFIG", str(broken))
    broken.write_text("kafka = = 1")
    message = complaint()
    assert "broken.toml" in message
    assert "line 1" in message
    broken.write_bytes(b'kafka = "\xff"')
    assert "broken.toml" in complaint()


def test_a_wrong_value_in_the_file_is_named(empty_folder: Path):
    (empty_folder / "tailrace.toml").write_text("[slate]\nsize = 0\ncolour = 'red'\n")
    message = complaint()
    assert "slate.size = 0" in message
    assert "slate.colour: there is no such setting" in message


def test_event_types_are_added_to_the_built_in_table(empty_folder: Path):
    (empty_folder / "tailrace.toml").write_text(
        "[event_types.bookmark]\nweight = 2.5\n[event_types.purchase]\nweight = 9\nconsumes = false\n"
    )
    table = load_settings().event_types
    assert set(table) == {*DEFAULT_EVENT_TYPES, "bookmark"}
    assert table["bookmark"].weight == 2.5
    assert table["bookmark"].polarity == 1
    assert (table["purchase"].weight, table["purchase"].consumes) == (9, False)
    assert table["click"] == DEFAULT_EVENT_TYPES["click"]


def test_the_built_in_table_is_not_touched_by_a_process_s_own():
    load_settings(event_types={"purchase": {"weight": 9}})
    assert load_settings().event_types["purchase"].weight == 4


def assert_secret_is_kept(settings: Settings) -> None:
    for text in (
        repr(settings),
        str(settings),
        repr(settings.connection),
        str(settings.model_dump()),
        settings.model_dump_json(),
    ):
        assert SECRET not in text


def test_every_secret_of_the_connection_is_kept():
    connection = {"password": SECRET, "key_password": SECRET, "oauth_client_secret": SECRET}
    settings = load_settings(connection=connection)
    assert_secret_is_kept(settings)
    shown = {row.name: row.value for row in effective_settings(settings)}
    assert {name: shown[f"connection.{name}"] for name in connection} == dict.fromkeys(connection, "(hidden)")


def test_secrets_are_kept_from_representations(monkeypatch: pytest.MonkeyPatch):
    settings = load_settings(redis=f"redis://:{SECRET}@h:1/0", connection={"username": "u", "password": SECRET})
    assert_secret_is_kept(settings)
    monkeypatch.setenv("TAILRACE_REDIS", f"redis://:{SECRET}@h:1/0")
    monkeypatch.setenv("TAILRACE_CONNECTION", f'{{"username": "u", "password": "{SECRET}"}}')
    settings = load_settings()
    assert_secret_is_kept(settings)
    assert settings.connection.password is not None
    assert settings.connection.password.get_secret_value() == SECRET


@pytest.mark.parametrize(
    "overrides",
    [
        {"redis": f"http://:{SECRET}@h:1"},
        {"redis": f"redis://:{SECRET}@h:port/0"},
        {"redis": f"redis://:{SECRET}/x@h:1/0"},
        {"redis": [SECRET]},
        {"connection": SECRET},
        {"connection": [SECRET]},
        {"connection": {"password": [SECRET]}},
        {"connection": {"password": SECRET, "session_timeout_s": -1}},
        {"connection": {"key_password": [SECRET]}},
        {"connection": {"oauth_client_secret": {"text": SECRET}}},
        {"connection": {"oauth_token_url": f"https://client:{SECRET}@idp.example/token"}},
        {"connection": {"passwort": SECRET}},
        {"connection": {"password": {"value": SECRET}}},
    ],
    ids=lambda overrides: str(overrides).replace(SECRET, "…"),
)
def test_secrets_are_kept_from_complaints(overrides, monkeypatch: pytest.MonkeyPatch):
    message = complaint(**overrides)
    assert next(iter(overrides)) in message


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("TAILRACE_CONNECTION", f'{{"password": "{SECRET}", "session_timeout_s": 0}}'),
        ("TAILRACE_CONNECTION", f'{{"password": "{SECRET}"'),
        ("TAILRACE_CONNECTION", f'["{SECRET}"]'),
        ("TAILRACE_CONNECTION", f'"{SECRET}"'),
        ("TAILRACE_CONNECTION__PASSWORT", SECRET),
        ("TAILRACE_REDIS", f"reddis://:{SECRET}@h"),
    ],
)
def test_secrets_in_the_environment_are_kept_from_complaints(variable, value, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv(variable, value)
    assert "TAILRACE_CONNECTION" in (message := complaint()) or "TAILRACE_REDIS" in message


def test_a_redis_url_that_cannot_be_used_is_refused_at_once():
    message = complaint(redis="redis://h:port/0")
    assert "redis = (hidden)" in message
    assert "port" in message


def test_one_field_of_a_built_in_event_type_leaves_its_others_as_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TAILRACE_EVENT_TYPES__PURCHASE__WEIGHT", "5")
    purchase = load_settings().event_types["purchase"]
    assert purchase.weight == 5
    assert purchase.consumes
