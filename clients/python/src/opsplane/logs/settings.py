"""What a shipper is told when it is made."""

from __future__ import annotations

import hashlib
import os
import re
import socket
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

from opsplane.client import DEFAULT_ADDRESS, Tls
from opsplane.logingest.v1 import logingest_pb2, records_pb2
from opsplane.logs.report import Problem

MAX_BATCH_RECORDS = 1000
MAX_BATCH_BYTES = 1024 * 1024
MAX_WINDOW_BYTES = 4 * 1024 * 1024
MAX_RECORD_BYTES = 8 * 1024 * 1024  # more than any record that the server takes
SEGMENT_BYTES = 4 * 1024 * 1024
DEFAULT_SPOOL = ""

OnRejected = Callable[[records_pb2.LogRecord, records_pb2.RejectedRecord], None]
OnProblem = Callable[[Problem], None]

_CLIENT_ID = re.compile(r"[A-Za-z0-9._:/-]{1,128}")
_DURABILITIES = {"durable": records_pb2.DURABILITY_DURABLE, "fast": records_pb2.DURABILITY_FAST}
_LEAST_MEMORY_BYTES = 64 * 1024
_LEAST_SPOOL_BYTES = 64 * 1024


@dataclass(frozen=True, slots=True)
class Settings:
    """Settings with everything filled in. See `Shipper` for what they mean."""

    address: str
    token: str
    tls: Tls | None
    plaintext: bool
    service: str
    environment: str
    host: str
    service_version: str
    client_id: str
    durability: records_pb2.Durability.ValueType
    gzip: bool
    memory_bytes: int
    spool: Path | None
    spool_bytes: int
    spool_fsync: bool
    linger_seconds: float
    window: int
    exit_seconds: float
    on_rejected: OnRejected | None
    on_problem: OnProblem | None

    @property
    def stream(self) -> logingest_pb2.StreamSettings:
        """What the first message of a stream says."""
        return logingest_pb2.StreamSettings(client_id=self.client_id, durability=self.durability)

    @property
    def batch_bytes(self) -> int:
        """Most bytes of a batch, unless one record has more."""
        return min(MAX_BATCH_BYTES, self.memory_bytes // 8)

    @property
    def window_bytes(self) -> int:
        """Bytes without an answer from which the next batch waits: a server that hangs must leave memory for others."""
        return min(MAX_WINDOW_BYTES, self.memory_bytes // 4)

    @property
    def segment_bytes(self) -> int:
        """Size from which a segment of the spool is followed by the next one."""
        return min(SEGMENT_BYTES, self.spool_bytes // 4)

    @property
    def spool_name(self) -> str:
        """Folder of the spool that holds what goes to this server under this client id, and nothing else.

        The server tells batches apart by client id, so those of another one must not be sent under this one.
        """
        key = hashlib.sha256(f"{self.address}\n{self.client_id}".encode()).hexdigest()[:12]
        return f"{quote(self.client_id, safe='')[:100]}-{key}"


def resolve(
    address: str | None,
    token: str | None,
    tls: Tls | None,
    plaintext: bool,
    service: str,
    environment: str,
    host: str,
    service_version: str,
    client_id: str,
    durability: str,
    gzip: bool,
    memory_bytes: int,
    spool: str | os.PathLike[str] | None,
    spool_bytes: int,
    spool_fsync: bool,
    linger_seconds: float,
    window: int,
    exit_seconds: float,
    on_rejected: OnRejected | None,
    on_problem: OnProblem | None,
) -> Settings:
    """Fills in what was not given from the environment. ValueError says what is wrong."""
    service = service or os.environ.get("OTEL_SERVICE_NAME") or _program()
    client_id = client_id or re.sub(r"[^A-Za-z0-9._:/-]", "_", service)[:128]
    if not _CLIENT_ID.fullmatch(client_id):
        raise ValueError(f"client_id: 1 to 128 of A-Za-z0-9._:/-, not {client_id!r}")
    if durability not in _DURABILITIES:
        raise ValueError(f"durability: durable or fast, not {durability!r}")
    if memory_bytes < _LEAST_MEMORY_BYTES:
        raise ValueError(f"memory_bytes: at least {_LEAST_MEMORY_BYTES}")
    if spool_bytes < _LEAST_SPOOL_BYTES:
        raise ValueError(f"spool_bytes: at least {_LEAST_SPOOL_BYTES}")
    if window < 1 or linger_seconds < 0 or exit_seconds < 0:
        raise ValueError("window: at least 1; linger_seconds and exit_seconds: 0 or more")
    if tls is None and (ca := os.environ.get("OPSPLANE_CA")):
        tls = Tls(ca=Path(ca))
    return Settings(
        address=address or os.environ.get("OPSPLANE_ADDRESS") or DEFAULT_ADDRESS,
        token=os.environ.get("OPSPLANE_TOKEN", "") if token is None else token,
        tls=tls,
        plaintext=plaintext,
        service=service,
        environment=environment,
        host=host or socket.gethostname(),
        service_version=service_version,
        client_id=client_id,
        durability=_DURABILITIES[durability],
        gzip=gzip,
        memory_bytes=memory_bytes,
        spool=_spool_folder(spool),
        spool_bytes=spool_bytes,
        spool_fsync=spool_fsync,
        linger_seconds=linger_seconds,
        window=window,
        exit_seconds=exit_seconds,
        on_rejected=on_rejected,
        on_problem=on_problem,
    )


def _program() -> str:
    return Path(sys.argv[0]).stem if sys.argv and sys.argv[0] not in ("", "-c", "-m") else "python"


def _spool_folder(spool: str | os.PathLike[str] | None) -> Path | None:
    if spool is None:
        return None
    given = os.fspath(spool) or os.environ.get("OPSPLANE_LOGS_SPOOL")
    if given:
        return Path(given).absolute()
    state = os.environ.get("XDG_STATE_HOME")
    try:
        return Path(state or Path.home() / ".local" / "state") / "opsplane" / "logs"
    except RuntimeError:  # no home
        return Path(tempfile.gettempdir()) / f"opsplane-logs-{os.getuid()}"
