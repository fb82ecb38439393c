"""Records as rows: what is asked and filtered by has columns, the rest is JSON of its dataclasses."""

from __future__ import annotations

import base64
import json
from typing import Any, Final

import asyncpg
from pydantic import TypeAdapter

from opsplane_server.instances.model import InstanceSpec, InstanceState, Status, UpgradeReport
from opsplane_server.instances.records import BackupFigures, EventKind, Instance, Webhook
from opsplane_server.storage.secrets import SecretBox

_spec: Final = TypeAdapter(InstanceSpec)
_previous: Final = TypeAdapter(InstanceSpec | None)
_status: Final = TypeAdapter(Status)
_upgrade: Final = TypeAdapter(UpgradeReport | None)

# Fields of a record that are columns of the same name and take no turning into anything.
_PLAIN: Final = (
    "version",
    "state_message",
    "operation",
    "deletion_protection",
    "expire_time",
    "source_backup",
    "source_time",
    "hidden",
    "revision",
)

SELECT: Final = """
SELECT key, name, version, spec::text AS spec, previous::text AS previous, state, state_message,
       status::text AS status, operation, deletion_protection, expire_time, labels::text AS labels,
       webhooks::text AS webhooks, last_upgrade::text AS last_upgrade, source_backup, source_time, backup,
       backup_cut_time, backup_size_bytes, hidden, revision, create_time, update_time
FROM instances.instances
"""


def columns(instance: Instance, box: SecretBox) -> dict[str, object]:
    """What is written of a record, by column; JSON as text."""
    return {
        **{name: getattr(instance, name) for name in _PLAIN},
        "engine": instance.spec.engine.value,
        "provider": instance.spec.provider.value,
        "machine": instance.spec.machine,
        "state": instance.state.value,
        "spec": _spec.dump_json(instance.spec).decode(),
        "previous": None if instance.previous is None else _spec.dump_json(instance.previous).decode(),
        "status": _status.dump_json(instance.status).decode(),
        "labels": json.dumps(dict(instance.labels)),
        "webhooks": json.dumps([_webhook_to_json(webhook, instance.name, box) for webhook in instance.webhooks]),
        "last_upgrade": (None if instance.last_upgrade is None else _upgrade.dump_json(instance.last_upgrade).decode()),
    }


def instance(row: asyncpg.Record, box: SecretBox) -> Instance:
    """The record of a row of SELECT."""
    return Instance(
        **{name: row[name] for name in _PLAIN},
        spec=_spec.validate_json(row["spec"]),
        state=InstanceState(row["state"]),
        status=_status.validate_json(row["status"]),
        previous=_previous.validate_json(row["previous"] or "null"),
        labels=json.loads(row["labels"]),
        webhooks=tuple(_webhook_from_json(webhook, row["name"], box) for webhook in json.loads(row["webhooks"])),
        last_upgrade=_upgrade.validate_json(row["last_upgrade"] or "null"),
        backups=BackupFigures(row["backup"], row["backup_cut_time"], row["backup_size_bytes"]),
        key=row["key"],
        create_time=row["create_time"],
        update_time=row["update_time"],
    )


def _webhook_to_json(webhook: Webhook, name: str, box: SecretBox) -> dict[str, Any]:
    key = base64.b64encode(box.encrypt(webhook.signing_key, name)).decode() if webhook.signing_key else ""
    return {"url": webhook.url, "signing_key": key, "kinds": [kind.value for kind in webhook.kinds]}


def _webhook_from_json(webhook: dict[str, Any], name: str, box: SecretBox) -> Webhook:
    key = webhook["signing_key"]
    return Webhook(
        url=webhook["url"],
        signing_key=box.decrypt(base64.b64decode(key), name) if key else "",
        kinds=tuple(EventKind(kind) for kind in webhook["kinds"]),
    )
