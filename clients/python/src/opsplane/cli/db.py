"""`opsplane db`: database servers on demand."""

from __future__ import annotations

import click

from opsplane.cli import db_accounts, db_insight, db_instances, db_lifecycle


@click.group()
def db() -> None:
    """Database servers on demand: PostgreSQL, MariaDB, MySQL, single or highly available.

    \b
    Examples:
      opsplane db create orders --nodes 3
      opsplane db connect orders
      opsplane db list
    """


for command in (
    db_instances.create,
    db_instances.list_instances,
    db_instances.show,
    db_instances.update,
    db_instances.delete,
    db_instances.connection,
    db_instances.connect,
    db_instances.watch,
    db_lifecycle.start,
    db_lifecycle.stop,
    db_lifecycle.restart,
    db_lifecycle.failover,
    db_lifecycle.switchover,
    db_lifecycle.upgrade,
    db_lifecycle.rollback,
    db_lifecycle.recover,
    db_accounts.databases,
    db_accounts.users,
    db_insight.parameters,
    db_insight.slow,
    db_insight.events,
    db_insight.usage,
):
    db.add_command(command)
