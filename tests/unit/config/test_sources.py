"""Where settings come from, which source wins, and what is said about wrong ones."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from opsplane_server.config import Settings
from opsplane_server.config_sources import (
    ALIASES,
    OF_DATA_SETS,
    POOLER_CONFIG,
    WITHOUT_EFFECT,
    ConfigurationError,
    Loaded,
    load,
    variables,
)
from opsplane_server.supervisor.facts import WorkerFacts

from tests.unit.config.reference import DOCUMENT


@pytest.fixture(autouse=True)
def _clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (*ALIASES, *OF_DATA_SETS, *WITHOUT_EFFECT, POOLER_CONFIG):
        monkeypatch.delenv(name, raising=False)


def flags(**given: Any) -> dict[tuple[str, ...], tuple[str, object]]:
    """Flags of the section `server`."""
    return {("server", name): (f"--{name}", value) for name, value in given.items()}


def from_file(folder: Path, content: Any, **given: Any) -> Loaded:
    file = folder / "opsplane.yaml"
    file.write_text(content if isinstance(content, str) else yaml.safe_dump(content))
    return load(flags(**given), file)


def complaint(folder: Path, content: Any, **given: Any) -> str:
    with pytest.raises(ConfigurationError) as caught:
        from_file(folder, content, **given)
    message = str(caught.value)
    assert "\n" not in message
    return message.replace(str(folder), "")


def test_without_any_source_everything_has_its_default() -> None:
    loaded = load({})
    assert loaded.settings.server.host == "127.0.0.1"
    assert loaded.settings.server.port == 50051
    assert loaded.settings.database.embedded
    assert loaded.settings.data_dir.is_absolute()
    assert loaded.warnings == ()


def test_a_flag_wins_over_a_variable_over_a_plain_name_over_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = {"server": {"port": 1, "workers": 5}, "logging": {"level": "ERROR"}}

    def port(**given: Any) -> int:
        return from_file(tmp_path, file, **given).settings.server.port

    assert port() == 1
    monkeypatch.setenv("SERVER_PORT", "2")
    assert port() == 2
    monkeypatch.setenv("OPSPLANE_SERVER__PORT", "3")
    assert port() == 3
    assert port(port="4") == 4
    settings = from_file(tmp_path, file, port="4").settings
    assert (settings.server.workers, settings.logging.level) == (5, "ERROR")


@pytest.mark.parametrize("name", ALIASES)
def test_names_of_the_replaced_tools_set_what_they_set_there(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    section, field = ALIASES[name]
    default = getattr(getattr(load({}).settings, section), field)
    value = "false" if isinstance(default, bool) else "3" if isinstance(default, int | float) else "debug"
    if section == "database" and field != "host":
        monkeypatch.setenv("DATABASE_HOST", "db")
    if name == "SERVER_HOST":
        value = "::1"
    if name == "SCHEDULER_JOB_WARNING_HOURS":
        monkeypatch.setenv("SCHEDULER_JOB_TIMEOUT_HOURS", "3")
    monkeypatch.setenv(name, value)
    found = getattr(getattr(load({}).settings, section), field)
    assert found != default or str(found) == value


def test_parts_that_are_not_built_yet_are_named_in_one_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in WITHOUT_EFFECT:
        monkeypatch.setenv(name, "x")
    [warning] = load({}).warnings
    assert all(name in warning for name in WITHOUT_EFFECT)
    assert "no effect yet" in warning


def test_what_load_tests_say_by_themselves_is_named_in_another(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in OF_DATA_SETS:
        monkeypatch.setenv(name, "x")
    [warning] = load({}).warnings
    assert all(name in warning for name in OF_DATA_SETS)
    assert "opsplane loadtest data-sets create" in warning
    for name in OF_DATA_SETS:
        monkeypatch.delenv(name)
    # Of a Service in Kubernetes that is called `clickhouse`.
    monkeypatch.setenv("CLICKHOUSE_PORT", "tcp://10.0.0.1:9000")
    assert load({}).warnings == ()


def test_influxdb_of_the_seed_is_used_once_it_has_a_token(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (("HOST", "influx"), ("PORT", "8087"), ("DATABASE", "k6")):
        monkeypatch.setenv(f"INFLUXDB_{name}", value)
    loaded = load({})
    assert not loaded.settings.influxdb.enabled
    [warning] = loaded.warnings
    assert "INFLUXDB_HOST" in warning
    assert "a 1.x server can not be used" in warning
    monkeypatch.setenv("OPSPLANE_INFLUXDB__ORG", "team")
    monkeypatch.setenv("OPSPLANE_INFLUXDB__TOKEN", "sesame")
    loaded = load({})
    assert loaded.warnings == ()
    assert loaded.settings.influxdb.enabled
    assert (loaded.settings.influxdb.address, loaded.settings.influxdb.bucket) == ("http://influx:8087", "k6")
    assert "sesame" not in repr(loaded.settings)
    monkeypatch.setenv("OPSPLANE_INFLUXDB__URL", "https://influx.example.com/behind/")
    assert load({}).settings.influxdb.address == "https://influx.example.com/behind"


@pytest.mark.parametrize("name", variables())
def test_every_variable_is_read(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if "DATABASE" in name:
        monkeypatch.setenv("DATABASE_HOST", "db")
    before = load({}).settings
    monkeypatch.setenv(name, "~strange")
    try:
        assert load({}).settings != before
    except ConfigurationError as error:
        needs_more = re.search("environment: (tls|influxdb)", str(error))
        assert name in str(error) or "~strange" in str(error) or needs_more  # noqa: PT017


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"server": {"prot": 1}}, "/opsplane.yaml: server.prot: there is no such setting"),
        ({"sever": {"port": 1}}, "/opsplane.yaml: sever: there is no such setting"),
        ({"server": {"port": "x"}}, "/opsplane.yaml: server.port: Input should be a valid integer"),
        ({"server": {"port": 65536}}, "/opsplane.yaml: server.port: "),
        ({"server": {"services": "telepathy"}}, "there is no service 'telepathy': choose of loadtesting"),
        ({"tls": {"cert": "a.pem"}}, "/opsplane.yaml: tls: cert and key are needed together"),
        ({"tls": {"cert": "/no/a", "key": "/no/b"}}, "tls.cert: /no/a: No such file or directory"),
        ({"database": {"name": "x"}}, "/opsplane.yaml: database: name is of no use without host"),
        ({"database": {"pool_min_size": 11}}, "pool_min_size is more than pool_max_size"),
        ({"server": {"host": "192.0.2.7"}}, "server.host 192.0.2.7 is not loopback"),
        ({"server": {"host": "example.com"}}, "server.host example.com is not loopback"),
        ({"influxdb": {"url": "http://db"}}, "/opsplane.yaml: influxdb: url needs token and org too"),
        ({"influxdb": {"url": "db:8086"}}, "/opsplane.yaml: influxdb.url: "),
        ({"influxdb": {"url": "http://user:word@db"}}, "/opsplane.yaml: influxdb.url: "),
        ({"influxdb": {"token": "t", "org": "o"}}, "token needs url too"),
        ({"influxdb": {"token": "t", "host": "db"}}, "token needs org too"),
        ({"influxdb": {"token": "t\nx", "host": "db", "org": "o"}}, "token has characters that no token has"),
        ({"loadtesting": {"history": "influxdb"}}, "loadtesting.history is influxdb, but there is no influxdb.token"),
        ({"auth": {"tokens": [{"name": "a", "token": "b"}]}}, "/opsplane.yaml: auth.tokens.0.roles: Field required"),
        ({"auth": {"tokens": [{"name": "a", "roles": {"*": "viewer"}}]}}, "exactly one of token and sha256"),
        ({"auth": {"tokens": [{"name": "a", "token": "b", "roles": {"*": "boss"}}]}}, "'boss' is not a role"),
        ("server: [", "/opsplane.yaml: not YAML in line 1"),
        ("- a", "/opsplane.yaml: sections with settings are expected, not a list"),
    ],
)
def test_what_is_wrong_is_named(tmp_path: Path, content: Any, message: str) -> None:
    assert message in complaint(tmp_path, content)


def test_several_faults_are_named_in_one_line(tmp_path: Path) -> None:
    said = complaint(tmp_path, {"server": {"prot": 1}, "logging": {"level": "loud"}}, port="x")
    assert "--port: " in said
    assert "server.prot: " in said
    assert "logging.level: " in said


@pytest.mark.parametrize(
    ("name", "value", "hint"),
    [
        ("OPSPLANE_SERVER_PORT", "1", "OPSPLANE_SERVER__PORT is meant perhaps"),
        ("OPSPLANE_SEVER__PORT", "1", ""),
        ("OPSPLANE_AUTH__TOKENS", "x", ""),
    ],
)
def test_an_unknown_variable_is_refused(name: str, value: str, hint: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(name, value)
    with pytest.raises(ConfigurationError, match=f"environment variable {name}: there is no such setting.*{hint}"):
        load({})


def test_variables_of_others_do_no_harm(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {
        "OPSPLANE_CONFIG": "",
        "OPSPLANE_ADDRESS": "127.0.0.1:1",
        "OPSPLANE_TOKEN": "t",
        "OPSPLANE_SERVICE_HOST": "10.0.0.1",
        "OPSPLANE_SERVICE_PORT": "50051",
        "OPSPLANE_SERVICE_PORT_GRPC": "50051",
        "OPSPLANE_PORT": "tcp://10.0.0.1:50051",
        "OPSPLANE_PORT_50051_TCP_ADDR": "10.0.0.1",
        "OPSPLANE_POSTGRES_SERVICE_HOST": "10.0.0.2",
        "OPSPLANE_POSTGRES_PORT": "tcp://10.0.0.2:5432",
        "SERVER_PORT": "tcp://10.0.0.3:80",
        "DATABASE_PORT": "tcp://10.0.0.4:5432",
    }.items():
        monkeypatch.setenv(name, value)
    settings = load({}).settings
    assert settings.server.port == 50051
    assert settings.database.embedded


def test_tokens_of_their_own_file_are_added_and_kept_as_hashes(tmp_path: Path) -> None:
    tokens = tmp_path / "tokens.yaml"
    tokens.write_text(yaml.safe_dump([{"name": "b", "token": "open sesame", "roles": {"*": "admin"}}]))
    own = {"name": "a", "sha256": "0" * 64, "roles": {"loadtesting": "viewer"}}
    loaded = from_file(tmp_path, {"auth": {"tokens_file": str(tokens), "tokens": [own]}}).settings
    assert [token.name for token in loaded.auth.tokens] == ["a", "b"]
    assert loaded.auth.tokens[1].sha256 == hashlib.sha256(b"open sesame").hexdigest()
    assert "open sesame" not in repr(loaded) + loaded.model_dump_json()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([{"name": "b", "token": "t", "roles": {"*": "boss"}}], "/tokens.yaml: token 1: 'boss' is not a role"),
        ([{"name": "b", "tokn": "t"}], "/tokens.yaml: token 1, tokn: there is no such setting"),
        ([{"name": "a", "token": "t", "roles": {"*": "viewer"}}], "two tokens have the same name"),
        ({"a": "b"}, "/tokens.yaml: a list of tokens is expected"),
    ],
)
def test_faults_of_the_tokens_file_are_named_there(tmp_path: Path, content: Any, message: str) -> None:
    tokens = tmp_path / "tokens.yaml"
    tokens.write_text(yaml.safe_dump(content))
    own = {"name": "a", "token": "t", "roles": {"*": "viewer"}}
    assert message in complaint(tmp_path, {"auth": {"tokens_file": str(tokens), "tokens": [own]}})


def test_a_message_never_shows_a_secret(tmp_path: Path) -> None:
    said = complaint(
        tmp_path,
        {
            "auth": {"tokens": [{"name": "a", "token": "hunter2", "roles": {"*": "boss"}}]},
            "database": {"password": ["hunter2"]},
        },
    )
    assert "hunter2" not in said


def test_the_database_address_survives_strange_characters(tmp_path: Path) -> None:
    database = {"host": "/run/my sql", "user": "a@b", "password": "p:/?#@ü%", "name": "d/b"}
    settings = from_file(tmp_path, {"database": database}).settings
    assert "p:/" not in repr(settings)
    assert settings.database.dsn == (
        "postgresql://a%40b:p%3A%2F%3F%23%40%C3%BC%25@/d%2Fb?host=%2Frun%2Fmy+sql&port=5432&sslmode=prefer"
    )


def test_workers_get_the_same_settings_without_the_password(tmp_path: Path) -> None:
    content = {
        "server": {"workers": 3},
        "auth": {"tokens": [{"name": "a", "token": "t", "roles": {"*": "viewer"}}]},
        "database": {"host": "db", "password": "hunter2"},
    }
    for settings in (load({}).settings, from_file(tmp_path, content).settings):
        facts = WorkerFacts(
            index=1,
            settings=settings,
            address="127.0.0.1:1",
            local_address="127.0.0.1:1",
            dsn="postgresql://",
            run_folder=tmp_path,
            node="n",
            lock_fd=3,
        )
        line = facts.to_line()
        assert b"hunter2" not in line
        assert line.count(b"\n") == 1
        without = settings.model_copy(update={"database": settings.database.model_copy(update={"password": None})})
        assert WorkerFacts.model_validate_json(line).settings == without


def test_workers_get_secrets_that_nothing_else_shows(tmp_path: Path) -> None:
    secrets = {
        "influxdb": {"url": "http://db", "org": "team", "token": "sesame-1"},
        "ftptransfer": {"kafka_sasl_password": "sesame-2"},
    }
    settings = from_file(tmp_path, secrets).settings
    facts = WorkerFacts(
        index=1,
        settings=settings,
        address="127.0.0.1:1",
        local_address="127.0.0.1:1",
        dsn="postgresql://",
        run_folder=tmp_path,
        node="n",
        lock_fd=3,
    )
    received = WorkerFacts.model_validate_json(facts.to_line()).settings
    assert received == settings
    assert received.influxdb.token is not None
    assert received.influxdb.token.get_secret_value() == "sesame-1"
    for text in (repr(facts), str(settings), settings.model_dump_json(), str(settings.model_dump())):
        assert "sesame" not in text


def test_the_documented_example_is_valid(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    example = re.search(r"```yaml\n(.*?)```", DOCUMENT.read_text(), re.DOTALL)
    assert example is not None
    content = yaml.safe_load(example[1])
    del content["tls"], content["auth"]["tokens_file"], content["server"]["host"]  # files that are not here
    assert from_file(tmp_path, content).settings.server.workers == 2
    Settings.model_validate({**yaml.safe_load(example[1]), "data_dir": tmp_path})


POOLER = """
kafka:
  bootstrap_servers: ["kafka-1:9092", "kafka-2:9092"]
  consumer_group: "movers"
pool:
  max_sessions_per_pod: 50
api:
  host: "0.0.0.0"
  port: 8080
logging:
  level: "DEBUG"
"""


def test_the_poolers_file_is_read_below_everything_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pooler = tmp_path / "pooler.yaml"
    pooler.write_text(POOLER)
    own = tmp_path / "own.yaml"
    own.write_text("ftptransfer: {max_sessions_per_pod: 70}")
    monkeypatch.setenv(POOLER_CONFIG, str(pooler))
    monkeypatch.setenv("LOG_LEVEL", "ERROR")
    settings = load({}, own).settings
    assert settings.ftptransfer.kafka_bootstrap_servers == ("kafka-1:9092", "kafka-2:9092")
    assert settings.ftptransfer.kafka_consumer_group == "movers"
    assert (settings.ftptransfer.api_host, settings.ftptransfer.api_port) == ("0.0.0.0", 8080)  # noqa: S104
    assert settings.ftptransfer.max_sessions_per_pod == 70
    assert settings.logging.level == "ERROR"


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("pool: {sessions: 3}", "pool.sessions: there is no such setting"),
        ("pool: {max_sessions_per_pod: many}", "pool.max_sessions_per_pod: Input should be a valid integer"),
        ("queue: {}", "queue: there is no such section"),
    ],
)
def test_what_is_wrong_in_the_poolers_file_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: str, words: str
) -> None:
    pooler = tmp_path / "pooler.yaml"
    pooler.write_text(content)
    monkeypatch.setenv(POOLER_CONFIG, str(pooler))
    with pytest.raises(ConfigurationError) as caught:
        load({})
    assert str(pooler) in str(caught.value)
    assert words in str(caught.value)
