"""`opsplane serve`, which the client's command line loads through the entry point group `opsplane.commands`."""

from __future__ import annotations

import asyncio
import os
import sys
from pathlib import Path
from typing import NoReturn

import click
import structlog

from opsplane_server.config import SERVICES
from opsplane_server.config_sources import ConfigurationError, load
from opsplane_server.errors import OpsplaneError
from opsplane_server.supervisor.supervisor import Supervisor
from opsplane_server.telemetry import logs
from opsplane_server.version import server_version

# The setting that each flag is for.
_FLAGS = {
    "host": ("server", "host"),
    "port": ("server", "port"),
    "metrics_port": ("telemetry", "metrics_port"),
    "workers": ("server", "workers"),
    "services": ("server", "services"),
    "data_dir": ("data_dir",),
    "log_level": ("logging", "level"),
}

_WRONG_CONFIGURATION = 2  # as click says it of a wrong flag
_CAN_NOT_START = 1


@click.command()
@click.option("--config", metavar="FILE", help="YAML file with settings; else OPSPLANE_CONFIG names it.")
@click.option("--host", metavar="ADDRESS", help="Address to listen on. [default: 127.0.0.1]")
@click.option("--port", metavar="PORT", help="Port for gRPC, 0 for a free one. [default: 50051]")
@click.option("--metrics-port", metavar="PORT", help="HTTP port for metrics and probes. [default: 9464]")
@click.option("--workers", metavar="N", help="Worker processes. [default: 1]")
@click.option("--services", metavar="NAMES", help=f"Services to serve, with commas. [default: {','.join(SERVICES)}]")
@click.option("--data-dir", metavar="FOLDER", help="Folder for all that is kept. [default: ~/.local/share/opsplane]")
@click.option("--log-level", metavar="LEVEL", help="DEBUG, INFO, WARNING, ERROR or CRITICAL. [default: INFO]")
def serve(config: str | None, **flags: str | None) -> None:
    """Run the server in the foreground until Ctrl-C or SIGTERM.

    Without any settings it listens on this machine only and brings a PostgreSQL of its own. Every setting can also
    come from a file or from the environment: OPSPLANE_<SECTION>__<FIELD>, such as OPSPLANE_SERVER__PORT.

    \b
    Examples:
      opsplane serve
      opsplane serve --workers 2 --data-dir /srv/opsplane
      DATABASE_HOST=db DATABASE_PASSWORD=... opsplane serve --config opsplane.yaml
    """
    given = {name: value for name, value in flags.items() if value is not None}
    if "grpc" in sys.modules:
        _start_afresh(config, given)
    try:
        loaded = load(
            {_FLAGS[name]: (_flag(name), value) for name, value in given.items()},
            Path(os.path.expanduser(config)) if config is not None else None,
        )
    except ConfigurationError as error:
        _fail(str(error), _WRONG_CONFIGURATION)
    logs.configure(loaded.settings.logging)
    log = structlog.get_logger(__name__)
    log.info("server starts", version=server_version(), pid=os.getpid())
    for warning in loaded.warnings:
        log.warning("setting without effect", detail=warning)
    try:
        asyncio.run(Supervisor(loaded.settings).run())
    except OpsplaneError as error:
        _fail(error.message, _CAN_NOT_START)
    except Exception as error:
        log.exception("server failed")
        _fail(f"unexpected error, see the log: {error}", _CAN_NOT_START)


def _start_afresh(config: str | None, given: dict[str, str]) -> NoReturn:
    """Replaces this process: the command line has loaded gRPC, which the parent of workers must not have."""
    flags = given if config is None else {"config": config, **given}
    arguments = [f"{_flag(name)}={value}" for name, value in flags.items()]
    os.execv(sys.executable, [sys.executable, "-P", "-m", "opsplane_server", *arguments])  # noqa: S606  # no shell is wanted


def _flag(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def _fail(message: str, status: int) -> NoReturn:
    click.echo(f"opsplane: can not start: {' '.join(message.split())}", err=True)
    sys.exit(status)
