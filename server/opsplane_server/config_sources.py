"""Where settings come from: flags, environment, file; and one clear line for what is wrong with them.

A setting is taken from a command-line flag, else from the environment variable `OPSPLANE_<SECTION>__<FIELD>`, else
from its plain name in `ALIASES`, else from the YAML file, else from the FTP Pooler's config.yaml that
`FTP_POOLER_CONFIG` names, else it has its default.
"""

from __future__ import annotations

import os
import re
import ssl
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import yaml
from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails
from pydantic_settings import BaseSettings, EnvSettingsSource, SettingsConfigDict

from opsplane_server.config import Settings, TlsSettings
from opsplane_server.ftptransfer.seed_settings import SeedSettingsError, seed_settings

PREFIX: Final = "OPSPLANE_"

# Names of the tools that Opsplane replaces; they mean what they meant there.
ALIASES: Final[Mapping[str, tuple[str, str]]] = {
    "SERVER_HOST": ("server", "host"),
    "SERVER_PORT": ("server", "port"),
    "DATABASE_HOST": ("database", "host"),
    "DATABASE_PORT": ("database", "port"),
    "DATABASE_NAME": ("database", "name"),
    "DATABASE_USER": ("database", "user"),
    "DATABASE_PASSWORD": ("database", "password"),
    "DB_POOL_MIN_SIZE": ("database", "pool_min_size"),
    "DB_POOL_MAX_SIZE": ("database", "pool_max_size"),
    "LOG_LEVEL": ("logging", "level"),
    "SCHEDULER_POLL_INTERVAL": ("loadtesting", "poll_interval_seconds"),
    "SCHEDULER_MAX_RETRY": ("loadtesting", "max_retry"),
    "SCHEDULER_METRICS_DELAY": ("loadtesting", "metrics_delay_seconds"),
    "SCHEDULER_JOB_TIMEOUT_HOURS": ("loadtesting", "job_timeout_hours"),
    "SCHEDULER_JOB_WARNING_HOURS": ("loadtesting", "job_warning_hours"),
    "K6_SCRIPT_FILE_FOLDER": ("loadtesting", "script_folder"),
    "AUTO_DELETE_COMPLETED_JOBS": ("loadtesting", "auto_delete_completed_jobs"),
    "INFLUXDB_HOST": ("influxdb", "host"),
    "INFLUXDB_PORT": ("influxdb", "port"),
    "INFLUXDB_DATABASE": ("influxdb", "bucket"),
    "FTP_POOLER_CONNECTIONS": ("ftptransfer", "connections_file"),
}

# Names the FTP Pooler's own file of settings.
POOLER_CONFIG: Final = "FTP_POOLER_CONFIG"

# Names of the same tools for parts that are not built yet.
WITHOUT_EFFECT: Final = frozenset({"KUBERNETES_NAMESPACE", "K6_DEFAULT_PVC"})

# Names of the same tools for what each load test says by itself, and its command line reads.
OF_DATA_SETS: Final = frozenset({
    "USE_DATABASE_DATA",
    "CLICKHOUSE_HOST", "CLICKHOUSE_PORT", "CLICKHOUSE_DATABASE", "CLICKHOUSE_USER", "CLICKHOUSE_PASSWORD",
    "DB_USERS_LIMIT", "DB_BUNDLE_IDS_LIMIT", "DB_COMBO_IDS_LIMIT", "DB_SFDC_CASES_LIMIT",
})  # fmt: skip

# What else begins with OPSPLANE_: the variables of the command line and of the Makefile.
_NOT_SETTINGS: Final = frozenset(f"{PREFIX}{name}" for name in ("CONFIG", "ADDRESS", "TOKEN", "CA", "CACHE"))

# Kubernetes describes every Service to every container; one called `opsplane` must not keep the server from starting.
_KUBERNETES: Final = re.compile(r"OPSPLANE_(\w+_)?(SERVICE_HOST|SERVICE_PORT(_\w+)?|PORT_\d+_(TCP|UDP)(_\w+)?)")
_KUBERNETES_LINK: Final = re.compile(r"(tcp|udp)://")

# Lists of objects do not fit in a variable.
_FILE_ONLY: Final = frozenset({("auth", "tokens")})


class ConfigurationError(Exception):
    """The configuration can not be used; the message is one line that names each source and key."""


@dataclass(frozen=True, slots=True)
class Loaded:
    """Settings, and what whoever set them should know, a line each."""

    settings: Settings
    warnings: tuple[str, ...]


class _Environment(Settings, BaseSettings):
    """The settings once more, in the form that pydantic's source for the environment asks for."""

    model_config = SettingsConfigDict(
        env_prefix=PREFIX, env_nested_delimiter="__", env_ignore_empty=True, enable_decoding=False
    )


@dataclass(frozen=True, slots=True)
class _Source:
    """One place of values; `names` says how keys are called there, where not by their path."""

    where: str
    values: Mapping[str, Any]
    names: Mapping[tuple[str, ...], str]

    def holds(self, path: Sequence[object]) -> bool:
        node: Any = self.values
        for step in path:
            if not isinstance(node, Mapping) or step not in node:
                return False
            node = node[step]
        return True

    def name(self, path: Sequence[object]) -> str:
        """What to call a key in a message."""
        known = self.names.get(tuple(map(str, path[:2])))
        return known or f"{self.where}: {_dotted(path)}"


def load(flags: Mapping[tuple[str, ...], tuple[str, object]], config_file: Path | None = None) -> Loaded:
    """Reads, merges and checks all settings.

    `flags` maps the path of a setting to the flag's name and value. `config_file` is, unless given, the one that
    OPSPLANE_CONFIG names, if any. Raises ConfigurationError.
    """
    if config_file is None and (named := os.environ.get(f"{PREFIX}CONFIG")):
        config_file = Path(os.path.expanduser(named))
    _refuse_unknown_variables()
    sources = [_from_flags(flags), _from_environment(), _from_aliases()]
    if config_file is not None:
        sources.append(_Source(str(config_file), _mapping(_read_yaml(config_file), config_file), {}))
    if pooler_file := os.environ.get(POOLER_CONFIG):
        sources.append(_from_pooler(Path(os.path.expanduser(pooler_file))))
    values: dict[str, Any] = {}
    for source in reversed(sources):
        values = _merge(values, source.values)
    tokens_in_file = _add_tokens(values)
    try:
        settings = Settings.model_validate(values)
    except ValidationError as error:
        problems = [_describe(problem, sources, tokens_in_file) for problem in error.errors()]
        raise ConfigurationError("; ".join(dict.fromkeys(problems))) from None
    settings = settings.model_copy(update={"data_dir": settings.data_dir.absolute()})
    _check_certificates(settings.tls)
    return Loaded(settings, tuple(_warnings(settings)))


def variables() -> dict[str, tuple[str, ...]]:
    """Every environment variable OPSPLANE_... that is a setting, and the setting's path."""
    return {PREFIX + "__".join(path).upper(): path for path in _paths(Settings) if path not in _FILE_ONLY}


def _paths(model: type[BaseModel], above: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    for name, field in model.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            yield from _paths(field.annotation, (*above, name))
        else:
            yield (*above, name)


def _refuse_unknown_variables() -> None:
    known = variables().keys() | _NOT_SETTINGS
    for name, value in os.environ.items():
        upper = name.upper()
        if not upper.startswith(PREFIX) or upper in known or _KUBERNETES.fullmatch(upper):
            continue
        if upper.endswith("_PORT") and _KUBERNETES_LINK.match(value):
            continue
        raise ConfigurationError(f"environment variable {name}: there is no such setting{_similar(upper, known)}")


def _similar(name: str, known: Iterator[str] | set[str]) -> str:
    plain = name.replace("_", "")
    for candidate in known:
        if candidate.replace("_", "") == plain:
            return f", {candidate} is meant perhaps"
    return ""


def _from_flags(flags: Mapping[tuple[str, ...], tuple[str, object]]) -> _Source:
    values: dict[str, Any] = {}
    for path, (_, value) in flags.items():
        _put(values, path, value)
    return _Source("command line", values, {path: name for path, (name, _) in flags.items()})


def _from_environment() -> _Source:
    names = {path: f"environment variable {name}" for name, path in variables().items()}
    return _Source("environment", EnvSettingsSource(_Environment)(), names)


def _from_aliases() -> _Source:
    values: dict[str, Any] = {}
    names: dict[tuple[str, ...], str] = {}
    for name, path in ALIASES.items():
        value = os.environ.get(name)
        if value and not _KUBERNETES_LINK.match(value):  # of Services that are called `server` or `database`
            _put(values, path, value)
            names[path] = f"environment variable {name}"
    return _Source("environment", values, names)


def _from_pooler(file: Path) -> _Source:
    try:
        found = seed_settings(_read_yaml(file))
    except SeedSettingsError as error:
        raise ConfigurationError(f"{file}: {error}") from None
    return _Source(str(file), found.values, {path: f"{file}: {key}" for path, key in found.keys.items()})


def _read_yaml(file: Path) -> Any:
    try:
        return yaml.safe_load(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigurationError(f"{file}: {error.strerror}") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        mark = getattr(error, "problem_mark", None)
        place = f" in line {mark.line + 1}" if mark is not None else ""
        raise ConfigurationError(f"{file}: not YAML{place}: {getattr(error, 'problem', error)}") from None


def _mapping(content: Any, file: Path) -> dict[str, Any]:
    if content is None:  # an empty file, or one of comments
        return {}
    if not isinstance(content, dict):
        raise ConfigurationError(f"{file}: sections with settings are expected, not a {type(content).__name__}")
    return content


def _add_tokens(values: dict[str, Any]) -> tuple[Path, int] | None:
    """Appends the tokens of `auth.tokens_file`; returns the file and the number of tokens before it."""
    auth = values.get("auth")
    if not isinstance(auth, dict) or not isinstance(auth.get("tokens_file"), str):
        return None
    file = Path(os.path.expanduser(auth["tokens_file"]))
    content = _read_yaml(file)
    own = auth.get("tokens") or []
    if not isinstance(content, list) or not isinstance(own, list):
        raise ConfigurationError(f"{file}: a list of tokens is expected, each with name, sha256 and roles")
    auth["tokens"] = [*own, *content]
    return file, len(own)


def _describe(problem: ErrorDetails, sources: Sequence[_Source], tokens_in_file: tuple[Path, int] | None) -> str:
    path = problem["loc"]
    what = problem["msg"].removeprefix("Value error, ")
    if problem["type"] == "extra_forbidden":
        what = "there is no such setting"
    if not path:
        return what
    if tokens_in_file is not None and path[:2] == ("auth", "tokens") and len(path) > 2:
        file, before = tokens_in_file
        number = int(path[2])
        if number >= before:
            return f"{file}: token {number - before + 1}{_after(path[3:])}: {what}"
    # Lists are not looked into: their entries come from the file as a whole.
    keys = path[: next((at for at, step in enumerate(path) if isinstance(step, int)), len(path))]
    for source in sources:
        if source.holds(keys):
            return f"{source.name(path)}: {what}"
    return f"{_dotted(path)}: {what}"


def _dotted(path: Sequence[object]) -> str:
    return ".".join(map(str, path))


def _after(path: Sequence[object]) -> str:
    return f", {_dotted(path)}" if path else ""


def _check_certificates(tls: TlsSettings) -> None:
    """gRPC says nothing useful about a certificate that it can not use, so it is tried beforehand."""
    if tls.cert is None or tls.key is None:
        return
    for name, file in (("cert", tls.cert), ("key", tls.key), ("client_ca", tls.client_ca)):
        try:
            if file is not None:
                file.read_bytes()
        except OSError as error:
            raise ConfigurationError(f"tls.{name}: {file}: {error.strerror}") from None
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    try:
        context.load_cert_chain(tls.cert, tls.key, password="")  # else OpenSSL asks the terminal
    except (ssl.SSLError, ValueError) as error:
        reason = getattr(error, "reason", None) or str(error)
        raise ConfigurationError(f"tls.cert, tls.key: {tls.cert} and {tls.key} are no usable pair: {reason}") from None
    try:
        if tls.client_ca is not None:
            context.load_verify_locations(tls.client_ca)
    except ssl.SSLError as error:
        raise ConfigurationError(f"tls.client_ca: {tls.client_ca}: no certificate in PEM: {error.reason}") from None


def _warnings(settings: Settings) -> Iterator[str]:
    if settings.influxdb.host is not None and not settings.influxdb.enabled:
        yield (
            "influxdb.host (INFLUXDB_HOST): figures are copied there once influxdb.org and influxdb.token are set, "
            "which are of an InfluxDB 2; a 1.x server can not be used"
        )
    elsewhere = sorted(name for name in OF_DATA_SETS if _is_set(name))
    if elsewhere:
        yield (
            f"{', '.join(elsewhere)}: no effect on the server. Data sets hold the connection to ClickHouse; set these "
            "for `opsplane loadtest data-sets create` and for run files"
        )
    unused = sorted(name for name in WITHOUT_EFFECT if _is_set(name))
    if unused:
        yield f"{', '.join(unused)}: no effect yet, what they set up is not part of this version"


def _is_set(name: str) -> bool:
    value = os.environ.get(name, "")
    return bool(value) and not _KUBERNETES_LINK.match(value)


def _put(values: dict[str, Any], path: Sequence[str], value: object) -> None:
    for step in path[:-1]:
        values = values.setdefault(step, {})
    values[path[-1]] = value


def _merge(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(below)
    for key, value in above.items():
        under = merged.get(key)
        merged[key] = _merge(under, value) if isinstance(under, Mapping) and isinstance(value, Mapping) else value
    return merged
