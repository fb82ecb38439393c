"""The files that a PostgreSQL server of ours reads at its start: settings, who may connect, certificates.

They are outside of its data and written anew before every start, so that neither a copy of the data nor pg_rewind
brings another server's along.
"""

from __future__ import annotations

import os
import pwd
from collections.abc import Mapping

from opsplane_server.instances.model import ADMIN_USER, REPLICATION_USER
from opsplane_server.instances.providers.local import certificates, conf_files
from opsplane_server.instances.providers.local.engine import LocalNode
from opsplane_server.instances.providers.local.postgres import parameters

SETTINGS = "postgresql.conf"
_RULES = "pg_hba.conf"
_ACCOUNTS = "pg_ident.conf"
_MAP = "opsplane"
LOG = "server.json"

# The instance's own passwords may come over from anywhere; ours open doors on this machine alone, and over the unix
# socket the system accounts that could read the data anyway need none.
_RULES_TEXT = f"""\
local  all          {ADMIN_USER}                    peer map={_MAP}
local  replication  {REPLICATION_USER}              peer map={_MAP}
local  all          {REPLICATION_USER}              reject
local  all          all                             scram-sha-256
host   all          {ADMIN_USER}        samehost    scram-sha-256
host   replication  {REPLICATION_USER}  samehost    scram-sha-256
host   all          {ADMIN_USER},{REPLICATION_USER}  all  reject
host   all          all                 all         scram-sha-256
"""


def settings(
    node: LocalNode,
    *,
    listen_host: str,
    tls: bool,
    preload: bool,
    replication: Mapping[str, str],
    archiving: Mapping[str, str],
) -> dict[str, str]:
    """All settings of this server. The owner's outrank what is derived and how replication is tuned; what the server
    needs for itself, which no owner may set, outranks all.
    """
    # Neither statements of others nor values go into the log, unless the owner wants it: they can hold what is secret.
    result = {
        "log_min_error_statement": "panic",
        "log_error_verbosity": "terse",
        "log_parameter_max_length": "0",
        "log_checkpoints": "off",
    }
    result |= parameters.derived(node.spec, preload)
    result |= replication
    result |= parameters.overriding(node.spec, preload)
    result |= archiving
    result |= {
        "listen_addresses": listen_host,
        "port": str(node.port),
        "unix_socket_directories": str(node.folder.run),
        "unix_socket_permissions": "0700",
        "hba_file": str(node.folder.conf / _RULES),
        "ident_file": str(node.folder.conf / _ACCOUNTS),
        "password_encryption": "scram-sha-256",
        "hot_standby": "on",
        "wal_log_hints": "on",
        "logging_collector": "on",
        "log_destination": "jsonlog",
        "log_directory": str(node.folder.log),
        "log_filename": f"{LOG.removesuffix('.json')}.log",  # its ending becomes .json
        "log_file_mode": "0600",
        "log_rotation_age": "0",
        "log_rotation_size": "0",
        "log_timezone": "UTC",
    }
    if tls:
        files = certificates.files(node.folder.conf)
        result |= {"ssl": "on", "ssl_cert_file": str(files.certificate), "ssl_key_file": str(files.key)}
    return result


def write(node: LocalNode, settings: Mapping[str, str]) -> None:
    """Writes what has changed."""
    accounts = {node.account.name, pwd.getpwuid(os.geteuid()).pw_name}
    mapping = "".join(
        f'{_MAP} "{account}" {user}\n' for account in sorted(accounts) for user in (ADMIN_USER, REPLICATION_USER)
    )
    conf_files.replace(node, SETTINGS, parameters.quoted(settings))
    conf_files.replace(node, _RULES, _RULES_TEXT)
    conf_files.replace(node, _ACCOUNTS, mapping)
