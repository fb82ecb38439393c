"""config.yaml, the FTP Pooler's file of settings, as settings of ours.

    kafka:
      bootstrap_servers: ["localhost:9092"]
      consumer_group: "ftp-pooler"
      input_topic: "ftp-tasks"
      result_topic: "ftp-results"
      fail_topic: "ftp-failures"
    pool:
      max_sessions_per_pod: 100
      max_sessions_per_connection: 10
      session_timeout_seconds: 300
    api: {host: "0.0.0.0", port: 8080}
    metrics: {port: 9090}
    logging: {level: "INFO", format: "json"}

Values are checked where all settings are; here they are only given their new places.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

Path = tuple[str, ...]

_PLACES: Final[Mapping[Path, Path]] = {
    ("kafka", "bootstrap_servers"): ("ftptransfer", "kafka_bootstrap_servers"),
    ("kafka", "consumer_group"): ("ftptransfer", "kafka_consumer_group"),
    ("kafka", "input_topic"): ("ftptransfer", "kafka_input_topic"),
    ("kafka", "result_topic"): ("ftptransfer", "kafka_result_topic"),
    ("kafka", "fail_topic"): ("ftptransfer", "kafka_fail_topic"),
    ("pool", "max_sessions_per_pod"): ("ftptransfer", "max_sessions_per_pod"),
    ("pool", "max_sessions_per_connection"): ("ftptransfer", "max_sessions_per_connection"),
    ("pool", "session_timeout_seconds"): ("ftptransfer", "session_timeout_seconds"),
    ("api", "host"): ("ftptransfer", "api_host"),
    ("api", "port"): ("ftptransfer", "api_port"),
    ("metrics", "port"): ("telemetry", "metrics_port"),
    ("logging", "level"): ("logging", "level"),
    ("logging", "format"): ("logging", "format"),
}
_SECTIONS: Final = tuple(dict.fromkeys(section for section, _ in _PLACES))
_METRICS_HOST: Final = ("telemetry", "metrics_host")


class SeedSettingsError(Exception):
    """The file has something that is no setting; the message is one line that names the key."""


@dataclass(frozen=True, slots=True)
class SeedSettings:
    """`values` nested as our settings are, and for the path of each its key in the file."""

    values: Mapping[str, Any]
    keys: Mapping[Path, str]


def seed_settings(content: object) -> SeedSettings:
    """Our settings from the content of a config.yaml, as a YAML parser gives it. Raises SeedSettingsError."""
    if content is None:
        return SeedSettings({}, {})
    values: dict[str, dict[str, Any]] = {}
    keys: dict[Path, str] = {}

    def put(path: Path, value: object, key: str) -> None:
        section, name = path
        values.setdefault(section, {})[name] = value
        keys[path] = key

    for section, settings in _mapping(content, "the file").items():
        if section not in _SECTIONS:
            raise SeedSettingsError(f"{section}: there is no such section, choose of {', '.join(_SECTIONS)}")
        # A section without settings is one whose settings are all commented out.
        for name, value in _mapping(settings if settings is not None else {}, section).items():
            key = f"{section}.{name}"
            path = _PLACES.get((section, name))
            if path is None:
                known = ", ".join(known for where, known in _PLACES if where == section)
                raise SeedSettingsError(f"{key}: there is no such setting, choose of {known}")
            if value is not None:
                put(path, "console" if key == "logging.format" and value == "text" else value, key)
    # There it served metrics to all; here who serves the API to others serves them metrics too.
    host = values.get("ftptransfer", {}).get("api_host")
    if host is not None and "telemetry" in values:
        put(_METRICS_HOST, host, "api.host")
    return SeedSettings(values, keys)


def _mapping(value: object, where: str) -> Mapping[str, Any]:
    if not isinstance(value, dict) or not all(isinstance(key, str) for key in value):
        raise SeedSettingsError(f"{where}: names with values are expected")
    return value
