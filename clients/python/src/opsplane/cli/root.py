"""The root command: options of every command, and the groups of this package and of others."""

from __future__ import annotations

from importlib.metadata import EntryPoint, entry_points
from pathlib import Path

import click

from opsplane.cli.backup import backup
from opsplane.cli.db import db
from opsplane.cli.ftp import ftp
from opsplane.cli.loadtest import loadtest
from opsplane.cli.logs import logs
from opsplane.cli.operation import operation
from opsplane.cli.session import Session
from opsplane.client import DEFAULT_ADDRESS, Tls

PLUGIN_GROUP = "opsplane.commands"

_PEM = click.Path(dir_okay=False, path_type=Path)


class Commands(click.Group):
    """A group that other packages add commands to, by entry points of the group `opsplane.commands`.

    A plug-in is loaded when its command is used or listed; one that is broken costs a line of warning.
    """

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Names of the commands, sorted; no name twice."""
        return sorted({*super().list_commands(ctx), *self._plugins()} - {"load"})

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Own commands go first, so that no plug-in can replace one."""
        own = super().get_command(ctx, cmd_name)
        if own is not None:
            return own
        plugin = self._plugins().get(cmd_name)
        return None if plugin is None else _load(plugin)

    @staticmethod
    def _plugins() -> dict[str, EntryPoint]:
        return {plugin.name: plugin for plugin in entry_points(group=PLUGIN_GROUP)}


def _load(plugin: EntryPoint) -> click.Command | None:
    try:
        command = plugin.load()
        if not isinstance(command, click.Command):
            raise TypeError(f"{plugin.value} is no command")
    except Exception as error:  # whatever another package does wrong, the other commands work
        click.echo(f"warning: command '{plugin.name}' can not be loaded: {_one_line(error)}", err=True)
        return None
    return command


def _one_line(error: Exception) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.option(
    "--address",
    envvar="OPSPLANE_ADDRESS",
    default=DEFAULT_ADDRESS,
    show_default=True,
    show_envvar=True,
    help="Server, HOST:PORT or unix:PATH. Other machines are reached with TLS.",
)
@click.option(
    "--token", envvar="OPSPLANE_TOKEN", default="", show_envvar=True, help="Bearer token; better by environment."
)
@click.option(
    "--ca", envvar="OPSPLANE_CA", type=_PEM, show_envvar=True, help="PEM file of the authority that vouches for it."
)
@click.option("--cert", type=_PEM, help="PEM file of this client's certificate, with --key.")
@click.option("--key", type=_PEM, help="PEM file of this client's private key.")
@click.option(
    "--plaintext", is_flag=True, help="Reach another machine without TLS, because something else secures the way."
)
@click.option(
    "--output",
    "-o",
    type=click.Choice(["table", "json"]),
    default="table",
    show_default=True,
    help="For people, or for programs: the JSON form of the API's messages.",
)
@click.version_option(package_name="opsplane")
@click.pass_context
def opsplane(
    ctx: click.Context,
    address: str,
    token: str,
    ca: Path | None,
    cert: Path | None,
    key: Path | None,
    plaintext: bool,
    output: str,
) -> None:
    """Load tests, databases, backups, logs and file transfers of an Opsplane server.

    \b
    Examples:
      opsplane serve
      opsplane loadtest analyze openapi.yaml --project shop --create-project
      opsplane loadtest run --project shop --endpoint "GET /pets" --vus 10 --duration 30s
      opsplane -o json loadtest history | jq '.runs[].title'
      opsplane logs ship -f /var/log/app.log --service orders
      opsplane logs search timeout --level error --since 1h
      opsplane ftp put report.csv nas:/in/
      opsplane db create orders --nodes 3
      opsplane backup create orders

    Exit status: 0 done, 1 the call or a transfer failed, 2 wrong usage, 3 the run failed or did not keep its
    targets, log records were rejected, or a backup did not pass its verification.
    """
    if bool(cert) != bool(key):
        raise click.UsageError("--cert and --key go together")
    tls = Tls(ca, cert, key) if ca or cert else None
    if tls is not None and plaintext:
        raise click.UsageError("--plaintext excludes --ca, --cert and --key")
    ctx.obj = Session(address, token, tls, plaintext, as_json=output == "json")


opsplane.add_command(loadtest)
opsplane.add_command(loadtest, "load")
opsplane.add_command(logs)
opsplane.add_command(ftp)
opsplane.add_command(db)
opsplane.add_command(backup)
opsplane.add_command(operation)


def main() -> None:
    """The console script."""
    opsplane(prog_name="opsplane")
