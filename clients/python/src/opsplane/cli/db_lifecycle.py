"""`opsplane db start|stop|restart|failover|switchover|upgrade|rollback|recover`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import click
from google.protobuf.message import Message

from opsplane.cli.db_instances import print_instance
from opsplane.cli.db_names import INSTANCE
from opsplane.cli.operations import run_operation, wait_option
from opsplane.cli.passwords import given_password, password_options
from opsplane.cli.session import Session, pass_session
from opsplane.client import Client, new_request_id
from opsplane.instances.v1 import instance_pb2, lifecycle_pb2


def _run(session: Session, method: Callable[[Client], Callable[..., Any]], request: Message, *, wait: bool) -> None:
    async def work(client: Client) -> instance_pb2.Instance | None:
        return await run_operation(session, client, method(client), request, instance_pb2.Instance, wait=wait)

    print_instance(session, session.run(work))


@click.command()
@click.argument("instance", type=INSTANCE)
@wait_option
@pass_session
def start(session: Session, instance: str, wait: bool) -> None:
    """Start a stopped instance.

    \b
    Example:
      opsplane db start orders
    """
    request = lifecycle_pb2.StartInstanceRequest(name=instance, request_id=new_request_id())
    _run(session, lambda client: client.instances.StartInstance, request, wait=wait)


@click.command()
@click.argument("instance", type=INSTANCE)
@wait_option
@pass_session
def stop(session: Session, instance: str, wait: bool) -> None:
    """Stop an instance. Its data stay.

    \b
    Example:
      opsplane db stop orders
    """
    request = lifecycle_pb2.StopInstanceRequest(name=instance, request_id=new_request_id())
    _run(session, lambda client: client.instances.StopInstance, request, wait=wait)


@click.command()
@click.argument("instance", type=INSTANCE)
@click.option("--node", default="", help="The only node to restart.")
@wait_option
@pass_session
def restart(session: Session, instance: str, node: str, wait: bool) -> None:
    """Restart an instance, one node after the other.

    \b
    Examples:
      opsplane db restart orders
      opsplane db restart orders --node orders-2
    """
    request = lifecycle_pb2.RestartInstanceRequest(name=instance, node=node, request_id=new_request_id())
    _run(session, lambda client: client.instances.RestartInstance, request, wait=wait)


@click.command()
@click.argument("instance", type=INSTANCE)
@click.option("--to", "target", default="", metavar="NODE", help="New primary.  [default: the replica that has most]")
@wait_option
@pass_session
def failover(session: Session, instance: str, target: str, wait: bool) -> None:
    """Make another node the primary at once, whatever becomes of the old one.

    \b
    Example:
      opsplane db failover orders
    """
    request = lifecycle_pb2.FailoverRequest(name=instance, target_node=target, request_id=new_request_id())
    _run(session, lambda client: client.instances.Failover, request, wait=wait)


@click.command()
@click.argument("instance", type=INSTANCE)
@click.option("--to", "target", default="", metavar="NODE", help="New primary.  [default: the replica that has most]")
@wait_option
@pass_session
def switchover(session: Session, instance: str, target: str, wait: bool) -> None:
    """Make another node the primary in good order: nothing is lost.

    \b
    Example:
      opsplane db switchover orders --to orders-2
    """
    request = lifecycle_pb2.SwitchoverRequest(name=instance, target_node=target, request_id=new_request_id())
    _run(session, lambda client: client.instances.Switchover, request, wait=wait)


@click.command()
@click.argument("instance", type=INSTANCE)
@click.argument("version")
@click.option("--skip-backup", is_flag=True, help="Do without a backup before.")
@wait_option
@pass_session
def upgrade(session: Session, instance: str, version: str, skip_backup: bool, wait: bool) -> None:
    """Change the major version. `opsplane db rollback` goes back.

    \b
    Example:
      opsplane db upgrade orders 18
    """
    request = lifecycle_pb2.UpgradeInstanceRequest(
        name=instance, version=version, skip_backup=skip_backup, request_id=new_request_id()
    )
    _run(session, lambda client: client.instances.UpgradeInstance, request, wait=wait)


@click.command()
@click.argument("instance", type=INSTANCE)
@click.option("--discard-writes", is_flag=True, help="Confirm that what was written since the upgrade is lost.")
@wait_option
@pass_session
def rollback(session: Session, instance: str, discard_writes: bool, wait: bool) -> None:
    """Undo the newest upgrade: the old version runs on the data as they were then.

    \b
    Example:
      opsplane db rollback orders --discard-writes
    """
    request = lifecycle_pb2.RollbackUpgradeRequest(
        name=instance, discard_writes=discard_writes, request_id=new_request_id()
    )
    _run(session, lambda client: client.instances.RollbackUpgrade, request, wait=wait)


@click.command()
@click.argument("instance", type=INSTANCE)
@click.option("--namespace", default="", help="Kubernetes namespace to look in.")
@password_options
@wait_option
@pass_session
def recover(session: Session, /, instance: str, namespace: str, wait: bool, **options: Any) -> None:
    """Take in an instance whose record is lost.

    \b
    Example:
      opsplane db recover orders
    """
    request = lifecycle_pb2.RecoverInstanceRequest(
        name=instance,
        namespace=namespace,
        password=given_password(options, "the first user") or "",
        request_id=new_request_id(),
    )
    _run(session, lambda client: client.instances.RecoverInstance, request, wait=wait)
