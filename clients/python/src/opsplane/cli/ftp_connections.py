"""`opsplane ftp connections`."""

from __future__ import annotations

from typing import Any

import click
from google.protobuf.empty_pb2 import Empty
from rich.text import Text

from opsplane.cli.durations import format_duration
from opsplane.cli.ftp_connection_options import build_connection, connection_options
from opsplane.cli.ftp_figures import error_text
from opsplane.cli.ftp_follow import FAILED
from opsplane.cli.ftp_places import CONNECTION
from opsplane.cli.output import clean, console, local_time, more, one_line, print_json, short, table
from opsplane.cli.session import Session, call, pages, pass_session
from opsplane.client import Client, new_request_id
from opsplane.ftptransfer.v1 import connections_pb2


@click.group()
def connections() -> None:
    """FTP servers, and local folders of the server.

    \b
    Examples:
      opsplane ftp connections create nas --host nas.example.com --user backup --tls explicit
      opsplane ftp connections create outgoing --folder /srv/outgoing
      opsplane ftp connections test nas
    """


@connections.command("list")
@click.option("--filter", "filter_", default="", help="Restrict them, for example 'kind=ftp'.")
@click.option("--limit", type=click.IntRange(1, 100_000), default=50, show_default=True, help="Most of them to list.")
@pass_session
def list_connections(session: Session, filter_: str, limit: int) -> None:
    """List connections, newest first.

    \b
    Example:
      opsplane ftp connections list
    """
    request = connections_pb2.ListConnectionsRequest(filter=filter_)
    found = session.run(
        lambda client: pages(
            client.ftp_transfer.ListConnections, request, connections_pb2.ListConnectionsResponse, limit
        )
    )
    if session.as_json:
        print_json(found)
        return
    rows = [
        (
            short(connection.name),
            one_line(connection.title, 40),
            _kind(connection),
            one_line(_where(connection)),
            one_line(connection.ftp.user, 40),
            "connections.ini" if connection.config_section else "",
        )
        for connection in found.connections
    ]
    console().print(table(("connection", "title", "kind", "where", "user", "from"), rows))
    more(found.next_page_token)


@connections.command("create")
@click.argument("connection", metavar="ID", type=CONNECTION)
@connection_options
@click.option("--test", is_flag=True, help="Try it first, and do not create it when that fails.")
@pass_session
def create_connection(session: Session, /, connection: str, test: bool, **options: Any) -> None:
    """Create a connection to an FTP server (--host) or to a folder on the machine of the server (--folder).

    The password is asked for, or read with --password-file or --password-env.

    \b
    Examples:
      opsplane ftp connections create nas --host nas.example.com --user backup
      opsplane ftp connections create nas --host 10.0.0.7 --user backup --tls explicit --password-file ~/nas.password
      opsplane ftp connections create outgoing --folder /srv/outgoing
    """
    if bool(options["host"]) == bool(options["folder"]):
        raise click.UsageError("give either --host or --folder")
    wanted, _ = build_connection(options, new=True)

    async def work(client: Client) -> connections_pb2.Connection | None:
        if test:
            tried = await call(
                client.ftp_transfer.TestConnection,
                connections_pb2.TestConnectionRequest(connection=wanted),
                connections_pb2.TestConnectionResponse,
            )
            if not tried.ok:
                _print_try(session, tried)
                return None
        request = connections_pb2.CreateConnectionRequest(
            connection=wanted, connection_id=short(connection), request_id=new_request_id()
        )
        return await call(client.ftp_transfer.CreateConnection, request, connections_pb2.Connection)

    created = session.run(work)
    if created is None:
        raise click.exceptions.Exit(FAILED)
    _print_connection(session, created)


@connections.command("show")
@click.argument("connection", type=CONNECTION)
@pass_session
def show_connection(session: Session, connection: str) -> None:
    """Show a connection, without its password.

    \b
    Example:
      opsplane ftp connections show nas
    """
    request = connections_pb2.GetConnectionRequest(name=connection)
    _print_connection(
        session,
        session.run(lambda client: call(client.ftp_transfer.GetConnection, request, connections_pb2.Connection)),
    )


@connections.command("update")
@click.argument("connection", type=CONNECTION)
@connection_options
@pass_session
def update_connection(session: Session, /, connection: str, **options: Any) -> None:
    """Change what the options say, and leave everything else.

    \b
    Examples:
      opsplane ftp connections update nas --host nas2.example.com
      opsplane ftp connections update nas --ask-password
      opsplane ftp connections update nas --tls none --passive
    """
    wanted, fields = build_connection(options, new=False)
    if not fields:
        raise click.UsageError("nothing is to be changed: give an option")
    wanted.name = connection
    request = connections_pb2.UpdateConnectionRequest(connection=wanted, request_id=new_request_id())
    request.update_mask.paths.extend(fields)
    _print_connection(
        session,
        session.run(lambda client: call(client.ftp_transfer.UpdateConnection, request, connections_pb2.Connection)),
    )


@connections.command("delete")
@click.argument("connection", type=CONNECTION)
@click.option("--force", is_flag=True, help="Also cancel the transfers that need it.")
@pass_session
def delete_connection(session: Session, connection: str, force: bool) -> None:
    """Delete a connection.

    \b
    Example:
      opsplane ftp connections delete nas
    """
    request = connections_pb2.DeleteConnectionRequest(name=connection, force=force, request_id=new_request_id())
    session.run(lambda client: call(client.ftp_transfer.DeleteConnection, request, Empty))
    click.echo(f"deleted {connection}", err=True)


@connections.command("test")
@click.argument("connection", type=CONNECTION)
@click.option("--path", default="", help="Folder to list.  [default: the one after the login, or the base path]")
@pass_session
def test_connection(session: Session, connection: str, path: str) -> None:
    """Try a connection: log in and list a folder. The exit status is 1 when that fails.

    \b
    Examples:
      opsplane ftp connections test nas
      opsplane ftp connections test nas --path /in
    """
    request = connections_pb2.TestConnectionRequest(name=connection, path=path)
    tried = session.run(
        lambda client: call(client.ftp_transfer.TestConnection, request, connections_pb2.TestConnectionResponse)
    )
    _print_try(session, tried)
    if not tried.ok:
        raise click.exceptions.Exit(FAILED)


def _print_try(session: Session, tried: connections_pb2.TestConnectionResponse) -> None:
    if session.as_json:
        print_json(tried)
        return
    verdict = Text("works", style="green") if tried.ok else Text(error_text(tried.error), style="bold red")
    _print_facts(
        "",
        [
            ("result", verdict),
            ("last step", tried.last_step),
            ("took", format_duration(tried.duration.ToTimedelta())),
            ("greeting", one_line(tried.greeting, 200)),
            ("features", one_line(" ".join(tried.features), 300)),
            ("tls", clean(tried.tls_cipher)),
            ("certificate", clean(tried.certificate_sha256)),
            ("entries", f"{tried.entry_count:,}" if tried.ok else ""),
        ],
    )


def _print_connection(session: Session, connection: connections_pb2.Connection) -> None:
    if session.as_json:
        print_json(connection)
        return
    facts: list[tuple[str, str | Text]] = [
        ("title", one_line(connection.title, 200)),
        ("kind", _kind(connection)),
        ("where", clean(_where(connection))),
        ("from", f"connections.ini, [{clean(connection.config_section)}]" if connection.config_section else ""),
    ]
    if connection.HasField("ftp"):
        server = connection.ftp
        facts += [
            ("user", clean(server.user)),
            ("password", "kept" if server.has_password else "none"),
            ("data", _mode(server)),
            ("encoding", server.encoding),
            ("sessions", f"at most {server.max_sessions}" if server.max_sessions else ""),
        ]
        for name in ("idle_timeout", "reply_timeout", "stall_timeout"):
            if server.HasField(name):
                facts.append((name.replace("_", " "), format_duration(getattr(server, name).ToTimedelta())))
    facts.append(("changed", local_time(connection.update_time)))
    _print_facts(connection.name, facts)


def _print_facts(title: str, facts: list[tuple[str, str | Text]]) -> None:
    """Those that there are."""
    overview = table(("", ""), [(name, value) for name, value in facts if str(value)], title=title)
    overview.show_header = False
    console().print(overview)


def _kind(connection: connections_pb2.Connection) -> str:
    if connection.HasField("local"):
        return "local"
    tls = connection.ftp.tls.mode
    return f"ftps {connections_pb2.TlsMode.Name(tls).removeprefix('TLS_MODE_').lower()}" if tls else "ftp"


def _where(connection: connections_pb2.Connection) -> str:
    if connection.HasField("local"):
        return connection.local.base_path
    return f"{connection.ftp.host}:{connection.ftp.port}"


def _mode(server: connections_pb2.FtpServer) -> str:
    if not server.HasField("active_mode"):
        return "passive, at the announced address" if server.use_announced_address else "passive"
    active = server.active_mode
    ports = f" ports {active.first_port}-{active.last_port}" if active.first_port else ""
    return f"active {active.address}{ports}".rstrip()
