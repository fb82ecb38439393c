"""The files that a server of ours reads at its start: settings, certificates, and statements that it runs as nobody.

They are outside of its data and written anew before every start, so that no copy of the data brings another server's
along. The statements make our account, which so has its password whatever data the server was given.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from opsplane_server.instances.engines.mysql.connecting import SOCKET
from opsplane_server.instances.engines.mysql.names import quote_account
from opsplane_server.instances.engines.mysql.verifiers import identified
from opsplane_server.instances.model import ADMIN_USER, Engine
from opsplane_server.instances.providers.local import certificates, conf_files
from opsplane_server.instances.providers.local.engine import LocalNode
from opsplane_server.instances.providers.local.mysql import parameters
from opsplane_server.instances.providers.local.mysql.installations import Installation, number

SETTINGS: Final = "my.cnf"
LOG: Final = "server.log"
SLOW_LOG: Final = "slow.log"
CLONE_PLUGIN: Final = "mysql_clone"
_STATEMENTS: Final = "accounts.sql"
_RUNNING: Final = "running.json"
_ADMIN_HOST: Final = "localhost"  # the unix socket alone: names are not resolved
_NO_BINARY_LOG: Final = "disable_log_bin"  # an option that takes no value
_ESCAPES: Final = str.maketrans({"\\": "\\\\", '"': '\\"', "\t": "\\t", "\b": "\\b"})


def settings(node: LocalNode, installation: Installation, listen_host: str) -> dict[str, str]:
    """All settings of this server. The owner's outrank what is derived; what the server needs for itself, which no
    owner may set, outranks all.
    """
    files = certificates.files(node.folder.conf)
    result = parameters.derived(node.spec, number(installation.version))
    result |= parameters.overriding(node.spec)
    result |= {
        "basedir": str(installation.folder),
        "datadir": str(node.folder.data),
        "tmpdir": str(temporary(node)),
        "socket": str(node.folder.run / SOCKET),
        "pid_file": str(pid_file(node)),
        "init_file": str(node.folder.conf / _STATEMENTS),
        "bind_address": "*" if listen_host in ("0.0.0.0", "::") else listen_host,  # noqa: S104 as configured
        "port": str(node.port),
        "skip_name_resolve": "ON",
        "innodb_file_per_table": "ON",
        "slow_query_log": "ON",
        "slow_query_log_file": str(node.folder.log / SLOW_LOG),
        "log_output": "FILE",
        "ssl_ca": str(files.authority),
        "ssl_cert": str(files.certificate),
        "ssl_key": str(files.key),
    }
    if installation.engine is Engine.MYSQL:
        result |= {"secure_file_priv": "NULL", "mysqlx": "OFF", "auto_generate_certs": "OFF", _NO_BINARY_LOG: ""}
        if installation.has_plugin(CLONE_PLUGIN):
            result["plugin_load_add"] = f"{CLONE_PLUGIN}.so"
    return result


def pid_file(node: LocalNode) -> Path:
    """Written by the server when it is ready."""
    return node.folder.run / "mysqld.pid"


def temporary(node: LocalNode) -> Path:
    """The folder of the server's temporary files."""
    return node.folder.path / "tmp"


def write(node: LocalNode, settings: Mapping[str, str]) -> None:
    """Writes what has changed, and the statements."""
    lines = "".join(
        f"{name}\n" if name == _NO_BINARY_LOG else f"{name} = {_quoted(value)}\n" for name, value in settings.items()
    )
    conf_files.replace(node, SETTINGS, f"[mysqld]\n{lines}")
    conf_files.replace(node, _STATEMENTS, _statements(node))


def running(node: LocalNode) -> dict[str, str]:
    """The settings that the server, if it runs, has now."""
    try:
        content = json.loads((node.folder.conf / _RUNNING).read_text())
    except (FileNotFoundError, ValueError):
        return {}
    return {str(name): str(value) for name, value in content.items()}


def keep_running(node: LocalNode, settings: Mapping[str, str]) -> None:
    """Notes what the server has."""
    conf_files.replace(node, _RUNNING, json.dumps(dict(settings), indent=1) + "\n")


def _statements(node: LocalNode) -> str:
    """One a line. The account that comes with the data has no password; it is no one's here."""
    account = quote_account(ADMIN_USER, _ADMIN_HOST)
    clause = identified(node.manifest.secrets.admin, mariadb=node.spec.engine is Engine.MARIADB)
    return (
        f"CREATE USER IF NOT EXISTS {account} {clause};\n"
        f"ALTER USER {account} {clause};\n"
        f"GRANT ALL PRIVILEGES ON *.* TO {account} WITH GRANT OPTION;\n"
        f"DROP USER IF EXISTS {quote_account('root', 'localhost')};\n"
        # Our own statements are not counted among the instance's.
        "INSERT IGNORE INTO performance_schema.setup_actors (host, user, role, enabled, history)"
        f" VALUES ('{_ADMIN_HOST}', '{ADMIN_USER}', '%', 'NO', 'NO');\n"
    )


def _quoted(value: str) -> str:
    if "\n" in value or "\0" in value:
        raise ValueError("a setting is one line")
    return f'"{value.translate(_ESCAPES)}"'
