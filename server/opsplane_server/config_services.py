"""The settings of each service."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import BeforeValidator, Field, model_validator

from opsplane_server.config_types import File, Port, Secret, Section, split_list


class LoadTestingSettings(Section):
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


class InfluxdbSettings(Section):
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


class LogIngestSettings(Section):
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


class FtpTransferSettings(Section):
    """Transfers of files, and the Kafka that they may come from."""

    connections_file: File | None = Field(default=None, description="connections.ini of the FTP Pooler, read as it is")
    local_folders: Annotated[tuple[File, ...], BeforeValidator(split_list)] = Field(
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
    kafka_bootstrap_servers: Annotated[tuple[str, ...], BeforeValidator(split_list)] = Field(
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


class InstancesSettings(Section):
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
    program_folders: Annotated[tuple[File, ...], BeforeValidator(split_list)] = Field(
        default=(), description="Folders to look for engines in besides the usual ones, separated by commas"
    )
    start_timeout_seconds: float = Field(
        default=60, ge=1, le=3600, description="How long a database server may take to start before it counts as failed"
    )
    sample_interval_seconds: float = Field(
        default=5, ge=1, le=300, description="Seconds from one reading of their figures to the next"
    )
    webhook_hosts: Annotated[tuple[str, ...], BeforeValidator(split_list)] = Field(
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


class BackupsSettings(Section):
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
