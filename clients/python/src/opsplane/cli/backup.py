"""`opsplane backup`: copies of instances that outlive them."""

from __future__ import annotations

from datetime import datetime
from typing import Any

import click
from google.protobuf.empty_pb2 import Empty
from rich.console import Group, RenderableType
from rich.text import Text

from opsplane.backups.v1 import backup_pb2, backups_pb2
from opsplane.cli.backup_schedules import schedules
from opsplane.cli.db_figures import engine_text
from opsplane.cli.db_instances import print_instance
from opsplane.cli.db_names import BACKUP, INSTANCE, pairs
from opsplane.cli.db_options import instance_options, set_options
from opsplane.cli.durations import format_duration
from opsplane.cli.ftp_figures import size_text
from opsplane.cli.ftp_places import PLACE, Place
from opsplane.cli.operations import run_operation, wait_option
from opsplane.cli.output import clean, console, local_time, more, one_line, print_json, short, table
from opsplane.cli.passwords import given_password, password_options
from opsplane.cli.session import Session, call, pages, pass_session
from opsplane.client import Client, new_request_id
from opsplane.instances.v1 import instance_pb2

NOT_PASSED = 3

_FORMATS = {
    "tar": backups_pb2.ARCHIVE_FORMAT_TAR,
    "tar.gz": backups_pb2.ARCHIVE_FORMAT_TAR_GZIP,
    "tar.zst": backups_pb2.ARCHIVE_FORMAT_TAR_ZSTD,
}


@click.group()
def backup() -> None:
    """Backups of database servers: make, verify, restore, export, schedule.

    \b
    Examples:
      opsplane backup create orders
      opsplane backup verify orders-monday
      opsplane backup restore orders-monday --as orders-copy
      opsplane backup schedules create nightly orders --cron '0 3 * * *' --keep daily:day:7d
    """


backup.add_command(schedules)


@backup.command()
@click.argument("instance", type=INSTANCE)
@click.option("--id", "backup_id", default="", help="Id of the backup; one is made without it.")
@click.option("--retention-days", type=click.IntRange(0, 36500), default=0, help="Days to keep it; 0 for ever.")
@click.option("--incremental", is_flag=True, help="Copy only what changed since the newest backup.")
@click.option("--description", default="", help="Words of yours.")
@click.option("--label", "labels", multiple=True, metavar="KEY=VALUE", help="Label, repeatable.")
@wait_option
@pass_session
def create(
    session: Session,
    instance: str,
    backup_id: str,
    retention_days: int,
    incremental: bool,
    description: str,
    labels: tuple[str, ...],
    wait: bool,
) -> None:
    """Back up an instance while it serves.

    \b
    Examples:
      opsplane backup create orders --retention-days 7
      opsplane backup create orders --id orders-monday --incremental
    """
    wanted = backup_pb2.Backup(
        instance=instance,
        retention_days=retention_days,
        incremental=incremental,
        description=description,
        labels=pairs(labels, "--label"),
    )
    request = backups_pb2.CreateBackupRequest(backup=wanted, backup_id=backup_id, request_id=new_request_id())

    async def work(client: Client) -> backup_pb2.Backup | None:
        return await run_operation(session, client, client.backups.CreateBackup, request, backup_pb2.Backup, wait=wait)

    _print_backup(session, session.run(work))


@backup.command("list")
@click.argument("instance", type=INSTANCE, required=False)
@click.option("--filter", "filter_", default="", help="Restrict them, for example 'last_good=true'.")
@click.option("--limit", type=click.IntRange(1, 100_000), default=50, show_default=True, help="Most of them to list.")
@pass_session
def list_backups(session: Session, instance: str | None, filter_: str, limit: int) -> None:
    """List backups, newest first, of an instance or of all, deleted ones too.

    \b
    Examples:
      opsplane backup list orders
      opsplane backup list --filter 'state="STATE_FAILED"'
    """
    parts = [f'instance="{instance}"'] if instance else []
    request = backups_pb2.ListBackupsRequest(filter=" AND ".join([*parts, filter_] if filter_ else parts))
    found = session.run(
        lambda client: pages(client.backups.ListBackups, request, backups_pb2.ListBackupsResponse, limit)
    )
    if session.as_json:
        print_json(found)
        return
    rows = [
        (
            short(one.name),
            short(one.instance),
            _state(one),
            "incremental" if one.base_backup else "full",
            size_text(one.size_bytes) if one.size_bytes else "",
            local_time(one.cut_time),
            local_time(one.expire_time),
            _verified(one),
        )
        for one in found.backups
    ]
    columns = ("backup", "instance", "state", "kind", ">size", "data of", "expires", "verified")
    console().print(table(columns, rows))
    more(found.next_page_token)


@backup.command()
@click.argument("backup", type=BACKUP)
@pass_session
def show(session: Session, backup: str) -> None:
    """Show a backup and its newest verification.

    \b
    Example:
      opsplane backup show orders-monday
    """
    request = backups_pb2.GetBackupRequest(name=backup)
    _print_backup(session, session.run(lambda client: call(client.backups.GetBackup, request, backup_pb2.Backup)))


@backup.command()
@click.argument("backup", type=BACKUP)
@wait_option
@pass_session
def verify(session: Session, backup: str, wait: bool) -> None:
    """Restore a backup into a scratch instance and check it. The exit status is 3 when it does not pass.

    \b
    Example:
      opsplane backup verify orders-monday
    """
    request = backups_pb2.VerifyBackupRequest(name=backup, request_id=new_request_id())

    async def work(client: Client) -> backup_pb2.Backup | None:
        return await run_operation(session, client, client.backups.VerifyBackup, request, backup_pb2.Backup, wait=wait)

    found = session.run(work)
    _print_backup(session, found)
    if found is not None and found.verification.state != backup_pb2.Verification.STATE_PASSED:
        raise click.exceptions.Exit(NOT_PASSED)


@backup.command()
@click.argument("backup", type=BACKUP, required=False)
@click.option("--as", "instance", type=INSTANCE, required=True, help="Id of the new instance.")
@click.option("--of", "source", type=INSTANCE, help="Instance to restore as it was at a moment, with --at.")
@click.option("--at", "moment", type=click.DateTime(["%Y-%m-%dT%H:%M:%S", "%Y-%m-%dT%H:%M:%S.%f", "%Y-%m-%d %H:%M:%S"]),
              help="The moment, UTC, with --of.")  # fmt: skip
@password_options
@instance_options
@wait_option
@pass_session
def restore(
    session: Session,
    /,
    backup: str | None,
    instance: str,
    source: str | None,
    moment: datetime | None,
    wait: bool,
    **options: Any,
) -> None:
    """Make a new instance from a backup, or from a moment of an instance whose log is kept.

    \b
    Examples:
      opsplane backup restore orders-monday --as orders-copy
      opsplane backup restore --of orders --at 2026-11-20T14:59:00 --as orders-before --memory 1Gi
    """
    if bool(backup) == bool(source) or bool(source) != bool(moment):
        raise click.UsageError("give either BACKUP, or --of and --at")
    wanted = instance_pb2.Instance(password=given_password(options, "the first user") or "")
    set_options(wanted, options)
    request = backups_pb2.RestoreBackupRequest(
        instance_id=short(instance), instance=wanted, request_id=new_request_id()
    )
    if backup:
        request.backup = backup
    elif source and moment:
        request.point_in_time.instance = source
        request.point_in_time.time.FromDatetime(moment)

    async def work(client: Client) -> instance_pb2.Instance | None:
        return await run_operation(
            session, client, client.backups.RestoreBackup, request, instance_pb2.Instance, wait=wait
        )

    print_instance(session, session.run(work))


@backup.command()
@click.argument("backup", type=BACKUP)
@click.argument("destination", metavar="PATH|CONNECTION:PATH", type=PLACE)
@click.option("--format", "packing", type=click.Choice([*_FORMATS]), help="How it is packed.  [default: by its name]")
@click.option("--overwrite", is_flag=True, help="Replace a file of that name.")
@wait_option
@pass_session
def export(session: Session, backup: str, destination: Place, packing: str | None, overwrite: bool, wait: bool) -> None:
    """Write a backup as one archive: below the server's export folder, or to an FTP connection.

    \b
    Examples:
      opsplane backup export orders-monday monday.tar.zst
      opsplane backup export orders-monday nas:/archive/
    """
    request = backups_pb2.ExportBackupRequest(name=backup, overwrite=overwrite, request_id=new_request_id())
    request.format = _FORMATS[packing or _packing_of(destination.path)]
    if destination.is_here:
        request.file.path = destination.path
    else:
        request.ftp.connection = destination.connection
        request.ftp.path = destination.path

    async def work(client: Client) -> backups_pb2.ExportBackupResponse | None:
        return await run_operation(
            session, client, client.backups.ExportBackup, request, backups_pb2.ExportBackupResponse, wait=wait
        )

    written = session.run(work)
    if written is None:
        return
    if session.as_json:
        print_json(written)
    else:
        click.echo(f"{clean(written.path)}  {size_text(written.size_bytes)}  sha256 {written.sha256}")


@backup.command()
@click.argument("backup", type=BACKUP)
@click.option("--force", is_flag=True, help="Also delete the incremental backups that build on it.")
@click.option("--yes", "-y", is_flag=True, help="Do not ask.")
@wait_option
@pass_session
def delete(session: Session, backup: str, force: bool, yes: bool, wait: bool) -> None:
    """Delete a backup.

    \b
    Example:
      opsplane backup delete orders-monday --yes
    """
    if not yes:
        click.confirm(f"Delete {short(backup)}?", abort=True, err=True)
    request = backups_pb2.DeleteBackupRequest(name=backup, force=force, request_id=new_request_id())

    async def work(client: Client) -> Empty | None:
        return await run_operation(session, client, client.backups.DeleteBackup, request, Empty, wait=wait)

    if session.run(work) is not None:
        click.echo(f"deleted {backup}", err=True)


def _packing_of(path: str) -> str:
    return next((name for name in ("tar.zst", "tar.gz", "tar") if path.endswith(f".{name}")), "tar.gz")


def _print_backup(session: Session, found: backup_pb2.Backup | None) -> None:
    if found is None:
        return
    if session.as_json:
        print_json(found)
    else:
        console().print(_picture(found))


def _picture(found: backup_pb2.Backup) -> RenderableType:
    took = ""
    if found.HasField("start_time") and found.HasField("complete_time"):
        took = format_duration(found.complete_time.ToDatetime() - found.start_time.ToDatetime())
    engine = instance_pb2.Instance(engine=found.engine, version=found.engine_version)
    facts: list[tuple[str, str | Text]] = [
        ("state", _state(found)),
        ("", one_line(found.error.message, 200)),
        ("instance", found.instance),
        ("engine", engine_text(engine)),
        ("kind", f"incremental, on {short(found.base_backup)}" if found.base_backup else "full"),
        ("data of", local_time(found.cut_time)),
        ("took", took),
        ("size", size_text(found.size_bytes) if found.size_bytes else ""),
        ("databases", clean(", ".join(found.databases))),
        ("schedule", short(found.schedule)),
        ("kept by", ", ".join(found.tiers)),
        ("expires", local_time(found.expire_time)),
        ("last good", "yes: it is kept" if found.last_good else ""),
        ("verified", _verified(found)),
    ]
    overview = table(("", ""), [(name, value) for name, value in facts if str(value)], title=found.name)
    overview.show_header = False
    if not found.verification.checks:
        return overview
    rows = [
        (
            backup_pb2.Check.Kind.Name(check.kind).removeprefix("KIND_").lower(),
            backup_pb2.Check.Result.Name(check.result).removeprefix("RESULT_").lower(),
            format_duration(check.duration.ToTimedelta()),
            one_line(check.message, 120),
        )
        for check in found.verification.checks
    ]
    return Group(overview, "", table(("check", "result", ">took", ""), rows))


def _state(found: backup_pb2.Backup) -> Text:
    name = backup_pb2.Backup.State.Name(found.state).removeprefix("STATE_").lower()
    style = {"ready": "green", "failed": "bold red"}.get(name, "yellow")
    return Text(name, style=style)


def _verified(found: backup_pb2.Backup) -> Text:
    if not found.HasField("verification"):
        return Text("")
    name = backup_pb2.Verification.State.Name(found.verification.state).removeprefix("STATE_").lower()
    style = {"passed": "green", "failed": "bold red"}.get(name, "yellow")
    return Text(f"{name} {local_time(found.verification.complete_time)}".rstrip(), style=style)
