"""A server in single-user mode: it recovers its data, listens to nobody, takes the time it needs, and shuts down."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from opsplane_server.instances.providers.local import programs
from opsplane_server.instances.providers.local.programs import Installation, Line, Outcome
from opsplane_server.storage.accounts import Account


async def recover(
    installation: Installation,
    account: Account,
    data: Path,
    *,
    options: Sequence[str] = (),
    on_line: Line | None = None,
) -> Outcome:
    """Leaves data that was shut down in good order, if it succeeds. options: more settings, as `name=value`."""
    command: list[str | Path] = [
        installation.program("postgres"),
        "--single",
        "-D",
        data,
        "-c",
        "config_file=/dev/null",
    ]
    # None of their owner's settings, but as many prepared transactions as their log may hold.
    prepared = await _prepared_transactions(installation, account, data)
    fixed = [f"max_prepared_transactions={prepared}", "hot_standby=off", "archive_mode=off", "log_timezone=UTC"]
    for option in [*fixed, "timezone=UTC", "exit_on_error=on", *options]:
        command += ["-c", option]
    return await programs.run(account, [*command, "template1"], input=b"", on_line=on_line, check=False)


async def _prepared_transactions(installation: Installation, account: Account, data: Path) -> int:
    outcome = await programs.run(account, [installation.program("pg_controldata"), "-D", data])
    match = re.search(r"max_prepared_xacts setting:\s+(\d+)", outcome.output)
    return int(match[1]) if match else 0
