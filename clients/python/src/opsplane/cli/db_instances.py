"""`opsplane db create|list|show|update|delete|connection|connect|watch`."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from typing import Any

import click
from google.protobuf.duration_pb2 import Duration
from google.protobuf.empty_pb2 import Empty

from opsplane.cli.db_figures import (
    EVENT_COLUMNS,
    INSTANCE_COLUMNS,
    event_row,
    instance_picture,
    instance_row,
    metrics_table,
)
from opsplane.cli.db_names import INSTANCE
from opsplane.cli.db_options import instance_options, set_options
from opsplane.cli.durations import DURATION
from opsplane.cli.operations import run_operation, wait_option
from opsplane.cli.output import clean, console, more, print_json, print_json_line, short, table
from opsplane.cli.passwords import given_password, password_options
from opsplane.cli.session import Session, call, pages, pass_session
from opsplane.client import Client, new_request_id
from opsplane.instances.v1 import connections_pb2, instance_pb2, instances_pb2, monitoring_pb2

_ENGINES = {
    "postgresql": instance_pb2.ENGINE_POSTGRESQL,
    "mysql": instance_pb2.ENGINE_MYSQL,
    "mariadb": instance_pb2.ENGINE_MARIADB,
}
_ENDPOINTS = ("rw", "ro", "r", "any")


@click.command()
@click.argument("instance", metavar="ID", type=INSTANCE)
@click.option("--engine", "-e", type=click.Choice([*_ENGINES]), default="postgresql", show_default=True,
              help="Kind of server.")  # fmt: skip
@click.option("--version", default="", help="Version, for example 18 or 16.14.  [default: the newest]")
@click.option("--database", default="", help="First database.  [default: made from the name]")
@click.option("--user", default="", help="First user.  [default: made from the name]")
@password_options
@instance_options
@wait_option
@pass_session
def create(
    session: Session,
    /,
    instance: str,
    engine: str,
    version: str,
    database: str,
    user: str,
    wait: bool,
    **options: Any,
) -> None:
    """Create a database server.

    Without an option for the password a strong one is made; `opsplane db connection` shows it.

    \b
    Examples:
      opsplane db create orders
      opsplane db create orders --version 16 --storage 10Gi --memory 2Gi --cpu 2 -p max_connections=200
      opsplane db create orders --nodes 3 --sync 1 --pitr 7 --protect
      opsplane db create cache --engine mariadb --expire-in 8h
    """
    wanted = instance_pb2.Instance(engine=_ENGINES[engine], version=version, database=database, username=user)
    wanted.password = given_password(options, user or "the first user") or ""
    set_options(wanted, options)
    request = instances_pb2.CreateInstanceRequest(
        instance=wanted, instance_id=short(instance), request_id=new_request_id()
    )

    async def work(client: Client) -> instance_pb2.Instance | None:
        return await run_operation(
            session, client, client.instances.CreateInstance, request, instance_pb2.Instance, wait=wait
        )

    print_instance(session, session.run(work))


@click.command("list")
@click.option("--filter", "filter_", default="", help="Restrict them, for example 'engine=\"ENGINE_POSTGRESQL\"'.")
@click.option("--limit", type=click.IntRange(1, 100_000), default=50, show_default=True, help="Most of them to list.")
@pass_session
def list_instances(session: Session, filter_: str, limit: int) -> None:
    """List instances, newest first.

    \b
    Examples:
      opsplane db list
      opsplane db list --filter 'labels.team="shop"'
    """
    request = instances_pb2.ListInstancesRequest(filter=filter_)
    found = session.run(
        lambda client: pages(client.instances.ListInstances, request, instances_pb2.ListInstancesResponse, limit)
    )
    if session.as_json:
        print_json(found)
        return
    console().print(table(INSTANCE_COLUMNS, map(instance_row, found.instances)))
    more(found.next_page_token)


@click.command()
@click.argument("instance", type=INSTANCE)
@pass_session
def show(session: Session, instance: str) -> None:
    """Show an instance: its state, nodes, addresses and settings.

    \b
    Example:
      opsplane db show orders
    """
    request = instances_pb2.GetInstanceRequest(name=instance)
    print_instance(
        session, session.run(lambda client: call(client.instances.GetInstance, request, instance_pb2.Instance))
    )


@click.command()
@click.argument("instance", type=INSTANCE)
@instance_options
@wait_option
@pass_session
def update(session: Session, /, instance: str, wait: bool, **options: Any) -> None:
    """Change what the options say, and leave everything else.

    Parameters and labels are replaced as a whole. What needs a restart is listed by `opsplane db show`.

    \b
    Examples:
      opsplane db update orders --storage 20Gi
      opsplane db update orders -p max_connections=300 -p work_mem=16MB
      opsplane db update orders --nodes 3
    """
    wanted = instance_pb2.Instance(name=instance)
    fields = set_options(wanted, options)
    if not fields:
        raise click.UsageError("nothing is to be changed: give an option")
    request = instances_pb2.UpdateInstanceRequest(instance=wanted, request_id=new_request_id())
    request.update_mask.paths.extend(fields)

    async def work(client: Client) -> instance_pb2.Instance | None:
        return await run_operation(
            session, client, client.instances.UpdateInstance, request, instance_pb2.Instance, wait=wait
        )

    print_instance(session, session.run(work))


@click.command()
@click.argument("instance", type=INSTANCE)
@click.option("--final-backup", is_flag=True, help="Back it up first.")
@click.option("--retention-days", type=click.IntRange(0, 36500), default=0, help="Days to keep that backup.")
@click.option("--yes", "-y", is_flag=True, help="Do not ask.")
@wait_option
@pass_session
def delete(session: Session, instance: str, final_backup: bool, retention_days: int, yes: bool, wait: bool) -> None:
    """Delete an instance with its data. Its backups stay.

    \b
    Examples:
      opsplane db delete orders --final-backup
      opsplane db delete scratch --yes
    """
    if not yes:
        click.confirm(f"Delete {short(instance)} with all its data?", abort=True, err=True)
    request = instances_pb2.DeleteInstanceRequest(
        name=instance,
        final_backup=final_backup,
        final_backup_retention_days=retention_days,
        request_id=new_request_id(),
    )

    async def work(client: Client) -> Empty | None:
        return await run_operation(session, client, client.instances.DeleteInstance, request, Empty, wait=wait)

    if session.run(work) is not None:
        click.echo(f"deleted {instance}", err=True)


@click.command()
@click.argument("instance", type=INSTANCE)
@click.option("--user", default="", help="User to connect as.  [default: the first]")
@click.option("--database", default="", help="Database to connect to.  [default: the first]")
@pass_session
def connection(session: Session, instance: str, user: str, database: str) -> None:
    """Print how clients reach an instance, with the password. Who read it is kept.

    \b
    Examples:
      opsplane db connection orders
      DATABASE_URL=$(opsplane -o json db connection orders | jq -r .rw.multiHostUri)
    """
    found = _connection(session, instance, user, database)
    if session.as_json:
        print_json(found)
        return
    for name in _ENDPOINTS:
        endpoint = getattr(found, name)
        if endpoint.host:
            click.echo(f"{name:4}{clean(endpoint.uri)}")
            if endpoint.multi_host_uri and endpoint.multi_host_uri != endpoint.uri:
                click.echo(f"    {clean(endpoint.multi_host_uri)}")


@click.command(context_settings={"ignore_unknown_options": True})
@click.argument("instance", type=INSTANCE)
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
@click.option("--endpoint", type=click.Choice(_ENDPOINTS), default="rw", show_default=True, help="Which nodes.")
@click.option("--user", default="", help="User to connect as.  [default: the first]")
@click.option("--database", default="", help="Database to connect to.  [default: the first]")
@pass_session
def connect(
    session: Session, instance: str, arguments: tuple[str, ...], endpoint: str, user: str, database: str
) -> None:
    """Open psql or mysql on an instance. Further arguments go to the program.

    \b
    Examples:
      opsplane db connect orders
      opsplane db connect orders --endpoint ro -- -c 'SELECT count(*) FROM orders'
    """
    found = _connection(session, instance, user, database)
    place: connections_pb2.ConnectionEndpoint = getattr(found, endpoint)
    if not place.host:
        raise click.ClickException(f"{short(instance)} has no endpoint {endpoint}: it is a single server")
    programs = ("psql",) if place.uri.startswith("postgres") else ("mariadb", "mysql")
    program = next((path for name in programs if (path := shutil.which(name))), None)
    if program is None:
        raise click.ClickException(f"{' or '.join(programs)} is not installed here; `{found.command}` is what it runs")
    if programs == ("psql",):
        command = [program, "-h", place.host, "-p", str(place.port), "-U", found.username, "-d", found.database]
        environment = {"PGPASSWORD": found.password}
    else:
        command = [program, "-h", place.host, "-P", str(place.port), "-u", found.username, found.database]
        environment = {"MYSQL_PWD": found.password}
    # By the environment: the arguments of a process are for everybody to see.
    ended = subprocess.run([*command, *arguments], env={**os.environ, **environment}, check=False)
    sys.exit(ended.returncode)


@click.command()
@click.argument("instance", type=INSTANCE)
@click.option("--interval", type=DURATION, default="5s", show_default=True, help="Time between figures.")
@pass_session
def watch(session: Session, instance: str, interval: Any) -> None:
    """Show state, events and figures as they come, until Ctrl-C. With `-o json` each is a line.

    \b
    Examples:
      opsplane db watch orders
      opsplane -o json db watch orders --interval 1s
    """
    time = Duration()
    time.FromTimedelta(interval)
    request = monitoring_pb2.WatchInstanceRequest(name=instance, interval=time)

    async def work(client: Client) -> None:
        state = None
        async for update in client.instances.WatchInstance(request):
            if session.as_json:
                print_json_line(update)
            elif update.HasField("metrics"):
                console().print(metrics_table(update.metrics))
            elif update.HasField("event"):
                console().print(table(EVENT_COLUMNS, [event_row(update.event)]))
            elif update.instance.state != state:
                state = update.instance.state
                console().print(table(INSTANCE_COLUMNS, [instance_row(update.instance)]))

    session.run(work)


def print_instance(session: Session, instance: instance_pb2.Instance | None) -> None:
    """Prints it, if there is one."""
    if instance is None:
        return
    if session.as_json:
        print_json(instance)
    else:
        console().print(instance_picture(instance))


def _connection(session: Session, instance: str, user: str, database: str) -> connections_pb2.ConnectionInfo:
    request = connections_pb2.GetConnectionInfoRequest(name=instance, user=user, database=database)
    return session.run(lambda client: call(client.instances.GetConnectionInfo, request, connections_pb2.ConnectionInfo))
