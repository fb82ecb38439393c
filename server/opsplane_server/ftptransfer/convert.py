"""proto <-> domain: connections, failures, files. `convert_transfers` has transfers and figures."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Final

from google.protobuf.duration_pb2 import Duration
from opsplane.ftptransfer.v1 import connections_pb2, errors_pb2, files_pb2

from opsplane_server.errors import InvalidArgument
from opsplane_server.ftptransfer import names
from opsplane_server.ftptransfer.failures import Failure
from opsplane_server.ftptransfer.model import (
    ActiveMode,
    Connection,
    FileKind,
    FtpServer,
    LocalFolder,
    Probe,
    RemoteFile,
    TlsMode,
    TlsSettings,
)
from opsplane_server.rpc import etags
from opsplane_server.rpc.times import timestamp

UPDATABLE: Final = (
    "title",
    "ftp.host",
    "ftp.port",
    "ftp.user",
    "ftp.password",
    "ftp.tls",
    "ftp.active_mode",
    "ftp.use_announced_address",
    "ftp.encoding",
    "ftp.max_sessions",
    "ftp.idle_timeout",
    "ftp.reply_timeout",
    "ftp.stall_timeout",
    "local.base_path",
)

_PLAIN_PORT: Final = 21
_IMPLICIT_PORT: Final = 990

_TLS_MODES: Final = {
    connections_pb2.TLS_MODE_EXPLICIT: TlsMode.EXPLICIT,
    connections_pb2.TLS_MODE_IMPLICIT: TlsMode.IMPLICIT,
}
_TLS_NUMBERS: Final = {mode: number for number, mode in _TLS_MODES.items()}

_KINDS: Final = {
    FileKind.FILE: files_pb2.FILE_KIND_FILE,
    FileKind.FOLDER: files_pb2.FILE_KIND_FOLDER,
    FileKind.LINK: files_pb2.FILE_KIND_LINK,
    FileKind.OTHER: files_pb2.FILE_KIND_UNSPECIFIED,
}


def duration(seconds: float | None) -> Duration | None:
    """Seconds as a Duration; None stays None, which leaves a field unset."""
    if seconds is None:
        return None
    result = Duration()
    result.FromTimedelta(timedelta(seconds=seconds))
    return result


def failure_to_proto(failure: Failure | None) -> errors_pb2.TransferError | None:
    """A failure; None stays None, which leaves a field unset."""
    if failure is None:
        return None
    return errors_pb2.TransferError(
        code=errors_pb2.ErrorCode.Value(f"ERROR_CODE_{failure.code}"),
        reason=errors_pb2.ErrorReason.Value(f"ERROR_REASON_{failure.reason}"),
        message=failure.message,
        ftp_code=failure.ftp_code,
        retryable=failure.retryable,
        error_time=timestamp(failure.time),
    )


def connection_to_proto(connection: Connection) -> connections_pb2.Connection:
    """The whole connection without its password."""
    kind = connection.kind
    name = names.connection(connection.id)
    return connections_pb2.Connection(
        name=name,
        title=connection.title,
        ftp=_ftp_to_proto(kind) if isinstance(kind, FtpServer) else None,
        local=connections_pb2.LocalFolder(base_path=str(kind.base_path)) if isinstance(kind, LocalFolder) else None,
        etag=etags.etag(name, connection.revision),
        create_time=timestamp(connection.create_time),
        update_time=timestamp(connection.update_time),
        config_section=connection.config_section,
    )


def connection_from_proto(message: connections_pb2.Connection, connection_id: str) -> Connection:
    """What the caller may set of a new connection."""
    if message.HasField("local"):
        return Connection(connection_id, LocalFolder(Path(message.local.base_path)), message.title)
    return Connection(connection_id, _ftp_from_proto(message.ftp), message.title)


def changed_connection(
    current: Connection, message: connections_pb2.Connection, fields: Collection[str], mask: Collection[str]
) -> Connection:
    """`current` with those of its `fields` as in the message; `mask` has the paths by which they were asked for.

    Raises InvalidArgument when a field belongs to the other kind, or leaves the connection without a host or folder.
    """
    title = message.title if "title" in fields else current.title
    kind = current.kind
    other = "ftp" if isinstance(kind, LocalFolder) else "local"
    if "*" in mask:
        fields = [field for field in fields if not field.startswith(f"{other}.")]
    if message.WhichOneof("kind") == other or any(field.startswith(f"{other}.") for field in fields):
        raise InvalidArgument.of("connection.kind", "can not be changed", reason="CONNECTION_KIND")
    if isinstance(kind, LocalFolder):
        base_path = Path(message.local.base_path) if "local.base_path" in fields else kind.base_path
        if "local.base_path" in fields and not message.local.base_path:
            raise InvalidArgument.of("connection.local.base_path", "must not be empty")
        return replace(current, title=title, kind=LocalFolder(base_path))
    wanted = _ftp_from_proto(message.ftp)
    changes = {_FTP_FIELDS[field]: getattr(wanted, _FTP_FIELDS[field]) for field in fields if field.startswith("ftp.")}
    if "ftp.password" not in mask and not message.ftp.password:
        changes.pop("password", None)
    if "host" in changes and not wanted.host:
        raise InvalidArgument.of("connection.ftp.host", "must not be empty")
    if "port" in changes and not message.ftp.port:
        changes["port"] = _default_port(wanted.tls if "tls" in changes else kind.tls)
    elif "tls" in changes and kind.port == _default_port(kind.tls):
        changes["port"] = changes.get("port", _default_port(wanted.tls))
    return replace(current, title=title, kind=replace(kind, **changes))


_FTP_FIELDS: Final = {
    "ftp.host": "host",
    "ftp.port": "port",
    "ftp.user": "user",
    "ftp.password": "password",
    "ftp.tls": "tls",
    "ftp.active_mode": "active",
    "ftp.use_announced_address": "use_announced_address",
    "ftp.encoding": "encoding",
    "ftp.max_sessions": "max_sessions",
    "ftp.idle_timeout": "idle_timeout",
    "ftp.reply_timeout": "reply_timeout",
    "ftp.stall_timeout": "stall_timeout",
}


def probe_to_proto(probe: Probe) -> connections_pb2.TestConnectionResponse:
    """What came of trying a connection."""
    return connections_pb2.TestConnectionResponse(
        ok=probe.failure is None,
        error=failure_to_proto(probe.failure),
        last_step=probe.last_step,
        duration=duration(probe.duration),
        greeting=probe.greeting,
        features=probe.features,
        tls_cipher=probe.tls_cipher,
        certificate_sha256=probe.certificate_sha256,
        entry_count=probe.entry_count,
    )


def file_to_proto(path: str, file: RemoteFile) -> files_pb2.FileInfo:
    """A file or folder by its path on the connection."""
    return files_pb2.FileInfo(
        path=path, kind=_KINDS[file.kind], size_bytes=file.size or 0, modify_time=timestamp(file.modify_time)
    )


def _default_port(tls: TlsSettings | None) -> int:
    return _IMPLICIT_PORT if tls is not None and tls.mode is TlsMode.IMPLICIT else _PLAIN_PORT


def _ftp_from_proto(message: connections_pb2.FtpServer) -> FtpServer:
    defaults = FtpServer(host="")
    tls = None
    if message.HasField("tls"):
        tls = TlsSettings(
            _TLS_MODES[message.tls.mode],
            message.tls.ca_certificates,
            message.tls.server_name,
            message.tls.certificate_sha256.lower(),
        )
    active = None
    if message.HasField("active_mode"):
        mode = message.active_mode
        active = ActiveMode(mode.address, mode.first_port, mode.last_port)
    return FtpServer(
        host=message.host,
        port=message.port or _default_port(tls),
        user=message.user or defaults.user,
        password=message.password,
        tls=tls,
        active=active,
        use_announced_address=message.use_announced_address,
        encoding=message.encoding or defaults.encoding,
        max_sessions=message.max_sessions,
        idle_timeout=_seconds(message, "idle_timeout", 0.0),
        reply_timeout=_seconds(message, "reply_timeout", defaults.reply_timeout),
        stall_timeout=_seconds(message, "stall_timeout", defaults.stall_timeout),
    )


def _seconds(message: connections_pb2.FtpServer, field: str, fallback: float) -> float:
    if not message.HasField(field):  # type: ignore[arg-type]  # the stub knows literals alone
        return fallback
    span: Duration = getattr(message, field)
    return span.ToTimedelta().total_seconds()


def _ftp_to_proto(server: FtpServer) -> connections_pb2.FtpServer:
    tls, active = server.tls, server.active
    return connections_pb2.FtpServer(
        host=server.host,
        port=server.port,
        user=server.user,
        has_password=bool(server.password),
        tls=connections_pb2.TlsSettings(
            mode=_TLS_NUMBERS[tls.mode],
            ca_certificates=tls.ca_certificates,
            server_name=tls.server_name,
            certificate_sha256=tls.certificate_sha256,
        )
        if tls is not None
        else None,
        active_mode=connections_pb2.ActiveMode(
            address=active.address, first_port=active.first_port, last_port=active.last_port
        )
        if active is not None
        else None,
        use_announced_address=server.use_announced_address,
        encoding=server.encoding,
        max_sessions=server.max_sessions,
        idle_timeout=duration(server.idle_timeout or None),
        reply_timeout=duration(server.reply_timeout),
        stall_timeout=duration(server.stall_timeout),
    )
