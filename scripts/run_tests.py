"""Runs the whole suite, in processes side by side; what failed runs once more, by itself.

    python scripts/run_tests.py

The suite starts and kills real servers on machines that may be slow and shared, so a test can fail for want of time. A
test that fails twice fails the suite. One that passes alone is listed as unsteady at the end: that is a fault, of the
test or of what it tests, to be found, and no reason to hold up everything else. When many fail, nothing runs again.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
CACHE = ROOT / "build" / "pytest"
FAILED = CACHE / "v" / "cache" / "lastfailed"

# Tests mostly wait for the servers that they started: two processes fill two cores.
PROCESSES = 2
# More than these are no matter of luck.
MOST_AGAIN = 10
# pytest's exit code when tests have failed; others mean that it could not run them.
TESTS_FAILED = 1


def run(*arguments: str) -> int:
    """Runs pytest and returns its exit code."""
    command = [sys.executable, "-m", "pytest", "-o", f"cache_dir={CACHE}", *arguments]
    return subprocess.run(command, cwd=ROOT, check=False).returncode


def failed() -> list[str]:
    """The tests that failed the last time."""
    return sorted(json.loads(FAILED.read_text(encoding="utf-8"))) if FAILED.exists() else []


def main() -> int:
    """Runs as the module docstring says."""
    FAILED.unlink(missing_ok=True)
    code = run("--numprocesses", str(PROCESSES), "--dist", "loadfile", "--durations", "30")
    first = failed()
    if code != TESTS_FAILED or not 0 < len(first) <= MOST_AGAIN:
        return code
    print(f"\n{len(first)} failed and run again, alone:", *first, sep="\n  ", flush=True)
    code = run("--last-failed")
    again = failed()
    for name in sorted(set(first) - set(again)):
        print(f"UNSTEADY {name}: failed among the others, passed alone")
    return code


if __name__ == "__main__":
    sys.exit(main())
