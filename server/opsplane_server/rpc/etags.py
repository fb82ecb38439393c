"""Etags: a resource's revision, opaque to callers, so that two editors do not overwrite each other unseen."""

from __future__ import annotations

import hashlib

from opsplane_server.errors import Aborted


def etag(name: str, revision: int) -> str:
    """Return the etag of a resource (its full name) at a revision."""
    return hashlib.sha256(f"{name}\n{revision}".encode()).hexdigest()[:20]


def check(given: str, name: str, revision: int) -> None:
    """Raise Aborted unless the caller's etag is that of this revision; an empty one always passes."""
    if given and given != etag(name, revision):
        raise Aborted(
            f"{name} was changed meanwhile: read it again and repeat",
            reason="ETAG_MISMATCH",
            metadata={"resource": name},
        )
