"""Webhooks with their signing keys, encrypted."""

from __future__ import annotations

import json
from collections.abc import Sequence

from opsplane_server.backups.model import Webhook
from opsplane_server.storage.secrets import SecretBox


def seal_webhooks(secrets: SecretBox, webhooks: Sequence[Webhook], context: str) -> bytes | None:
    """All of them as one secret; None for none."""
    if not webhooks:
        return None
    plain = json.dumps([{"url": one.url, "key": one.signing_key, "kinds": one.kinds} for one in webhooks])
    return secrets.encrypt(plain, context)


def unseal_webhooks(secrets: SecretBox, token: bytes | None, context: str) -> tuple[Webhook, ...]:
    """What was sealed."""
    if token is None:
        return ()
    found = json.loads(secrets.decrypt(token, context))
    return tuple(Webhook(one["url"], one["key"], tuple(one["kinds"])) for one in found)
