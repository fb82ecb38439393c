"""What k6 itself says of a script: `k6 inspect`, which runs its init code and reads its options."""

from __future__ import annotations

import asyncio
import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

from opsplane_server.errors import FailedPrecondition, InvalidArgument

_UNITS = {"h": 3600.0, "m": 60.0, "s": 1.0, "ms": 1e-3, "us": 1e-6, "µs": 1e-6, "ns": 1e-9}
_DURATION_PART = re.compile(r"([0-9.]+)(h|ms|m|s|us|µs|ns)")
_LOG_TEXT = re.compile(r'\b(?:msg|error)="((?:[^"\\]|\\.)*)"')
_MAX_MESSAGE = 1000
_MAX_OPTIONS_BYTES = 16 * 1024 * 1024
_MAX_LOG_BYTES = 64 * 1024


@dataclass(frozen=True, slots=True)
class Inspection:
    """A script that k6 accepts: its options as JSON, how many virtual users it takes, and how long at most."""

    options: Mapping[str, Any]
    max_vus: int
    total_duration: timedelta
    teardown_timeout: timedelta | None


async def inspect(
    k6_path: Path, script_path: Path, *, field: str = "script", timeout: timedelta = timedelta(seconds=20)
) -> Inspection:
    """Has k6 load a script without running it.

    Raises InvalidArgument on `field` with k6's message when it does not compile, its options are wrong or its init
    code does not end within `timeout`; FailedPrecondition `K6_MISSING` when k6 cannot be started.
    """
    # Init code is a user's own: it sees nothing of this process's environment but where programs are.
    environment = {key: os.environ[key] for key in ("PATH", "HOME", "TMPDIR") if key in os.environ}
    try:
        process = await asyncio.create_subprocess_exec(
            k6_path,
            "inspect",
            "--execution-requirements",
            "--no-color",
            script_path.name,
            cwd=script_path.parent,
            env={**environment, "K6_NO_USAGE_REPORT": "true"},
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
    except OSError as error:
        raise FailedPrecondition(f"k6 cannot be started: {error.strerror}", reason="K6_MISSING") from error
    try:
        async with asyncio.timeout(timeout.total_seconds()):
            out, err, _ = await asyncio.gather(
                _read(process.stdout, _MAX_OPTIONS_BYTES), _read(process.stderr, _MAX_LOG_BYTES), process.wait()
            )
    except TimeoutError as error:
        problem = f"its init code did not end within {timeout.total_seconds():g} s"
        raise InvalidArgument.of(field, problem, reason="SCRIPT_ERROR") from error
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    if process.returncode != 0:
        problem = message_of(err.decode("utf-8", "replace"), script_path.parent)
        raise InvalidArgument.of(field, problem or "k6 does not accept it", reason="SCRIPT_ERROR")
    try:
        options: dict[str, Any] = json.loads(out)
    except ValueError as error:
        raise InvalidArgument.of(field, "its options are too large", reason="SCRIPT_ERROR") from error
    teardown = options.get("teardownTimeout")
    return Inspection(
        options=options,
        max_vus=int(options.get("maxVUs") or 0),
        total_duration=parse_duration(str(options.get("totalDuration") or "0s")),
        teardown_timeout=parse_duration(teardown) if isinstance(teardown, str) else None,
    )


async def _read(stream: asyncio.StreamReader | None, limit: int) -> bytes:
    """The last `limit` bytes of a stream; init code can write without end."""
    assert stream is not None
    kept = bytearray()
    while chunk := await stream.read(65536):
        kept += chunk
        if len(kept) > 2 * limit:
            del kept[:-limit]
    return bytes(kept[-limit:])


def message_of(stderr: str, folder: Path) -> str:
    """k6's own words for what is wrong, without the paths of the machine."""
    errors = [line for line in stderr.splitlines() if "level=error" in line and "source=console" not in line]
    texts = [_unescape(text) for line in errors for text in _LOG_TEXT.findall(line)] or [stderr]
    message = "\n".join(dict.fromkeys(text.strip() for text in texts))
    for path in (folder.resolve(), folder):
        message = message.replace(f"file://{path}/", "").replace(f"{path}/", "")
    return message[:_MAX_MESSAGE]


def parse_duration(text: str) -> timedelta:
    """A Go duration (`1m30.5s`) as a timedelta."""
    return timedelta(seconds=sum(float(number) * _UNITS[unit] for number, unit in _DURATION_PART.findall(text)))


def _unescape(text: str) -> str:
    try:
        return str(json.loads(f'"{text}"'))
    except ValueError:
        return text
