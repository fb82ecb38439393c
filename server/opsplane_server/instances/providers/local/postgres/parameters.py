"""Parameters of PostgreSQL: which an owner may set, and what follows from memory, processors and storage."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from typing import Final

from opsplane_server.errors import FieldViolation, InvalidArgument
from opsplane_server.instances.model import InstanceSpec
from opsplane_server.instances.providers.local.postgres.installations import Installations

_KIB: Final = 1024
_MIB: Final = 1024 * 1024
_GIB: Final = 1024 * _MIB

PRELOADED: Final = "pg_stat_statements"
SMALLEST: Final = {"max_connections": 10, "max_wal_senders": 10, "max_replication_slots": 10, "max_worker_processes": 2}
"""Below these the server could not do its own work: copies, replicas, its own connections."""

# The server's own: where its files are and who reads them, how it is reached, logs, archives and replicates; what
# runs programs or loads code from anywhere; and what makes data unsafe that backups are to be proven of.
_SERVERS_OWN: Final = """
allow_alter_system allow_in_place_tablespaces archive_cleanup_command archive_command archive_library archive_mode
archive_timeout bonjour bonjour_name cluster_name config_file data_directory data_sync_retry dynamic_library_path
event_source extension_control_path external_pid_file fsync full_page_writes gss_accept_delegation hba_file
hot_standby ident_file ignore_checksum_failure ignore_invalid_pages ignore_system_indexes jit_provider
krb_server_keyfile listen_addresses local_preload_libraries log_destination log_directory log_file_mode log_filename
log_rotation_age log_rotation_size log_timezone log_truncate_on_rotation logging_collector oauth_validator_libraries
password_encryption port primary_conninfo primary_slot_name promote_trigger_file recovery_end_command
recovery_min_apply_delay recovery_target recovery_target_action recovery_target_inclusive recovery_target_lsn
recovery_target_name recovery_target_time recovery_target_timeline recovery_target_xid reserved_connections
restart_after_crash restore_command session_preload_libraries ssl ssl_ca_file ssl_cert_file ssl_crl_dir ssl_crl_file
ssl_dh_params_file ssl_key_file ssl_passphrase_command ssl_passphrase_command_supports_reload summarize_wal
superuser_reserved_connections sync_replication_slots synchronized_standby_slots synchronous_standby_names
syslog_facility syslog_ident syslog_sequence_numbers syslog_split_messages unix_socket_directories unix_socket_group
unix_socket_permissions wal_log_hints wal_receiver_create_temp_slot zero_damaged_pages
"""
_REFUSED: Final = frozenset(_SERVERS_OWN.split())
_LIBRARY: Final = re.compile(r"[a-z_][a-z0-9_]*")
_EXTENSION_PARAMETER: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_]*\.[A-Za-z_][A-Za-z0-9_.]*")


def check(installations: Installations, spec: InstanceSpec) -> None:
    """Raises InvalidArgument that names each parameter that can not be set, and why. Blocks for some milliseconds."""
    # All at once first: asking the server for each takes some milliseconds.
    whole = installations.complaint(spec.version, {name.lower(): value for name, value in spec.parameters.items()})
    violations = []
    seen: set[str] = set()
    for given, value in spec.parameters.items():
        name = given.lower()
        problem = _name_problem(installations, spec.version, name)
        if problem is None and name in seen:
            problem = "it is given twice"
        if problem is None and whole is not None:
            problem = installations.complaint(spec.version, {name: value})
        problem = problem or _value_problem(installations, spec.version, name, value)
        seen.add(name)
        if problem is not None:
            violations.append(FieldViolation(f'instance.parameters["{given}"]', problem))
    if violations:
        first = violations[0]
        raise InvalidArgument(f"{first.field}: {first.description}", violations, reason="PARAMETER_INVALID")


def settable(installations: Installations, spec: InstanceSpec, names: Collection[str]) -> Collection[str]:
    """Which of these an owner may set, whatever their values. Blocks for some milliseconds."""
    return {name for name in names if _name_problem(installations, spec.version, name.lower()) is None}


def derived(spec: InstanceSpec, preload: bool) -> dict[str, str]:
    """What follows from the resources, for the server's use of them. preload: pg_stat_statements is there."""
    memory, cores = spec.resources.memory_bytes, spec.resources.cpu_millis / 1000
    connections = _between(25, memory * 100 // (512 * _MIB), 1000)
    workers = max(1, round(cores))
    largest_wal = _between(64 * _MIB, spec.resources.storage_bytes // 8, 16 * _GIB)
    replicas = spec.node_count - 1
    settings = {
        "max_connections": str(connections),
        "shared_buffers": _kib(memory // 4),
        "effective_cache_size": _kib(memory * 3 // 4),
        "maintenance_work_mem": _kib(_between(4 * _MIB, memory // 16, _GIB)),
        "work_mem": _kib(_between(_MIB, memory // 4 // connections, 64 * _MIB)),
        "max_worker_processes": str(8 + workers),
        "max_parallel_workers": str(workers),
        "max_parallel_workers_per_gather": str(workers // 2),
        "max_parallel_maintenance_workers": str(workers // 2),
        "max_wal_size": _mib(largest_wal),
        "min_wal_size": _mib(max(32 * _MIB, largest_wal // 4)),
        # What a missing replica holds back must not fill the storage; it is made anew then.
        "max_slot_wal_keep_size": _mib(max(64 * _MIB, spec.resources.storage_bytes // 4)),
        "max_wal_senders": str(10 + 2 * replicas),
        "max_replication_slots": str(10 + 2 * replicas),
        # Slow statements are told apart by it.
        "compute_query_id": "on",
        "log_min_duration_statement": "500ms",
        "timezone": "UTC",
    }
    if preload:
        settings["shared_preload_libraries"] = PRELOADED
    return settings


def overriding(spec: InstanceSpec, preload: bool) -> dict[str, str]:
    """The owner's own, by names in lower case."""
    given = {name.lower(): value for name, value in spec.parameters.items()}
    libraries = given.get("shared_preload_libraries")
    if libraries is not None and preload:
        wanted = [part.strip() for part in libraries.split(",") if part.strip()]
        given["shared_preload_libraries"] = ",".join(dict.fromkeys([PRELOADED, *wanted]))
    return given


def _name_problem(installations: Installations, version: str, name: str) -> str | None:
    if name in _REFUSED:
        return "it is the server's own"
    if name not in installations.parameters(version) and not _EXTENSION_PARAMETER.fullmatch(name):
        return f"PostgreSQL {version} has no such parameter"
    return None


def _value_problem(installations: Installations, version: str, name: str, value: str) -> str | None:
    """What this server has against a value that PostgreSQL takes."""
    if name == "shared_preload_libraries":
        return _libraries_problem(installations, version, value)
    if name == "wal_level" and value.strip().lower() not in ("replica", "logical"):
        return "it must be replica or logical"
    least = SMALLEST.get(name)
    if least is not None and (not value.strip().isdecimal() or int(value) < least):
        return f"it must be {least} or more, in decimal digits"
    return None


def _libraries_problem(installations: Installations, version: str, value: str) -> str | None:
    for library in (part.strip() for part in value.split(",")):
        if library and not _LIBRARY.fullmatch(library):
            return f"'{library}' is no plain name of a library"
        if library and not installations.library(version, library):
            return f"there is no library '{library}' in PostgreSQL {version} on this machine"
    return None


def quoted(settings: Mapping[str, str]) -> str:
    """The lines of a settings file, whatever the values hold."""
    return "".join(f"{name} = '{_escaped(value)}'\n" for name, value in settings.items())


def _escaped(value: str) -> str:
    if "\n" in value or "\0" in value:
        raise ValueError("a setting is one line")
    return value.replace("\\", "\\\\").replace("'", "''")


def _between(least: int, value: int, most: int) -> int:
    return max(least, min(value, most))


def _kib(amount: int) -> str:
    return f"{amount // _KIB}kB"


def _mib(amount: int) -> str:
    return f"{amount // _MIB}MB"
