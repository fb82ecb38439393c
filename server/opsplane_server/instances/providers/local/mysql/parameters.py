"""Parameters of MariaDB and MySQL: which an owner may set, and what follows from memory, processors and storage."""

from __future__ import annotations

import re
from typing import Final

from opsplane_server.errors import FieldViolation, InvalidArgument
from opsplane_server.instances.engines.mysql.parameters import number_of
from opsplane_server.instances.model import Engine, InstanceSpec
from opsplane_server.instances.providers.local.mysql.installations import Installation

_MIB: Final = 1024 * 1024
_GIB: Final = 1024 * _MIB

MYSQL_OWN_MEMORY: Final = 192 * _MIB
"""What MySQL takes without any buffers."""
_MYSQL_COUNTERS_MEMORY: Final = 128 * _MIB  # of its performance schema, with small caches of tables
_MYSQL_COUNTERS_FROM: Final = 512 * _MIB

SMALLEST: Final = {"max_connections": 10}
"""Below it the server could not do its own work."""

# The server's own: where its files are, how it is reached, logs and replicates; what loads code, opens it to everybody
# or makes data unsafe that backups are to be proven of; and what is fixed when the data are made.
_SERVERS_OWN: Final = """
authentication_policy basedir bind_address bootstrap chroot character_sets_dir clone console core_file daemonize
datadir default_authentication_plugin disable_log_bin early_plugin_load event_source extra_max_connections extra_port
federated gdb help init_file innodb innodb_checksum_algorithm innodb_data_file_path innodb_directories
innodb_doublewrite
innodb_fast_shutdown innodb_file_per_table innodb_force_recovery innodb_page_size innodb_read_only
innodb_read_only_compressed innodb_temp_data_file_path innodb_tmpdir innodb_undo_tablespaces innodb_use_fdatasync
language libexec log_basename log_bin log_bin_compress log_error log_error_services log_output log_replica_updates
log_slave_updates lower_case_table_names memlock mysqlx named_pipe no_dd_upgrade no_monitor offline_mode
old_passwords password_history persisted_globals_load persist_only_admin_x509_subject pid_file plugin_load
plugin_load_add plugin_maturity port port_open_timeout read_only safe_user_create secure_auth secure_file_priv
server_id server_id_bits shared_memory shared_memory_base_name skip_grant_tables skip_name_resolve skip_networking
slow_query_log socket standalone super_read_only super_large_pages symbolic_links sync_frm tc_heuristic_recover
tmpdir upgrade user validate_config verbose version
"""
_REFUSED: Final = frozenset(_SERVERS_OWN.split())
_REFUSED_KINDS: Final = re.compile(
    r"(skip|loose|disable|enable|maximum|admin|aria_log|binlog_|debug|feedback|gtid|group_replication|initialize|keyring"
    r"|log_bin|master|mysqlx|plugin|relay|replica|replicate|report|rpl|semi_sync|server_audit|slave|ssl|tls|wsrep)(_.*)?"
    r"|.*_(dir|directory|file|filename|index|path|basename)"
)
_SAFE_EXCEPTIONS: Final = frozenset({"binlog_cache_size", "skip_show_database"})


def check(installation: Installation, spec: InstanceSpec) -> None:
    """Raises InvalidArgument that names each parameter that can not be set, and why. Blocks for some milliseconds."""
    violations: list[FieldViolation] = []
    accepted: dict[str, str] = {}
    for given, value in spec.parameters.items():
        name = canonical(given)
        found = problem(installation, name) or ("it is given twice" if name in accepted else _too_small(name, value))
        if found is not None:
            violations.append(FieldViolation(f'instance.parameters["{given}"]', found))
        else:
            accepted[name] = value
    if accepted and installation.complaint(accepted) is not None:
        for name, value in accepted.items():
            complaint = installation.complaint({name: value})
            if complaint is not None:
                violations.append(FieldViolation(f'instance.parameters["{_given(spec, name)}"]', complaint))
    if violations:
        first = violations[0]
        raise InvalidArgument(f"{first.field}: {first.description}", violations, reason="PARAMETER_INVALID")


def problem(installation: Installation, name: str) -> str | None:
    """Why a parameter can not be set, whatever its value; None if it can."""
    name = canonical(name)
    if name in _REFUSED or (_REFUSED_KINDS.fullmatch(name) and name not in _SAFE_EXCEPTIONS):
        return "it is the server's own"
    if name not in installation.options:  # nor is the beginning of a name taken for it, as the server would
        return f"{installation.engine} {installation.version} has no such parameter"
    return None


def canonical(name: str) -> str:
    """Options may be written with `-` and in capitals."""
    return name.lower().replace("-", "_")


def overriding(spec: InstanceSpec) -> dict[str, str]:
    """The owner's own."""
    return {canonical(name): value for name, value in spec.parameters.items()}


def derived(spec: InstanceSpec, version: tuple[int, ...]) -> dict[str, str]:
    """What follows from the resources, for the server's use of them."""
    memory, storage = spec.resources.memory_bytes, spec.resources.storage_bytes
    cores = max(1, round(spec.resources.cpu_millis / 1000))
    connections = _between(25, memory * 100 // (512 * _MIB), 1000)
    settings = {
        "max_connections": str(connections),
        "thread_cache_size": str(min(connections, 100)),
        "tmp_table_size": _mib(_between(2 * _MIB, memory // 32, 64 * _MIB)),
        "max_heap_table_size": _mib(_between(2 * _MIB, memory // 32, 64 * _MIB)),
        "key_buffer_size": _mib(_between(_MIB, memory // 64, 64 * _MIB)),
        "innodb_read_io_threads": str(_between(2, cores, 16)),
        "innodb_write_io_threads": str(_between(2, cores, 16)),
        "innodb_purge_threads": str(_between(1, cores, 4)),
        "character_set_server": "utf8mb4",
        "default_time_zone": "+00:00",
        "local_infile": "OFF",
        "long_query_time": "0.5",
    }
    if spec.engine is Engine.MARIADB:
        pool = _between(8 * _MIB, memory // 2, memory)
        settings |= {
            "innodb_buffer_pool_size": _mib(pool),
            "innodb_log_file_size": _mib(_between(16 * _MIB, min(pool, storage // 8), 4 * _GIB)),
            "aria_pagecache_buffer_size": _mib(_between(4 * _MIB, memory // 32, 128 * _MIB)),
            # Statements are counted where there is room for it; else slow ones come from the log.
            "performance_schema": "ON" if memory >= _GIB else "OFF",
            "log_warnings": "1",
        }
    else:
        counters = memory >= _MYSQL_COUNTERS_FROM
        own = MYSQL_OWN_MEMORY + (_MYSQL_COUNTERS_MEMORY if counters else 0)
        pool = _between(16 * _MIB, (memory - own) * 3 // 4, memory)
        settings |= {
            "innodb_buffer_pool_size": _mib(pool),
            "innodb_log_buffer_size": _mib(_between(4 * _MIB, memory // 64, 64 * _MIB)),
            "performance_schema": "ON" if counters else "OFF",
            "log_error_verbosity": "2",
        }
        if memory < 2 * _GIB:  # the counters take their size from these
            settings |= {"table_open_cache": "400", "table_definition_cache": "400"}
        redo = _between(16 * _MIB, min(2 * pool, storage // 8), 8 * _GIB)
        if version >= (8, 0, 30):
            settings["innodb_redo_log_capacity"] = _mib(redo)
        else:
            settings["innodb_log_file_size"] = _mib(redo // 2)
    return settings


def _too_small(name: str, value: str) -> str | None:
    least = SMALLEST.get(name)
    if least is None:
        return None
    amount = number_of(value.strip())
    return None if amount is not None and amount >= least else f"it must be {least} or more"


def _given(spec: InstanceSpec, name: str) -> str:
    return next(given for given in spec.parameters if canonical(given) == name)


def _between(least: int, value: int, most: int) -> int:
    return max(least, min(value, most))


def _mib(amount: int) -> str:
    return f"{max(1, amount // _MIB)}M"
