"""The sample APIs as processes, for tests that need something to call."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

EXAMPLES = Path(__file__).resolve().parents[3] / "examples"


def sample_api() -> AbstractContextManager[str]:
    """The pet store on a free port; its URL."""
    return _running("sample_api.py")


def panacea_api(access_log: Path, *, pace: float = 0.0) -> AbstractContextManager[str]:
    """The API for simulated users on a free port, which writes its calls to `access_log`; its URL."""
    return _running("panacea_api.py", "--access-log", str(access_log), "--pace", str(pace))


@contextmanager
def _running(program: str, *options: str) -> Iterator[str]:
    command = [sys.executable, str(EXAMPLES / program), "--port", "0", *options]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            line = process.stdout.readline()
            assert line, "the sample API has ended"
            yield next(word for word in line.replace(",", " ").split() if word.startswith("http://"))
        finally:
            process.terminate()
