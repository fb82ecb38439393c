"""Options of `opsplane ftp connections create` and `update`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import timedelta
from typing import Any, TypeVar

import click

from opsplane.cli.durations import DURATION
from opsplane.cli.passwords import FILE, ask_password, given_password, password_options, read_text
from opsplane.ftptransfer.v1 import connections_pb2

Command = TypeVar("Command", bound=Callable[..., Any])

_TLS = {"explicit": connections_pb2.TLS_MODE_EXPLICIT, "implicit": connections_pb2.TLS_MODE_IMPLICIT}
_TLS_DETAILS = ("ca", "server_name", "certificate_sha256")
_PLAIN = ("host", "port", "user", "use_announced_address", "encoding", "max_sessions")
_TIMES = ("idle_timeout", "reply_timeout", "stall_timeout")


def connection_options(command: Command) -> Command:
    """The options that make a connection; `build_connection` takes them."""
    for option in reversed(
        (
            click.option("--title", help="What people call it."),
            click.option("--folder", help="A folder on the machine of the server, an absolute path."),
            click.option("--host", help="Host name or IP address of an FTP server."),
            click.option("--port", type=click.IntRange(0, 65535), help="Port.  [default: 21, implicit TLS 990]"),
            click.option("--user", help="User.  [default: anonymous]"),
            password_options,
            click.option("--no-password", is_flag=True, help="Log in without a password."),
            click.option("--tls", type=click.Choice([*_TLS, "none"]), help="How TLS starts, if it does."),
            click.option("--tls-ca", "ca", type=FILE, help="PEM file of the authorities to trust, with --tls."),
            click.option("--tls-server-name", "server_name", help="Name that the certificate must carry, with --tls."),
            click.option("--tls-sha256", "certificate_sha256", metavar="HEX",
                         help="SHA-256 of the one certificate to trust, with --tls; `connections test` shows it."),
            click.option("--active/--passive", "active", default=None,
                         help="Who connects for data.  [default: passive]"),
            click.option("--active-address", metavar="IP", help="Address to announce, with --active."),
            click.option("--active-ports", metavar="FIRST-LAST", help="Ports to listen on, with --active."),
            click.option("--announced-address/--host-address", "use_announced_address", default=None,
                         help="In passive mode, connect to the address that the server announces, or to its host."),
            click.option("--encoding", help="Encoding of file names.  [default: utf-8]"),
            click.option("--max-sessions", type=click.IntRange(0, 1000), help="Most sessions at the same time."),
            click.option("--idle-timeout", type=DURATION, help="A session without work is closed after this."),
            click.option("--reply-timeout", type=DURATION, help="How long to wait for each reply."),
            click.option("--stall-timeout", type=DURATION, help="How long data may stand still."),
        )
    ):  # fmt: skip
        command = option(command)
    return command


def build_connection(options: Mapping[str, Any], *, new: bool) -> tuple[connections_pb2.Connection, list[str]]:
    """The connection of the options, and the paths of the fields that they set.

    For a `new` one with a user, the password is asked for when no option says where it comes from. Raises UsageError.
    """
    wanted, fields = connections_pb2.Connection(), []
    if options["title"] is not None:
        wanted.title = options["title"]
        fields.append("title")
    if options["folder"] is not None:
        wanted.local.base_path = options["folder"]
        fields.append("local.base_path")
    server = wanted.ftp if options["folder"] is None else connections_pb2.FtpServer()
    changed = [name for name in _PLAIN if options[name] is not None]
    for name in changed:
        setattr(server, name, options[name])
    for name in _TIMES:
        if options[name] is not None:
            time: timedelta = options[name]
            getattr(server, name).FromTimedelta(time)
            changed.append(name)
    if _set_tls(server, options):
        changed.append("tls")
    if _set_active(server, options):
        changed.append("active_mode")
    if _set_password(server, options, new=new):
        changed.append("password")
    if changed and options["folder"] is not None:
        raise click.UsageError("--folder does not go with the options of an FTP server")
    return wanted, [*fields, *(f"ftp.{name}" for name in changed)]


def _set_tls(server: connections_pb2.FtpServer, options: Mapping[str, Any]) -> bool:
    given = [name for name in _TLS_DETAILS if options[name] is not None]
    mode = options["tls"]
    if mode in (None, "none"):
        if given:
            raise click.UsageError(
                "--tls-... options need --tls explicit or --tls implicit: they are replaced together"
            )
        return mode is not None
    server.tls.mode = _TLS[mode]
    server.tls.server_name = options["server_name"] or ""
    server.tls.certificate_sha256 = options["certificate_sha256"] or ""
    if options["ca"] is not None:
        server.tls.ca_certificates = read_text(options["ca"])
    return True


def _set_active(server: connections_pb2.FtpServer, options: Mapping[str, Any]) -> bool:
    active, address, ports = options["active"], options["active_address"], options["active_ports"]
    if not active:
        if address or ports:
            raise click.UsageError("--active-address and --active-ports need --active")
        return active is not None
    server.active_mode.SetInParent()
    server.active_mode.address = address or ""
    if ports:
        first, _, last = ports.partition("-")
        if not (first.isdecimal() and last.isdecimal()):
            raise click.UsageError(f"--active-ports {ports!r}: write FIRST-LAST")
        server.active_mode.first_port, server.active_mode.last_port = int(first), int(last)
    return True


def _set_password(server: connections_pb2.FtpServer, options: Mapping[str, Any], *, new: bool) -> bool:
    whose = server.user or "the account"
    password = given_password(options, whose)
    if options["no_password"]:
        if password is not None:
            raise click.UsageError("--no-password does not go with another option for the password")
        return not new
    if password is None:
        if not (new and options["user"]):
            return False
        password = ask_password(whose)
    server.password = password
    return True
