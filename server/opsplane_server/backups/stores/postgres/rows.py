"""Between rows of `backups.backups` and the model."""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import datetime, timedelta
from typing import Any

import asyncpg
from google.rpc import status_pb2

from opsplane_server.backups import names
from opsplane_server.backups.model import (
    Backup,
    BackupState,
    BackupType,
    Check,
    Copy,
    Verification,
    VerificationState,
)


def backup_of(row: asyncpg.Record) -> Backup:
    """The backup of a row."""
    return Backup(
        name=names.backup(row["id"]),
        uid=row["uid"],
        instance=row["instance"],
        instance_uid=row["source_uid"],
        type=BackupType(row["type"]),
        engine=row["engine"],
        retention_days=row["retention_days"],
        incremental=row["incremental"],
        description=row["description"],
        labels=json.loads(row["labels"]),
        state=BackupState(row["state"]),
        error=status_pb2.Status.FromString(row["error"]) if row["error"] is not None else None,
        base=row["base"],
        schedule=row["schedule"],
        schedule_key=row["schedule_key"],
        due_time=row["due_time"],
        tiers=tuple(row["tiers"]),
        copy=_copy_of(row) if row["document"] is not None else None,
        start_time=row["start_time"],
        complete_time=row["complete_time"],
        expire_time=row["expire_time"],
        last_good=row["last_good"],
        verification=_verification_of(json.loads(row["verification"])) if row["verification"] is not None else None,
        verifying_since=row["verifying_since"],
        operation=row["operation"],
        create_time=row["create_time"],
        key=row["key"],
        revision=row["revision"],
    )


def _copy_of(row: asyncpg.Record) -> Copy:
    return Copy(
        location=row["location"],
        engine=row["engine"],
        engine_version=row["engine_version"],
        provider=row["provider"],
        method=row["method"],
        consistency=row["consistency"],
        node=row["node"],
        databases=tuple(row["databases"]),
        size_bytes=row["size_bytes"],
        restore_size_bytes=row["restore_size_bytes"],
        start_time=row["copy_start_time"],
        cut_time=row["cut_time"],
        complete_time=row["copy_complete_time"],
        base=row["copy_base"],
        logged=row["logged"],
        document=row["document"],
    )


def changing(backup: Backup) -> dict[str, object]:
    """Columns that can change, with their values, but for those of the copy."""
    found = backup.verification
    return {
        "retention_days": backup.retention_days,
        "description": backup.description,
        "labels": json.dumps(dict(backup.labels)),
        "state": backup.state.value,
        "error": backup.error.SerializeToString() if backup.error is not None else None,
        "base": backup.base,
        "tiers": list(backup.tiers),
        "start_time": backup.start_time,
        "complete_time": backup.complete_time,
        "expire_time": backup.expire_time,
        "last_good": backup.last_good,
        "verification": json.dumps(_verification_to_json(found)) if found is not None else None,
        "verification_state": found.state.value if found is not None else None,
        "verifying_since": backup.verifying_since,
        "operation": backup.operation,
    }


def of_copy(copy: Copy) -> dict[str, object]:
    """Columns of the copy, with their values."""
    return {
        "location": copy.location,
        "engine": copy.engine,
        "engine_version": copy.engine_version,
        "provider": copy.provider,
        "method": copy.method,
        "consistency": copy.consistency,
        "node": copy.node,
        "databases": list(copy.databases),
        "size_bytes": copy.size_bytes,
        "restore_size_bytes": copy.restore_size_bytes,
        "copy_start_time": copy.start_time,
        "cut_time": copy.cut_time,
        "copy_complete_time": copy.complete_time,
        "copy_base": copy.base,
        "logged": copy.logged,
        "document": copy.document,
    }


def _verification_to_json(found: Verification) -> dict[str, Any]:
    return {
        "state": found.state.value,
        "start_time": found.start_time.isoformat(),
        "complete_time": found.complete_time.isoformat(),
        "restore_seconds": None if found.restore_duration is None else found.restore_duration.total_seconds(),
        "checks": [
            {
                "kind": check.kind,
                "result": check.result,
                "message": check.message,
                "seconds": check.duration.total_seconds(),
            }
            for check in found.checks
        ],
        "table_count": found.table_count,
        "row_count": found.row_count,
        "message": found.message,
    }


def _verification_of(value: Mapping[str, Any]) -> Verification:
    seconds = value["restore_seconds"]
    return Verification(
        state=VerificationState(value["state"]),
        start_time=datetime.fromisoformat(value["start_time"]),
        complete_time=datetime.fromisoformat(value["complete_time"]),
        restore_duration=None if seconds is None else timedelta(seconds=seconds),
        checks=tuple(
            Check(check["kind"], check["result"], check["message"], timedelta(seconds=check["seconds"]))
            for check in value["checks"]
        ),
        table_count=value["table_count"],
        row_count=value["row_count"],
        message=value["message"],
    )
