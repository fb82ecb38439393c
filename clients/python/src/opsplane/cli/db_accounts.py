"""`opsplane db databases` and `opsplane db users`."""

from __future__ import annotations

from typing import Any

import click
from google.protobuf.empty_pb2 import Empty

from opsplane.cli.db_names import INSTANCE
from opsplane.cli.ftp_figures import size_text
from opsplane.cli.operations import run_operation
from opsplane.cli.output import clean, console, local_time, more, print_json, short, table
from opsplane.cli.passwords import given_password, password_options
from opsplane.cli.session import Session, pages, pass_session
from opsplane.client import Client, new_request_id
from opsplane.instances.v1 import databases_pb2

_PRIVILEGES = {
    "read-only": databases_pb2.PRIVILEGE_READ_ONLY,
    "read-write": databases_pb2.PRIVILEGE_READ_WRITE,
    "owner": databases_pb2.PRIVILEGE_OWNER,
}
_LIMIT = click.option(
    "--limit", type=click.IntRange(1, 100_000), default=100, show_default=True, help="Most of them to list."
)


@click.group()
def databases() -> None:
    """Databases of an instance.

    \b
    Examples:
      opsplane db databases list orders
      opsplane db databases create orders reports
    """


@databases.command("list")
@click.argument("instance", type=INSTANCE)
@_LIMIT
@pass_session
def list_databases(session: Session, instance: str, limit: int) -> None:
    """List the databases of an instance with their sizes.

    \b
    Example:
      opsplane db databases list orders
    """
    request = databases_pb2.ListDatabasesRequest(parent=instance)
    found = session.run(
        lambda client: pages(client.instances.ListDatabases, request, databases_pb2.ListDatabasesResponse, limit)
    )
    if session.as_json:
        print_json(found)
        return
    rows = [
        (clean(short(one.name)), clean(one.owner), one.charset, clean(one.collation), size_text(one.size_bytes))
        for one in found.databases
    ]
    console().print(table(("database", "owner", "charset", "collation", ">size"), rows))
    more(found.next_page_token)


@databases.command("create")
@click.argument("instance", type=INSTANCE)
@click.argument("database")
@click.option("--owner", default="", help="User who owns it.  [default: the first user]")
@click.option("--charset", default="", help="Character set, by the engine's name.")
@click.option("--collation", default="", help="Collation, by the engine's name.")
@pass_session
def create_database(session: Session, instance: str, database: str, owner: str, charset: str, collation: str) -> None:
    """Create a database.

    \b
    Example:
      opsplane db databases create orders reports --owner analyst
    """
    request = databases_pb2.CreateDatabaseRequest(
        parent=instance,
        database_id=database,
        database=databases_pb2.Database(owner=owner, charset=charset, collation=collation),
        request_id=new_request_id(),
    )

    async def work(client: Client) -> databases_pb2.Database | None:
        return await run_operation(session, client, client.instances.CreateDatabase, request, databases_pb2.Database)

    created = session.run(work)
    if session.as_json and created is not None:
        print_json(created)
    else:
        click.echo(f"created {instance}/databases/{database}", err=True)


@databases.command("delete")
@click.argument("instance", type=INSTANCE)
@click.argument("database")
@click.option("--force", is_flag=True, help="Close the connections that use it.")
@click.option("--yes", "-y", is_flag=True, help="Do not ask.")
@pass_session
def delete_database(session: Session, instance: str, database: str, force: bool, yes: bool) -> None:
    """Delete a database with all that is in it.

    \b
    Example:
      opsplane db databases delete orders reports --yes
    """
    if not yes:
        click.confirm(f"Delete the database {database} of {short(instance)}?", abort=True, err=True)
    name = f"{instance}/databases/{database}"
    request = databases_pb2.DeleteDatabaseRequest(name=name, force=force, request_id=new_request_id())

    async def work(client: Client) -> Empty | None:
        return await run_operation(session, client, client.instances.DeleteDatabase, request, Empty)

    session.run(work)
    click.echo(f"deleted {name}", err=True)


@click.group()
def users() -> None:
    """Users of an instance.

    \b
    Examples:
      opsplane db users create orders analyst --privilege read-only
      opsplane db users rotate orders analyst
    """


@users.command("list")
@click.argument("instance", type=INSTANCE)
@_LIMIT
@pass_session
def list_users(session: Session, instance: str, limit: int) -> None:
    """List the users of an instance.

    \b
    Example:
      opsplane db users list orders
    """
    request = databases_pb2.ListUsersRequest(parent=instance)
    found = session.run(
        lambda client: pages(client.instances.ListUsers, request, databases_pb2.ListUsersResponse, limit)
    )
    if session.as_json:
        print_json(found)
        return
    rows = [
        (
            clean(short(user.name)),
            databases_pb2.Privilege.Name(user.privilege).removeprefix("PRIVILEGE_").lower().replace("_", "-"),
            clean(", ".join(user.databases)) or "all",
            str(user.max_connections or ""),
            local_time(user.password_time),
        )
        for user in found.users
    ]
    console().print(table(("user", "privilege", "databases", ">connections", "password of"), rows))
    more(found.next_page_token)


def _user_options(command: Any) -> Any:
    for option in reversed(
        (
            click.option("--privilege", type=click.Choice([*_PRIVILEGES]),
                         help="What it may do.  [default: read-write]"),
            click.option("--on", "databases", multiple=True, metavar="DATABASE",
                         help="Database that it may use, repeatable.  [default: all]"),
            click.option("--max-connections", type=click.IntRange(0, 10_000), help="Most connections at a time."),
        )
    ):  # fmt: skip
        command = option(command)
    return command


def _user(options: dict[str, Any]) -> tuple[databases_pb2.User, list[str]]:
    user, fields = databases_pb2.User(), []
    if options["privilege"] is not None:
        user.privilege = _PRIVILEGES[options["privilege"]]
        fields.append("privilege")
    if options["databases"]:
        user.databases.extend(options["databases"])
        fields.append("databases")
    if options["max_connections"] is not None:
        user.max_connections = options["max_connections"]
        fields.append("max_connections")
    return user, fields


@users.command("create")
@click.argument("instance", type=INSTANCE)
@click.argument("user")
@_user_options
@password_options
@pass_session
def create_user(session: Session, /, instance: str, user: str, **options: Any) -> None:
    """Create a user. Without an option for the password a strong one is made; `opsplane db connection` shows it.

    \b
    Example:
      opsplane db users create orders analyst --privilege read-only --on reports
    """
    wanted, _ = _user(options)
    wanted.password = given_password(options, user) or ""
    request = databases_pb2.CreateUserRequest(parent=instance, user_id=user, user=wanted, request_id=new_request_id())

    async def work(client: Client) -> databases_pb2.User | None:
        return await run_operation(session, client, client.instances.CreateUser, request, databases_pb2.User)

    session.run(work)
    click.echo(f"created {instance}/users/{user}", err=True)


@users.command("update")
@click.argument("instance", type=INSTANCE)
@click.argument("user")
@_user_options
@pass_session
def update_user(session: Session, /, instance: str, user: str, **options: Any) -> None:
    """Change what a user may do.

    \b
    Example:
      opsplane db users update orders analyst --privilege read-write
    """
    wanted, fields = _user(options)
    if not fields:
        raise click.UsageError("nothing is to be changed: give an option")
    wanted.name = f"{instance}/users/{user}"
    request = databases_pb2.UpdateUserRequest(user=wanted, request_id=new_request_id())
    request.update_mask.paths.extend(fields)

    async def work(client: Client) -> databases_pb2.User | None:
        return await run_operation(session, client, client.instances.UpdateUser, request, databases_pb2.User)

    session.run(work)
    click.echo(f"changed {wanted.name}", err=True)


@users.command("delete")
@click.argument("instance", type=INSTANCE)
@click.argument("user")
@click.option("--yes", "-y", is_flag=True, help="Do not ask.")
@pass_session
def delete_user(session: Session, instance: str, user: str, yes: bool) -> None:
    """Delete a user. What it owns goes to the first user.

    \b
    Example:
      opsplane db users delete orders analyst --yes
    """
    if not yes:
        click.confirm(f"Delete the user {user} of {short(instance)}?", abort=True, err=True)
    request = databases_pb2.DeleteUserRequest(name=f"{instance}/users/{user}", request_id=new_request_id())

    async def work(client: Client) -> Empty | None:
        return await run_operation(session, client, client.instances.DeleteUser, request, Empty)

    session.run(work)
    click.echo(f"deleted {request.name}", err=True)


@users.command("rotate")
@click.argument("instance", type=INSTANCE)
@click.argument("user")
@password_options
@pass_session
def rotate_password(session: Session, /, instance: str, user: str, **options: Any) -> None:
    """Give a user a new password; `opsplane db connection` shows it.

    \b
    Examples:
      opsplane db users rotate orders app
      opsplane db users rotate orders app --password-file new.password
    """
    request = databases_pb2.RotatePasswordRequest(
        name=f"{instance}/users/{user}",
        password=given_password(options, user) or "",
        request_id=new_request_id(),
    )

    async def work(client: Client) -> databases_pb2.User | None:
        return await run_operation(session, client, client.instances.RotatePassword, request, databases_pb2.User)

    session.run(work)
    click.echo(f"{request.name} has a new password", err=True)
