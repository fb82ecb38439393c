"""The FTP Pooler's config.yaml as settings of ours."""

import pytest
import yaml
from opsplane_server.ftptransfer.seed_settings import SeedSettingsError, seed_settings

SEED = """
kafka:
  bootstrap_servers:
    - "localhost:9092"
  consumer_group: "ftp-pooler"
  input_topic: "ftp-tasks"
  result_topic: "ftp-results"
  fail_topic: "ftp-failures"

pool:
  max_sessions_per_pod: 100
  max_sessions_per_connection: 10
  session_timeout_seconds: 300

api:
  host: "192.0.2.1"
  port: 8080

metrics:
  port: 9090

logging:
  level: "INFO"
  format: "json"
"""


def test_every_key_of_the_seed_has_its_place() -> None:
    assert seed_settings(yaml.safe_load(SEED)).values == {
        "ftptransfer": {
            "kafka_bootstrap_servers": ["localhost:9092"],
            "kafka_consumer_group": "ftp-pooler",
            "kafka_input_topic": "ftp-tasks",
            "kafka_result_topic": "ftp-results",
            "kafka_fail_topic": "ftp-failures",
            "max_sessions_per_pod": 100,
            "max_sessions_per_connection": 10,
            "session_timeout_seconds": 300,
            "api_host": "192.0.2.1",
            "api_port": 8080,
        },
        "telemetry": {"metrics_port": 9090, "metrics_host": "192.0.2.1"},
        "logging": {"level": "INFO", "format": "json"},
    }


def test_a_setting_is_called_as_in_the_file() -> None:
    keys = seed_settings({"pool": {"session_timeout_seconds": "soon"}}).keys
    assert keys == {("ftptransfer", "session_timeout_seconds"): "pool.session_timeout_seconds"}


@pytest.mark.parametrize("content", [None, {}, {"kafka": None}, {"api": {"host": None}}])
def test_what_is_left_out_sets_nothing(content: object) -> None:
    assert seed_settings(content).values == {}


def test_the_text_format_is_ours_for_people() -> None:
    assert seed_settings({"logging": {"format": "text"}}).values == {"logging": {"format": "console"}}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"kafka": {"topic": "a"}}, "kafka.topic: there is no such setting, choose of bootstrap_servers, "),
        ({"pools": {}}, "pools: there is no such section, choose of kafka, "),
        ({"pool": 5}, "pool: names with values are expected"),
        (["kafka"], "the file: names with values are expected"),
        ({7: {}}, "the file: names with values are expected"),
    ],
)
def test_what_is_no_setting_is_named(content: object, message: str) -> None:
    with pytest.raises(SeedSettingsError) as caught:
        seed_settings(content)
    assert str(caught.value).startswith(message)
