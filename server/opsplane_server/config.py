"""The settings of the server: what there is, what it means, and what goes together.

Where values come from is in `opsplane_server.config_sources`; docs/configuration.md lists them all.
"""

from __future__ import annotations

import ipaddress
import os
from pathlib import Path
from typing import Annotated, Any, Final, Literal, Self
from urllib.parse import quote, urlencode

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PlainSerializer,
    SecretStr,
    SerializationInfo,
    field_validator,
    model_validator,
)

from opsplane_server.rpc.identity import StaticToken

# Every service that this version can serve.
SERVICES: Final = ("loadtesting", "logingest", "ftptransfer", "instances", "backups")


def _split(value: object) -> object:
    return [part.strip() for part in value.split(",") if part.strip()] if isinstance(value, str) else value


def _level(value: object) -> object:
    return {"WARN": "WARNING"}.get(value.upper(), value.upper()) if isinstance(value, str) else value


REVEALED: Final = "revealed"
"""As the context of `model_dump_json` it writes secrets as they are, for a process of this server."""


def _secret(value: SecretStr, info: SerializationInfo) -> str:
    return value.get_secret_value() if info.context == REVEALED else str(value)


Secret = Annotated[SecretStr, PlainSerializer(_secret, when_used="json-unless-none")]
Port = Annotated[int, Field(ge=0, le=65535)]
File = Annotated[Path, AfterValidator(lambda path: Path(os.path.expanduser(path)))]
LogLevel = Annotated[Literal["DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL"], BeforeValidator(_level)]


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)


class ServerSettings(_Section):
    """Where the server listens, and with how many processes."""

    host: str = Field(
        default="127.0.0.1",
        min_length=1,
        description="Address or name to listen on; elsewhere than on loopback only with TLS and tokens",
    )
    port: Port = Field(default=50051, description="Port for gRPC; 0 takes a free one")
    workers: int = Field(default=1, ge=1, le=256, description="Worker processes, which share the port")
    services: Annotated[tuple[str, ...], BeforeValidator(_split)] = Field(
        default=SERVICES, min_length=1, description="Services to serve, separated by commas"
    )
    shutdown_grace_seconds: float = Field(
        default=10, ge=0, le=3600, description="How long open calls may go on after SIGTERM or Ctrl-C"
    )

    @field_validator("services")
    @classmethod
    def _known(cls, services: tuple[str, ...]) -> tuple[str, ...]:
        for name in services:
            if name not in SERVICES:
                raise ValueError(f"there is no service {name!r}: choose of {', '.join(SERVICES)}")
        return tuple(dict.fromkeys(services))

    @property
    def loopback(self) -> bool:
        """Whether only programs on this machine can connect."""
        if self.host == "localhost":
            return True
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return False


class TlsSettings(_Section):
    """The server's certificate, and whose certificates clients must have."""

    cert: File | None = Field(default=None, description="PEM file with the certificate chain; turns TLS on")
    key: File | None = Field(default=None, description="PEM file with its private key, not encrypted")
    client_ca: File | None = Field(
        default=None, description="PEM file with the authorities of client certificates; turns mutual TLS on"
    )

    @property
    def enabled(self) -> bool:
        """Whether callers must use TLS."""
        return self.cert is not None

    @model_validator(mode="after")
    def _complete(self) -> Self:
        if (self.cert is None) != (self.key is None):
            raise ValueError("cert and key are needed together")
        if self.client_ca is not None and self.cert is None:
            raise ValueError("client_ca needs cert and key too")
        return self


class TokenSettings(_Section):
    """One caller: its name, its token (as the SHA-256 of it, or itself), and its role a service."""

    name: str = Field(min_length=1)
    sha256: str = ""
    roles: dict[str, str]

    @model_validator(mode="before")
    @classmethod
    def _hash(cls, values: Any) -> Any:
        """Keeps of a token that is written out nothing but its SHA-256."""
        if not isinstance(values, dict) or "token" not in values:
            return values
        rest = {key: value for key, value in values.items() if key != "token"}
        token = values["token"]
        if not isinstance(token, str) or not token or rest.get("sha256"):
            raise ValueError("exactly one of token and sha256 is needed, as text")
        return rest | {"sha256": StaticToken.configured("-", {"*": "viewer"}, token=token).digest.hex()}

    @model_validator(mode="after")
    def _usable(self) -> Self:
        self.to_static()
        return self

    def to_static(self) -> StaticToken:
        """The token as the server compares it."""
        return StaticToken.configured(self.name, self.roles, sha256=self.sha256)


class AuthSettings(_Section):
    """Who may call. Without tokens every program on this machine may do everything."""

    tokens: tuple[TokenSettings, ...] = Field(
        default=(), description="Tokens, each with `name`, `token` or `sha256`, and `roles`; in the file only"
    )
    tokens_file: File | None = Field(default=None, description="YAML file with a list of more such tokens")

    @field_validator("tokens")
    @classmethod
    def _distinct(cls, tokens: tuple[TokenSettings, ...]) -> tuple[TokenSettings, ...]:
        names = [token.name for token in tokens]
        if len(set(names)) != len(names):
            raise ValueError("two tokens have the same name")
        return tokens


class DatabaseSettings(_Section):
    """PostgreSQL: one of yours if there is a host, else one that the server brings and runs itself."""

    host: str | None = Field(
        default=None, description="Host or socket folder of a PostgreSQL of yours; without it the server runs its own"
    )
    port: Annotated[int, Field(ge=1, le=65535)] = Field(default=5432, description="Its port")
    name: str = Field(default="opsplane", min_length=1, description="Its database, which must exist")
    user: str = Field(default="opsplane", min_length=1, description="The user, who must be allowed to create schemas")
    password: SecretStr | None = Field(default=None, description="The user's password")
    ssl_mode: Literal["disable", "allow", "prefer", "require", "verify-ca", "verify-full"] = Field(
        default="prefer", description="TLS to the database, as in libpq's `sslmode`"
    )
    ssl_root_cert: File | None = Field(default=None, description="PEM file with the authorities of its certificate")
    pool_min_size: Annotated[int, Field(ge=1, le=1000)] = Field(
        default=2, description="Connections that each worker keeps open"
    )
    pool_max_size: Annotated[int, Field(ge=1, le=1000)] = Field(
        default=10, description="Connections that each worker opens at most"
    )

    @property
    def embedded(self) -> bool:
        """Whether the server runs its own PostgreSQL."""
        return self.host is None

    @property
    def dsn(self) -> str:
        """The address of the external database for asyncpg, password included."""
        if self.host is None:
            raise RuntimeError("there is no external database")
        query = {"host": self.host, "port": str(self.port), "sslmode": self.ssl_mode}
        if self.ssl_root_cert is not None:
            query["sslrootcert"] = str(self.ssl_root_cert)
        password = "" if self.password is None else f":{quote(self.password.get_secret_value(), safe='')}"
        user = quote(self.user, safe="")
        return f"postgresql://{user}{password}@/{quote(self.name, safe='')}?{urlencode(query)}"

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.pool_min_size > self.pool_max_size:
            raise ValueError("pool_min_size is more than pool_max_size")
        if self.host is None:
            for name in ("port", "name", "user", "password", "ssl_mode", "ssl_root_cert"):
                # Whoever names a database must not find the data in another one.
                if getattr(self, name) != type(self).model_fields[name].default:
                    raise ValueError(f"{name} is of no use without host (DATABASE_HOST)")
        return self


class LoggingSettings(_Section):
    """What is written to standard error."""

    level: LogLevel = Field(default="INFO", description="Least level that is logged")
    format: Literal["auto", "json", "console"] = Field(
        default="auto", description="`json`, `console` for people, or `auto`: console on a terminal, else json"
    )


class TelemetrySettings(_Section):
    """Metrics for Prometheus, probes for orchestrators, traces for an OpenTelemetry collector."""

    metrics_host: str = Field(
        default="127.0.0.1", min_length=1, description="Address of the HTTP port for metrics and probes"
    )
    metrics_port: Port = Field(default=9464, description="HTTP port for metrics and probes; 0 takes a free one")
    otlp_endpoint: str | None = Field(
        default=None,
        pattern=r"^https?://[^/\s]+$",
        description="Collector that traces are sent to (OTLP over gRPC), such as `http://127.0.0.1:4317`; off without",
    )
    sample_ratio: float = Field(default=1, ge=0, le=1, description="Share of traces begun here that is sent")


class LoadTestingSettings(_Section):
    """Load tests."""

    poll_interval_seconds: float = Field(
        default=15,
        gt=0,
        le=3600,
        description="How often runs are looked after; load generators on this machine at least four times a second",
    )
    max_retry: int = Field(
        default=3, ge=0, le=100, description="How often starting or ending a load generator is tried again"
    )
    metrics_delay_seconds: float = Field(
        default=30,
        ge=0,
        le=3600,
        description="How long last figures of load generators on other machines are waited for; those here have "
        "delivered when they end",
    )
    job_timeout_hours: float = Field(default=4, gt=0, le=720, description="A run that takes longer is ended")
    job_warning_hours: float = Field(default=1, gt=0, le=720, description="A run that takes longer is warned about")
    k6_path: File | None = Field(
        default=None, description="The k6 program; by default the one that comes with the server"
    )
    script_folder: File | None = Field(
        default=None, description="Where scripts of runs are kept; by default `k6-scripts` in the data directory"
    )
    auto_delete_completed_jobs: bool = Field(
        default=True, description="Whether the files and processes of a run are cleaned up after its end"
    )
    allow_private_addresses: bool = Field(
        default=False, description="Whether OpenAPI documents may be fetched from private and loopback addresses"
    )
    allow_custom_scripts: bool = Field(default=True, description="Whether users may run k6 scripts of their own")
    compact_after_hours: float = Field(
        default=24,
        gt=0,
        le=8760,
        description="How long after a run's end its windows are joined from one second to ten at most, to save space",
    )
    max_concurrent_runs: int = Field(default=10, ge=1, le=1000, description="Runs at a time on this machine")
    history: Literal["postgres", "influxdb"] = Field(
        default="postgres",
        description="Where figures of ended runs are read from; from PostgreSQL too what InfluxDB does not have",
    )

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.job_warning_hours > self.job_timeout_hours:
            raise ValueError("job_warning_hours is more than job_timeout_hours")
        return self


class InfluxdbSettings(_Section):
    """An InfluxDB 2 to copy the figures of runs to. Without a token nothing is copied."""

    url: str | None = Field(
        default=None,
        pattern=r"^https?://[^/\s?#@]+(/[^\s?#]*)?$",
        description="Its address, such as `https://influxdb.example.com:8086`",
    )
    host: str | None = Field(default=None, pattern=r"^[^/\s]+$", description="Its host, in place of `url`: plain HTTP")
    port: Annotated[int, Field(ge=1, le=65535)] = Field(default=8086, description="The port of `host`")
    org: str = Field(default="", description="Organization that the bucket is of")
    bucket: str = Field(default="opsplane", min_length=1, description="Bucket to write to, which must exist")
    token: Secret | None = Field(default=None, description="Token that may read and write the bucket")
    ca_file: File | None = Field(default=None, description="PEM file with the authorities of its certificate")

    @property
    def enabled(self) -> bool:
        """Whether figures are copied."""
        return self.token is not None

    @property
    def address(self) -> str:
        """Where it is reached."""
        if self.url is not None:
            return self.url.rstrip("/")
        host = f"[{self.host}]" if self.host is not None and ":" in self.host else self.host
        return f"http://{host}:{self.port}"

    @model_validator(mode="after")
    def _complete(self) -> Self:
        if self.url is not None and self.token is None:
            raise ValueError("url needs token and org too")
        if self.token is not None:
            if self.url is None and self.host is None:
                raise ValueError("token needs url too")
            if not self.org:
                raise ValueError("token needs org too")
            if not self.token.get_secret_value().isprintable() or not self.token.get_secret_value().isascii():
                raise ValueError("token has characters that no token has")
        return self


class LogIngestSettings(_Section):
    """Logs."""

    retention_days: int = Field(default=30, ge=1, le=3650, description="Days that records are kept, by their own time")
    future_tolerance_seconds: float = Field(
        default=300, ge=0, le=86400, description="How far a record's time may be ahead of the server's clock"
    )
    dedup_days: int = Field(
        default=14, ge=1, le=365, description="Days for which a batch that is sent again is recognised by its id"
    )
    tail_hours: float = Field(default=24, gt=0, le=720, description="How far back a follower of logs may go on")
    pending_bytes: int = Field(
        default=16 << 20,
        ge=1 << 20,
        le=1 << 30,
        description="Bytes that may wait to be stored in each worker; senders are held back beyond it",
    )
    quota_bytes_per_second: int = Field(
        default=0, ge=0, description="Bytes that a sender may send a second to each worker; 0 is without limit"
    )
    quotas: dict[str, int] = Field(
        default={}, description="The same for single senders, by the name of their token; in the file only"
    )
    archive_folder: File | None = Field(
        default=None,
        description="Folder for a compressed file of each day before it is dropped; without it nothing is archived",
    )


class FtpTransferSettings(_Section):
    """Transfers of files, and the Kafka that they may come from."""

    connections_file: File | None = Field(default=None, description="connections.ini of the FTP Pooler, read as it is")
    local_folders: Annotated[tuple[File, ...], BeforeValidator(_split)] = Field(
        default=(), description="The only folders that local connections may use, separated by commas; empty for all"
    )
    max_sessions_per_pod: int = Field(default=100, ge=1, le=10_000, description="FTP sessions of all workers together")
    max_sessions_per_connection: int = Field(
        default=10, ge=1, le=1000, description="The same for each connection that says nothing else"
    )
    session_timeout_seconds: float = Field(
        default=300, ge=1, le=3600, description="After how long without work an FTP session is closed"
    )
    active_first_port: int = Field(
        default=0, ge=0, le=65535, description="First port to listen on in active mode; 0 takes free ones"
    )
    active_last_port: int = Field(default=0, ge=0, le=65535, description="Last port to listen on in active mode")
    max_attempts: int = Field(default=5, ge=1, le=100, description="Attempts of a transfer that says nothing of it")
    queue_limit: int = Field(default=5_000_000, ge=1, description="Transfers in the queue before no more are taken")
    keep_days: int = Field(default=7, ge=1, le=3650, description="Days that ended transfers are kept")
    max_upload_bytes: int = Field(
        default=10 << 30, ge=1, description="Largest file that may be put into a local folder by RPC"
    )
    kafka_bootstrap_servers: Annotated[tuple[str, ...], BeforeValidator(_split)] = Field(
        default=(), description="Brokers that tasks are read from, `host:port` separated by commas; empty for none"
    )
    kafka_consumer_group: str = Field(default="ftp-pooler", min_length=1, description="Consumer group of the tasks")
    kafka_input_topic: str = Field(default="ftp-tasks", min_length=1, description="Topic with tasks")
    kafka_result_topic: str = Field(default="ftp-results", min_length=1, description="Topic for tasks that are done")
    kafka_fail_topic: str = Field(default="ftp-failures", min_length=1, description="Topic for tasks that failed")
    kafka_most_pending: int = Field(
        default=100_000, ge=1, description="Transfers that may wait before no more are read from Kafka"
    )
    kafka_security_protocol: Literal["PLAINTEXT", "SSL", "SASL_PLAINTEXT", "SASL_SSL"] = Field(
        default="PLAINTEXT", description="How the brokers are spoken to"
    )
    kafka_sasl_mechanism: Literal["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512"] = Field(
        default="PLAIN", description="How to log in, with SASL_PLAINTEXT or SASL_SSL"
    )
    kafka_sasl_username: str = Field(default="", description="User to log in as")
    kafka_sasl_password: Secret | None = Field(default=None, description="The user's password")
    kafka_ssl_ca_file: File | None = Field(
        default=None, description="PEM file with the authorities of the brokers' certificates"
    )
    kafka_ssl_cert_file: File | None = Field(default=None, description="PEM file with a certificate of our own")
    kafka_ssl_key_file: File | None = Field(default=None, description="PEM file with its private key")
    kafka_ssl_check_hostname: bool = Field(
        default=True, description="Whether the brokers' certificates must carry their names"
    )
    api_host: str = Field(default="127.0.0.1", min_length=1, description="Address of the FTP Pooler's HTTP API")
    api_port: Port | None = Field(
        default=None, description="Port of the FTP Pooler's HTTP API (/health, /live, /ready, /stats); off without"
    )

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.active_first_port > self.active_last_port:
            raise ValueError("active_last_port is needed with active_first_port, and not below it")
        return self


class InstancesSettings(_Section):
    """Database servers on this machine, and what using them costs."""

    folder: File | None = Field(
        default=None, description="Folder for the instances' data; by default `instances` in the data directory"
    )
    copies_folder: File | None = Field(
        default=None, description="Folder for copies of their data; by default `backups` in the data directory"
    )
    archive_folder: File | None = Field(
        default=None, description="Folder for their archived logs; by default `archive` in the data directory"
    )
    export_folder: File | None = Field(
        default=None, description="Folder for archives of backups; by default `exports` in the data directory"
    )
    listen_host: str = Field(
        default="127.0.0.1", min_length=1, description="Address or name that the database servers listen on"
    )
    advertised_host: str | None = Field(
        default=None, min_length=1, description="Address or name by which clients reach them; by default the same"
    )
    first_port: Annotated[int, Field(ge=1, le=65535)] = Field(
        default=21000,
        description="First port for them; better below those that the system gives to outgoing connections",
    )
    last_port: Annotated[int, Field(ge=1, le=65535)] = Field(default=21999, description="Last port for them")
    user: str | None = Field(
        default=None,
        min_length=1,
        description="System account that runs them when this server runs as root; "
        "by default the first there is of opsplane, postgres and nobody",
    )
    program_folders: Annotated[tuple[File, ...], BeforeValidator(_split)] = Field(
        default=(), description="Folders to look for engines in besides the usual ones, separated by commas"
    )
    start_timeout_seconds: float = Field(
        default=60, ge=1, le=3600, description="How long a database server may take to start before it counts as failed"
    )
    sample_interval_seconds: float = Field(
        default=5, ge=1, le=300, description="Seconds from one reading of their figures to the next"
    )
    webhook_hosts: Annotated[tuple[str, ...], BeforeValidator(_split)] = Field(
        default=(),
        description="The only hosts that webhooks may post to, separated by commas, with `*` for any part of a name; "
        "empty for all",
    )
    currency_code: str = Field(default="EUR", pattern="^[A-Z]{3}$", description="Currency of all prices, by ISO 4217")
    cpu_core_hour_micros: int = Field(default=0, ge=0, description="Price of a core for an hour, in millionths")
    memory_gib_hour_micros: int = Field(default=0, ge=0, description="The same of a GiB of memory")
    storage_gib_hour_micros: int = Field(default=0, ge=0, description="The same of a GiB of storage")
    backup_gib_hour_micros: int = Field(default=0, ge=0, description="The same of a GiB of backups")

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.first_port > self.last_port:
            raise ValueError("last_port must not be below first_port")
        return self


class BackupsSettings(_Section):
    """Backups of instances."""

    max_concurrent_backups: int = Field(
        default=4, ge=1, le=1000, description="Backups that are made at a time on this machine; others wait"
    )
    max_concurrent_verifications: int = Field(
        default=1, ge=1, le=1000, description="Verifications at a time on this machine; others wait"
    )
    keep_failed_days: int = Field(
        default=7, ge=1, le=3650, description="Days that failed backups, and those found bad, are kept to be looked at"
    )


class SecretsSettings(_Section):
    """How secrets are encrypted that the server keeps."""

    key_file: File | None = Field(
        default=None,
        description="File with base64 keys of 32 bytes, one a line, the first encrypts; "
        "by default `secrets.key` in the data directory, made at the first start",
    )


def default_data_dir() -> Path:
    """For root /var/lib/opsplane: PostgreSQL runs as another user then, who may not enter root's home."""
    if os.geteuid() == 0:
        return Path("/var/lib/opsplane")
    home = os.environ.get("XDG_DATA_HOME")
    return (Path(home) if home and os.path.isabs(home) else Path.home() / ".local" / "share") / "opsplane"


class Settings(_Section):
    """All settings. Made by `config_sources.load`; worker processes get theirs from the parent."""

    data_dir: File = Field(
        default_factory=default_data_dir,
        description="Folder for all that is kept; by default `$XDG_DATA_HOME/opsplane` or "
        "`~/.local/share/opsplane`, for root `/var/lib/opsplane`",
    )
    server: ServerSettings = ServerSettings()
    tls: TlsSettings = TlsSettings()
    auth: AuthSettings = AuthSettings()
    database: DatabaseSettings = DatabaseSettings()
    logging: LoggingSettings = LoggingSettings()
    telemetry: TelemetrySettings = TelemetrySettings()
    loadtesting: LoadTestingSettings = LoadTestingSettings()
    influxdb: InfluxdbSettings = InfluxdbSettings()
    logingest: LogIngestSettings = LogIngestSettings()
    ftptransfer: FtpTransferSettings = FtpTransferSettings()
    instances: InstancesSettings = InstancesSettings()
    backups: BackupsSettings = BackupsSettings()
    secrets: SecretsSettings = SecretsSettings()

    @property
    def key_file(self) -> Path:
        """Where the keys are that encrypt secrets."""
        return self.secrets.key_file or self.data_dir / "secrets.key"

    @property
    def script_folder(self) -> Path:
        """Where scripts of runs are kept."""
        return self.loadtesting.script_folder or self.data_dir / "k6-scripts"

    @model_validator(mode="after")
    def _guarded(self) -> Self:
        if self.loadtesting.history == "influxdb" and not self.influxdb.enabled:
            raise ValueError("loadtesting.history is influxdb, but there is no influxdb.token")
        if not self.server.loopback and not (self.tls.enabled and self.auth.tokens):
            raise ValueError(
                f"server.host {self.server.host} is not loopback: serving others needs TLS (tls.cert, tls.key) "
                "and tokens (auth.tokens or auth.tokens_file)"
            )
        return self
