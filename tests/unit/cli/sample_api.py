"""The sample API as a process, for tests that need something to call."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

PROGRAM = Path(__file__).resolve().parents[3] / "examples" / "sample_api.py"


@contextmanager
def sample_api() -> Iterator[str]:
    """The API on a free port; its URL."""
    command = [sys.executable, str(PROGRAM), "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            line = process.stdout.readline()
            assert line, "the sample API has ended"
            yield next(word for word in line.replace(",", " ").split() if word.startswith("http://"))
        finally:
            process.terminate()
