"""Copies an instance in a process of its own, which the test kills at its work."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

from tests import instances_harness as harness


def main(folder: str, programs: str, name: str, copy_id: str) -> None:
    """Ends when the copy is whole."""
    provider = harness.provider(harness.machine(Path(folder), programs=(Path(programs),)))
    asyncio.run(provider.copy(name, copy_id, "", harness.silent))


if __name__ == "__main__":
    main(*sys.argv[1:])
