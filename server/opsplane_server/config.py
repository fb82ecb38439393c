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
    BeforeValidator,
    Field,
    SecretStr,
    field_validator,
    model_validator,
)

from opsplane_server.config_services import (
    BackupsSettings,
    FtpTransferSettings,
    InfluxdbSettings,
    InstancesSettings,
    LoadTestingSettings,
    LogIngestSettings,
)
from opsplane_server.config_types import File, LogLevel, Port, Section, split_list
from opsplane_server.rpc.identity import StaticToken

# Every service that this version can serve.
SERVICES: Final = ("loadtesting", "logingest", "ftptransfer", "instances", "backups")


class ServerSettings(Section):
    """Where the server listens, and with how many processes."""

    host: str = Field(
        default="127.0.0.1",
        min_length=1,
        description="Address or name to listen on; elsewhere than on loopback only with TLS and tokens",
    )
    port: Port = Field(default=50051, description="Port for gRPC; 0 takes a free one")
    workers: int = Field(default=1, ge=1, le=256, description="Worker processes, which share the port")
    services: Annotated[tuple[str, ...], BeforeValidator(split_list)] = Field(
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


class TlsSettings(Section):
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


class TokenSettings(Section):
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


class AuthSettings(Section):
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


class DatabaseSettings(Section):
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


class LoggingSettings(Section):
    """What is written to standard error."""

    level: LogLevel = Field(default="INFO", description="Least level that is logged")
    format: Literal["auto", "json", "console"] = Field(
        default="auto", description="`json`, `console` for people, or `auto`: console on a terminal, else json"
    )


class TelemetrySettings(Section):
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


class SecretsSettings(Section):
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


class Settings(Section):
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
