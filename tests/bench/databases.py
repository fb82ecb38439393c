"""Database servers on this machine, against the bare tools: made, backed up and restored, switched and failed over.

Three files, each with its own means: `databases_create`, `databases_copies`, `databases_failover`.
"""

from __future__ import annotations

from typing import Any

from tests.bench import databases_copies, databases_create, databases_failover


def run(rounds: int) -> list[dict[str, Any]]:
    """Measures all three, some minutes in all."""
    return [*databases_create.run(rounds), *databases_copies.run(rounds), *databases_failover.run(rounds)]
