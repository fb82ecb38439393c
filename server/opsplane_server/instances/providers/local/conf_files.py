"""Files of a server's configuration: written when they change, and again before each start."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from opsplane_server.instances.providers.local.engine import LocalNode


def replace(node: LocalNode, name: str, text: str) -> None:
    """Makes `name` in the node's folder of configuration this text, in one step; left alone where it is so already."""
    path = node.folder.conf / name
    if path.exists() and path.read_text() == text:
        return
    # Not synced: after a loss of power it is written again before anybody reads it.
    descriptor, scratch = tempfile.mkstemp(dir=node.folder.conf, prefix=f".{name}-")
    try:
        with os.fdopen(descriptor, "w") as stream:
            if os.geteuid() == 0:
                os.fchown(descriptor, node.account.uid, node.account.gid)
            stream.write(text)
        os.rename(scratch, path)
    except BaseException:
        Path(scratch).unlink(missing_ok=True)
        raise
