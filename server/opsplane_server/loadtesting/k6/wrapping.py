"""Runs of whole scripts that a user brings: a module around the script that waits for k6's last metrics."""

from __future__ import annotations

from datetime import timedelta

from opsplane_server.loadtesting.k6.literals import string
from opsplane_server.loadtesting.k6.loads import duration
from opsplane_server.loadtesting.k6.script import FLUSH_WAIT_SECONDS


def wrap(module: str, *, teardown_timeout: timedelta | None = None) -> str:
    """The main module of a run of a user's script, which stands beside it as the file `module` (`script.js`).

    It exports all that the script exports: options, setup, handleSummary and every function that a scenario names
    in `exec`. Its own teardown calls the script's and then waits, even when that one fails. `teardown_timeout` is
    the script's own setting, as `inspect` found it: the wait is added to it.
    """
    options = ""
    if teardown_timeout is not None:
        longer = duration(teardown_timeout + timedelta(seconds=FLUSH_WAIT_SECONDS + 1))
        setting = f"{{ teardownTimeout: {string(longer)} }}"
        options = (
            "\n// The wait below is not the script's own: its limit stays what it was.\n"
            f"export const options = Object.assign({{}}, script.options, {setting});\n"
        )
    path = string(f"./{module}")
    return (
        'import { sleep } from "k6";\n'
        f"import * as script from {path};\n"
        f"export * from {path};\n"
        f"{options}"
        "\n"
        "export default function (data) {\n"
        "  return script.default(data);\n"
        "}\n"
        "\n"
        "// Gives k6 time to send its last metrics.\n"
        "export async function teardown(data) {\n"
        "  try {\n"
        "    if (script.teardown) await script.teardown(data);\n"
        "  } finally {\n"
        f"    sleep({FLUSH_WAIT_SECONDS});\n"
        "  }\n"
        "}\n"
    )
